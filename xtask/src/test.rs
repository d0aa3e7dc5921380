//! Every test with all that it needs.
//!
//! The tests start the servers that they talk to by themselves; cargo builds the binary for them. A test that needs
//! more than that is `#[ignore]`d with what it needs, is set up here, and runs because the ignored ones run too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};

use crate::cargo;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// What the test programs said of themselves.
#[derive(Default)]
struct Sum {
    programs: u32,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Sum {
    /// Adds what a test program's last line says, such as
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let Some(Ok(number)) = words.next().map(str::parse::<u64>) else { continue };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut command = cargo::cargo();
    // All programs run even if one fails: a failure seldom comes alone.
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--include-ignored"]);
    command.args(&options.filter);
    let shown = cargo::shown(&command);
    eprintln!("$ {shown}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {shown}"))?;
    let mut sum = Sum::default();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line)? > 0 {
            std::io::stdout().write_all(&line)?;
            sum.add(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    let status = child.wait()?;
    let Sum { programs, passed, failed, ignored } = sum;
    println!(
        "\ncargo xtask test: {passed} tests passed, {failed} failed, {ignored} ignored, in {programs} test programs \
         and {:.0?}",
        started.elapsed()
    );
    if !status.success() {
        bail!("{shown} failed with {status}");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn results_add_up() {
        let mut sum = Sum::default();
        sum.add("running 3 tests\n");
        sum.add("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s\n");
        sum.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.20s\n");
        assert_eq!((sum.programs, sum.passed, sum.failed, sum.ignored), (2, 13, 2, 1));
    }
}
