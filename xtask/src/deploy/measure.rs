//! What a container of the image costs: its start and its memory.

use std::time::Duration;

use anyhow::Context as _;

use super::container::{Rollcall, Volume};
use super::{Deploy, block_on};
use crate::bench;
use crate::bench::process::settled_memory;
use crate::bench::sockets::Sockets;
use crate::bench::world::{Class, Databases, Person, SECRET, STUDENTS};

/// Starts of which the median counts.
const STARTS: usize = 5;

/// How long a start takes on an empty volume, and how much memory a school of 5,000 takes that is not there, and is.
pub(super) fn measure(deploy: &Deploy) -> anyhow::Result<String> {
    let size = deploy.image()?.size as f64 / 1e6;
    let podman = deploy.podman()?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let volume = Volume::new(podman, "rollcall-test-deploy-start")?;
        let rollcall = block_on(Rollcall::start(deploy, &volume.mount(), &[]))?;
        starts.push(rollcall.started_in);
    }
    starts.sort_unstable();
    let start: Duration = starts[STARTS / 2];

    bench::allow_open_files()?;
    let database = Databases::new(&deploy.folder.join("measure"))?.copy(0)?;
    let folder = database.path().parent().context("the database's folder")?.display().to_string();
    // The engine gives the folder to the image's user.
    let data = format!("{folder}:/data:U");
    let secret = format!("JWT_SECRET={SECRET}");
    let rollcall = block_on(Rollcall::start(deploy, &data, &[&secret, "RATE_LIMIT=off"]))?;
    let pid = rollcall.container.pid()?;
    let rest = settled_memory(pid)? as f64 / 1e6;
    let address = rollcall.client.authority().parse().context("the server's address")?;
    let sockets = Sockets::open(address, Class::lecture(STUDENTS).students().map(Person::token), 0)?;
    let full = settled_memory(pid)? as f64 / 1e6;
    let count = sockets.len();
    drop(sockets);

    let start = format!("{:.2} s", start.as_secs_f64());
    deploy.figure("image, as it lies on the disk", format!("{size:.1} MB"));
    deploy.figure("from `run` to ready, on an empty volume", start.clone());
    deploy.figure("memory at rest", format!("{rest:.1} MB"));
    deploy.figure(format!("memory with {count} idle sockets"), format!("{full:.1} MB"));
    Ok(format!("{start} from run to ready; {rest:.1} MB at rest, {full:.1} MB with {count} sockets"))
}
