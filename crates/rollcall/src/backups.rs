//! Backups of the embedded database on a schedule: made beside the server, named by their time, thinned out with age.
//!
//! A backup that fails is told and tried again, and harms nobody: it is made by a thread of low priority from a
//! connection that only reads.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use metrics::Unit;
use rollcall_core::{Clock, Timestamp};
use rollcall_store_sqlite::SqliteStore;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::system;

/// A backup's time as its name has it: in UTC, and such that names sort by age.
const STAMP: &str = "%Y%m%dT%H%M%SZ";
const ENDING: &str = ".db";
/// How soon at the latest one that failed is tried again.
const RETRY: Duration = Duration::from_mins(5);
/// How often at least the time of day is looked at: it may have been set, and the machine may have slept.
const LOOK: Duration = Duration::from_mins(1);

/// What is backed up where, how often, and what is kept.
#[derive(Clone, Debug)]
pub(crate) struct Backups {
    /// The folder, which has to be there: one that is made would hide a disk that is not mounted.
    pub folder: PathBuf,
    /// How long from one to the next.
    pub every: Duration,
    /// Which are kept.
    pub keep: Keep,
}

/// Which backups are kept: each that one of these rules names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// The newest so many.
    pub last: usize,
    /// The newest of each of the newest so many days that have one, in UTC.
    pub daily: usize,
    /// The newest of each of the newest so many weeks that have one, from Monday on.
    pub weekly: usize,
}

impl Keep {
    /// What is kept if nobody says.
    pub(crate) const DEFAULT: Self = Self { last: 3, daily: 7, weekly: 4 };

    /// What can be given.
    pub(crate) const WANTED: &str =
        "how many to keep, such as 10, or 3 last, 7 daily, 4 weekly: numbers from 1 to 1000, each kind once";

    /// Reads `10`, or a list such as `3 last, 7 daily, 4 weekly`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut keep = Self { last: 0, daily: 0, weekly: 0 };
        for part in text.split(',') {
            let mut words = part.split_whitespace();
            let number = words.next()?.parse().ok().filter(|number| (1..=1000).contains(number))?;
            let kind = match words.next().unwrap_or("last") {
                "last" => &mut keep.last,
                "daily" => &mut keep.daily,
                "weekly" => &mut keep.weekly,
                _ => return None,
            };
            if *kind != 0 || words.next().is_some() {
                return None;
            }
            *kind = number;
        }
        Some(keep)
    }

    /// Those of `backups`, newest first, that no rule names. The newest is never among them.
    fn surplus(self, backups: &[Backup]) -> Vec<&Backup> {
        let day = |backup: &Backup| backup.at.millis().div_euclid(86_400_000);
        // Days are counted from a Thursday.
        let week = |backup: &Backup| (day(backup) + 3).div_euclid(7);
        let (mut days, mut weeks) = (HashSet::new(), HashSet::new());
        let surplus = backups.iter().enumerate().filter(|(place, backup)| {
            let of_day = days.len() < self.daily && days.insert(day(backup));
            let of_week = weeks.len() < self.weekly && weeks.insert(week(backup));
            *place >= self.last.max(1) && !of_day && !of_week
        });
        surplus.map(|(_, backup)| backup).collect()
    }
}

/// A backup that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backup {
    /// The moment after which it was begun: all that was acknowledged before is in it.
    pub at: Timestamp,
    /// Its file.
    pub path: PathBuf,
}

impl Backups {
    /// The backups of `database` that are there, newest first.
    pub(crate) fn found(&self, database: &Path) -> io::Result<Vec<Backup>> {
        let mut found = Vec::new();
        for entry in self.folder.read_dir()? {
            let entry = entry?;
            if let Some(at) = entry.file_name().to_str().and_then(|name| time_of(database, name)) {
                found.push(Backup { at, path: entry.path() });
            }
        }
        found.sort_unstable_by_key(|backup| Reverse(backup.at));
        Ok(found)
    }

    /// Makes one now, and answers how large it is.
    fn make(&self, database: &Path, at: Timestamp, stop: &CancellationToken) -> anyhow::Result<u64> {
        ensure!(
            self.folder.is_dir(),
            "{} is no folder; make it, or mount what it is on. It is not made here, lest a disk that is not there be \
             taken for one that is",
            self.folder.display()
        );
        self.remove_cut_off(database)?;
        let target = self.folder.join(name_for(database, at));
        let stop = stop.clone();
        let bytes = SqliteStore::backup(database, &target, move || stop.is_cancelled())?;
        Ok(bytes)
    }

    /// Removes what a process left that was killed while it made one. No other makes these: the server of a database
    /// is one.
    fn remove_cut_off(&self, database: &Path) -> io::Result<()> {
        for entry in self.folder.read_dir()? {
            let entry = entry?;
            let name = entry.file_name();
            let target = name.to_str().and_then(SqliteStore::cut_off);
            if target.is_some_and(|target| time_of(database, target).is_some()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes those that no rule keeps, and answers how many are left.
    fn thin_out(&self, database: &Path) -> io::Result<usize> {
        let found = self.found(database)?;
        let surplus = self.keep.surplus(&found);
        for backup in &surplus {
            std::fs::remove_file(&backup.path)?;
        }
        Ok(found.len() - surplus.len())
    }

    /// Makes backups of `database` until `stop`.
    pub(crate) async fn run(self, database: PathBuf, clock: Arc<dyn Clock>, stop: CancellationToken) {
        describe_metrics();
        let backups = Arc::new(self);
        // After a restart the schedule goes on.
        let mut last = backups.found(&database).ok().and_then(|found| found.first().map(|newest| newest.at));
        let newest = last.map_or(0.0, |last| last.millis() as f64 / 1000.0);
        metrics::gauge!("rollcall_backup_last_success_timestamp_seconds").set(newest);
        metrics::gauge!("rollcall_backup_interval_seconds").set(backups.every.as_secs_f64());
        metrics::counter!("rollcall_backup_failures_total").absolute(0);
        let mut not_before = Instant::now();
        loop {
            let until_due = last.map_or(Duration::ZERO, |last| due_in(last, backups.every, clock.now()));
            let wait = until_due.min(LOOK).max(not_before.saturating_duration_since(Instant::now()));
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            let at = clock.now();
            if last.is_some_and(|last| !due_in(last, backups.every, at).is_zero()) {
                continue;
            }
            let started = Instant::now();
            let made = backups.make_beside(&database, at, &stop).await;
            let took = started.elapsed();
            match made {
                Ok((bytes, kept)) => {
                    last = Some(at);
                    metrics::gauge!("rollcall_backup_last_success_timestamp_seconds").set(at.millis() as f64 / 1000.0);
                    metrics::gauge!("rollcall_backup_duration_seconds").set(took.as_secs_f64());
                    metrics::gauge!("rollcall_backup_bytes").set(bytes as f64);
                    metrics::gauge!("rollcall_backups").set(kept as f64);
                    tracing::info!(name = name_for(&database, at), bytes, ?took, kept, "backed up");
                }
                Err(_) if stop.is_cancelled() => return,
                Err(error) => {
                    metrics::counter!("rollcall_backup_failures_total").increment(1);
                    not_before = Instant::now() + backups.every.min(RETRY);
                    tracing::error!(
                        error = format!("{error:#}"), folder = %backups.folder.display(),
                        "the backup failed and will be tried again"
                    );
                }
            }
        }
    }

    /// Makes one and thins out, on a thread of its own. Answers how large it is and how many are kept.
    async fn make_beside(
        self: &Arc<Self>,
        database: &Path,
        at: Timestamp,
        stop: &CancellationToken,
    ) -> anyhow::Result<(u64, usize)> {
        let (reply, answer) = oneshot::channel();
        let (backups, database, stop) = (Arc::clone(self), database.to_owned(), stop.clone());
        let work = move || {
            system::yield_to_others();
            let made = backups.make(&database, at, &stop).and_then(|bytes| {
                let kept = backups.thin_out(&database).context("older backups cannot be removed")?;
                Ok((bytes, kept))
            });
            // Who does not wait is at the end.
            let _ = reply.send(made);
        };
        std::thread::Builder::new().name("backup".to_owned()).spawn(work).context("no thread")?;
        answer.await.context("it panicked")?
    }
}

/// How long until the next one after `last`. A clock that was set back does not put it off.
fn due_in(last: Timestamp, every: Duration, now: Timestamp) -> Duration {
    match u64::try_from(now.millis() - last.millis()) {
        Ok(age) => every.saturating_sub(Duration::from_millis(age)),
        Err(_) => Duration::ZERO,
    }
}

fn describe_metrics() {
    metrics::describe_gauge!(
        "rollcall_backup_last_success_timestamp_seconds",
        Unit::Seconds,
        "When the newest backup was begun, in seconds since 1970; 0 if there is none."
    );
    metrics::describe_gauge!("rollcall_backup_interval_seconds", Unit::Seconds, "From one backup to the next.");
    metrics::describe_gauge!("rollcall_backup_duration_seconds", Unit::Seconds, "How long the last backup took.");
    metrics::describe_gauge!("rollcall_backup_bytes", Unit::Bytes, "How large the last backup is.");
    metrics::describe_gauge!("rollcall_backups", Unit::Count, "Backups that are kept.");
    metrics::describe_counter!("rollcall_backup_failures_total", Unit::Count, "Backups that failed.");
}

/// A moment as names have it.
pub(crate) fn stamp(at: Timestamp) -> String {
    let moment = jiff::Timestamp::from_millisecond(at.millis()).unwrap_or_default();
    moment.strftime(STAMP).to_string()
}

/// What the names of a database's backups begin with.
fn beginning(database: &Path) -> String {
    format!("{}-", database.file_stem().unwrap_or_default().to_string_lossy())
}

fn name_for(database: &Path, at: Timestamp) -> String {
    format!("{}{}{ENDING}", beginning(database), stamp(at))
}

/// The time in the name of a backup of `database`; `None` if it is none.
fn time_of(database: &Path, name: &str) -> Option<Timestamp> {
    let text = name.strip_prefix(&beginning(database))?.strip_suffix(ENDING)?;
    let moment = DateTime::strptime(STAMP, text).ok()?.to_zoned(TimeZone::UTC).ok()?;
    let at = Timestamp::from_millis(moment.timestamp().as_millisecond());
    // What is not written exactly so is somebody else's.
    (stamp(at) == text).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn backup(millis: i64) -> Backup {
        let at = Timestamp::from_millis(millis);
        Backup { at, path: name_for(Path::new("x/school.db"), at).into() }
    }

    #[test]
    fn rules_are_read_as_people_write_them() {
        assert_eq!(Keep::parse("10"), Some(Keep { last: 10, daily: 0, weekly: 0 }));
        assert_eq!(Keep::parse(" 3 last,7 daily , 4  weekly"), Some(Keep::DEFAULT));
        assert_eq!(Keep::parse("4 weekly"), Some(Keep { last: 0, daily: 0, weekly: 4 }));
        for wrong in ["", "0", "-1", "all", "1001", "7 days", "3,3", "7 daily 4 weekly", "last 3", "3 last,"] {
            assert_eq!(Keep::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn old_ones_thin_out() {
        // Every six hours for 60 days, the newest on Sunday, 22 November 2026, at 18:00.
        let newest = 1_795_370_400_000;
        let all: Vec<_> = (0..240).map(|n| backup(newest - n * DAY / 4)).collect();
        assert_eq!(all[0].path, Path::new("school-20261122T180000Z.db"));
        let left = |keep: Keep| -> Vec<i64> {
            let surplus = keep.surplus(&all);
            let kept = all.iter().filter(|backup| !surplus.contains(backup));
            kept.map(|backup| (newest - backup.at.millis()) * 4 / DAY).collect()
        };
        // Three, then the last of each day, then the last of each week, which is Sunday's.
        assert_eq!(left(Keep::DEFAULT), [0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 56, 84]);
        assert_eq!(left(Keep { last: 2, daily: 0, weekly: 0 }), [0, 1]);
        assert_eq!(left(Keep { last: 0, daily: 0, weekly: 2 }), [0, 28]);
        // Thinned out one by one as they come, the same are left.
        let mut kept: Vec<Backup> = Vec::new();
        for backup in all.iter().rev() {
            kept.insert(0, backup.clone());
            let surplus: Vec<_> = Keep::DEFAULT.surplus(&kept).into_iter().cloned().collect();
            kept.retain(|backup| !surplus.contains(backup));
        }
        let ages: Vec<_> = kept.iter().map(|backup| (newest - backup.at.millis()) * 4 / DAY).collect();
        assert_eq!(ages, left(Keep::DEFAULT));
        assert!(Keep::DEFAULT.surplus(&[]).is_empty());
    }

    #[test]
    fn only_names_of_its_own_are_backups() {
        let database = Path::new("/data/school.db");
        let at = Timestamp::from_millis(1_795_370_400_000);
        assert_eq!(time_of(database, "school-20261122T180000Z.db"), Some(at));
        for other in [
            "school.db",
            "school-20261122T180000Z.db-wal",
            "other-20261122T180000Z.db",
            "school-20261122T180000.db",
            "school-20261322T180000Z.db",
            "school-monday.db",
            "school-2026112T2180000Z.db",
            "old-school-20261122T180000Z.db",
        ] {
            assert_eq!(time_of(database, other), None, "{other}");
        }
        assert_eq!(SqliteStore::cut_off(".school-20261122T180000Z.db.aB3x.part"), Some("school-20261122T180000Z.db"));
    }

    #[test]
    fn a_clock_that_is_set_puts_nothing_off() {
        let due = |last, now| due_in(Timestamp::from_millis(last), Duration::from_mins(1), Timestamp::from_millis(now));
        assert_eq!(due(1_000, 1_000), Duration::from_mins(1));
        assert_eq!(due(1_000, 31_000), Duration::from_secs(30));
        assert_eq!(due(1_000, 99_000), Duration::ZERO);
        assert_eq!(due(99_000, 1_000), Duration::ZERO);
    }
}
