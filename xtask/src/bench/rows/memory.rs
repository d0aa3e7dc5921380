//! Memory of idle connections, beside bare sockets of the same library.

use crate::bench::Bench;
use crate::bench::http::{Client, request};
use crate::bench::process::Process;
use crate::bench::sockets::Sockets;
use crate::bench::table::{Row, count};
use crate::bench::world::{Class, Person, STUDENTS};

/// The most bytes that an idle connection may cost.
const MOST: f64 = 8.0 * 1024.0;

pub(crate) fn memory(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let database = bench.databases.copy(0)?;
    let server = Process::server(bench, &database.path())?;
    let class = Class::lecture(STUDENTS);
    Client::connect(server.address())?.ask(&request("GET", "/me", Some(&class.teacher.token()?), ""))?;
    let figure = per_socket(&server, class.students().map(Person::token))?;
    let reference = per_socket(&Process::reference(&["sockets"])?, class.students().map(|_| Ok(String::new())))?;
    let what = format!("memory of each of {} idle connections, beside bare sockets", count(STUDENTS as f64));
    Ok(vec![
        Row::new(what)
            .figure(format!("{} bytes", count(figure)))
            .reference(format!("{} bytes", count(reference)))
            .ratio(figure / reference)
            .target(format!("≤ {}", count(MOST)), figure <= MOST),
    ])
}

fn per_socket(process: &Process, tokens: impl Iterator<Item = anyhow::Result<String>>) -> anyhow::Result<f64> {
    let before = process.settled_memory()?;
    let sockets = Sockets::open(process.address(), tokens, 0)?;
    let after = process.settled_memory()?;
    Ok(after.saturating_sub(before) as f64 / sockets.len() as f64)
}
