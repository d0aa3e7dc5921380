//! The tests that find more the longer they run: the server killed at random moments, and random lives of sessions.

use std::time::{Duration, Instant};

use crate::cargo;

/// Crash rounds of one run of the test program.
const CRASH_ROUNDS: u32 = 50;
/// Cases of each property test in one run.
const CASES: u32 = 5_000;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many crash rounds at most
    #[arg(long, default_value_t = 500)]
    rounds: u32,
    /// How many minutes at most; what has begun is finished
    #[arg(long, default_value_t = 60)]
    minutes: u64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let limit = Duration::from_secs(options.minutes * 60);
    let mut done = 0;
    while done < options.rounds && (done == 0 || started.elapsed() < limit) {
        let rounds = CRASH_ROUNDS.min(options.rounds - done);
        cargo::run(cargo::cargo().env("ROLLCALL_CRASH_ROUNDS", rounds.to_string()).args([
            "test",
            "--package",
            "rollcall",
            "--test",
            "crash",
            "--",
            "--include-ignored",
        ]))?;
        cargo::run(cargo::cargo().env("PROPTEST_CASES", CASES.to_string()).args([
            "test",
            "--package",
            "rollcall-core",
            "--",
            "--include-ignored",
        ]))?;
        done += rounds;
    }
    println!("\ncargo xtask soak: {done} crash rounds in {:.0?}, nothing found", started.elapsed());
    Ok(())
}
