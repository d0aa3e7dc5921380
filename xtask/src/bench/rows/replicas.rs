//! Two replicas over MongoDB: how a mark crosses from one to the other, and what it means to lose one.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;

use crate::bench::Bench;
use crate::bench::mongo::Mongo;
use crate::bench::process::{Process, figures};
use crate::bench::sockets::Sockets;
use crate::bench::table::{Row, count, median, percentile, time};
use crate::bench::world::{CLASS_SIZE, Class, Person, TEACHERS};

use super::marks::over_sockets;
use super::start::first_answer;
use super::{mark_frames, start_session};

/// Students on the replica that is lost.
const ON_THE_LOST: usize = 1_000;
/// Marks that they miss.
const MISSED: usize = 10;

/// A mark on one replica, heard on the other.
pub(crate) fn across(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let marks = bench.amount(250);
    let mut times = [Vec::new(), Vec::new()];
    let mongo = bench.mongo()?;
    for _ in 0..bench.turns() {
        let school = mongo.school(bench)?;
        let replicas = [school.replica(bench)?, school.replica(bench)?];
        let class = Class::ordinary(0);
        start_session(replicas[0].address(), class)?;
        let mut teacher = Sockets::open(replicas[0].address(), [class.teacher.token()], 1)?;
        let mut students = Sockets::open(replicas[1].address(), class.students().map(Person::token), 0)?;
        for (number, frame) in mark_frames(class).take(marks + 10).enumerate() {
            let started = Instant::now();
            teacher.send(0, &frame)?;
            students.hear_all(1)?;
            // The first few find nothing in memory yet.
            if number >= 10 {
                times[0].push(started.elapsed());
            }
            teacher.hear_all(1)?;
        }
        drop((replicas, school));
        let bare = figures(&["mongo-stream", &mongo.scratch(), &marks.to_string()])?;
        times[1].extend(bare.into_iter().map(Duration::from_secs_f64));
    }
    let row = |what: String, share| {
        let [figure, reference] = [0, 1].map(|side: usize| percentile(&times[side], share));
        let ratio = figure.as_secs_f64() / reference.as_secs_f64();
        Row::new(what).figure(time(figure)).reference(time(reference)).ratio(ratio).target("≤ 200 %", ratio <= 2.0)
    };
    Ok(vec![
        row(
            format!(
                "a mark on one replica until the last of {CLASS_SIZE} students on another heard it, median, beside an \
                 update and the bare change stream"
            ),
            0.5,
        ),
        row("… 99th percentile".to_owned(), 0.99),
    ])
}

/// What it costs that every replica hears of every mark.
pub(crate) fn follow(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let marks = bench.amount(4 * CLASS_SIZE);
    let (mut following, mut database) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mongo = bench.mongo()?;
    for _ in 0..bench.turns() {
        for with_another in [true, false] {
            let school = mongo.school(bench)?;
            let server = school.replica(bench)?;
            let other = if with_another { Some(school.replica(bench)?) } else { None };
            let used = || other.as_ref().map_or(Ok(Duration::ZERO), Process::processor_time);
            let before = (mongo.processor_time()?, used()?);
            over_sockets(server.address(), 1, marks)?;
            let after = (mongo.processor_time()?, used()?);
            let each = |used: Duration| used.as_secs_f64() / (TEACHERS * marks) as f64;
            database[usize::from(!with_another)].push(each(after.0.saturating_sub(before.0)));
            if with_another {
                following.push(each(after.1.saturating_sub(before.1)));
            }
        }
    }
    let [with, without] = database.map(median);
    let seconds = |seconds| time(Duration::from_secs_f64(seconds));
    Ok(vec![
        Row::new("processor time of a replica for each mark that is made on another, with nobody to hear it")
            .figure(seconds(median(following))),
        Row::new("… of MongoDB for each mark of 64 teachers, with two replicas, beside with one")
            .figure(seconds(with))
            .reference(seconds(without))
            .ratio(with / without),
    ])
}

/// A replica starts, and one is killed.
pub(crate) fn loss(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (mut starts, mut first, mut last) = (Vec::new(), Vec::new(), Vec::new());
    let students = bench.amount(ON_THE_LOST);
    // As in earnest: a read that has to be the newest waits for a majority.
    let mongo = Mongo::start(3)?;
    for _ in 0..bench.turns() {
        let school = mongo.school(bench)?;
        let killed = school.replica(bench)?;
        let started = Instant::now();
        let other = school.replica(bench)?;
        starts.push(first_answer(started, &other, "/health/ready")?);
        let class = Class::lecture(ON_THE_LOST);
        start_session(other.address(), class)?;
        let mut teacher = Sockets::open(other.address(), [class.teacher.token()], 1)?;
        let mut hearers = Sockets::open(killed.address(), class.students().take(students).map(Person::token), 0)?;
        let mut frames = mark_frames(class);
        teacher.round(&frames.next().context("a mark")?, 1)?;
        hearers.hear_all(1)?;
        let revision = revision(teacher.last_text(0))?;
        let since = Instant::now();
        drop(killed);
        teacher.round(&frames.take(MISSED).collect::<Vec<_>>().concat(), MISSED as u64)?;
        let missing = |person: Person| Ok(format!("{}&since={}:{revision}", person.token()?, class.id));
        let mut people = class.students().take(students);
        let mut one = Sockets::open(other.address(), people.by_ref().take(1).map(missing), 0)?;
        one.hear_all(MISSED as u64)?;
        first.push(since.elapsed());
        let mut others = Sockets::open(other.address(), people.map(missing), 0)?;
        others.hear_all(MISSED as u64)?;
        last.push(since.elapsed());
    }
    let row = |what: String, times: &[Duration]| Row::new(what).figure(time(percentile(times, 0.5)));
    Ok(vec![
        row("start of a replica to its first answer, over MongoDB".to_owned(), &starts),
        row(
            format!("a replica is killed and {MISSED} marks are made: until one of its students has them from another"),
            &first,
        ),
        row(format!("… until all {} have, who come one after another", count(students as f64)), &last),
    ])
}

/// The revision that a frame tells.
fn revision(frame: &[u8]) -> anyhow::Result<u64> {
    let frame: Value = serde_json::from_slice(frame)?;
    frame["data"]["revision"].as_u64().context("a frame without a revision")
}
