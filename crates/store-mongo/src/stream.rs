//! The committed stream: MongoDB's change stream over accounts, classes and sessions.
//!
//! It carries what changed and nothing more: of a session the entries that its log got, of a class the `lastChange`,
//! of an account that it changed; a password never leaves the database in it. After any error it goes on behind the
//! last place that it gave. What cannot be told from a change, because another program made it, is told as
//! [`Followed::Lost`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::unfold;
use mongodb::bson::{Bson, Document, Timestamp, doc};
use mongodb::change_stream::ChangeStream;
use mongodb::change_stream::event::ResumeToken;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::session::{Event, LogEntry};
use rollcall_core::store::{Batch, Change, Cursor, Followed, SessionChange, StoreError};
use tokio::sync::oneshot;

use crate::class::CLASSES;
use crate::db::{Db, SERVER};
use crate::doc;
use crate::error::Failure;
use crate::session::{self, SESSIONS};
use crate::user::USERS;

/// How long the database waits for a change before it says that there is none.
const AWAIT: Duration = Duration::from_millis(100);
/// An answer that took longer may have waited on this side: it says nothing about now.
const FRESH: Duration = Duration::from_millis(300);
/// How long the database may be silent before the connection counts as broken.
const SILENCE: Duration = Duration::from_secs(4);
/// How long to wait before the stream is opened again after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// How many classes and sessions are remembered to tell whose they are.
const REMEMBERED: usize = 100_000;

/// Where in the stream to begin.
enum Place {
    /// Behind a change.
    After(ResumeToken),
    /// At a moment.
    From(Timestamp),
}

/// What one event tells.
enum Told {
    Changes(Vec<Change>),
    /// Something that cannot be told.
    Gap,
}

/// Follows from `from`, or from now on.
pub(crate) async fn follow(
    db: Arc<Db>,
    from: Option<Cursor>,
) -> Result<impl futures_util::Stream<Item = Followed> + Send + use<>, StoreError> {
    let resumed = from.is_some();
    let place = from.as_ref().and_then(token).map(Place::After);
    let mut lost = resumed && place.is_none();
    let opened = match place {
        Some(place) => match open(&db, &place).await {
            Ok(stream) => Ok((stream, place)),
            Err(Failure::Refused(_)) => {
                lost = true;
                open_now(&db).await
            }
            Err(failure) => Err(failure),
        },
        None => open_now(&db).await,
    };
    let (stream, place) = opened.map_err(Failure::told_reader)?;
    let (teachers, classes) = (HashMap::new(), HashMap::new());
    let follower = Follower {
        db,
        stream: Some(stream),
        place,
        lost,
        proven: Instant::now(),
        probe: None,
        proof: None,
        recount: true,
        teachers,
        classes,
    };
    Ok(unfold(follower, async |mut follower| follower.next().await.map(|item| (item, follower))))
}

/// A place as others carry it.
fn cursor(token: &ResumeToken) -> Option<Cursor> {
    serde_json::to_string(token).ok().map(|text| Cursor(text.into()))
}

/// The place that `cursor` names; `None` if it is none of a change stream.
fn token(cursor: &Cursor) -> Option<ResumeToken> {
    let value: serde_json::Value = serde_json::from_str(&cursor.0).ok()?;
    if !value.get("_data")?.is_string() {
        return None;
    }
    serde_json::from_value(value).ok()
}

async fn open_now(db: &Db) -> Result<(ChangeStream<Document>, Place), Failure> {
    let Timestamp { time, increment } = db.majority_time().await?;
    let place = Place::From(Timestamp { time, increment: increment.saturating_add(1) });
    Ok((open(db, &place).await?, place))
}

async fn open(db: &Db, place: &Place) -> Result<ChangeStream<Document>, Failure> {
    let pipeline = [
        doc! { "$match": { "$or": [
            { "ns.coll": { "$in": [USERS, CLASSES, SESSIONS] } },
            { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
        ] } },
        doc! { "$project": {
            "operationType": 1, "clusterTime": 1, "ns.coll": 1, "documentKey._id": 1,
            "updateDescription": {
                "$cond": [{ "$eq": ["$ns.coll", USERS] }, "$$REMOVE", "$updateDescription"],
            },
            "fullDocument": {
                "$cond": [{ "$eq": ["$ns.coll", USERS] }, "$$REMOVE", {
                    "classId": "$fullDocument.classId", "log": "$fullDocument.log",
                    "teacherId": "$fullDocument.teacherId", "studentIds": "$fullDocument.studentIds",
                }],
            },
        } },
    ];
    let watch = db.control.watch().pipeline(pipeline).max_await_time(AWAIT);
    let watch = match place {
        Place::After(token) => watch.start_after(token.clone()),
        Place::From(time) => watch.start_at_operation_time(*time),
    };
    Ok(db.send_control(watch).await?.with_type())
}

/// The question how far the database is. While changes come without a pause the stream never says that there is none;
/// but the first change that a majority got after the question proves that nothing from before it is missing.
struct Probe {
    asked: Instant,
    answer: oneshot::Receiver<Timestamp>,
    time: Option<Timestamp>,
}

impl Probe {
    fn send(db: &Arc<Db>) -> Self {
        let (reply, answer) = oneshot::channel();
        let (db, asked) = (Arc::clone(db), Instant::now());
        tokio::spawn(async move {
            // Without an answer there is no proof, and that is all.
            if let Ok(time) = db.majority_time().await {
                let _ = reply.send(time);
            }
        });
        Self { asked, answer, time: None }
    }

    /// Whether a change of this time proves that the stream was not behind when this was asked.
    fn is_passed_by(&mut self, change: Timestamp) -> bool {
        if self.time.is_none() {
            self.time = self.answer.try_recv().ok();
        }
        self.time.is_some_and(|time| change > time)
    }
}

struct Follower {
    db: Arc<Db>,
    /// `None` while it is broken.
    stream: Option<ChangeStream<Document>>,
    place: Place,
    lost: bool,
    /// When it was last proven that the stream is not behind.
    proven: Instant,
    probe: Option<Probe>,
    /// The moment up to which that is proven and has not been told.
    proof: Option<Instant>,
    /// Whether sessions began or ended since they were counted.
    recount: bool,
    teachers: HashMap<ClassId, UserId>,
    classes: HashMap<SessionId, ClassId>,
}

impl Follower {
    async fn next(&mut self) -> Option<Followed> {
        let closed = self.db.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => None,
            item = self.advance() => Some(item),
        }
    }

    async fn advance(&mut self) -> Followed {
        if std::mem::take(&mut self.lost) {
            return Followed::Lost;
        }
        loop {
            if self.proof.take().is_some_and(|asked| asked.elapsed() <= FRESH) {
                return self.alive();
            }
            let Some(stream) = &mut self.stream else {
                if self.open_again().await {
                    return Followed::Lost;
                }
                continue;
            };
            let asked = Instant::now();
            match tokio::time::timeout(SILENCE, stream.next_if_any()).await {
                Ok(Ok(Some(event))) => {
                    self.prove(&event);
                    if let Some(item) = self.hear(&event).await {
                        return item;
                    }
                }
                Ok(Ok(None)) => {
                    if let Some(token) = stream.resume_token() {
                        self.place = Place::After(token);
                    }
                    if !stream.is_alive() {
                        self.stream = None;
                    } else if asked.elapsed() <= FRESH {
                        return self.alive();
                    }
                }
                Ok(Err(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the committed stream broke off; going on behind the last change");
                    self.stream = None;
                }
                Err(_) => {
                    tracing::warn!("the committed stream is silent; going on behind the last change");
                    self.stream = None;
                }
            }
        }
    }

    fn alive(&mut self) -> Followed {
        (self.proven, self.probe) = (Instant::now(), None);
        if std::mem::take(&mut self.recount) {
            tokio::spawn(count_sessions(Arc::clone(&self.db)));
        }
        Followed::Alive
    }

    /// Sees whether a change proves that the stream is not behind, and asks for a proof where there was none for long.
    fn prove(&mut self, event: &Document) {
        self.probe.take_if(|probe| probe.asked.elapsed() > FRESH);
        if let Some(probe) = &mut self.probe {
            if event.get_timestamp("clusterTime").is_ok_and(|time| probe.is_passed_by(time)) {
                self.proof = Some(probe.asked);
            }
        } else if self.proven.elapsed() >= AWAIT {
            self.probe = Some(Probe::send(&self.db));
        }
    }

    /// Opens the stream behind the last place, or, if that is gone, here and now; answers whether it is gone.
    async fn open_again(&mut self) -> bool {
        let failure = match open(&self.db, &self.place).await {
            Ok(stream) => {
                self.stream = Some(stream);
                return false;
            }
            Err(failure @ Failure::Refused(_)) => {
                tracing::warn!(?failure, "the place in the committed stream is gone");
                match open_now(&self.db).await {
                    Ok((stream, place)) => {
                        (self.stream, self.place) = (Some(stream), place);
                        return true;
                    }
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        tracing::debug!(?failure, "the committed stream cannot be opened; trying again");
        tokio::time::sleep(RETRY).await;
        false
    }

    async fn hear(&mut self, event: &Document) -> Option<Followed> {
        let told = loop {
            match self.read(event).await {
                Ok(told) => break told,
                // It must not be passed over: whoever changed something is in the database, which is away for now.
                Err(StoreError::Unavailable(_)) => tokio::time::sleep(RETRY).await,
                Err(_) => break Told::Gap,
            }
        };
        let token = event.get_document("_id").ok().and_then(|id| serde_json::to_value(id).ok());
        let token: Option<ResumeToken> = token.and_then(|token| serde_json::from_value(token).ok());
        let cursor = token.as_ref().and_then(cursor);
        if let Some(token) = token {
            self.place = Place::After(token);
        }
        match (told, cursor) {
            (Told::Changes(changes), _) if changes.is_empty() => None,
            (Told::Changes(changes), Some(cursor)) => Some(Followed::Batch(Arc::new(Batch { changes, cursor }))),
            (Told::Gap, _) | (_, None) => {
                let kind = event.get_str("operationType").unwrap_or_default();
                tracing::warn!(kind, "another program changed something; everything is loaded again");
                Some(Followed::Lost)
            }
        }
    }

    async fn read(&mut self, event: &Document) -> Result<Told, StoreError> {
        let kind = event.get_str("operationType").unwrap_or_default();
        let collection = event.get_document("ns").ok().and_then(|ns| ns.get_str("coll").ok());
        let key = event.get_document("documentKey").ok().and_then(|key| key.get("_id"));
        match (collection, kind) {
            (Some(USERS | CLASSES | SESSIONS), "create" | "createIndexes" | "modify") => Ok(Told::Changes(Vec::new())),
            (Some(USERS), "insert" | "update" | "replace" | "delete") => {
                // Whose id is none of ours has no account.
                Ok(Told::Changes(doc::as_id(key).map(Change::Account).into_iter().collect()))
            }
            (Some(CLASSES), "insert" | "update") => match doc::as_id(key) {
                Some(class) => self.read_class(class, event).await,
                None => Ok(Told::Changes(Vec::new())),
            },
            (Some(SESSIONS), "insert" | "update") => match doc::as_id(key) {
                Some(session) => self.read_session(session, event).await,
                None => Ok(Told::Changes(Vec::new())),
            },
            _ => Ok(Told::Gap),
        }
    }

    async fn read_class(&mut self, class_id: ClassId, event: &Document) -> Result<Told, StoreError> {
        let enrolment = |student_id, enrolled| Change::Enrolment { class_id, student_id, enrolled };
        let Ok(update) = event.get_document("updateDescription") else {
            let Ok(class) = event.get_document("fullDocument") else { return Ok(Told::Gap) };
            let Some(teacher_id) = doc::as_id(class.get("teacherId")) else { return Ok(Told::Changes(Vec::new())) };
            remember(&mut self.teachers, class_id, teacher_id);
            let mut changes = vec![Change::Class { class_id, teacher_id }];
            changes.extend(doc::students(class).into_iter().map(|student| enrolment(student, true)));
            return Ok(Told::Changes(changes));
        };
        let Ok(fields) = update.get_document("updatedFields") else { return Ok(Told::Gap) };
        if let Ok(last) = fields.get_document("lastChange") {
            let enrolled = last.get_bool("enrolled").ok();
            return match doc::as_id(last.get("studentId")).zip(enrolled) {
                Some((student, enrolled)) => Ok(Told::Changes(vec![enrolment(student, enrolled)])),
                None => self.class_changed(class_id).await,
            };
        }
        if fields.keys().all(|field| field == "starts") {
            return Ok(Told::Changes(Vec::new()));
        }
        Ok(Told::Gap)
    }

    async fn class_changed(&mut self, class_id: ClassId) -> Result<Told, StoreError> {
        if let Some(teacher) = self.teachers.get(&class_id) {
            return Ok(Told::Changes(vec![Change::Class { class_id, teacher_id: *teacher }]));
        }
        // A class keeps its teacher: it does not matter when this is read.
        let class = doc! { "_id": doc::id(class_id) };
        let found = find_one(&self.db, CLASSES, class, doc! { "teacherId": 1 }).await?;
        let Some(teacher_id) = found.and_then(|class| doc::as_id(class.get("teacherId"))) else {
            return Ok(Told::Gap);
        };
        remember(&mut self.teachers, class_id, teacher_id);
        Ok(Told::Changes(vec![Change::Class { class_id, teacher_id }]))
    }

    async fn read_session(&mut self, session_id: SessionId, event: &Document) -> Result<Told, StoreError> {
        let entries = match event.get_document("updateDescription") {
            Ok(update) => appended(update),
            Err(_) => match event.get_document("fullDocument") {
                Ok(session) => {
                    if let Some(class) = doc::as_id(session.get("classId")) {
                        remember(&mut self.classes, session_id, class);
                    }
                    doc::log(session).ok()
                }
                Err(_) => None,
            },
        };
        let Some(entries) = entries else { return Ok(Told::Gap) };
        if entries.is_empty() {
            return Ok(Told::Changes(Vec::new()));
        }
        let Some(class_id) = self.class_of(session_id).await? else { return Ok(Told::Gap) };
        self.recount |= entries.iter().any(|entry| matches!(entry.event, Event::Started | Event::Finished(_)));
        if entries.iter().any(|entry| matches!(entry.event, Event::Finished(_))) {
            self.classes.remove(&session_id);
        }
        let change = |entry| Change::Session(Arc::new(SessionChange { session_id, class_id, entry }));
        Ok(Told::Changes(entries.into_iter().map(change).collect()))
    }

    async fn class_of(&mut self, session: SessionId) -> Result<Option<ClassId>, StoreError> {
        if let Some(class) = self.classes.get(&session) {
            return Ok(Some(*class));
        }
        let filter = doc! { "_id": doc::id(session) };
        let found = find_one(&self.db, SESSIONS, filter, doc! { "classId": 1 }).await?;
        let class = found.and_then(|session| doc::as_id(session.get("classId")));
        if let Some(class) = class {
            remember(&mut self.classes, session, class);
        }
        Ok(class)
    }
}

async fn find_one(db: &Db, name: &str, filter: Document, fields: Document) -> Result<Option<Document>, StoreError> {
    let collection = db.control.collection(name);
    let find = collection.find_one(filter).projection(fields).max_time(SERVER);
    db.send_control(find).await.map_err(Failure::told_reader)
}

/// Tells the metrics how many sessions are open. If the database is away now, the next that begins or ends tells it.
async fn count_sessions(db: Arc<Db>) {
    if let Ok(open) = session::count_open(&db).await {
        metrics::gauge!("rollcall_sessions_open").set(open as f64);
    }
}

fn remember<K: std::hash::Hash + Eq, V>(memory: &mut HashMap<K, V>, key: K, value: V) {
    if memory.len() >= REMEMBERED {
        memory.clear();
    }
    memory.insert(key, value);
}

/// The entries that an update appended to a log, in their order; `None` if it did something else to the log.
fn appended(update: &Document) -> Option<Vec<LogEntry>> {
    let is_log = |field: &str| field == "log" || field.starts_with("log.");
    let removed = update.get_array("removedFields").ok().into_iter().flatten();
    let truncated = update.get_array("truncatedArrays").ok().into_iter().flatten();
    let truncated = truncated.filter_map(|array| array.as_document()?.get_str("field").ok());
    if removed.filter_map(Bson::as_str).chain(truncated).any(is_log) {
        return None;
    }
    let mut entries = Vec::new();
    for (field, value) in update.get_document("updatedFields").ok()? {
        if is_log(field) {
            let place: u64 = field.strip_prefix("log.")?.parse().ok()?;
            entries.push((place, doc::entry(value.as_document()?).ok()?));
        }
    }
    entries.sort_unstable_by_key(|(place, _)| *place);
    Some(entries.into_iter().map(|(_, entry)| entry).collect())
}
