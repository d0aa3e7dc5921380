//! What Rollcall makes of MongoDB, beside the bare driver on the same server.

use std::time::Duration;

use anyhow::Context as _;
use rollcall_testkit::mongo::mongodb::bson::{Bson, Document};

use crate::bench::Bench;
use crate::bench::process::figure;
use crate::bench::sockets::Sockets;
use crate::bench::table::{Row, count, median, percentile, time};
use crate::bench::world::{CLASS_SIZE, Class, TEACHERS};

use super::marks::over_sockets;
use super::{end_session, mark_frames, start_session};

/// Durable marks from 64 teachers at once.
pub(crate) fn marks(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    // Everybody in the class four times: about what a long session has.
    let marks = bench.amount(4 * CLASS_SIZE);
    let mut rates = [Vec::new(), Vec::new()];
    let mongo = bench.mongo()?;
    for _ in 0..2 * bench.turns() {
        let school = mongo.school(bench)?;
        let server = school.replica(bench)?;
        rates[0].push(over_sockets(server.address(), 1, marks)?);
        drop((server, school));
        rates[1].push(bare_updates(&mongo.scratch(), TEACHERS, TEACHERS, marks)?);
    }
    let [figure, reference] = rates.map(median);
    let what = format!(
        "durable marks over MongoDB from {TEACHERS} teachers, 1 of each on the way, beside as many updates by the bare \
         driver"
    );
    Ok(vec![Row::rate(what, "marks", figure, reference, 0.8)])
}

/// 1,000 marks at the same moment in one session.
pub(crate) fn rush(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    const MARKS: usize = 1_000;
    let mut times = [Vec::new(), Vec::new()];
    let mongo = bench.mongo()?;
    for _ in 0..bench.turns() {
        let school = mongo.school(bench)?;
        let server = school.replica(bench)?;
        let class = Class::lecture(MARKS);
        start_session(server.address(), class)?;
        let mut teacher = Sockets::open(server.address(), [class.teacher.token()], 1)?;
        let mut frames = mark_frames(class);
        // As the driver of the reference has its connections.
        teacher.round(&frames.next().context("a mark")?, 1)?;
        let frames: Vec<_> = frames.take(MARKS).collect();
        times[0].push(teacher.round(&frames.concat(), MARKS as u64)?);
        drop((server, school));
        let rate = bare_updates(&mongo.scratch(), MARKS, 1, 1)?;
        times[1].push(Duration::from_secs_f64(MARKS as f64 / rate));
    }
    let [figure, reference] = times.map(|times| percentile(&times, 0.5));
    Ok(vec![
        Row::new("1,000 marks at the same moment in one session over MongoDB, beside bare updates of one document")
            .figure(time(figure))
            .reference(time(reference))
            .ratio(figure.as_secs_f64() / reference.as_secs_f64())
            .target("faster", figure < reference),
    ])
}

/// Marks in a session whose document has grown long.
pub(crate) fn long_log(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let school = bench.mongo()?.school(bench)?;
    let server = school.replica(bench)?;
    let class = Class::lecture(1_000);
    start_session(server.address(), class)?;
    let mut teacher = Sockets::open(server.address(), [class.teacher.token()], 1)?;
    let mut frames = mark_frames(class);
    let mut length = 1;
    let mut rows: Vec<Row> = Vec::new();
    let mut first = Duration::ZERO;
    for until in [100, 1_000, 10_000, 19_000] {
        let filling: Vec<_> = frames.by_ref().take(until - length).collect();
        for burst in filling.chunks(500) {
            teacher.round(&burst.concat(), burst.len() as u64)?;
        }
        let marks: Vec<_> = frames.by_ref().take(bench.amount(200)).collect();
        length = until + marks.len();
        let times = marks.iter().map(|frame| teacher.round(frame, 1)).collect::<anyhow::Result<Vec<_>>>()?;
        let median = percentile(&times, 0.5);
        if rows.is_empty() {
            first = median;
        }
        let what = format!("a mark over MongoDB in a session with {} entries, beside with 100", count(until as f64));
        let ratio = median.as_secs_f64() / first.as_secs_f64();
        rows.push(Row::new(what).figure(time(median)).reference(time(first)).ratio(ratio));
    }
    Ok(rows.split_off(1))
}

/// Updates a second by so many tasks, each so many, of so many documents.
fn bare_updates(url: &str, tasks: usize, documents: usize, updates: usize) -> anyhow::Result<f64> {
    let [tasks, documents, updates] = [tasks, documents, updates].map(|number| number.to_string());
    figure(&["mongo-updates", url, &tasks, &documents, &updates])
}

/// What a school and its history take in MongoDB.
pub(crate) fn size(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let school = bench.mongo()?.school(bench)?;
    let server = school.replica(bench)?;
    for _ in 0..bench.turns() {
        over_sockets(server.address(), 1, CLASS_SIZE)?;
        for class in (0..TEACHERS).map(Class::ordinary) {
            end_session(&mut Sockets::open(server.address(), [class.teacher.token()], 1)?)?;
        }
    }
    let row = |what: String, collection: &str| {
        let statistics = school.statistics(collection)?;
        let [documents, bytes, stored, indexes] =
            ["count", "size", "storageSize", "totalIndexSize"].map(|field| number(&statistics, field));
        let each = |bytes: f64| count(bytes / documents.max(1.0));
        let [bytes, stored, indexes] = [each(bytes), each(stored), each(indexes)];
        let what = format!("room in MongoDB for a {what}, mean of {}", count(documents));
        Ok(Row::new(what).figure(format!("{bytes} bytes; {stored} in the file, {indexes} of indexes")))
    };
    vec![
        row("user".to_owned(), "users"),
        row("class with its students, most of them 50".to_owned(), "classes"),
        row(format!("finished session in which {CLASS_SIZE} were marked"), "sessions"),
        row("record".to_owned(), "attendance_records"),
    ]
    .into_iter()
    .collect()
}

fn number(document: &Document, field: &str) -> f64 {
    match document.get(field) {
        Some(Bson::Int32(number)) => f64::from(*number),
        Some(Bson::Int64(number)) => *number as f64,
        Some(Bson::Double(number)) => *number,
        _ => 0.0,
    }
}
