//! Marks heard by a full lecture hall, beside a bare loop of the same socket library that writes the same frames.

use std::time::Duration;

use crate::bench::Bench;
use crate::bench::process::Process;
use crate::bench::sockets::{Sockets, text_frame};
use crate::bench::table::{Row, count, median, per_second, percentile, time};
use crate::bench::world::{Class, Database};

use super::{mark_frames, start_session};

/// Marks in a burst.
const BURST: usize = 50;

/// A server or a reference with everybody connected; the first socket is the teacher's.
struct Side {
    process: Process,
    _database: Option<Database>,
    sockets: Sockets,
}

impl Side {
    fn server(bench: &Bench, class: Class) -> anyhow::Result<Self> {
        let database = bench.databases.copy(0)?;
        let process = Process::server(bench, &database.path())?;
        start_session(process.address(), class)?;
        let people = std::iter::once(class.teacher).chain(class.students());
        let sockets = Sockets::open(process.address(), people.map(crate::bench::world::Person::token), 1)?;
        Ok(Self { process, _database: Some(database), sockets })
    }

    fn reference(students: usize) -> anyhow::Result<Self> {
        let process = Process::reference(&["sockets"])?;
        let sockets = Sockets::open(process.address(), (0..=students).map(|_| Ok(String::new())), 1)?;
        Ok(Self { process, _database: None, sockets })
    }

    /// Frames that reach everybody, one after another; how long each took to the last.
    fn one_by_one(&mut self, frames: impl Iterator<Item = Vec<u8>>) -> anyhow::Result<Vec<Duration>> {
        frames.map(|frame| self.sockets.round(&frame, 1)).collect()
    }

    /// Frames that reach everybody, all sent at once; how long it took to the last.
    fn at_once(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<Duration> {
        self.sockets.round(&frames.concat(), frames.len() as u64)
    }
}

/// The two sides, and what each is sent.
struct Hall {
    server: Side,
    reference: Side,
    class: Class,
    sent: usize,
    /// What the server made of a mark: the reference writes the same.
    heard: Vec<u8>,
}

impl Hall {
    fn open(bench: &Bench, students: usize) -> anyhow::Result<Self> {
        let class = Class::lecture(students);
        let mut server = Side::server(bench, class)?;
        let mut reference = Side::reference(students)?;
        let warm_up = 5;
        server.one_by_one(mark_frames(class).take(warm_up))?;
        let heard = text_frame(server.sockets.last_text(0));
        reference.one_by_one(std::iter::repeat_n(heard.clone(), warm_up))?;
        Ok(Self { server, reference, class, sent: warm_up, heard })
    }

    /// The next marks for the server, and as many frames for the reference.
    fn next(&mut self, marks: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let frames = mark_frames(self.class).skip(self.sent).take(marks).collect();
        self.sent += marks;
        (frames, vec![self.heard.clone(); marks])
    }

    /// How many hear a mark.
    fn hearers(&self) -> f64 {
        self.server.sockets.len() as f64
    }
}

pub(crate) fn hall_1000(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut hall = Hall::open(bench, 1_000)?;
    one_after_another(bench, &mut hall, 200)
}

pub(crate) fn hall_5000(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let mut hall = Hall::open(bench, 5_000)?;
    let mut rows = one_after_another(bench, &mut hall, 50)?;
    rows.push(burst(bench, &mut hall)?);
    Ok(rows)
}

fn one_after_another(bench: &Bench, hall: &mut Hall, marks: usize) -> anyhow::Result<Vec<Row>> {
    let mut rates = [Vec::new(), Vec::new()];
    let mut times = [Vec::new(), Vec::new()];
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..bench.turns() {
        let hearers = hall.hearers();
        let (marks, frames) = hall.next(bench.amount(marks));
        let sides = [(&mut hall.server, marks), (&mut hall.reference, frames)];
        for (at, (side, frames)) in sides.into_iter().enumerate() {
            let before = side.process.processor_time()?;
            let turn = side.one_by_one(frames.into_iter())?;
            let used = side.process.processor_time()?.saturating_sub(before);
            let deliveries = turn.len() as f64 * hearers;
            rates[at].push(deliveries / turn.iter().sum::<Duration>().as_secs_f64());
            costs[at].push(used.as_secs_f64() / deliveries);
            times[at].extend(turn);
        }
    }
    let [figure, reference] = rates.map(median);
    let students = count(hall.hearers() - 1.0);
    let what = format!("a mark heard by {students} students, one mark after another, beside a bare loop");
    let latency = |what: &str, share| {
        let [figure, reference] = [0, 1].map(|side: usize| percentile(&times[side], share));
        Row::new(format!("… from the mark to the last student, {what}"))
            .figure(time(figure))
            .reference(time(reference))
            .ratio(figure.as_secs_f64() / reference.as_secs_f64())
    };
    let [own, bare] = costs.map(median);
    Ok(vec![
        Row::rate(what, "deliveries", figure, reference, 0.8),
        Row::new("… processor time of the server for each delivery")
            .figure(time(Duration::from_secs_f64(own)))
            .reference(time(Duration::from_secs_f64(bare)))
            .ratio(own / bare),
        latency("median", 0.5),
        latency("99th percentile", 0.99),
    ])
}

fn burst(bench: &Bench, hall: &mut Hall) -> anyhow::Result<Row> {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..3 * bench.turns() {
        let (marks, frames) = hall.next(BURST);
        let turns = [hall.server.at_once(&marks)?, hall.reference.at_once(&frames)?];
        for (turn, rates) in turns.into_iter().zip(&mut rates) {
            rates.push(BURST as f64 * hall.hearers() / turn.as_secs_f64());
        }
    }
    let [figure, reference] = rates.map(median);
    let what = format!("{BURST} marks at once to {} students, beside a bare loop", count(hall.hearers() - 1.0));
    Ok(Row::new(what)
        .figure(per_second(figure, "deliveries"))
        .reference(per_second(reference, "deliveries"))
        .ratio(figure / reference)
        .target("≥ 1,000,000/s", figure >= 1e6))
}

/// Everybody in a hall of 1,000 is marked at the same moment, and everybody hears of everybody.
pub(crate) fn rush(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    const STUDENTS: usize = 1_000;
    let mut hall = Hall::open(bench, STUDENTS)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..bench.turns() {
        let (marks, frames) = hall.next(STUDENTS);
        times[0].push(hall.server.at_once(&marks)?);
        times[1].push(hall.reference.at_once(&frames)?);
    }
    let [figure, reference] = times.map(|times| percentile(&times, 0.5));
    Ok(vec![
        Row::new("1,000 students marked at the same moment: until all 1,000 heard all marks, beside a bare loop")
            .figure(time(figure))
            .reference(time(reference))
            .ratio(figure.as_secs_f64() / reference.as_secs_f64())
            .target("≤ 1,000 ms", figure <= Duration::from_secs(1)),
    ])
}
