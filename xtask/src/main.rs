//! `cargo xtask …`: what is done with this repository beside building it.
//!
//! * [`test`]: every test with all that it needs.
//! * [`soak`]: the tests that find more the longer they run.
//! * [`fuzz`]: the fuzz targets, for a given time.
//! * [`release_notes`]: what is new in a version.
//! * [`bench`]: how fast Rollcall is, each figure beside a reference of the same run.
//! * [`deploy`]: the image, the manifests and the workflows, tried or validated.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool says what it does")]

mod bench;
mod cargo;
mod deploy;
mod fuzz;
mod record;
mod release_notes;
mod soak;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tests, benchmarks and checks of Rollcall")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test, the slow ones included
    Test(test::Options),
    /// Run what finds more the longer it runs: the crash test and the property tests, over and over
    Soak(soak::Options),
    /// Run the fuzz targets (needs a nightly toolchain and cargo-fuzz)
    Fuzz(fuzz::Options),
    /// Measure, and print one table in which every figure stands beside its reference
    Bench(bench::Options),
    /// Build the image, run it, and try or validate all that is there to deploy it; ends with a table of the steps
    TestDeploy(deploy::Options),
    /// Print what is new in a version: its section of the changelog
    ReleaseNotes(release_notes::Options),
    /// What `bench` measures beside the server, as a process of its own
    #[command(hide = true)]
    BenchReference(bench::reference::Options),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::TestDeploy(options) => deploy::run(&options),
        Task::ReleaseNotes(options) => release_notes::run(&options),
        Task::BenchReference(options) => bench::reference::run(options),
    }
}
