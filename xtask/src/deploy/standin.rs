//! Images from elsewhere that the Dockerfile and `compose.yaml` name.
//!
//! They are pulled. Where their registry cannot be reached, they are made here, under the same names, from Debian's
//! packages and what this machine has: so the files are tried as they are, by the real programs, if not by the very
//! images.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::tools::output;
use super::{Deploy, unavailable};
use crate::cargo;

/// The release that the stand-ins are made of.
const DEBIAN: &str = "trixie";
/// What one of them or another needs: a C compiler beside the toolchain, the proxy, and what MongoDB and its shell
/// run on.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev,haproxy,libcurl4t64,nodejs";
/// An image of that alone, under all stand-ins.
const BASE: &str = "localhost/rollcall-stand-in:1";
/// The user of MongoDB in its own image.
const MONGO: &str = "999:999";

/// Sees to it that there is this image.
pub(super) fn image(deploy: &Deploy, name: &str) -> anyhow::Result<()> {
    let podman = deploy.podman()?;
    if podman.has_image(name) {
        return Ok(());
    }
    let Err(refused) = podman.ask(&["pull", "--quiet", name]) else { return Ok(()) };
    eprintln!("{name} cannot be pulled, so a stand-in is made");
    let bare = name.rsplit('/').next().unwrap_or(name);
    match bare.split_once(':') {
        Some(("rust", tag)) => rust(deploy, name, tag.split('-').next().unwrap_or(tag)),
        Some(("haproxy", _)) => haproxy(deploy, name),
        Some(("mongo", _)) => mongo(deploy, name),
        _ => Err(unavailable(format!("{name} is neither there nor can it be pulled: {refused:#}"))),
    }
}

/// What `docker.io/library/rust` has: a toolchain, here the one that runs this, and a C compiler.
fn rust(deploy: &Deploy, name: &str, version: &str) -> anyhow::Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let toolchain = PathBuf::from(output(Command::new(rustc).current_dir(cargo::root()).args(["--print", "sysroot"]))?);
    let text = "COPY bin/cargo bin/rustc /usr/local/cargo/bin/\n\
                COPY lib /usr/local/cargo/lib\n\
                ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\\n\
                    CARGO_HOME=/usr/local/cargo\n";
    build(deploy, name, text, &toolchain)?;
    let found = deploy.podman()?.ask(&["run", "--rm", "--network=none", name, "rustc", "--version"]);
    let found = found.map_err(|error| unavailable(format!("containers cannot run here: {error:#}")))?;
    ensure!(found.contains(version), "{name} is wanted, and the toolchain that runs this is {found}");
    Ok(())
}

/// The proxy with the command that its own image has.
fn haproxy(deploy: &Deploy, name: &str) -> anyhow::Result<()> {
    let text = "RUN mkdir -p /usr/local/etc/haproxy\n\
                USER haproxy\n\
                CMD [\"haproxy\", \"-f\", \"/usr/local/etc/haproxy/haproxy.cfg\"]\n";
    build(deploy, name, text, &deploy.folder)
}

/// The MongoDB of the tests and its shell, with users and folders as in its own image.
fn mongo(deploy: &Deploy, name: &str) -> anyhow::Result<()> {
    let mongod = rollcall_testkit::mongo::mongod()?;
    let shell = deploy.tools.npm("mongosh", "2.12.0")?;
    let modules = shell.parent().context("the folder of the shell's modules")?;
    let context = tempfile::tempdir_in(&deploy.folder)?;
    fs::copy(mongod, context.path().join("mongod"))?;
    cargo::run(
        Command::new("cp").args(["--recursive", "--link"]).arg(modules).arg(context.path().join("node_modules")),
    )?;
    let text = format!(
        "COPY mongod /usr/local/bin/mongod\n\
         COPY node_modules /usr/local/lib/node_modules\n\
         RUN ln -s ../lib/node_modules/mongosh/bin/mongosh.js /usr/local/bin/mongosh \\\n\
          && install -d -o {user} -g {user} /data/db /data/configdb\n\
         VOLUME [\"/data/db\", \"/data/configdb\"]\n\
         CMD [\"mongod\"]\n",
        user = MONGO.split(':').next().unwrap_or(MONGO),
    );
    build(deploy, name, &text, context.path())
}

/// Builds a stand-in by these lines of a Dockerfile.
fn build(deploy: &Deploy, name: &str, lines: &str, context: &Path) -> anyhow::Result<()> {
    base(deploy)?;
    let podman = deploy.podman()?;
    let file = deploy.folder.join("Dockerfile.stand-in");
    fs::write(&file, format!("FROM {BASE}\n{lines}"))?;
    let mut build = podman.command();
    build.args(["build", "--quiet", "--pull=never", "--network=none", "--layers=false", "--ignorefile=/dev/null"]);
    build.args(["--tag", name]).arg("--file").arg(&file).arg(context);
    cargo::run(&mut build)
}

/// Sees to it that there is the image under all stand-ins.
fn base(deploy: &Deploy) -> anyhow::Result<()> {
    let podman = deploy.podman()?;
    if podman.has_image(BASE) {
        return Ok(());
    }
    let root = debian(deploy)?;
    let mut tar = Command::new("tar");
    let mut tar = tar.arg("--create").arg("--directory").arg(&root).arg(".").stdout(Stdio::piped()).spawn()?;
    let mut import = podman.command();
    import.args(["import", "--quiet", "-", BASE]).stdin(tar.stdout.take().context("what tar writes")?);
    let imported = output(&mut import);
    ensure!(tar.wait()?.success(), "{} cannot be packed", root.display());
    imported?;
    fs::remove_dir_all(root)?;
    Ok(())
}

/// A Debian of its own in a folder, as `debootstrap` makes it.
fn debian(deploy: &Deploy) -> anyhow::Result<PathBuf> {
    let root = deploy.folder.join(DEBIAN);
    let debootstrap = deploy.tools.installed("debootstrap", &["debootstrap"])?;
    if !rustix::process::geteuid().is_root() {
        return Err(unavailable("only root can make an image where none can be pulled"));
    }
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let mut command = Command::new(debootstrap);
    command.args(["--variant=minbase", &format!("--include={PACKAGES}"), DEBIAN]).arg(&root);
    eprintln!("$ {}", cargo::shown(&command));
    output(&mut command).map_err(|error| unavailable(format!("no Debian can be fetched: {error:#}")))?;
    for used_up in ["var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"] {
        fs::remove_dir_all(root.join(used_up)).with_context(|| format!("cannot clear {used_up}"))?;
    }
    Ok(root)
}
