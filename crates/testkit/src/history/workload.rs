//! People who take attendance at once, on any number of replicas, and write down all that they ask and hear.
//!
//! In each class two devices of the teacher mark, announce and finish over WebSocket, commands pipelined; a desk opens
//! sessions and looks at them over HTTP; every student listens, asks for the own mark over WebSocket, and over HTTP for mark and
//! record. They start on different replicas. A client that loses its connection, or waits too long, goes to the next
//! replica, says what it knows (`since`), and sends again what had no answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use rollcall_core::session::{Counts, Status};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::random::Random;
use super::{Answer, Call, Class, Entry, Event, History, Id, Recorder, Said, Session, Ticket};
use crate::server::{self, Client, Frame, Person, Socket};

/// How long a client waits for an answer before it takes the connection for dead.
const STALLED: Duration = Duration::from_secs(3);
/// How long an HTTP call may take: longer than a server may need to say that its database is away.
const CALL: Duration = Duration::from_secs(6);
/// How long what is under way may take to settle once the faults are over.
const SETTLE: Duration = Duration::from_secs(45);
/// How long until everybody has heard everything after that.
const CONVERGE: Duration = Duration::from_secs(20);
/// Before a lost client comes back.
const PAUSE: Duration = Duration::from_millis(20);
const NO_SESSION: &str = "No active attendance session";
const NOT_RECORDED: &str = "Not recorded, try again";
const STILL_CHECKING: &str = "Outcome unknown, still checking";

/// How much is going on.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Classes, each with a teacher of its own.
    pub classes: usize,
    /// Students of each class alone; one more is in all classes.
    pub students: usize,
    /// Commands that a teacher's device has under way at once.
    pub in_flight: usize,
    /// The longest pause between two commands of a device.
    pub pause: Duration,
}

impl Default for Scale {
    fn default() -> Self {
        Self { classes: 3, students: 3, in_flight: 4, pause: Duration::from_millis(40) }
    }
}

/// What the clients are to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Work.
    Work,
    /// Begin nothing new.
    Settle,
    /// Listen until of each class the last revision was heard, but no longer.
    End {
        /// Of the classes of which anything is told, the last revision that is.
        last: BTreeMap<Id, u64>,
        /// How long at most.
        by: Instant,
    },
}

/// Works on the replicas at `bases` until `faults` are over, lets everything settle, and gives what happened.
///
/// All replicas must answer when `faults` has ended.
pub async fn run(bases: &[Client], scale: Scale, random: &Random, faults: impl Future<Output = ()>) -> History {
    let recorder = Arc::new(Recorder::default());
    let rooms = rooms(&bases[0], scale, &recorder).await;
    let (phase, phases) = watch::channel(Phase::Work);
    let (idle, mut settled) = mpsc::unbounded_channel();
    let (mut seats, mut callers) = (JoinSet::new(), JoinSet::new());
    let mut part = 0;
    let mut place = |person: &Person, name: String, rooms: Vec<Room>, task: Task| {
        part += 1;
        let hears = match task {
            Task::Mark | Task::Listen => rooms.iter().map(|room| room.id.clone()).collect(),
            Task::Desk | Task::Ask => Vec::new(),
        };
        Place {
            client: recorder.client(&name, hears),
            name,
            person: person.clone(),
            rooms,
            bases: bases.to_vec(),
            at: usize::try_from(part).unwrap_or_default() % bases.len(),
            scale,
            random: random.part(part),
            recorder: Arc::clone(&recorder),
            phase: phases.clone(),
        }
    };
    for (n, room) in rooms.iter().enumerate() {
        let n = n + 1;
        for device in ["phone", "laptop"] {
            let place = place(&room.teacher, format!("teacher {n}'s {device}"), vec![room.clone()], Task::Mark);
            seats.spawn(Seat::new(place, true, idle.clone()).run());
        }
        callers.spawn(place(&room.teacher, format!("teacher {n}'s desk"), vec![room.clone()], Task::Desk).desk());
        for (m, student) in room.students.iter().enumerate().skip(1) {
            let name = format!("student {n}.{m}");
            let place_of = place(student, name.clone(), vec![room.clone()], Task::Listen);
            seats.spawn(Seat::new(place_of, false, idle.clone()).run());
            callers.spawn(place(student, format!("{name}'s page"), vec![room.clone()], Task::Ask).ask());
        }
    }
    if let Some(everywhere) = rooms.first().and_then(|room| room.students.first()) {
        let place = place(everywhere, "the student of all".to_owned(), rooms.clone(), Task::Listen);
        seats.spawn(Seat::new(place, false, idle.clone()).run());
    }
    faults.await;
    phase.send_replace(Phase::Settle);
    let quiet = async {
        for _ in 0..seats.len() {
            settled.recv().await;
        }
        finish(callers).await;
    };
    if timeout(SETTLE, quiet).await.is_err() {
        recorder.surprise(format!("commands that have no answer {SETTLE:?} after the last fault"));
    }
    let classes = classes(bases, &rooms, &recorder).await;
    let last = classes.iter().filter_map(|class| Some((class.id.clone(), last_told(class)?))).collect();
    phase.send_replace(Phase::End { last, by: Instant::now() + CONVERGE });
    finish(seats).await;
    recorder.finish(classes)
}

async fn finish(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// A class with its people.
#[derive(Clone, Debug)]
struct Room {
    id: Id,
    teacher: Person,
    /// The first is in all classes.
    students: Vec<Person>,
}

impl Room {
    fn path(&self, rest: &str) -> String {
        format!("/class/{}{rest}", self.id)
    }
}

async fn rooms(client: &Client, scale: Scale, recorder: &Recorder) -> Vec<Room> {
    let everywhere = client.student("Student of all").await;
    recorder.name(&everywhere.id.as_str().into(), "the student of all");
    let mut rooms = Vec::new();
    for n in 1..=scale.classes {
        let teacher = client.teacher(&format!("Teacher {n}")).await;
        let mut students = vec![everywhere.clone()];
        for m in 1..=scale.students {
            let student = client.student(&format!("Student {n}.{m}")).await;
            recorder.name(&student.id.as_str().into(), format!("student {n}.{m}"));
            students.push(student);
        }
        let class = teacher.class(&format!("Class {n}"), &students.iter().collect::<Vec<_>>()).await;
        let id: Id = class.id.as_str().into();
        recorder.name(&id, format!("class {n}"));
        rooms.push(Room { id, teacher, students });
    }
    rooms
}

/// What somebody does.
#[derive(Clone, Copy)]
enum Task {
    Mark,
    Listen,
    Desk,
    Ask,
}

/// Somebody somewhere.
struct Place {
    client: usize,
    name: String,
    person: Person,
    rooms: Vec<Room>,
    bases: Vec<Client>,
    /// The replica that is asked, as an index of `bases`.
    at: usize,
    scale: Scale,
    random: Random,
    recorder: Arc<Recorder>,
    phase: watch::Receiver<Phase>,
}

impl Place {
    /// Goes to the next replica.
    fn move_on(&mut self) {
        self.at = (self.at + 1) % self.bases.len();
    }

    fn here(&self) -> Person {
        self.person.at(&self.bases[self.at])
    }

    /// Whether there is work; waits a moment first.
    async fn works(&mut self, most: Duration) -> bool {
        sleep(self.random.time(Duration::ZERO, most)).await;
        *self.phase.borrow() == Phase::Work
    }

    /// Makes a call. Without an answer, or where that does not say what was done, it is what is known then.
    async fn call(&mut self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Answer> {
        let mut call = self.here().call(method, path);
        if let Some(body) = &body {
            call = call.json(body);
        }
        let failed = match timeout(CALL, call.attempt()).await {
            Ok(Ok(answer)) if answer.status == 200 => return Ok(answer.ok()),
            Ok(Ok(answer)) if answer.status == 503 => Answer::Unknown,
            Ok(Ok(answer)) => {
                self.recorder.surprise(format!("{}: {answer:?}", self.name));
                Answer::Unknown
            }
            Ok(Err(error)) if error.is_connect() => Answer::NotDone,
            // Broken off, or too slow.
            Ok(Err(_)) | Err(_) => Answer::Unknown,
        };
        self.move_on();
        Err(failed)
    }

    /// Opens sessions of the class and looks at them.
    async fn desk(mut self) {
        let room = self.rooms[0].clone();
        while self.works(Duration::from_millis(60)).await {
            if self.random.one_in(16) {
                self.move_on();
            }
            let starts = self.random.one_in(4);
            let call = if starts { Call::Start } else { Call::View };
            let ticket = self.recorder.invoke(self.client, &room.id, call, None, None);
            let answer = if starts {
                let body = json!({"classId": room.id.as_ref()});
                let data = self.call(Method::POST, "/attendance/start", Some(body)).await;
                data.map(|data| Answer::Started {
                    session: id(&data, "sessionId"),
                    revision: number(&data, "revision"),
                })
            } else {
                let data = self.call(Method::GET, &room.path("/session"), None).await;
                data.map(|data| match data {
                    Value::Null => Answer::NoSession,
                    data => Answer::Viewed {
                        session: id(&data, "sessionId"),
                        revision: number(&data, "revision"),
                        marks: statuses(&data["marks"]),
                    },
                })
            };
            self.recorder.answer(ticket, answer.unwrap_or_else(|failed| failed));
        }
    }

    /// Asks for the own mark and the last record, as a student's page does.
    async fn ask(mut self) {
        let room = self.rooms[0].clone();
        let student: Id = self.person.id.as_str().into();
        while self.works(Duration::from_millis(80)).await {
            if self.random.one_in(16) {
                self.move_on();
            }
            let record = self.random.one_in(3);
            let student = student.clone();
            let (call, path) = if record {
                (Call::LastRecord { student }, "/my-attendance")
            } else {
                (Call::OwnMark { student }, "/session")
            };
            let ticket = self.recorder.invoke(self.client, &room.id, call, None, None);
            let answer = match self.call(Method::GET, &room.path(path), None).await {
                Err(failed) => failed,
                Ok(Value::Null) => Answer::NoSession,
                Ok(data) if record => Answer::Recorded(status(&data).map(|status| (id(&data, "sessionId"), status))),
                Ok(data) => Answer::Own { revision: number(&data, "revision"), status: status(&data) },
            };
            self.recorder.answer(ticket, answer);
        }
    }
}

/// A command or question without an answer.
struct Open {
    name: Id,
    ticket: Ticket,
    event: &'static str,
    data: Value,
}

/// Why a connection is left.
#[derive(PartialEq, Eq)]
enum Left {
    Lost,
    Finished,
}

/// Somebody at a socket.
struct Seat {
    place: Place,
    marks: bool,
    open: VecDeque<Open>,
    /// The largest revision heard of each class.
    heard: BTreeMap<Id, u64>,
    next_name: u64,
    /// Told once when nothing is under way any more.
    idle: Option<mpsc::UnboundedSender<()>>,
}

impl Seat {
    fn new(place: Place, marks: bool, idle: mpsc::UnboundedSender<()>) -> Self {
        Self { place, marks, open: VecDeque::new(), heard: BTreeMap::new(), next_name: 0, idle: Some(idle) }
    }

    async fn run(mut self) {
        let mut first = true;
        loop {
            if let Phase::End { by, .. } = *self.place.phase.borrow()
                && by < Instant::now()
            {
                return;
            }
            if let Some((socket, index)) = self.connect(first).await {
                first = false;
                if self.talk(socket, index).await == Left::Finished {
                    return;
                }
                self.place.recorder.disconnected(index);
            }
            self.place.move_on();
            sleep(PAUSE).await;
        }
    }

    async fn connect(&mut self, first: bool) -> Option<(Socket, usize)> {
        let mut dial = self.place.here().dial();
        let mut since = BTreeMap::new();
        if !first {
            for room in &self.place.rooms {
                let known = self.heard.get(&room.id).copied().unwrap_or(0);
                dial = dial.since(&server::Class { id: room.id.to_string() }, known);
                since.insert(room.id.clone(), known);
            }
        }
        let socket = timeout(STALLED, dial.attempt()).await.ok()?.ok()?;
        let index = self.place.recorder.connected(self.place.client, since);
        Some((socket, index))
    }

    async fn talk(&mut self, mut socket: Socket, index: usize) -> Left {
        // A question is not asked again.
        let asked = self.open.iter().filter(|open| open.event == "MY_ATTENDANCE");
        asked.for_each(|question| self.place.recorder.answer(question.ticket, Answer::NotDone));
        self.open.retain(|open| open.event != "MY_ATTENDANCE");
        for open in &self.open {
            self.place.recorder.invoke_again(open.ticket, index);
            if !send(&mut socket, open.event, &open.data).await {
                return Left::Lost;
            }
        }
        let mut next = Instant::now();
        // Moves with every answer.
        let mut patience = Instant::now() + STALLED;
        loop {
            let phase = self.place.phase.borrow_and_update().clone();
            if phase != Phase::Work && self.open.is_empty() {
                // Nobody listens any more once all are waited for.
                let _ = self.idle.take().is_none_or(|idle| idle.send(()).is_ok());
            }
            let ends = match &phase {
                Phase::Work | Phase::Settle => None,
                Phase::End { last, by } => {
                    let heard = |room: &Room| self.heard.get(&room.id) >= last.get(&room.id);
                    if self.place.rooms.iter().all(heard) {
                        return Left::Finished;
                    }
                    Some(*by)
                }
            };
            let may_send = phase == Phase::Work && self.open.len() < self.place.scale.in_flight;
            tokio::select! {
                frame = socket.try_next() => match frame {
                    Ok(frame) => {
                        patience = Instant::now() + STALLED;
                        self.take(&frame, index);
                    }
                    Err(ended) => {
                        if let Some(1002 | 1003 | 1007..=1011 | 4000..) = ended.code {
                            self.place.recorder.surprise(format!("{}: {ended}", self.place.name));
                        }
                        return Left::Lost;
                    }
                },
                () = sleep_until(next), if may_send => {
                    if self.open.is_empty() {
                        patience = Instant::now() + STALLED;
                    }
                    if !self.begin(&mut socket, index).await {
                        return Left::Lost;
                    }
                    next = Instant::now() + self.place.random.time(Duration::ZERO, self.place.scale.pause);
                }
                changed = self.place.phase.changed() => {
                    if changed.is_err() {
                        return Left::Finished;
                    }
                }
                () = sleep_until(patience), if !self.open.is_empty() => return Left::Lost,
                () = sleep_until(ends.unwrap_or(next)), if ends.is_some() => return Left::Finished,
                // Who has nothing to ask may hear nothing for long.
                () = sleep(server::PATIENCE / 2) => {}
            }
        }
    }

    /// Sends something new; false when the connection is gone.
    async fn begin(&mut self, socket: &mut Socket, index: usize) -> bool {
        self.next_name += 1;
        let place = &mut self.place;
        let room = place.random.pick(&place.rooms).clone();
        let name: Id = format!("{}-{}", place.client, self.next_name).into();
        let mut data = json!({"classId": room.id.as_ref(), "requestId": name.as_ref()});
        let (event, call) = if !self.marks {
            ("MY_ATTENDANCE", Call::OwnMark { student: place.person.id.as_str().into() })
        } else if place.random.one_in(60) {
            ("DONE", Call::Done)
        } else if place.random.one_in(20) {
            ("TODAY_SUMMARY", Call::Summary)
        } else {
            let student = &place.random.pick(&room.students).id;
            let status = *place.random.pick(&Status::ALL);
            data["studentId"] = json!(student);
            data["status"] = json!(status.as_str());
            ("ATTENDANCE_MARKED", Call::Mark { student: student.as_str().into(), status })
        };
        let named = self.marks.then(|| name.clone());
        let ticket = place.recorder.invoke(place.client, &room.id, call, named, Some(index));
        let sent = send(socket, event, &data).await;
        self.open.push_back(Open { name, ticket, event, data });
        sent
    }

    fn take(&mut self, frame: &Frame, index: usize) {
        let recorder = Arc::clone(&self.place.recorder);
        let named = frame.data["requestId"].as_str().map(|name| self.open.iter().position(|open| *open.name == *name));
        let surprise = |why: &str| recorder.surprise(format!("{} was told {frame:?}: {why}", self.place.name));
        let Some(asked) = named.map_or(Some(None), |place| place.map(Some)) else {
            return surprise("nothing of that name is open");
        };
        if frame.event == "ERROR" {
            let Some(asked) = asked else { return surprise("nothing was asked so") };
            let answer = match frame.data["message"].as_str() {
                Some(STILL_CHECKING) => return,
                Some(NO_SESSION) => Answer::NoSession,
                Some(NOT_RECORDED) => Answer::NotDone,
                _ => return surprise("no such refusal is due"),
            };
            if let Some(open) = self.open.remove(asked) {
                recorder.answer(open.ticket, answer);
            }
            return;
        }
        let (class, revision) = (id(&frame.data, "classId"), number(&frame.data, "revision"));
        let said = match frame.event.as_str() {
            "ATTENDANCE_MARKED" => {
                status(&frame.data).map(|status| Said::Marked { student: id(&frame.data, "studentId"), status })
            }
            "TODAY_SUMMARY" => Some(Said::Summary(counts(&frame.data))),
            "DONE" => Some(Said::Done(counts(&frame.data))),
            "MY_ATTENDANCE" if asked.is_some() => Some(Said::Own),
            _ => None,
        };
        let Some(said) = said else { return surprise("no such frame is due") };
        if asked.is_some_and(|asked| self.open[asked].event != frame.event) {
            return surprise("something else was asked");
        }
        let open = asked.and_then(|asked| self.open.remove(asked));
        let answer = match &said {
            Said::Marked { .. } => Answer::Marked { revision },
            Said::Summary(counts) | Said::Done(counts) => Answer::Counted { revision, counts: *counts },
            Said::Own => Answer::Own { revision, status: status(&frame.data) },
        };
        recorder.heard(index, &class, revision, said, open.as_ref().map(|open| open.ticket));
        let heard = self.heard.entry(class).or_default();
        *heard = revision.max(*heard);
        if let Some(open) = open {
            recorder.answer(open.ticket, answer);
        }
    }
}

/// Sends a frame; false when the connection is gone.
async fn send(socket: &mut Socket, event: &str, data: &Value) -> bool {
    matches!(timeout(STALLED, socket.try_send(event, data)).await, Ok(Ok(())))
}

/// The last revision of the class's newest session of which everybody is told, however late they come.
fn last_told(class: &Class) -> Option<u64> {
    let told = |entry: &&Entry| matches!(entry.event, Event::Marked { .. } | Event::Done(_));
    class.sessions.last()?.log.iter().rfind(told).map(|entry| entry.revision)
}

/// What the store holds, as a teacher is told.
async fn classes(bases: &[Client], rooms: &[Room], recorder: &Recorder) -> Vec<Class> {
    let mut classes = Vec::new();
    for room in rooms {
        let teacher = room.teacher.at(&bases[0]);
        let mut sessions = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = teacher.get(&room.path(&format!("/sessions?limit=100{cursor}"))).await.envelope(200);
            for session in list(&page["data"]) {
                let path = room.path(&format!("/sessions/{}", id(session, "sessionId")));
                let history = teacher.get(&path).await.ok();
                let open = session["state"] == "open";
                let standing = if open { teacher.get(&room.path("/session")).await.ok() } else { history.clone() };
                let standing = statuses(&standing[if open { "marks" } else { "records" }]);
                let log = list(&history["log"]).iter().filter_map(|entry| {
                    let entry = logged(entry);
                    if entry.is_none() {
                        recorder.surprise(format!("an entry of the log that nobody caused: {entry:?}"));
                    }
                    entry
                });
                sessions.push(Session { id: id(session, "sessionId"), open, log: log.collect(), standing });
            }
            match page["nextCursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        sessions.reverse();
        let students = room.students.iter().map(|student| student.id.as_str().into()).collect();
        classes.push(Class { id: room.id.clone(), students, sessions });
    }
    classes
}

fn logged(entry: &Value) -> Option<Entry> {
    let event = match entry["event"].as_str()? {
        "START" => Event::Started,
        "ATTENDANCE_MARKED" => Event::Marked {
            student: id(entry, "studentId"),
            old: entry["old"].as_str().and_then(|old| old.parse().ok()),
            new: entry["new"].as_str()?.parse().ok()?,
        },
        "TODAY_SUMMARY" => Event::Summary(counts(entry)),
        "DONE" => Event::Done(counts(entry)),
        _ => return None,
    };
    Some(Entry { revision: number(entry, "revision"), event, operation: id(entry, "operationId") })
}

/// A missing id is empty, which no check takes for another.
fn id(data: &Value, member: &str) -> Id {
    data[member].as_str().unwrap_or_default().into()
}

fn number(data: &Value, member: &str) -> u64 {
    data[member].as_u64().unwrap_or_default()
}

fn status(data: &Value) -> Option<Status> {
    data["status"].as_str()?.parse().ok()
}

fn counts(data: &Value) -> Counts {
    let count = |member: &str| u32::try_from(number(data, member)).unwrap_or(u32::MAX);
    Counts { present: count("present"), absent: count("absent"), late: count("late"), excused: count("excused") }
}

fn list(data: &Value) -> &[Value] {
    data.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn statuses(list_of: &Value) -> BTreeMap<Id, Status> {
    list(list_of).iter().filter_map(|mark| Some((id(mark, "studentId"), status(mark)?))).collect()
}
