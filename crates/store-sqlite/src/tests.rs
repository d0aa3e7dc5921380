//! What can only be provoked from inside: commands that fail or panic, and a file that may not grow.

use std::path::Path;
use std::sync::Arc;

use rollcall_core::store::{Change, Store, StoreError};
use rollcall_core::{Clock, UserId};
use rollcall_testkit::conformance::{Listener, SetClock};
use rusqlite::Connection;

use crate::tx::Tx;
use crate::{OpenMode, SqliteStore};

fn open(folder: &Path) -> Arc<SqliteStore> {
    let clock: Arc<dyn Clock> = SetClock::new();
    SqliteStore::open(&folder.join("rollcall.db"), OpenMode::Serve, clock).unwrap()
}

/// A command that leaves a trace.
fn tell(number: u8) -> impl FnOnce(&mut Tx<'_>) -> rusqlite::Result<()> + Send + 'static {
    move |tx| tx.tell(Change::Account(UserId::from_bytes([number; 12])))
}

/// A command that leaves a trace and fails then.
fn fail(number: u8) -> impl FnOnce(&mut Tx<'_>) -> rusqlite::Result<()> + Send + 'static {
    move |tx| {
        tell(number)(tx)?;
        tx.connection().execute("INSERT INTO probe (id, n) VALUES (2, 0)", []).map(drop)
    }
}

#[tokio::test]
async fn a_command_that_fails_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut listener = Listener::new(store.follow(None).await.unwrap());
    let mut answers = Vec::new();
    for number in 0..30 {
        let answer = if number % 3 == 1 {
            store.writer.submit(fail(number)).await
        } else {
            store.writer.submit(tell(number)).await
        };
        answers.push(answer.unwrap());
    }
    for (number, answer) in answers.into_iter().enumerate() {
        match answer.get().await {
            Err(StoreError::Internal(_)) => assert_eq!(number % 3, 1),
            other => assert!(other.is_ok() && number % 3 != 1, "{number}: {other:?}"),
        }
    }
    for number in (0..30).filter(|number| number % 3 != 1) {
        assert_eq!(listener.change().await, Change::Account(UserId::from_bytes([number; 12])));
    }
}

#[tokio::test]
async fn a_panic_leaves_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut listener = Listener::new(store.follow(None).await.unwrap());
    let before = store.writer.submit(tell(1)).await.unwrap();
    let panics = store.writer.submit(|_: &mut Tx<'_>| -> rusqlite::Result<()> { panic!("on purpose") }).await.unwrap();
    let after = store.writer.submit(tell(2)).await;
    assert!(matches!(panics.get().await, Err(StoreError::OutcomeUnknown(_))));
    // Whether those around it ran in the same transaction is chance; each has an answer, and what stands is told.
    let stands = before.get().await.is_ok();
    if let Ok(after) = after {
        assert!(after.get().await.is_err());
    }
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    let mut told = 0;
    while let Some(item) = listener.item().await {
        told += usize::from(matches!(item, rollcall_core::store::Followed::Batch(_)));
    }
    assert_eq!(told, usize::from(stands));
    store.close().await;
    let raw = Connection::open(folder.path().join("rollcall.db")).unwrap();
    let rows: usize = raw.query_row("SELECT count(*) FROM changes", [], |row| row.get::<_, u32>(0)).unwrap() as usize;
    assert_eq!(rows, told);
    open(folder.path()).ping().await.unwrap();
}

#[tokio::test]
async fn a_panic_in_a_read_hurts_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for _ in 0..20 {
        let read = store.readers.read(|_| -> rusqlite::Result<()> { panic!("on purpose") });
        assert!(matches!(read.await, Err(StoreError::Internal(_))));
    }
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_file_that_may_not_grow_refuses_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let limit = |pages: i64| {
        store.writer.call(move |tx| {
            tx.connection().pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))
        })
    };
    limit(1).await.unwrap();
    let mut done = 0;
    let error = loop {
        match store.writer.call(tell(1)).await {
            Ok(()) => done += 1,
            Err(error) => break error,
        }
        assert!(done < 10_000, "the file never got full");
    };
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))), "not ready while nothing can be written");
    limit(1 << 30).await.unwrap();
    store.ping().await.unwrap();
    store.writer.call(tell(1)).await.unwrap();
    store.close().await;
    let raw = Connection::open(folder.path().join("rollcall.db")).unwrap();
    let rows: u32 = raw.query_row("SELECT count(*) FROM changes", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, done + 1);
}

#[tokio::test]
async fn a_file_that_is_taken_away_takes_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (folder.path().join("rollcall.db"), folder.path().join("elsewhere.db"));
    let store = open(folder.path());
    store.writer.call(tell(1)).await.unwrap();
    for replaced in [false, true] {
        std::fs::rename(&path, &elsewhere).unwrap();
        if replaced {
            std::fs::write(&path, "").unwrap();
        }
        let refused = store.writer.call(tell(2)).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))), "not ready either");
        // Back in its place it is the same file.
        std::fs::rename(&elsewhere, &path).unwrap();
        store.ping().await.unwrap();
        store.writer.call(tell(3)).await.unwrap();
    }
}

#[tokio::test]
async fn the_stream_reaches_back_so_far_and_no_further() {
    use crate::stream::{KEPT_CHANGES, TRIM_EVERY, cursor};
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let skip_to = |seq: u64| {
        store.writer.call(move |tx| {
            tx.connection()
                .execute(
                    "INSERT INTO changes (seq, kind, id) VALUES (?1, 'account', zeroblob(12))",
                    [i64::try_from(seq).unwrap()],
                )
                .map(drop)
        })
    };
    store.writer.call(tell(1)).await.unwrap();
    store.writer.call(tell(2)).await.unwrap();
    skip_to(KEPT_CHANGES + 1).await.unwrap();
    let mut listener = Listener::new(store.follow(Some(cursor(1))).await.unwrap());
    assert_eq!(listener.change().await, Change::Account(UserId::from_bytes([2; 12])), "just within reach");
    assert_eq!(listener.change().await, Change::Account(UserId::NOTHING));
    skip_to(KEPT_CHANGES + TRIM_EVERY).await.unwrap();
    store.writer.call(tell(3)).await.unwrap();
    let mut listener = Listener::new(store.follow(Some(cursor(1))).await.unwrap());
    assert_eq!(listener.item().await, Some(rollcall_core::store::Followed::Lost));
    let rows: u32 = store
        .readers
        .read(|connection| connection.query_row("SELECT count(*) FROM changes", [], |row| row.get(0)))
        .await
        .unwrap();
    assert_eq!(rows, 3, "what nobody can ask for any more is gone");
}
