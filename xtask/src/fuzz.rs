//! The fuzz targets, for a given time.

use std::process::Command;

use anyhow::Context as _;

use crate::cargo;

/// The targets in `fuzz/fuzz_targets`; each has its seeds in `fuzz/corpus`.
const TARGETS: [&str; 2] = ["frames", "bodies"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which target; without, all of them
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    for target in TARGETS {
        if options.target.as_ref().is_some_and(|wanted| wanted != target) {
            continue;
        }
        // New finds go to a folder of their own: what the repository keeps is chosen by hand.
        let finds = cargo::root().join("target/fuzz").join(target);
        std::fs::create_dir_all(&finds).with_context(|| format!("cannot make {}", finds.display()))?;
        cargo::run(
            Command::new("rustup")
                .current_dir(cargo::root())
                .env_remove("CARGO")
                .args(["run", "nightly", "cargo", "fuzz", "run", target])
                .arg(finds.canonicalize()?)
                .arg(cargo::root().join("fuzz/corpus").join(target).canonicalize()?)
                .args([
                    "--",
                    &format!("-max_total_time={}", options.seconds),
                    "-max_len=20000",
                    "-print_final_stats=1",
                ]),
        )?;
    }
    Ok(())
}
