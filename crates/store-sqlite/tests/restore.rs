//! Backups put in the place of databases: what is refused, what is kept, and what a crash leaves.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rollcall_core::session::Status;
use rollcall_core::store::{Page, Store, Users};
use rollcall_core::{Clock, UserId};
use rollcall_store_sqlite::{BackupError, OpenError, OpenMode, RestoreError, SqliteStore};
use rollcall_testkit::conformance::{SetClock, Stores, World};
use tempfile::TempDir;

/// Names the folder that a child of one of these tests works in.
const CHILD: &str = "ROLLCALL_STORE_CHILD";
/// Held by each test: while one starts a process, that holds the locks of all until it has become another program.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
const TIME: &str = "20261122T090000Z";

/// Stores in one given file.
struct At(PathBuf);

struct Data {
    store: Arc<SqliteStore>,
    file: PathBuf,
    clock: Arc<dyn Clock>,
}

impl Stores for At {
    type Data = Data;

    async fn fresh(&self, clock: Arc<dyn Clock>) -> Data {
        Data { store: open(&self.0).unwrap(), file: self.0.clone(), clock }
    }

    fn store(data: &Data) -> Arc<dyn Store> {
        Arc::<SqliteStore>::clone(&data.store)
    }

    async fn beside(data: &Data) -> Arc<dyn Store> {
        SqliteStore::open(&data.file, OpenMode::Tool, Arc::clone(&data.clock)).unwrap()
    }

    async fn close(data: &Data) {
        data.store.close().await;
    }

    async fn reopen(data: &mut Data) {
        data.store = open(&data.file).unwrap();
    }
}

fn open(file: &Path) -> Result<Arc<SqliteStore>, OpenError> {
    SqliteStore::open(file, OpenMode::Serve, SetClock::new())
}

/// A folder with a database of so many accounts in `name`, closed.
async fn filled(folder: &Path, name: &str, students: usize) -> (PathBuf, Vec<UserId>) {
    let file = folder.join(name);
    let world = World::new(&At(file.clone())).await;
    let (teacher, class, students) = world.course(students).await;
    world.start(class, teacher).await;
    world.mark(class, teacher, students[0], Status::Late).await;
    At::close(&world.data).await;
    (file, students)
}

/// A database, and a backup of it.
async fn backed_up(students: usize) -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = filled(folder.path(), "rollcall.db", students).await;
    let backup = folder.path().join("backup.db");
    assert!(SqliteStore::backup(&file, &backup, || false).unwrap() > 0);
    (folder, file, backup)
}

async fn accounts(file: &Path) -> usize {
    let store = open(file).unwrap();
    let count = store.users(Page { after: None, limit: 1_000 }).await.unwrap().len();
    store.close().await;
    count
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_was_there_is_kept_with_all_that_was_acknowledged() {
    let _alone = ALONE.lock().await;
    let (folder, served, backup) = backed_up(1).await;
    let store = open(&served).unwrap();
    let refused = SqliteStore::restore(&backup, &served, TIME).unwrap_err();
    assert!(matches!(refused, RestoreError::Open(OpenError::AlreadyServed { .. })), "{refused:?}");
    store.close().await;

    // A process that was killed leaves a log with what it acknowledged.
    let file = folder.path().join("crashed.db");
    let mut child = child("crashed_child", folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("acknowledged") {}
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.path().join("crashed.db-wal").metadata().unwrap().len() > 0);

    let kept = SqliteStore::restore(&backup, &file, TIME).unwrap().unwrap();
    assert_eq!(kept, folder.path().join(format!("crashed.db.before-{TIME}")));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!((accounts(&file).await, accounts(&kept).await), (2, 4));
    assert_eq!(SqliteStore::examine(&file).unwrap().damage, [""; 0]);
    let again = SqliteStore::restore(&backup, &file, TIME).unwrap_err();
    assert!(matches!(again, RestoreError::Name { .. }), "nothing that is kept is replaced: {again:?}");
    assert_eq!(accounts(&file).await, 2);

    // To where nothing is, through a folder that is not there yet.
    let at = folder.path().join("more");
    let elsewhere = at.join("deep").join("other.db");
    assert_eq!(SqliteStore::restore(&backup, &elsewhere, TIME).unwrap(), None);
    assert_eq!(accounts(&elsewhere).await, 2);
    // Through a link, to what it leads to.
    let link = at.join("link.db");
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    SqliteStore::restore(&backup, &link, TIME).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(names(&at.join("deep")).contains(&format!("other.db.before-{TIME}")));
}

/// The child of [`what_was_there_is_kept_with_all_that_was_acknowledged`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_child() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let world = World::new(&At(PathBuf::from(folder).join("crashed.db"))).await;
        world.course(3).await;
        println!("acknowledged");
        std::thread::sleep(Duration::from_mins(1));
    }
}

fn child(test: &str, folder: &Path) -> Process {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args([test, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, folder).stderr(Stdio::null());
    process
}

#[tokio::test]
async fn what_is_no_backup_is_refused_and_nothing_changes() {
    let _alone = ALONE.lock().await;
    let (folder, file, backup) = backed_up(1).await;
    let at = |name: &str| folder.path().join(name);
    let bytes = std::fs::read(&backup).unwrap();
    std::fs::write(at("empty.db"), "").unwrap();
    std::fs::write(at("short.db"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(at("notes.txt"), "Dear diary,\n".repeat(1_000)).unwrap();
    let mut damaged = bytes.clone();
    for page in damaged.chunks_mut(4096).skip(2) {
        page[..64].fill(0x55);
    }
    std::fs::write(at("damaged.db"), damaged).unwrap();
    std::fs::write(at("newer.db"), &bytes).unwrap();
    rusqlite::Connection::open(at("newer.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    std::fs::write(at("unfinished.db"), &bytes).unwrap();
    let unfinished = rusqlite::Connection::open(at("unfinished.db")).unwrap();
    unfinished.execute("INSERT INTO unfinished_copy (fingerprint, part) VALUES ('x', 'accounts')", []).unwrap();
    drop(unfinished);

    let (before, files) = (std::fs::read(&file).unwrap(), names(folder.path()));
    for (name, said) in [
        ("missing.db", "No such file"),
        ("", "it is no file"),
        ("empty.db", "it is empty"),
        ("short.db", ""),
        ("notes.txt", "file is not a database"),
        ("damaged.db", ""),
        ("newer.db", "newer.db was made by a newer Rollcall (schema 99"),
        ("unfinished.db", "unfinished copy"),
        ("rollcall.db", "it is the database itself"),
    ] {
        let error = anyhow_text(&SqliteStore::restore(&at(name), &file, TIME).unwrap_err());
        assert!(error.contains(said), "{name}: {error}");
        assert_eq!(names(folder.path()), files, "{name}");
        assert!(std::fs::read(&file).unwrap() == before, "{name}");
    }
    let stopped = SqliteStore::backup(&file, &at("stopped.db"), || true).unwrap_err();
    assert!(matches!(stopped, BackupError::Stopped), "{stopped:?}");
    assert_eq!(names(folder.path()), files);
}

fn anyhow_text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn an_older_schema_is_brought_up_to_date() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (backup, file) = (folder.path().join("old.db"), folder.path().join("rollcall.db"));
    let old = rusqlite::Connection::open(&backup).unwrap();
    old.execute_batch(include_str!("../migrations/001_initial.sql")).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    drop(old);
    let before = std::fs::read(&backup).unwrap();
    assert_eq!(SqliteStore::restore(&backup, &file, TIME).unwrap(), None);
    let report = SqliteStore::examine(&file).unwrap();
    assert_eq!((report.schema, report.damage.len()), (report.known_schema, 0));
    assert_eq!(std::fs::read(&backup).unwrap(), before, "the backup stays what it is");
    assert_eq!(accounts(&file).await, 0);
}

#[tokio::test]
async fn a_damaged_database_is_kept_with_its_log() {
    let _alone = ALONE.lock().await;
    let (folder, file, backup) = backed_up(3).await;
    std::fs::write(&file, "ruined").unwrap();
    std::fs::write(folder.path().join("rollcall.db-wal"), "its log").unwrap();
    let kept = SqliteStore::restore(&backup, &file, TIME).unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "ruined");
    assert_eq!(std::fs::read_to_string(format!("{}-wal", kept.display())).unwrap(), "its log");
    assert_eq!(accounts(&file).await, 4);
}

#[tokio::test]
async fn a_database_that_somebody_has_open_is_refused() {
    let _alone = ALONE.lock().await;
    let (_folder, file, backup) = backed_up(1).await;
    let shell = rusqlite::Connection::open(&file).unwrap();
    let count: i64 = shell.query_row("SELECT count(*) FROM users", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 2);
    let refused = SqliteStore::restore(&backup, &file, TIME).unwrap_err();
    assert!(matches!(refused, RestoreError::InUse { .. }), "{refused:?}");
    drop(shell);
    SqliteStore::restore(&backup, &file, TIME).unwrap();
}

/// The child of [`a_restore_that_is_killed_leaves_the_one_or_the_other`]: restores the one and the other in turn.
#[test]
fn restoring_child() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    println!("restoring");
    for round in 0.. {
        let backup = folder.join(["one.db", "two.db"][round % 2]);
        SqliteStore::restore(&backup, &folder.join("rollcall.db"), &format!("{}-{round}", std::process::id())).unwrap();
    }
}

#[tokio::test]
async fn a_restore_that_is_killed_leaves_the_one_or_the_other() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rollcall.db");
    for (name, students) in [("one.db", 1), ("two.db", 40)] {
        let (made, _) = filled(folder.path(), &format!("{name}.source"), students).await;
        SqliteStore::backup(&made, &folder.path().join(name), || false).unwrap();
    }
    SqliteStore::restore(&folder.path().join("one.db"), &file, TIME).unwrap();
    for round in 0_u64..25 {
        let mut child = child("restoring_child", folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("restoring") {}
        std::thread::sleep(Duration::from_micros(round * 2_711 % 40_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let report = SqliteStore::examine(&file).unwrap();
        assert_eq!((report.damage.len(), report.log_bytes), (0, 0), "round {round}");
        assert!([2, 41].contains(&accounts(&file).await), "round {round}");
        let left: Vec<_> = names(folder.path()).into_iter().filter(|name| name.contains(".part")).collect();
        assert_eq!(left, [""; 0], "a start cleans up");
        for name in names(folder.path()) {
            // Looking at one makes files beside it.
            if name.starts_with("rollcall.db.before-") && !name.ends_with("-shm") && !name.ends_with("-wal") {
                let kept = folder.path().join(&name);
                assert_eq!(SqliteStore::examine(&kept).unwrap().damage, [""; 0], "{name}");
                std::fs::remove_file(kept).unwrap();
            }
        }
    }
}
