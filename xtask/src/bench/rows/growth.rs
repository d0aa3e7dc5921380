//! What a mark and a summary cost when much has been recorded before, beside when little has.

use std::time::Duration;

use serde_json::json;

use crate::bench::Bench;
use crate::bench::process::Process;
use crate::bench::sockets::Sockets;
use crate::bench::table::{Row, count, percentile, time};
use crate::bench::world::{Class, Database};

use super::{end_session, event_frame, mark_frames, start_session};

/// Records already stored. The first is what the others are compared with.
const RECORDS: [usize; 3] = [1_000, 100_000, 1_000_000];
/// What counts as flat: medians differ by less than this from turn to turn on an idle machine.
const FLAT: f64 = 1.25;
/// Marks and summaries of one turn.
const COMMANDS: usize = 300;

/// A server, and the teacher of a class with a past.
struct Side {
    teacher: Sockets,
    process: Process,
    _database: Database,
    marks: Vec<Duration>,
    summaries: Vec<Duration>,
}

pub(crate) fn growth(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let class = Class::past(0);
    let mut sides = Vec::new();
    for records in RECORDS {
        let database = bench.databases.copy(records)?;
        let process = Process::server(bench, &database.path())?;
        let teacher = Sockets::open(process.address(), [class.teacher.token()], 1)?;
        sides.push(Side { teacher, process, _database: database, marks: Vec::new(), summaries: Vec::new() });
    }
    // The first turn warms up.
    for turn in 0..=bench.turns() {
        for side in &mut sides {
            side.turn(class, bench.amount(COMMANDS))?;
            if turn == 0 {
                side.marks.clear();
                side.summaries.clear();
            }
        }
    }
    let rows = |what: &str, times: fn(&Side) -> &[Duration]| -> Vec<Row> {
        let [few, much, most] = [0, 1, 2].map(|side: usize| percentile(times(&sides[side]), 0.5));
        let row = |records: usize, figure: Duration| {
            let ratio = figure.as_secs_f64() / few.as_secs_f64();
            let [records, least] = [records, RECORDS[0]].map(|records| count(records as f64));
            Row::new(format!("{what} with {records} records stored, median, beside with {least}"))
                .figure(time(figure))
                .reference(time(few))
                .ratio(ratio)
                .target(format!("≤ {:.0} % (flat)", FLAT * 100.0), ratio <= FLAT)
        };
        vec![row(RECORDS[1], much), row(RECORDS[2], most)]
    };
    let mut table = rows("a mark", |side| &side.marks);
    table.extend(rows("a summary", |side| &side.summaries));
    Ok(table)
}

impl Side {
    /// A session in which so many marks are made and as many summaries asked for, one after another.
    fn turn(&mut self, class: Class, commands: usize) -> anyhow::Result<()> {
        start_session(self.process.address(), class)?;
        for frame in mark_frames(class).take(commands) {
            self.marks.push(self.teacher.round(&frame, 1)?);
        }
        let summary = event_frame("TODAY_SUMMARY", &json!({}));
        for _ in 0..commands {
            self.summaries.push(self.teacher.round(&summary, 1)?);
        }
        end_session(&mut self.teacher)
    }
}
