//! What is SQLite's own: the file, its lock, its schema, its copies, and what happens when the disk or the process
//! gives up.
//!
//! Tests that need a process of their own run this binary again with [`CHILD`] set to a folder.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_core::session::{Command, Event, Revision, Status};
use rollcall_core::store::{Followed, Outcome, Sessions, Store, StoreError, Target, Users};
use rollcall_core::user::Role;
use rollcall_core::{ClassId, Clock, SessionId, UserId};
use rollcall_store_sqlite::{BackupError, OpenError, OpenMode, SqliteStore};
use rollcall_testkit::conformance::recovery::{Acknowledged, mark_until_killed};
use rollcall_testkit::conformance::{SetClock, Stores, World};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

/// Names the folder that a child of one of these tests works in.
const CHILD: &str = "ROLLCALL_STORE_CHILD";

/// Stores on one given folder.
struct Folder(PathBuf);

struct Data {
    store: Arc<SqliteStore>,
    file: PathBuf,
    clock: Arc<dyn Clock>,
}

impl Stores for Folder {
    type Data = Data;

    async fn fresh(&self, clock: Arc<dyn Clock>) -> Data {
        let file = self.0.join("rollcall.db");
        Data { store: open(&file, OpenMode::Serve, &clock).unwrap(), file, clock }
    }

    fn store(data: &Data) -> Arc<dyn Store> {
        Arc::<SqliteStore>::clone(&data.store)
    }

    async fn beside(data: &Data) -> Arc<dyn Store> {
        open(&data.file, OpenMode::Tool, &data.clock).unwrap()
    }

    async fn close(data: &Data) {
        data.store.close().await;
    }

    async fn reopen(data: &mut Data) {
        data.store = open(&data.file, OpenMode::Serve, &data.clock).unwrap();
    }
}

fn open(file: &Path, mode: OpenMode, clock: &Arc<dyn Clock>) -> Result<Arc<SqliteStore>, OpenError> {
    SqliteStore::open(file, mode, Arc::clone(clock))
}

fn clock() -> Arc<dyn Clock> {
    SetClock::new()
}

async fn world() -> (World<Folder>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (World::new(&Folder(folder.path().to_owned())).await, folder)
}

/// The folder that this process works in, if it is a child.
fn child_folder() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// This binary again, for one test alone, with whatever runs it before.
fn child(test: &str, folder: &Path, before: &[&str]) -> Process {
    let this = std::env::current_exe().unwrap();
    let mut words: Vec<_> = before.iter().map(Into::into).chain([this.into_os_string()]).collect();
    let mut process = Process::new(words.remove(0));
    process.args(words).args([test, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, folder);
    process
}

/// A process that ends with the test, whatever becomes of that.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the child to its end and fails with what it said if it failed.
fn succeeds(mut process: Process) {
    let output = process.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

/// The teacher, class and student of a session that is open.
async fn open_session(world: &World<Folder>) -> (UserId, ClassId, UserId, SessionId) {
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    (teacher, class, students[0], session.id)
}

fn late(student_id: UserId) -> Command {
    Command::Mark { student_id, status: Status::Late, reason: None }
}

#[tokio::test]
async fn a_second_server_is_refused_and_a_tool_is_not() {
    let (world, folder) = world().await;
    let file = folder.path().join("rollcall.db");
    let refused = open(&file, OpenMode::Serve, &clock()).err().unwrap();
    assert!(matches!(&refused, OpenError::AlreadyServed { path } if *path == file), "{refused:?}");
    assert!(refused.to_string().contains("another Rollcall serves"), "{refused}");
    let tool = open(&file, OpenMode::Tool, &clock()).unwrap();
    tool.insert_user(world.account(Role::Admin), None).await.unwrap();
    world.store.ping().await.unwrap();
    Folder::close(&world.data).await;
    let next = open(&file, OpenMode::Serve, &clock()).unwrap();
    assert_eq!(next.users(rollcall_core::store::Page { after: None, limit: 9 }).await.unwrap().len(), 1);
    next.close().await;
    tool.close().await;
    assert!(!folder.path().join("rollcall.db-wal").exists(), "the last one leaves everything in the file itself");
}

#[cfg(unix)]
#[tokio::test]
async fn everything_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let outer = tempfile::tempdir().unwrap();
    let file = outer.path().join("a").join("b").join("rollcall.db");
    let store = open(&file, OpenMode::Serve, &clock()).unwrap();
    store.ping().await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = file.parent().unwrap();
    assert_eq!(mode(folder), 0o700);
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 4, "the database, its log, the log's index, the lock: {names:?}");
    assert!(names.iter().all(|path| mode(path) == 0o600), "{names:?}");
    let copy = outer.path().join("copy.db");
    SqliteStore::backup(&file, &copy, || false).unwrap();
    assert_eq!(mode(&copy), 0o600);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let outer = tempfile::tempdir().unwrap();
    let blocker = outer.path().join("file");
    std::fs::write(&blocker, "").unwrap();
    let error = open(&blocker.join("data").join("rollcall.db"), OpenMode::Serve, &clock()).err().unwrap();
    assert!(matches!(&error, OpenError::File { path, .. } if *path == blocker.join("data")), "{error:?}");
    let error = open(outer.path(), OpenMode::Serve, &clock()).err().unwrap();
    assert!(matches!(&error, OpenError::File { path, .. } if path == outer.path()), "a folder is no file: {error:?}");
}

#[tokio::test]
async fn a_newer_schema_is_refused_untouched() {
    let (world, folder) = world().await;
    Folder::close(&world.data).await;
    let file = folder.path().join("rollcall.db");
    let raw = rusqlite::Connection::open(&file).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let before = std::fs::read(&file).unwrap();
    for mode in [OpenMode::Serve, OpenMode::Tool] {
        let error = open(&file, mode, &clock()).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error:?}");
        assert!(error.to_string().contains("newer Rollcall (schema 99"), "{error}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(SqliteStore::examine(&file).unwrap().schema, 99, "the doctor says so all the same");
}

#[tokio::test]
async fn files_of_other_programs_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let (text, other) = (folder.path().join("notes.txt"), folder.path().join("other.db"));
    std::fs::write(&text, "Dear diary,\n".repeat(1_000)).unwrap();
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE users (name)").unwrap();
    for file in [text, other] {
        let before = std::fs::read(&file).unwrap();
        let error = open(&file, OpenMode::Serve, &clock()).err().unwrap();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
        assert_eq!(std::fs::read(&file).unwrap(), before);
        assert!(SqliteStore::examine(&file).is_err());
        assert!(SqliteStore::backup(&file, &folder.path().join("copy.db"), || false).is_err());
    }
    assert!(SqliteStore::examine(&folder.path().join("missing.db")).is_err());
    assert!(!folder.path().join("missing.db").exists(), "looking makes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_may_open_an_empty_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rollcall.db");
    let opened: Vec<_> = (0..8)
        .map(|_| {
            let file = file.clone();
            std::thread::spawn(move || open(&file, OpenMode::Tool, &clock()).map(drop))
        })
        .collect();
    for thread in opened {
        thread.join().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_of_one_moment_while_marks_go_on() {
    let (world, folder) = world().await;
    let (teacher, class, student, session) = open_session(&world).await;
    let (file, copy) = (folder.path().join("rollcall.db"), folder.path().join("copy.db"));
    let backup = {
        let (file, copy) = (file.clone(), copy.clone());
        tokio::task::spawn_blocking(move || SqliteStore::backup(&file, &copy, || false))
    };
    let mut marks = 0;
    while !backup.is_finished() || marks < 20 {
        world.mark(class, teacher, student, Status::ALL[marks % 4]).await;
        marks += 1;
    }
    backup.await.unwrap().unwrap();
    assert!(
        matches!(SqliteStore::backup(&file, &copy, || false), Err(BackupError::Exists(_))),
        "a backup replaces nothing"
    );
    let report = SqliteStore::examine(&copy).unwrap();
    assert_eq!((report.schema, report.damage.len(), report.log_bytes), (report.known_schema, 0, 0));
    assert!(report.file_bytes > 0 && report.free_bytes.is_some());
    let copied = open(&copy, OpenMode::Serve, &clock()).unwrap();
    let open = copied.open_session(class).await.unwrap().unwrap();
    let log = copied.log(session, None, rollcall_core::store::Page { after: None, limit: 100_000 }).await.unwrap();
    assert_eq!(log.last().unwrap().revision, open.info().revision);
    let last = log.last().unwrap();
    if let Event::Marked { new, .. } = last.event {
        assert_eq!(open.marks()[&student].status, new, "the marks are those of the log's end");
    }
    copied.close().await;
    let leftovers = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(leftovers.into_iter().all(|name| !name.to_string_lossy().starts_with(".rollcall-backup")));
}

/// The child of [`a_killed_process_loses_nothing_that_it_acknowledged`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_child() {
    if let Some(folder) = child_folder() {
        mark_until_killed(World::new(&Folder(folder)).await).await;
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_acknowledged() {
    for lines in [1, 40, 200, 333, 1_000] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = child("killed_child", folder.path(), &[]);
        let mut running = Ends(process.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut output = BufReader::new(running.0.stdout.take().unwrap());
        let mut acknowledged = Acknowledged::default();
        let mut line = String::new();
        while acknowledged.count() < lines {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended by itself");
            acknowledged.hear(&line);
        }
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        // What it said until it died counts too.
        loop {
            line.clear();
            if output.read_line(&mut line).unwrap() == 0 {
                break;
            }
            acknowledged.hear(&line);
        }
        let store = open(&folder.path().join("rollcall.db"), OpenMode::Serve, &clock()).unwrap();
        acknowledged.check(&*store).await;
        store.close().await;
        assert_eq!(SqliteStore::examine(&folder.path().join("rollcall.db")).unwrap().damage, [""; 0]);
    }
}

/// Makes every write beyond `bytes` of a file fail, or ends that.
fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

/// The child of [`a_commit_that_fails_half_way_is_found_out`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_disk_child() {
    let Some(folder) = child_folder() else { return };
    let log_file = folder.join("rollcall.db-wal");
    let world = World::new(&Folder(folder)).await;
    let (teacher, class, student, session) = open_session(&world).await;
    let target = Target::Class(class);
    let mark = async || world.submit(target, late(student), world.origin(teacher)).await.await;

    // The log cannot grow by a single page: the commit fails while it is written.
    limit_files(Some(std::fs::metadata(&log_file).unwrap().len()));
    let failed = world.submit(target, late(student), world.origin(teacher)).await;
    let mut listener = world.follow(None).await;
    // A writer that tries to find out says that it is alive no more.
    while tokio::time::timeout(Duration::from_millis(500), listener.item()).await.is_ok() {}
    limit_files(None);
    let error = failed.await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "found out to be not done: {error:?}");
    let Ok(Outcome::Done(change)) = mark().await else { panic!("it works again") };
    assert_eq!(change.entry.revision, Revision(2), "nothing of the failed one is left");

    limit_files(Some(std::fs::metadata(&log_file).unwrap().len()));
    let started = Instant::now();
    let error = mark().await.unwrap_err();
    assert!(matches!(error, StoreError::OutcomeUnknown(_)), "not found out in time: {error:?}");
    assert!(started.elapsed() >= Duration::from_secs(4), "it was tried");
    assert!(world.store.ping().await.is_err());
    limit_files(None);
    world.store.ping().await.unwrap();
    let Ok(Outcome::Done(change)) = mark().await else { panic!("it works again") };
    assert_eq!(change.entry.revision, Revision(3));
    assert_eq!(world.log(session).await.len(), 3);
    let heard = [listener.session_change().await, listener.session_change().await];
    assert_eq!(heard.map(|change| change.entry.revision), [Revision(2), Revision(3)]);
    assert_eq!(listener.item().await, Some(Followed::Alive));
}

#[test]
fn a_commit_that_fails_half_way_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    // The signal that a file grew too large would end the process; ignored, it is an error of the write.
    succeeds(child("failing_disk_child", folder.path(), &["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""]));
}

/// The child of [`a_full_disk_refuses_marks_and_heals`], in a file system of 3 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_child() {
    let Some(folder) = child_folder() else { return };
    let ballast = folder.join("ballast");
    let file = folder.join("rollcall.db");
    let world = World::new(&Folder(folder)).await;
    let (teacher, class, student, session) = open_session(&world).await;
    let mut done = 0;
    for _ in 0..3 {
        // Fills what is left; a write that fails is the point.
        let _ = std::fs::write(&ballast, vec![0; 8 << 20]);
        let started = Instant::now();
        let refused = loop {
            assert!(started.elapsed() < Duration::from_secs(30), "the disk never got full");
            match world.submit(Target::Class(class), late(student), world.origin(teacher)).await.await {
                Ok(Outcome::Done(_)) => done += 1,
                other => break other,
            }
        };
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        assert!(matches!(world.store.ping().await, Err(StoreError::Unavailable(_))));
        assert!(world.store.open_session(class).await.unwrap().is_some(), "reads go on");
        std::fs::remove_file(&ballast).unwrap();
        world.store.ping().await.unwrap();
        world.mark(class, teacher, student, Status::Present).await;
        done += 1;
        assert_eq!(world.log(session).await.len(), 1 + done);
    }
    world.finish(class, teacher).await;
    Folder::close(&world.data).await;
    assert_eq!(SqliteStore::examine(&file).unwrap().damage, [""; 0]);
}

#[test]
#[ignore = "needs user namespaces, to mount a small file system: cargo xtask test"]
fn a_full_disk_refuses_marks_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=3m none \"${CHILD}\" && exec \"$0\" \"$@\"");
    let before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount];
    succeeds(child("full_disk_child", folder.path(), &before));
}
