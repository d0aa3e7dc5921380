//! Sessions: how they are read, opened and written to. One document is one session, with its log in it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use rollcall_core::error::Seen;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::session::{
    Actor, Command, FinishedSession, LogEntry, Mark, OpenSession, Origin, Revision, SessionInfo, SessionState,
};
use rollcall_core::store::{
    Outcome, OwnMark, Page, REPEAT_WINDOW, Receipt, SessionChange, Sessions, Started, StoreError, Target,
};
use rollcall_core::time::Timestamp;

use crate::MongoStore;
use crate::class;
use crate::db::{Db, Halt, SERVER};
use crate::doc::{self, Damaged, entry_doc, healthy, id, integer, name_damage};
use crate::error::internal;
use crate::mail;

pub(crate) const SESSIONS: &str = "sessions";

#[async_trait]
impl Sessions for MongoStore {
    async fn start(
        &self,
        id: SessionId,
        class: ClassId,
        teacher: UserId,
        origin: Origin,
    ) -> Result<Started, StoreError> {
        let db = Arc::clone(&self.db);
        self.db
            .transact(move |tx| {
                let (db, origin) = (Arc::clone(&db), origin.clone());
                async move { start(&db, tx, id, class, teacher, origin).await }.boxed()
            })
            .await
    }

    async fn submit(&self, target: Target, command: Command, origin: Origin) -> Result<Receipt<Outcome>, StoreError> {
        self.queue.submit(target, command, origin).await
    }

    async fn open_session(&self, class: ClassId) -> Result<Option<OpenSession>, StoreError> {
        let open = doc! { "classId": id(class), "state": "open" };
        let find = self.db.sessions.find_one(open).projection(doc::open_fields());
        let found = self.db.find_one_now(find).await?;
        found.map(|session| read(&session, doc::open_session)).transpose()
    }

    async fn open_sessions(&self) -> Result<Vec<OpenSession>, StoreError> {
        let open = doc! { "state": "open" };
        let find = self.db.sessions.find(open).projection(doc::open_fields()).sort(doc! { "opened": 1 });
        let found = self.db.list_now(find).await?;
        Ok(found.iter().filter_map(|session| healthy(SESSIONS, session, doc::open_session)).collect())
    }

    async fn count_open_sessions(&self) -> Result<u64, StoreError> {
        count_open(&self.db).await
    }

    async fn sessions_older_than(&self, age: Duration) -> Result<Vec<SessionId>, StoreError> {
        let old = doc! { "state": "open", "startedAt": { "$lt": doc::time(self.clock.now().before(age)) } };
        let find = self.db.sessions.find(old).projection(doc! { "_id": 1 }).sort(doc! { "opened": 1 });
        let found = self.db.list_now(find).await?;
        Ok(found.iter().filter_map(|session| doc::as_id(session.get("_id"))).collect())
    }

    async fn own_mark(&self, student: UserId, class: Option<ClassId>) -> Result<OwnMark, StoreError> {
        let mut fields = doc::info_fields();
        fields.extend(doc! { format!("marks.{student}"): 1, "roster": { "$elemMatch": { "$eq": id(student) } } });
        let (filter, order) = match class {
            // If one is open it is the newest.
            Some(class) => (doc! { "classId": id(class) }, doc! { "firstRev": -1 }),
            None => (doc! { "state": "open", "roster": id(student) }, doc! { "opened": -1 }),
        };
        let find = self.db.sessions.find_one(filter).projection(fields).sort(order);
        let Some(session) = self.db.find_one_now(find).await? else {
            let seen = class.map(|class_id| Seen { class_id, revision: Revision(0) });
            return Ok(OwnMark::NoSession { seen });
        };
        let info = read(&session, doc::info)?;
        let seen = Seen { class_id: info.class_id, revision: info.revision };
        if info.state != SessionState::Open {
            return Ok(OwnMark::NoSession { seen: Some(seen) });
        }
        if doc::get_ids::<UserId>(&session, "roster").is_empty() {
            return Ok(OwnMark::NotEnrolled { seen });
        }
        let mark = read(&session, doc::marks)?.pop();
        Ok(OwnMark::Marked { seen, status: mark.map(|(_, mark)| mark.status) })
    }

    async fn sessions(&self, class: ClassId, page: Page<Revision>) -> Result<Vec<SessionInfo>, StoreError> {
        if page.limit == 0 {
            return Ok(Vec::new());
        }
        let mut filter = doc! { "classId": id(class) };
        if let Some(before) = page.after {
            filter.insert("firstRev", doc! { "$lt": integer(before.0) });
        }
        let find = self.db.sessions.find(filter).projection(doc::info_fields()).sort(doc! { "firstRev": -1 });
        let found = self.db.list_now(find.limit(i64::from(page.limit))).await?;
        Ok(found.iter().filter_map(|session| healthy(SESSIONS, session, doc::info)).collect())
    }

    async fn session(&self, class: ClassId, id: SessionId) -> Result<Option<SessionInfo>, StoreError> {
        let filter = doc! { "_id": doc::id(id), "classId": doc::id(class) };
        let found = self.db.find_one_now(self.db.sessions.find_one(filter).projection(doc::info_fields())).await?;
        found.map(|session| read(&session, doc::info)).transpose()
    }

    async fn log(
        &self,
        id: SessionId,
        student: Option<UserId>,
        page: Page<Revision>,
    ) -> Result<Vec<LogEntry>, StoreError> {
        if page.limit == 0 {
            return Ok(Vec::new());
        }
        let mut wanted = vec![doc! { "$gt": ["$$entry.rev", integer(page.after.unwrap_or_default().0)] }];
        wanted.extend(student.map(|student| doc! { "$eq": ["$$entry.student", doc::id(student)] }));
        let part = doc! { "$filter": { "input": "$log", "as": "entry", "cond": { "$and": wanted } } };
        let limit = i32::try_from(page.limit).unwrap_or(i32::MAX);
        let fields = doc! { "log": { "$slice": [part, limit] } };
        let found =
            self.db.find_one_now(self.db.sessions.find_one(doc! { "_id": doc::id(id) }).projection(fields)).await?;
        found.map_or(Ok(Vec::new()), |session| read(&session, doc::log))
    }

    async fn marks(&self, id: SessionId, student: Option<UserId>) -> Result<Vec<(UserId, Mark)>, StoreError> {
        let field = student.map_or_else(|| "marks".to_owned(), |student| format!("marks.{student}"));
        let find = self.db.sessions.find_one(doc! { "_id": doc::id(id) }).projection(doc! { field: 1 });
        let found = self.db.find_one_now(find).await?;
        found.map_or(Ok(Vec::new()), |session| read(&session, doc::marks))
    }
}

/// Reads what this program wrote; anything else is a defect.
pub(crate) fn read<T>(session: &Document, read: fn(&Document) -> Result<T, doc::Problem>) -> Result<T, StoreError> {
    name_damage(SESSIONS, session, read(session)).map_err(|damage: Damaged| internal(damage.into()))
}

/// How many sessions are open.
pub(crate) async fn count_open(db: &Db) -> Result<u64, StoreError> {
    db.read(db.sessions.count_documents(doc! { "state": "open" }).max_time(SERVER)).await
}

async fn start(
    db: &Db,
    tx: &mut ClientSession,
    session_id: SessionId,
    class_id: ClassId,
    teacher: UserId,
    origin: Origin,
) -> Result<Started, Halt> {
    let Some(class) = class::find_active(db, tx, class_id).await? else { return Ok(Started::NoClass) };
    let newest = db.sessions.find_one(doc! { "classId": id(class_id) }).projection(doc::info_fields());
    let newest = newest.sort(doc! { "firstRev": -1 }).session(&mut *tx).await?;
    let mut last = Revision(0);
    if let Some(newest) = newest {
        let info = read(&newest, doc::info)?;
        if info.state == SessionState::Open {
            return Ok(Started::Resumed(info));
        }
        last = info.revision;
    }
    let (session, entry) = OpenSession::start(session_id, class_id, teacher, class.student_ids, last, origin);
    // Whoever changes the class at the same moment, or starts another session of the teacher's, waits or starts anew.
    class::change(db, tx, class_id, doc! { "$inc": { "starts": 1_i64 } }).await?;
    let count = doc! { "$inc": { "count": 1_i64 } };
    db.openings.update_one(doc! { "_id": id(teacher) }, count).upsert(true).session(&mut *tx).await?;
    // Commands without a class concern this session from now on: those for the others look again.
    let others = doc! { "teacherId": id(teacher), "state": "open" };
    db.sessions.update_many(others, doc! { "$inc": { "epoch": 1_i64 } }).session(&mut *tx).await?;
    db.sessions.insert_one(doc::session_doc(&session, &entry)).session(&mut *tx).await?;
    Ok(Started::New(session.info().clone()))
}

/// The class's open session at the moment of the transaction.
pub(crate) async fn find_open(db: &Db, tx: &mut ClientSession, class_id: ClassId) -> Result<Option<OpenSession>, Halt> {
    let open = doc! { "classId": id(class_id), "state": "open" };
    let found = db.sessions.find_one(open).projection(doc::open_fields()).session(tx).await?;
    Ok(found.map(|session| read(&session, doc::open_session)).transpose()?)
}

/// The session as it is open just before `revision`.
fn before(session: SessionId, revision: Revision) -> Document {
    doc! { "_id": id(session), "state": "open", "rev": integer(revision.0.saturating_sub(1)) }
}

/// Writes that a student joined or left the session.
pub(crate) async fn write_roster(
    db: &Db,
    tx: &mut ClientSession,
    session: &SessionInfo,
    entry: &LogEntry,
    student: UserId,
    enrolled: bool,
) -> Result<(), Halt> {
    let rev = doc! { "rev": integer(entry.revision.0) };
    let mut push = doc! { "log": entry_doc(entry) };
    let mut update = doc! { "$set": rev };
    if enrolled {
        push.insert("roster", id(student));
    } else {
        update.insert("$pull", doc! { "roster": id(student) });
    }
    update.insert("$push", push);
    let filter = before(session.id, entry.revision);
    let written = db.sessions.update_one(filter, update).session(tx).await?;
    if written.matched_count == 1 { Ok(()) } else { Err(Halt::Again) }
}

/// Ends a session: the records stand, the marks go.
pub(crate) async fn write_end(db: &Db, tx: &mut ClientSession, finished: &FinishedSession) -> Result<(), Halt> {
    let FinishedSession { info, entry, .. } = finished;
    let update = doc! {
        "$set": doc::finish_fields(info),
        "$push": { "log": entry_doc(entry) },
        "$unset": { "marks": "" },
    };
    let ended = db.sessions.update_one(before(info.id, entry.revision), update).session(&mut *tx).await?;
    if ended.matched_count != 1 {
        return Err(Halt::Again);
    }
    write_records(db, tx, finished).await
}

/// Writes what stands after DONE, and notes where absent students are to be told.
pub(crate) async fn write_records(db: &Db, tx: &mut ClientSession, finished: &FinishedSession) -> Result<(), Halt> {
    let records: Vec<_> = finished.records.iter().map(doc::record_doc).collect();
    if !records.is_empty() {
        db.records.insert_many(records).session(&mut *tx).await?;
    }
    mail::note_absences(db, tx, &finished.info).await
}

/// What was done under names that clients gave, in sessions that `whose` picks, since `since`.
pub(crate) async fn named_since(
    db: &Db,
    whose: Document,
    since: Timestamp,
) -> Result<Vec<Arc<SessionChange>>, StoreError> {
    // Clocks of replicas differ a little; a session ends after its last entry, or not long before it.
    let ended = doc::time(since.before(REPEAT_WINDOW));
    let filter = doc! {
        "$and": [whose, { "$or": [{ "finishedAt": { "$gte": ended } }, { "finishedAt": Bson::Null }] }],
    };
    let named = doc! { "$and": ["$$entry.named", { "$gte": ["$$entry.at", doc::time(since)] }] };
    let fields = doc! {
        "classId": 1, "log": { "$filter": { "input": "$log", "as": "entry", "cond": named } },
    };
    let found = db.list_now(db.sessions.find(filter).projection(fields)).await?;
    let mut changes = Vec::new();
    for session in found {
        let session_id = read(&session, |session| doc::get_id(session, "_id"))?;
        let class_id = read(&session, |session| doc::get_id(session, "classId"))?;
        let log = read(&session, doc::log)?;
        changes.extend(log.into_iter().map(|entry| Arc::new(SessionChange { session_id, class_id, entry })));
    }
    changes.sort_by_key(|change| change.entry.origin.at);
    Ok(changes)
}

/// Somebody in the list of those who named a command of theirs in a session.
pub(crate) fn actor(by: Actor) -> Bson {
    match by {
        Actor::User(by) => id(by),
        Actor::System => Bson::Null,
    }
}
