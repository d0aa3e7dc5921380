//! `GET /me` with a token, beside a bare server of the same HTTP library that answers the same bytes.

use std::time::Duration;

use crate::bench::Bench;
use crate::bench::http::{Client, Load, request};
use crate::bench::process::Process;
use crate::bench::table::{Row, median, time};
use crate::bench::world::Class;

/// Connections that ask at the same time.
const CONNECTIONS: usize = 64;

pub(crate) fn me(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let database = bench.databases.copy(0)?;
    let server = Process::server(bench, &database.path())?;
    let ask = request("GET", "/me", Some(&Class::ordinary(0).teacher.token()?), "");
    let answer = Client::connect(server.address())?.ask(&ask)?.to_vec();
    let answer = String::from_utf8(answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let reference = Process::reference(&["http", body])?;
    let mut sides = [Side::new(&server, ask.clone())?, Side::new(&reference, ask)?];
    for side in &mut sides {
        side.load.run(bench.seconds(1))?;
    }
    for _ in 0..bench.turns() {
        for side in &mut sides {
            side.turn(bench.seconds(4))?;
        }
    }
    let [figure, reference] = [0, 1].map(|side: usize| median(sides[side].rates.clone()));
    let [own, bare] = [0, 1].map(|side: usize| median(sides[side].costs.clone()));
    let what = "`GET /me` with a token, beside a bare server with a constant answer";
    Ok(vec![
        Row::rate(what, "requests", figure, reference, 0.75),
        Row::new("… processor time of the server for each")
            .figure(time(Duration::from_secs_f64(own)))
            .reference(time(Duration::from_secs_f64(bare)))
            .ratio(own / bare),
    ])
}

/// A server under load.
struct Side<'a> {
    process: &'a Process,
    load: Load,
    /// Answers a second, by turn.
    rates: Vec<f64>,
    /// Seconds of processor time for an answer, by turn.
    costs: Vec<f64>,
}

impl<'a> Side<'a> {
    fn new(process: &'a Process, ask: Vec<u8>) -> anyhow::Result<Self> {
        let load = Load::connect(process.address(), CONNECTIONS, ask)?;
        Ok(Self { process, load, rates: Vec::new(), costs: Vec::new() })
    }

    fn turn(&mut self, length: Duration) -> anyhow::Result<()> {
        let before = self.process.processor_time()?;
        let rate = self.load.run(length)?;
        let used = self.process.processor_time()?.saturating_sub(before);
        self.rates.push(rate);
        self.costs.push(used.as_secs_f64() / (rate * length.as_secs_f64()));
        Ok(())
    }
}
