//! Certificates from a real ACME server.

use super::Deploy;
use crate::cargo;

/// The tests of ACME against `pebble`, the small one of Let's Encrypt.
pub(super) fn pebble(deploy: &Deploy) -> anyhow::Result<String> {
    let programs = deploy.tools.debian("pebble")?.join("usr/bin");
    let mut test = cargo::cargo();
    test.args(["test", "--package", "rollcall", "--test", "acme", "--", "--include-ignored"]);
    cargo::run(test.env("ROLLCALL_TEST_PEBBLE", programs))?;
    Ok("certificates ordered from pebble".to_owned())
}
