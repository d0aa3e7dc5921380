//! Durable marks from 64 teachers at once, beside the same group commit fed directly.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::ensure;

use crate::bench::Bench;
use crate::bench::process::{Process, figure};
use crate::bench::sockets::Sockets;
use crate::bench::table::{Row, median};
use crate::bench::world::{Class, TEACHERS};

use super::{mark_frames, start_session};

pub(crate) fn marks(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    Ok(vec![measure(bench, 1, 1_000, 0.25)?, measure(bench, 32, 4_000, 0.5)?])
}

fn measure(bench: &Bench, in_flight: usize, marks: usize, share: f64) -> anyhow::Result<Row> {
    let marks = bench.amount(marks);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..bench.turns() {
        let database = bench.databases.copy(0)?;
        let server = Process::server(bench, &database.path())?;
        rates[0].push(over_sockets(server.address(), in_flight, marks)?);
        drop(server);
        let database = bench.databases.copy(0)?;
        let database = database.path();
        rates[1].push(figure(&["store", &database.to_string_lossy(), &in_flight.to_string(), &marks.to_string()])?);
    }
    let [figure, reference] = rates.map(median);
    let what = format!(
        "durable marks from {TEACHERS} teachers, {in_flight} of each on the way, beside the store's group commit fed \
         directly"
    );
    Ok(Row::rate(what, "marks", figure, reference, share))
}

/// Every teacher sends so many marks and hears each before the one that is `in_flight` later; marks a second.
pub(super) fn over_sockets(server: SocketAddr, in_flight: usize, marks: usize) -> anyhow::Result<f64> {
    let classes: Vec<_> = (0..TEACHERS).map(Class::ordinary).collect();
    for class in &classes {
        start_session(server, *class)?;
    }
    let tokens = classes.iter().map(|class| class.teacher.token());
    let mut sockets = Sockets::open(server, tokens, TEACHERS)?;
    let frames: Vec<Vec<Vec<u8>>> = classes.iter().map(|class| mark_frames(*class).take(marks).collect()).collect();
    let started = Instant::now();
    let mut sent = vec![in_flight.min(marks); TEACHERS];
    let mut heard = vec![0; TEACHERS];
    for (teacher, frames) in frames.iter().enumerate() {
        sockets.send(teacher, &frames[..sent[teacher]].concat())?;
    }
    while heard.iter().any(|heard| *heard < marks) {
        for (teacher, texts) in sockets.hear()?.to_vec() {
            heard[teacher] += usize::try_from(texts)?;
            ensure!(heard[teacher] <= sent[teacher], "more was heard than was said");
            let until = (heard[teacher] + in_flight).min(marks);
            if until > sent[teacher] {
                sockets.send(teacher, &frames[teacher][sent[teacher]..until].concat())?;
                sent[teacher] = until;
            }
        }
    }
    Ok((TEACHERS * marks) as f64 / started.elapsed().as_secs_f64())
}
