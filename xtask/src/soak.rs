//! The tests that find more the longer they run: the server killed at random moments, histories of people who take
//! attendance while replicas come and go, and random lives of sessions.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cargo;

/// Crash rounds of one run of the test program.
const CRASH_ROUNDS: u32 = 50;
/// Histories of one run of the test program.
const SEEDS: u32 = 10;
/// Cases of each property test in one run.
const CASES: u32 = 5_000;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many crash rounds at most
    #[arg(long, default_value_t = 500)]
    rounds: u32,
    /// How many histories at most, of 20 seconds or of `ROLLCALL_HISTORY_SECONDS` each
    #[arg(long, default_value_t = 100)]
    seeds: u32,
    /// How many minutes at most; what has begun is finished
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let limit = Duration::from_secs(options.minutes * 60);
    let (mut rounds_done, mut seeds_done) = (0, 0);
    while rounds_done < options.rounds || seeds_done < options.seeds {
        if (rounds_done, seeds_done) != (0, 0) && started.elapsed() >= limit {
            break;
        }
        let rounds = CRASH_ROUNDS.min(options.rounds - rounds_done);
        if rounds > 0 {
            cargo::run(test("rollcall", Some("crash")).env("ROLLCALL_CRASH_ROUNDS", rounds.to_string()))?;
            cargo::run(test("rollcall-core", None).env("PROPTEST_CASES", CASES.to_string()))?;
            rounds_done += rounds;
        }
        let seeds = SEEDS.min(options.seeds - seeds_done);
        if seeds > 0 {
            cargo::run(test("rollcall", Some("history")).env("ROLLCALL_HISTORY_SEEDS", seeds.to_string()))?;
            seeds_done += seeds;
        }
    }
    println!(
        "\ncargo xtask soak: {rounds_done} crash rounds and {seeds_done} histories in {:.0?}, nothing found",
        started.elapsed()
    );
    Ok(())
}

/// All tests of a package, or of one of its test programs.
fn test(package: &str, program: Option<&str>) -> Command {
    let mut command = cargo::cargo();
    command.args(["test", "--package", package]);
    command.args(program.into_iter().flat_map(|program| ["--test", program]));
    command.args(["--", "--include-ignored"]);
    command
}
