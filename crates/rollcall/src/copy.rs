//! `rollcall copy`: a whole database into an empty one, whatever each of them is kept in.
//!
//! The source is read once to know what there is: how much, what of it breaks the rules, and a fingerprint of its
//! content. Then it is carried over a page at a time; the target knows what it is an unfinished copy of and how far it
//! has come, so that the same command goes on where another was interrupted. At the end the target is read as the
//! source was, and only if both hold the same does it become a database like any other.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use aws_lc_rs::digest;
use rollcall_core::transfer::{Item, Kind, Marker, Part, Progress, State, Transfer};
#[cfg(feature = "mongodb")]
use rollcall_store_mongo::MongoTransfer;
use rollcall_store_sqlite::SqliteTransfer;
#[cfg(feature = "mongodb")]
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};

use crate::config;
use crate::database::Database;
use crate::progress::View;

/// The exit code of a copy that was told to end before it was complete.
const INTERRUPTED: u8 = 130;

/// The database that `url`, given as `name`, names.
pub(crate) fn place(name: &str, url: &str) -> anyhow::Result<Database> {
    config::any_database(url.trim())
        .map_err(|wanted| anyhow!("{name} is {}: it must be {wanted}", config::shown_url(url)))
}

/// Whether both are one database, as far as their names tell.
fn are_one(from: &Database, to: &Database) -> bool {
    match (from, to) {
        (Database::File(from), Database::File(to)) => match (from.canonicalize(), to.canonicalize()) {
            (Ok(from), Ok(to)) => from == to,
            // What does not exist yet is no other.
            _ => from == to,
        },
        #[cfg(feature = "mongodb")]
        (Database::Mongo(from), Database::Mongo(to)) => from.expose_secret() == to.expose_secret(),
        #[cfg(feature = "mongodb")]
        (Database::File(_), Database::Mongo(_)) | (Database::Mongo(_), Database::File(_)) => false,
    }
}

/// Copies the database at `from` to `to`. What breaks the rules in the source stops it before it begins, unless it is
/// to `leave_out` such things.
pub(crate) fn run(from: &Database, to: &Database, leave_out: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("no runtime")?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("signals cannot be heard")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("signals cannot be heard")?;
        let mut view = View::new();
        let told = tokio::select! {
            told = copy(from, to, leave_out, &mut view) => Some(told),
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        view.clear();
        let Some(told) = told else {
            view.say("interrupted; run the same command again to go on");
            return Ok(ExitCode::from(INTERRUPTED));
        };
        write!(io::stdout(), "{}", told?)?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn copy(from: &Database, to: &Database, leave_out: bool, view: &mut View) -> anyhow::Result<String> {
    ensure!(!are_one(from, to), "FROM_URL and TO_URL are one database");
    let source = open(from, Side::Source).await.with_context(|| format!("cannot copy from {from}"))?;
    let target = open(to, Side::Target).await.with_context(|| format!("cannot copy to {to}"))?;
    let done = carry(&*source, &*target, leave_out, view).await;
    source.close().await;
    target.close().await;
    let (done, contents) = done?;
    let mut told = match done {
        Done::Copied => format!("{to} is a complete copy of {from}:\n"),
        Done::WasThere => format!("{to} was a complete copy of {from} already:\n"),
    };
    for (kind, tally) in Kind::ALL.into_iter().zip(&contents.0) {
        writeln!(told, "{:>12}  {:16}{}", tally.count, kind.plural(), hex(&tally.hash))?;
    }
    Ok(told)
}

enum Side {
    Source,
    Target,
}

async fn open(place: &Database, side: Side) -> anyhow::Result<Box<dyn Transfer>> {
    match place {
        Database::File(path) => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || match side {
                Side::Source => SqliteTransfer::source(&path),
                Side::Target => SqliteTransfer::target(&path),
            });
            Ok(Box::new(opened.await.context("the file cannot be opened")??))
        }
        #[cfg(feature = "mongodb")]
        Database::Mongo(url) => Ok(Box::new(match side {
            Side::Source => MongoTransfer::source(url).await?,
            Side::Target => MongoTransfer::target(url).await?,
        })),
    }
}

/// How a copy came to be complete.
enum Done {
    Copied,
    WasThere,
}

async fn carry(
    source: &dyn Transfer,
    target: &dyn Transfer,
    leave_out: bool,
    view: &mut View,
) -> anyhow::Result<(Done, Contents)> {
    let state = target.state().await.context("cannot look into the target")?;
    view.stage("reading", None);
    let (contents, problems) = take_stock(source, view).await.context("cannot read the source")?;
    if problems > 0 {
        ensure!(
            leave_out,
            "{problems} things in the source break the rules and cannot be copied as they are. Put them right, or leave \
             them out with --leave-out-broken. Nothing was copied"
        );
        view.say(&format!("{problems} things are left out"));
    }
    let fingerprint = contents.fingerprint();
    let start = Progress { part: Part::ALL[0], after: None };
    let progress = match state {
        State::Empty => {
            let marker = Marker { fingerprint, progress: start };
            target.begin(&marker).await.context("cannot write to the target")?;
            start
        }
        State::Unfinished(marker) => {
            ensure!(
                marker.fingerprint == fingerprint,
                "the target is an unfinished copy of another database, or the source has changed since that copy began. \
                 Nothing was copied. Remove the target, or name another, and start again"
            );
            view.say(&format!("going on where an earlier copy stopped, at the {}", marker.progress.part.as_str()));
            marker.progress
        }
        State::Filled => {
            view.stage("comparing", Some(contents.items()));
            let (there, broken) = take_stock(target, view).await.context("cannot read the target")?;
            ensure!(
                there == contents && broken == 0,
                "the target holds something else already. Nothing was copied: name one that is empty or does not exist"
            );
            return Ok((Done::WasThere, contents));
        }
    };
    view.stage("copying", Some(contents.items()));
    carry_items(source, target, progress, view).await?;

    view.stage("checking", Some(contents.items()));
    let (copied, broken) = take_stock(target, view).await.context("cannot read the target")?;
    if !source.is_held() {
        view.stage("comparing", Some(contents.items()));
        let (now, _) = take_stock(source, view).await.context("cannot read the source")?;
        ensure!(
            now == contents,
            "the source was changed while it was copied ({}). The copy stays unfinished. Stop every server of the \
             source, remove the target, and start again",
            contents.differences(&now)
        );
    }
    if copied != contents || broken > 0 {
        bail!(
            "the copy is not what the source holds ({}). It stays unfinished, and no server takes it. Remove the target \
             and start again",
            contents.differences(&copied)
        );
    }
    target.finish().await.context("cannot write to the target")?;
    Ok((Done::Copied, contents))
}

/// Carries everything behind `progress` over, reading the next page while one is written.
async fn carry_items(
    source: &dyn Transfer,
    target: &dyn Transfer,
    progress: Progress,
    view: &mut View,
) -> anyhow::Result<()> {
    let read = async |part, after| source.read(part, after).await.context("cannot read the source");
    let write = async |items, progress| target.write(items, progress).await.context("cannot write to the target");
    for part in Part::ALL.into_iter().filter(|part| *part >= progress.part) {
        let after = if part == progress.part { progress.after } else { None };
        let mut page = read(part, after).await?;
        while let Some(last) = page.last {
            view.advance(page.items.len());
            let progress = Progress { part, after: Some(last) };
            (page, ()) = tokio::try_join!(read(part, Some(last)), write(page.items, progress))?;
        }
    }
    Ok(())
}

/// Reads all of a database, shows what breaks the rules in it, and answers with what it holds and how much is broken.
async fn take_stock(database: &dyn Transfer, view: &mut View) -> anyhow::Result<(Contents, u64)> {
    let mut tallies = Kind::ALL.map(|_| Running { count: 0, hash: digest::Context::new(&digest::SHA256) });
    let mut problems = 0;
    for part in Part::ALL {
        let mut after = None;
        loop {
            let page = database.read(part, after).await?;
            for problem in &page.problems {
                problems += 1;
                view.say(&format!("{}: {}", problem.place, problem.what));
            }
            tokio::task::block_in_place(|| page.items.iter().for_each(|item| add(&mut tallies, item)));
            view.advance(page.items.len());
            match page.last {
                Some(last) => after = Some(last),
                None => break,
            }
        }
    }
    Ok((Contents(tallies.map(Running::end)), problems))
}

fn add(tallies: &mut [Running], item: &Item) {
    item.rows(|kind, bytes| {
        let tally = &mut tallies[kind as usize];
        tally.count += 1;
        // With its length, so that the same bytes cut otherwise are something else.
        tally.hash.update(&(bytes.len() as u64).to_be_bytes());
        tally.hash.update(bytes);
    });
}

struct Running {
    count: u64,
    hash: digest::Context,
}

impl Running {
    fn end(self) -> Tally {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.hash.finish().as_ref());
        Tally { count: self.count, hash }
    }
}

/// How much there is of a kind, and the SHA-256 of all of it.
#[derive(Clone, PartialEq, Eq)]
struct Tally {
    count: u64,
    hash: [u8; 32],
}

/// What a database holds, by [`Kind::ALL`].
#[derive(PartialEq, Eq)]
struct Contents([Tally; Kind::ALL.len()]);

impl Contents {
    /// Names the content.
    fn fingerprint(&self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        for tally in &self.0 {
            hash.update(&tally.count.to_be_bytes());
            hash.update(&tally.hash);
        }
        hex(hash.finish().as_ref())
    }

    /// How many items there are.
    fn items(&self) -> u64 {
        let kinds = [Kind::Account, Kind::Class, Kind::Session, Kind::EarlierRecord];
        kinds.into_iter().map(|kind| self.0[kind as usize].count).sum()
    }

    /// What `other` has of these contents and what not, in words.
    fn differences(&self, other: &Self) -> String {
        let differ = Kind::ALL.into_iter().zip(self.0.iter().zip(&other.0)).filter(|(_, (a, b))| a != b);
        let words = differ.map(|(kind, (wanted, found))| match (wanted.count, found.count) {
            (wanted, found) if wanted == found => format!("other {}", kind.plural()),
            (wanted, found) => format!("{found} {} instead of {wanted}", kind.plural()),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
