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
    let [figure, reference, own, bare] = compare(bench, [&server, &reference], &ask)?;
    let what = "`GET /me` with a token, beside a bare server with a constant answer";
    Ok(vec![Row::rate(what, "requests", figure, reference, 0.75), cost_row(own, bare)])
}

/// The same over MongoDB, beside the embedded store.
pub(crate) fn me_over_mongo(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let school = bench.mongo()?.school(bench)?;
    let database = bench.databases.copy(0)?;
    let (server, reference) = (school.replica(bench)?, Process::server(bench, &database.path())?);
    let ask = request("GET", "/me", Some(&Class::ordinary(0).teacher.token()?), "");
    let [figure, reference, own, bare] = compare(bench, [&server, &reference], &ask)?;
    let what = "`GET /me` over MongoDB, beside the embedded store";
    Ok(vec![Row::rate(what, "requests", figure, reference, 0.9), cost_row(own, bare)])
}

fn cost_row(own: f64, reference: f64) -> Row {
    Row::new("… processor time of the server for each")
        .figure(time(Duration::from_secs_f64(own)))
        .reference(time(Duration::from_secs_f64(reference)))
        .ratio(own / reference)
}

/// Requests a second of both in turn, and what each costs them.
fn compare(bench: &Bench, sides: [&Process; 2], ask: &[u8]) -> anyhow::Result<[f64; 4]> {
    let [figure, reference] = sides;
    let mut sides = [Side::new(figure, ask.to_vec())?, Side::new(reference, ask.to_vec())?];
    for side in &mut sides {
        side.load.run(bench.seconds(1))?;
    }
    for _ in 0..bench.turns() {
        for side in &mut sides {
            side.turn(bench.seconds(4))?;
        }
    }
    let [rate, reference] = sides.each_ref().map(|side| median(side.rates.clone()));
    let [own, bare] = sides.each_ref().map(|side| median(side.costs.clone()));
    Ok([rate, reference, own, bare])
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
