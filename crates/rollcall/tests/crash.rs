//! Crashes: a server under concurrent marks is killed at random moments and started again.
//!
//! Whatever any client saw is there afterwards, nothing stands after DONE, revisions have no gap, and the class goes
//! on where it was. `ROLLCALL_CRASH_ROUNDS` says how often (20), `ROLLCALL_CRASH_SEED` repeats a run.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than expected fails")]

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rollcall_testkit::server::{Class, Client, Frame, Person, Server, Socket};
use serde_json::{Value, json};

const TEACHERS: usize = 4;
const STUDENTS: usize = 6;
/// Commands that a teacher has under way at once.
const IN_FLIGHT: usize = 32;
const STATUSES: [&str; 4] = ["present", "absent", "late", "excused"];

/// A small generator whose seed repeats a run: `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// A class with its people and all that they ever saw of it.
struct Room {
    teacher: Person,
    students: Vec<Person>,
    class: Class,
    seen: Seen,
    /// The last revision that has been checked against the log.
    checked: u64,
    /// Commands that were sent and not answered when the server died.
    open: Vec<(&'static str, Value)>,
    random: Random,
    next_request: u64,
}

/// What frames said, by revision.
type Seen = BTreeMap<u64, Frame>;

fn see(seen: &mut Seen, mut frame: Frame) {
    frame.data.as_object_mut().unwrap().remove("requestId");
    let revision = frame.revision();
    if let Some(before) = seen.insert(revision, frame.clone()) {
        assert_eq!(before, frame, "two clients saw revision {revision} differently");
    }
}

impl Room {
    async fn new(client: &Client, n: usize, seed: u64) -> Self {
        let teacher = client.teacher(&format!("Teacher {n}")).await;
        let mut students = Vec::new();
        for m in 0..STUDENTS {
            students.push(client.student(&format!("Student {m}")).await);
        }
        let class = teacher.class(&format!("Class {n}"), &students.iter().collect::<Vec<_>>()).await;
        let random = Random(seed ^ (n as u64 + 1));
        Self { teacher, students, class, seen: Seen::new(), checked: 0, open: Vec::new(), random, next_request: 0 }
    }

    fn command(&mut self) -> (&'static str, Value) {
        self.next_request += 1;
        let id = format!("r{}", self.next_request);
        let class = &self.class.id;
        match self.random.below(40) {
            0 => ("TODAY_SUMMARY", json!({"classId": class, "requestId": id})),
            1 => ("DONE", json!({"classId": class, "requestId": id})),
            _ => {
                let student = &self.students[self.random.below(STUDENTS)].id;
                let status = STATUSES[self.random.below(4)];
                (
                    "ATTENDANCE_MARKED",
                    json!({"classId": class, "studentId": student, "status": status, "requestId": id}),
                )
            }
        }
    }

    /// Takes attendance until the server dies. `told` counts what the teachers were told.
    async fn work(mut self, told: Arc<AtomicU64>) -> Self {
        let listener = self.students[0].dial().attempt().await.ok().map(|socket| tokio::spawn(listen(socket)));
        // Fails only when the server is dead already.
        if let Ok(mut socket) = self.teacher.dial().attempt().await {
            while self.lesson(&mut socket, &told).await {}
        }
        if let Some(listener) = listener {
            for frame in listener.await.unwrap() {
                see(&mut self.seen, frame);
            }
        }
        self
    }

    /// One session, up to its DONE; false when the server died.
    async fn lesson(&mut self, socket: &mut Socket, told: &AtomicU64) -> bool {
        let start =
            self.teacher.call(reqwest::Method::POST, "/attendance/start").json(&json!({"classId": self.class.id}));
        match start.attempt().await {
            Ok(answer) => drop(answer.ok()),
            Err(_) => return false,
        }
        let mut done = false;
        loop {
            while !done && self.open.len() < IN_FLIGHT {
                let (event, data) = self.command();
                done = event == "DONE";
                let sent = socket.try_send(event, &data).await.is_ok();
                self.open.push((event, data));
                if !sent {
                    break;
                }
            }
            let Ok(frame) = socket.try_next().await else { return false };
            // Answers come in the order of the commands.
            let (event, data) = self.open.remove(0);
            assert_eq!(frame.event, event, "{} for {data}", frame.data);
            for member in ["classId", "studentId", "status", "requestId"] {
                assert!(data.get(member).is_none() || data[member] == frame.data[member], "{} for {data}", frame.data);
            }
            see(&mut self.seen, frame);
            told.fetch_add(1, Ordering::Relaxed);
            if done && self.open.is_empty() {
                return true;
            }
        }
    }

    /// Holds what the restarted server says against what was seen; then sends again what had no answer.
    async fn check(&mut self, client: &Client) {
        self.teacher = self.teacher.at(client);
        self.students = self.students.iter().map(|student| student.at(client)).collect();
        self.compare().await;
        self.repeat().await;
        self.compare().await;
        self.checked = self.seen.keys().next_back().copied().unwrap_or(self.checked);
        self.seen.clear();
    }

    /// Every event seen is in the log as it was seen, the log has no gap, and sessions are as their logs say.
    async fn compare(&self) {
        let mut cursor = String::new();
        let mut sessions = Vec::new();
        // Newest first; what is older was checked before.
        'pages: loop {
            let page = self.teacher.get(&self.class.path(&format!("/sessions?limit=5{cursor}"))).await.envelope(200);
            for session in page["data"].as_array().unwrap() {
                if session["revision"].as_u64().unwrap() <= self.checked && session["state"] == "finished" {
                    break 'pages;
                }
                sessions.push(session.clone());
            }
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let mut log = Vec::new();
        for (newer, session) in sessions.iter().rev().enumerate() {
            let path = self.class.path(&format!("/sessions/{}", session["sessionId"].as_str().unwrap()));
            let session = self.teacher.get(&path).await.ok();
            let entries = session["log"].as_array().unwrap();
            self.compare_session(&session, entries, newer + 1 == sessions.len()).await;
            log.extend(entries.iter().cloned());
        }
        for pair in log.windows(2) {
            let (one, two) = (pair[0]["revision"].as_u64().unwrap(), pair[1]["revision"].as_u64().unwrap());
            assert_eq!(two, one + 1, "a gap in the log of class {}", self.class.id);
        }
        let by_revision: BTreeMap<u64, &Value> =
            log.iter().map(|entry| (entry["revision"].as_u64().unwrap(), entry)).collect();
        for (revision, frame) in &self.seen {
            let Some(entry) = by_revision.get(revision) else { panic!("{frame:?} was seen and is lost") };
            assert_eq!(entry["event"], json!(frame.event), "{entry}");
            if frame.event == "ATTENDANCE_MARKED" {
                assert_eq!((&entry["studentId"], &entry["new"]), (&frame.data["studentId"], &frame.data["status"]));
            } else {
                for count in ["present", "absent", "late", "excused", "total"] {
                    assert_eq!(entry.get(count), frame.data.get(count), "{entry} was seen as {frame:?}");
                }
            }
        }
        let mut operations: Vec<_> = log.iter().filter_map(|entry| entry["operationId"].as_str()).collect();
        let all = operations.len();
        operations.sort_unstable();
        operations.dedup();
        assert_eq!(operations.len(), all, "an operation was done twice");
    }

    async fn compare_session(&self, session: &Value, entries: &[Value], newest: bool) {
        let last = entries.last().unwrap();
        let finished = last["event"] == "DONE";
        assert_eq!(entries[0]["event"], "START", "{session}");
        assert_eq!(session["state"], if finished { "finished" } else { "open" }, "{session}");
        assert_eq!(session["revision"], last["revision"]);
        assert_eq!(session["firstRevision"], entries[0]["revision"]);
        assert!(newest || finished, "only the newest session can be open: {session}");
        assert!(entries.iter().rev().skip(1).all(|entry| entry["event"] != "DONE"), "something stands after DONE");
        let mut statuses: BTreeMap<&str, &str> = BTreeMap::new();
        for entry in entries {
            if let (Some(student), Some(status)) = (entry["studentId"].as_str(), entry["new"].as_str()) {
                let old = statuses.insert(student, status);
                assert_eq!(entry["old"], json!(old), "{entry}");
            }
        }
        let found = if finished {
            for student in &self.students {
                statuses.entry(&student.id).or_insert("absent");
            }
            assert_eq!(last["total"], json!(STUDENTS));
            session["records"].clone()
        } else {
            assert_eq!(session["records"], json!([]));
            let open = self.teacher.get(&self.class.path("/session")).await.ok();
            assert_eq!(open["revision"], session["revision"]);
            open["marks"].clone()
        };
        let found: BTreeMap<_, _> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|record| (record["studentId"].as_str().unwrap(), record["status"].as_str().unwrap()))
            .collect();
        assert_eq!(found, statuses, "{session}");
    }

    /// A client that lost its connection sends again what it got no answer to: done before the crash, that is
    /// answered and not done twice; not done, it is done now. Commands take effect in their order, so a DONE, which
    /// comes last, never shuts out one of them.
    async fn repeat(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let mut socket = self.teacher.socket().await;
        for (event, data) in &self.open {
            socket.queue(event, data).await;
        }
        socket.flush().await;
        // What is done now is told before or between what is only told again: the names say which answer is whose.
        let mut open: BTreeMap<_, _> =
            self.open.drain(..).map(|(event, data)| (data["requestId"].to_string(), event)).collect();
        while !open.is_empty() {
            let frame = socket.next().await;
            let event = open.remove(&frame.data["requestId"].to_string());
            assert_eq!(event, Some(frame.event.as_str()), "{}", frame.data);
            see(&mut self.seen, frame);
        }
        socket.close().await;
    }
}

/// Every frame until the end.
async fn listen(mut socket: Socket) -> Vec<Frame> {
    socket.drain().await.0
}

#[tokio::test]
async fn what_anybody_saw_survives_every_crash() {
    let rounds = from_env("ROLLCALL_CRASH_ROUNDS").unwrap_or(20);
    let seed = from_env("ROLLCALL_CRASH_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("ROLLCALL_CRASH_SEED={seed}");
    let mut random = Random(seed);
    let mut server = Server::builder(env!("CARGO_BIN_EXE_rollcall")).start().await.unwrap();
    let mut rooms = Vec::new();
    for n in 0..TEACHERS {
        rooms.push(Room::new(&server.client(), n, seed).await);
    }
    let mut all = 0;
    for round in 0..rounds {
        let told = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = rooms.into_iter().map(|room| tokio::spawn(room.work(Arc::clone(&told)))).collect();
        // At least so much is told before the crash, and a random moment more is worked.
        let enough = random.next() % 400;
        let more = Duration::from_micros(random.next() % 3_000);
        rollcall_testkit::server::until("enough was told", || {
            let failed = tasks.iter().any(tokio::task::JoinHandle::is_finished);
            (failed || told.load(Ordering::Relaxed) >= enough).then_some(())
        })
        .await;
        tokio::time::sleep(more).await;
        server.kill();
        rooms = Vec::new();
        for task in tasks {
            rooms.push(task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        let told = told.load(Ordering::Relaxed);
        assert!(told >= enough, "round {round}: the teachers stopped after {told} of {enough}");
        all += told;
        if random.below(4) == 0 {
            // A crash while it recovers from a crash.
            server.restart().await.unwrap();
            server.kill();
        }
        server.restart().await.unwrap();
        for room in &mut rooms {
            room.check(&server.client()).await;
        }
    }
    println!("{rounds} crashes, {all} events told");
    assert!(server.terminate().await.unwrap().success());
}
