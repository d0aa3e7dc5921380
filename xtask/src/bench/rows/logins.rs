//! Logins while others use the server, beside bare bcrypt on all cores.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde_json::json;

use crate::bench::Bench;
use crate::bench::http::{Client, Load, request};
use crate::bench::process::{Process, figure};
use crate::bench::table::{Row, median, percentile, time};
use crate::bench::world::{Class, PASSWORD};

/// People who log in at the same time, over and over.
const PEOPLE: usize = 16;
/// How often somebody else asks for `/me` meanwhile.
const EVERY: Duration = Duration::from_millis(10);

pub(crate) fn logins(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let database = bench.databases.copy(0)?;
    let server = Process::server(bench, &database.path())?;
    let body = json!({"email": Class::ordinary(0).teacher.email(), "password": PASSWORD}).to_string();
    let mut people = Load::connect(server.address(), PEOPLE, request("POST", "/login", None, &body))?;
    let ask = request("GET", "/me", Some(&Class::ordinary(1).teacher.token()?), "");
    let length = bench.seconds(6);
    let mut rates = [Vec::new(), Vec::new()];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..bench.turns() {
        times[1].extend(while_working(server.address(), &ask, || std::thread::sleep(length / 4))?.1);
        let (rate, during) = while_working(server.address(), &ask, || people.run(length))?;
        rates[0].push(rate?);
        times[0].extend(during);
        rates[1].push(figure(&["bcrypt", &length.as_millis().to_string()])?);
    }
    let [rate, reference] = rates.map(median);
    let [during, before] = times.map(|times| percentile(&times, 0.99));
    Ok(vec![
        Row::rate("logins, beside bare bcrypt of the same cost on all cores", "logins", rate, reference, 0.9),
        Row::new("… 99th percentile of `GET /me` meanwhile, beside without logins")
            .figure(time(during))
            .reference(time(before))
            .target("< 50 ms", during < Duration::from_millis(50)),
    ])
}

/// Asks again and again while `work` goes on; what came of the work, and how long each answer took.
fn while_working<T>(address: SocketAddr, ask: &[u8], work: impl FnOnce() -> T) -> anyhow::Result<(T, Vec<Duration>)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut client = Client::connect(address)?;
            let mut times = Vec::new();
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                client.ask(ask)?;
                // From when it was due: an answer that delays the next question counts against that as well.
                times.push(next.elapsed());
                next += EVERY;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok::<_, anyhow::Error>(times)
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let times = asking.join().map_err(|_| anyhow!("the one who asks panicked"))??;
        Ok((done, times))
    })
}
