//! Backups by schedule, `rollcall restore`, and the embedded database's disk when it is full.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rollcall_testkit::server::{Class, Client, Person, Server, until};
use serde_json::{Value, json};

use crate::{Room, builder};

const STATUSES: [&str; 4] = ["present", "absent", "late", "excused"];

/// A server that makes backups all the time, and the folder that they are in.
async fn backing_up() -> (Server, PathBuf) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let backups = folder.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let settings = builder().folder(folder).env("BACKUP_DIR", "backups").env("BACKUP_EVERY", "1s");
    (settings.env("BACKUP_KEEP", "3 last, 1 daily").start().await.unwrap(), backups)
}

/// The names of the backups, oldest first.
fn names(backups: &Path) -> Vec<String> {
    let names = backups.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort_unstable();
    names
}

/// Waits for a backup that was begun after this was called.
async fn next_backup(backups: &Path) -> PathBuf {
    let newest = || names(backups).pop();
    let before = newest();
    // The next to appear may have been begun before; the one after it was not.
    let next = until("a backup", || newest().filter(|newest| Some(newest) != before.as_ref())).await;
    let name = until("another backup", || newest().filter(|newest| *newest != next)).await;
    backups.join(name)
}

async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// Runs a command beside `server` on the database at `database`.
async fn run(server: &Server, arguments: &[&str], database: &Path) -> (bool, String) {
    let url = format!("sqlite://{}", database.display());
    let output = server.run(&[arguments, &["--db-url", &url]].concat()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

/// A class whose teacher marks its one student without end.
struct Lesson {
    teacher: Person,
    student: Person,
    class: Class,
    /// The last revision that the teacher was told.
    told: Arc<AtomicU64>,
}

impl Lesson {
    async fn new(client: &Client, n: usize) -> Self {
        let (teacher, student) = (client.teacher(&format!("Teacher {n}")).await, client.student("S").await);
        let class = teacher.open_class(&format!("Class {n}"), &[&student]).await;
        Self { teacher, student, class, told: Arc::default() }
    }

    fn mark_until(&self, end: &Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
        let (teacher, class, student) = (self.teacher.clone(), self.class.clone(), self.student.id.clone());
        let (told, end) = (Arc::clone(&self.told), Arc::clone(end));
        tokio::spawn(async move {
            let mut socket = teacher.dial().attempt().await.unwrap();
            for n in 0.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let data = json!({"classId": class.id, "studentId": student, "status": STATUSES[n % 4]});
                socket.send("ATTENDANCE_MARKED", &data).await;
                let revision = socket.expect("ATTENDANCE_MARKED").await["revision"].as_u64().unwrap();
                assert_eq!(revision, told.swap(revision, Ordering::Relaxed).max(1) + 1, "no revision is left out");
            }
        })
    }

    /// What a server says of the open session. Its log has no gap, and its mark is the last in the log.
    async fn check(&self, client: &Client) -> u64 {
        let teacher = self.teacher.at(client);
        let open = teacher.get(&self.class.path("/session")).await.ok();
        let path = self.class.path(&format!("/sessions/{}", open["sessionId"].as_str().unwrap()));
        let session = teacher.get(&path).await.ok();
        let log = session["log"].as_array().unwrap();
        for (entry, revision) in log.iter().zip(1_u64..) {
            assert_eq!(entry["revision"], revision, "{entry}");
        }
        let last = log.last().unwrap();
        let mark = open["marks"].get(0).map_or(&Value::Null, |mark| &mark["status"]);
        assert_eq!((mark, &open["revision"]), (&last["new"], &last["revision"]), "{open}");
        last["revision"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_taken_and_restored_while_64_teachers_mark() {
    let (mut server, backups) = backing_up().await;
    let client = server.client();
    let lessons = futures_util::future::join_all((0..64).map(|n| Lesson::new(&client, n))).await;
    let end = Arc::new(AtomicBool::new(false));
    let marking: Vec<_> = lessons.iter().map(|lesson| lesson.mark_until(&end)).collect();
    let told = || lessons.iter().map(|lesson| lesson.told.load(Ordering::Relaxed)).collect::<Vec<_>>();
    until("every teacher marks", || told().iter().all(|revision| *revision > 1).then_some(())).await;

    let acknowledged = told();
    let backup = next_backup(&backups).await;
    // Under its name it is whole: copied at once, before it is thinned out.
    let kept = server.folder().join("kept.db");
    std::fs::copy(&backup, &kept).unwrap();
    let (text, kept) = (kept.display().to_string(), kept.clone());

    // In a served database's place it cannot be put; elsewhere it can, and is served beside, while all go on.
    let (done, said) = run(&server, &["restore", &text], &server.folder().join("data/rollcall.db")).await;
    assert!(!done && said.contains("another Rollcall serves"), "{said}");
    let elsewhere = server.folder().join("elsewhere.db");
    let (done, said) = run(&server, &["restore", &text], &elsewhere).await;
    assert!(done && said.contains("is now what"), "{said}");
    let (done, said) = run(&server, &["doctor"], &elsewhere).await;
    assert!(done && said.contains("is whole"), "{said}");
    let other = builder().env("DB_URL", format!("sqlite://{}", elsewhere.display())).start().await.unwrap();
    let mut in_backup = Vec::new();
    for (lesson, acknowledged) in lessons.iter().zip(&acknowledged) {
        let found = lesson.check(&other.client()).await;
        assert!(found >= *acknowledged, "{acknowledged} was acknowledged before, {found} is in it");
        in_backup.push(found);
    }
    drop(other);
    let before = told();
    until("they mark on", || told().iter().zip(&before).all(|(now, before)| now > before).then_some(())).await;
    end.store(true, Ordering::Relaxed);
    for task in marking {
        task.await.unwrap();
    }
    let last = told();

    // In place, after a stop: all that came later is gone from the database, and kept beside it.
    assert!(server.terminate().await.unwrap().success());
    let database = server.folder().join("data/rollcall.db");
    let (done, said) = run(&server, &["restore", &text], &database).await;
    assert!(done && said.contains("What it was before is in"), "{said}");
    server.restart().await.unwrap();
    let client = server.client();
    for (n, lesson) in lessons.iter().enumerate() {
        assert_eq!(lesson.check(&client).await, in_backup[n]);
        // Who saw what is not any more comes back with a revision of the future, and hears all that comes.
        let (teacher, student) = (lesson.teacher.at(&client), lesson.student.at(&client));
        let mut teacher = teacher.dial().since(&lesson.class, last[n]).open().await;
        let mut student = student.dial().since(&lesson.class, last[n]).open().await;
        teacher.mark(&lesson.student.id, "excused").await;
        assert_eq!(teacher.expect_mark(&lesson.student.id, "excused").await, in_backup[n] + 1);
        assert_eq!(student.expect_mark(&lesson.student.id, "excused").await, in_backup[n] + 1);
    }
    let kept_aside = database.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let before: Vec<_> = kept_aside.filter(|path| path.to_string_lossy().contains(".before-")).collect();
    assert_eq!(before.len(), 1, "{before:?}");
    let other = builder().env("DB_URL", format!("sqlite://{}", before[0].display())).start().await.unwrap();
    for (lesson, last) in lessons.iter().zip(&last) {
        assert_eq!(lesson.check(&other.client()).await, *last, "what was given up is whole too");
    }
    assert!(kept.exists(), "the backup stays");
}

#[tokio::test]
async fn backups_go_on_after_faults_and_restarts_and_thin_out() {
    let (mut server, backups) = backing_up().await;
    let folder_of = |server: &Server| server.folder().join("data/rollcall.db");
    let first = next_backup(&backups).await;
    assert!(first.to_string_lossy().contains("/rollcall-20"), "{first:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&first.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    until("the oldest is removed", || (!first.exists()).then_some(())).await;
    assert!((3..=4).contains(&names(&backups).len()), "{:?}", names(&backups));
    let client = server.client();
    assert!(metric(&client, "rollcall_backup_last_success_timestamp_seconds").await > 1.7e9);
    assert!(metric(&client, "rollcall_backup_bytes").await > 4096.0);
    assert!(metric(&client, "rollcall_backup_duration_seconds").await > 0.0);
    assert!(metric(&client, "rollcall_backup_failures_total").await.abs() < f64::EPSILON);

    // The disk of the backups goes away: nothing else is harmed, and nothing is made in its place.
    let away = server.folder().join("away");
    std::fs::rename(&backups, &away).unwrap();
    server.logged("the backup failed and will be tried again").await;
    server.logged("mount what it is on").await;
    assert!(metric(&client, "rollcall_backup_failures_total").await > 0.0);
    client.get("/health/ready").await.ok();
    let doctor = server.run(&["doctor"]).await.unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.status.success() && said.contains("FAIL  backups"), "{said}");
    assert!(!backups.exists());
    std::fs::rename(&away, &backups).unwrap();
    next_backup(&backups).await;

    // A crash leaves a part; the next backup clears it away, and what is not its own stays.
    server.kill();
    let part = backups.join(".rollcall-20260101T000000Z.db.aB3xY9.part");
    let others = [backups.join("notes.txt"), backups.join(".other-20260101T000000Z.db.aB3xY9.part")];
    for file in others.iter().chain([&part]) {
        std::fs::write(file, "x").unwrap();
    }
    server.restart().await.unwrap();
    let newest = next_backup(&backups).await;
    assert!(!part.exists() && others.iter().all(|file| file.exists()));
    let doctor = server.run(&["doctor"]).await.unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success() && said.contains("the newest is whole"), "{said}");

    // One that is under way ends with its server, and at once.
    assert!(server.terminate().await.unwrap().success());
    let left = newest.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(".rollcall-")));
    let (done, said) = run(&server, &["restore", "missing.db"], &folder_of(&server)).await;
    assert!(!done && said.contains("missing.db cannot be restored"), "{said}");
}

/// The server's database and backups are in a file system of a few MiB, which the test fills and empties.
#[tokio::test]
#[ignore = "needs user namespaces, to mount a small file system: cargo xtask test"]
async fn a_full_disk_refuses_marks_harms_nothing_and_heals() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let mount =
        format!("mkdir -p backups && mount -t tmpfs -o size=4m none data && exec {}", env!("CARGO_BIN_EXE_rollcall"));
    let mut settings = Server::builder("unshare").env("PATH", std::env::var("PATH").unwrap()).folder(folder);
    for argument in ["--user", "--map-root-user", "--mount", "sh", "-c", &mount] {
        settings = settings.argument(argument);
    }
    let settings = settings.env("BACKUP_DIR", "data").env("BACKUP_EVERY", "1s");
    let room = Room::on(settings.start().await.unwrap(), 1).await;
    room.teacher.start(&room.class).await;
    // The small disk is in the server's own view of the files alone.
    let disk =
        PathBuf::from(format!("/proc/{}/root{}", room.server.pid(), room.server.folder().join("data").display()));
    let student = &room.students[0].id;
    let (mut teacher, mut watching) = (room.teacher.socket().await, room.students[0].socket().await);
    teacher.mark(student, "present").await;
    let mut revision = teacher.expect_mark(student, "present").await;
    watching.expect_mark(student, "present").await;
    room.server.logged("the backup failed and will be tried again").await;

    for _ in 0..3 {
        // A write that fails is the point.
        let _ = std::fs::write(disk.join("ballast"), vec![0; 8 << 20]);
        let mut refused = 0;
        while refused < 200 {
            teacher.mark(student, "late").await;
            let frame = teacher.next().await;
            if frame.event == "ATTENDANCE_MARKED" {
                assert_eq!(frame.revision(), revision + 1);
                revision += 1;
                watching.expect_mark(student, "late").await;
            } else {
                assert_eq!(frame.data["message"], "Not recorded, try again");
                refused += 1;
            }
        }
        watching.expect_silence().await;
        room.client.get("/health/ready").await.refused(503, "Service unavailable");
        let open = room.teacher.get(&room.class.path("/session")).await.ok();
        assert_eq!(open["revision"], revision, "reading goes on, and nothing of what was refused is there");
        std::fs::remove_file(disk.join("ballast")).unwrap();
        until("there is room again", || (!disk.join("ballast").exists()).then_some(())).await;
        teacher.mark(student, "excused").await;
        assert_eq!(teacher.expect_mark(student, "excused").await, revision + 1);
        revision += 1;
        watching.expect_mark(student, "excused").await;
        room.client.get("/health/ready").await.ok();
    }
    let logs = room.server.logs();
    let lines = |text: &str| logs.lines().filter(|line| line.contains(text)).count();
    assert!(lines("the database refuses") <= 6, "{logs}");
    assert!((1..=6).contains(&lines("the store did not answer as it should")), "600 refusals, {logs}");
    teacher.send("DONE", &json!({})).await;
    assert_eq!(teacher.expect("DONE").await["total"], 1);
    tokio::time::timeout(Duration::from_secs(30), room.client.get("/health/ready")).await.unwrap().ok();
}
