//! Every test with all that it needs.
//!
//! The tests start the servers that they talk to by themselves; cargo builds the binary for them. A test that needs
//! more than that is `#[ignore]`d with what it needs, is set up here, and runs because the ignored ones run too.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use rollcall_testkit::mongo::ReplicaSet;
use rollcall_testkit::server::{MONGODB, REPLICAS};

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

/// The parts of the contract suite that hold wherever the data is and however many replicas there are. The others are
/// about one process and its files.
const CONTRACT: [&str; 15] = [
    "account::",
    "class::",
    "history::",
    "isolation::",
    "mail::",
    "mark::",
    "matrix::who",
    "membership::",
    "record::",
    "repeat::",
    "session::",
    "since::",
    "student::",
    "token::",
    "order::a_student",
];

/// Tests that `cargo xtask test-deploy` sets up and runs.
const ELSEWHERE: [&str; 1] = ["pebble::"];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut sum = Sum::default();
    let mut command = cargo::cargo();
    // All programs run even if one fails: a failure seldom comes alone.
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--include-ignored"]);
    command.args(ELSEWHERE.map(|name| format!("--skip={name}")));
    command.args(&options.filter);
    let mut failures = run_tests(command, &mut sum)?;
    if options.filter.is_none() {
        failures.extend(contract_on_mongodb(&mut sum)?);
    }
    let Sum { programs, passed, failed, ignored } = sum;
    println!(
        "\ncargo xtask test: {passed} tests passed, {failed} failed, {ignored} ignored, in {programs} test programs \
         and {:.0?}",
        started.elapsed()
    );
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// The contract suite again, over MongoDB: one replica, and three with every client at another one.
fn contract_on_mongodb(sum: &mut Sum) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mongodb = runtime.block_on(ReplicaSet::start(1)).context("a MongoDB to test with")?;
    let mut failures = Vec::new();
    for replicas in ["1", "3"] {
        eprintln!("the contract over {replicas} on MongoDB");
        let mut command = cargo::cargo();
        command.args(["test", "--package", "rollcall", "--test", "contract", "--", "--include-ignored"]).args(CONTRACT);
        command.env(MONGODB, mongodb.url("{database}")).env(REPLICAS, replicas);
        failures.extend(run_tests(command, sum)?);
    }
    Ok(failures)
}

/// Runs the tests and passes on what they print. Answers with what failed, if something did.
fn run_tests(mut command: Command, sum: &mut Sum) -> anyhow::Result<Vec<String>> {
    let shown = cargo::shown(&command);
    eprintln!("$ {shown}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {shown}"))?;
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
    Ok(if status.success() { Vec::new() } else { vec![format!("{shown} failed with {status}")] })
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
