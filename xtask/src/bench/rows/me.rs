//! `GET /me` with a token, beside a bare server of the same HTTP library that answers the same bytes.

use crate::bench::Bench;
use crate::bench::http::{Client, Load, request};
use crate::bench::process::Process;
use crate::bench::table::{Row, median};
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
    let mut sides = [
        Load::connect(server.address(), CONNECTIONS, ask.clone())?,
        Load::connect(reference.address(), CONNECTIONS, ask)?,
    ];
    let mut rates = [Vec::new(), Vec::new()];
    for side in &mut sides {
        side.run(bench.seconds(1))?;
    }
    for _ in 0..bench.turns() {
        for (side, rates) in sides.iter_mut().zip(&mut rates) {
            rates.push(side.run(bench.seconds(4))?);
        }
    }
    let [figure, reference] = rates.map(median);
    let what = "`GET /me` with a token, beside a bare server with a constant answer";
    Ok(vec![Row::rate(what, "requests", figure, reference, 0.75)])
}
