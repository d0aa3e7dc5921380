//! Python packages that tests need, obtained once into the folder of what is built.

use std::fs::{File, create_dir_all, rename};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rustix::fs::{FlockOperation, flock};

/// The folder `name` with these packages, each as a line `package==version --hash=sha256:…`, obtained if it is not
/// there yet. `of` says of which Python and which system their files are, where they are not for this one.
pub(crate) fn packages(name: &str, requirements: &str, of: &[&str]) -> anyhow::Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    create_dir_all(&target)?;
    // One process obtains them, the others wait.
    let lock = File::create(target.join(format!("{name}.lock")))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let folder = target.join(name);
    if !folder.exists() {
        download(&target, requirements, of, &folder)?;
    }
    Ok(folder)
}

fn download(target: &Path, requirements: &str, of: &[&str], folder: &Path) -> anyhow::Result<()> {
    let part = tempfile::tempdir_in(target)?;
    let wanted = part.path().join("requirements.txt");
    std::fs::write(&wanted, requirements)?;
    let packages = part.path().join("packages");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--require-hashes", "--target"]).arg(&packages).arg("--requirement").arg(&wanted).args(of);
    let output = pip.output().context("python3 with pip")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    rename(&packages, folder)?;
    Ok(())
}
