//! The database as a whole, to be carried into another store or filled from one.
//!
//! Nothing keeps others from a source: whoever carries it compares it with itself at the end. What breaks the rules is
//! named and left out, as those who serve it pass over it. A target has a document that says how far it has come; each
//! write may be repeated, so that a page that was cut short is simply written again.

use std::collections::{HashMap, HashSet};
use std::future::IntoFuture;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc, oid};
use mongodb::error::{Error, ErrorKind};
use rollcall_core::class::{Class, ClassWithStudents};
use rollcall_core::id::{ClassId, ObjectId, SessionId, UserId};
use rollcall_core::record::Record;
use rollcall_core::session::{OperationId, SessionInfo, SessionState};
use rollcall_core::store::{Cause, StoreError};
use rollcall_core::transfer::{
    EarlierRecord, Item, Items, Marker, Part, Problem, Progress, State, Transfer, WholeSession,
};
use rollcall_core::user::Account;
use secrecy::{ExposeSecret, SecretString};

use crate::class::CLASSES;
use crate::db::Db;
use crate::doc::{self, Damaged};
use crate::error::{DUPLICATE_KEY, Failure, Gone, OpenError, internal};
use crate::mail::{ABSENCES, MAILS};
use crate::now::PROOF;
use crate::open;
use crate::record::{EARLIER_RECORDS, RECORDS};
use crate::session::{SESSIONS, actor};
use crate::user::USERS;

/// Where a database says that it is an unfinished copy.
const MARKER: &str = "unfinished_copy";
/// How many documents are read at once at most, or written.
const DOCUMENTS: usize = 1_000;
/// How many sessions, which have many records each.
const WHOLE: usize = 200;
/// All documents that fit.
const ALL: usize = 0;
/// From how many bytes of sessions on no more are read with them.
const BYTES: i64 = 8 << 20;
/// The largest document that MongoDB takes.
const LARGEST: usize = 16 << 20;
/// How long one message may take: pages are large, and nobody waits at a screen.
const MESSAGE: Duration = Duration::from_mins(1);
/// How long a database may be away, or without a primary, before the copy gives up.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long to wait before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// A MongoDB database as a whole.
pub struct MongoTransfer {
    db: Db,
}

impl MongoTransfer {
    /// Opens the database that `url` names, which must exist, to read it. It is brought up to date as by a server that
    /// starts.
    pub async fn source(url: &SecretString) -> Result<Self, OpenError> {
        let db = open::open(url.expose_secret(), false).await?;
        let names = tokio::time::timeout(MESSAGE, db.database.list_collection_names()).await;
        if names.map_err(|_| OpenError::Silent)?.map_err(OpenError::Database)?.is_empty() {
            return Err(OpenError::Nothing { name: db.database.name().to_owned() });
        }
        open::prepare(&db).await?;
        Ok(Self { db })
    }

    /// Opens the database that `url` names, to fill it.
    pub async fn target(url: &SecretString) -> Result<Self, OpenError> {
        Ok(Self { db: open::open(url.expose_secret(), false).await? })
    }

    /// One message that may be repeated, until it is answered or the time is over.
    async fn send<T, F>(&self, message: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: IntoFuture<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        loop {
            let failure = match tokio::time::timeout(MESSAGE, message().into_future()).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Done, but not by a majority yet.
                Ok(Err(error)) if has_no_majority(&error) => Failure::NotDone(error.into()),
                Ok(Err(error)) => Failure::of(error),
                Err(_) => Failure::late(),
            };
            if matches!(failure, Failure::Refused(_)) || started.elapsed() > PATIENCE {
                return Err(failure.told_reader());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn find(
        &self,
        collection: &Collection<Document>,
        filter: Document,
        fields: Document,
        order: Document,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.send(|| async {
            let find = collection.find(filter.clone()).projection(fields.clone()).sort(order.clone()).limit(limit);
            find.await?.try_collect().await
        })
        .await
    }

    /// A page of a collection by id.
    async fn page(
        &self,
        collection: &Collection<Document>,
        after: Option<ObjectId>,
    ) -> Result<Vec<Document>, StoreError> {
        self.find(collection, doc! { "_id": behind(after) }, doc! {}, doc! { "_id": 1 }, DOCUMENTS).await
    }

    /// Names documents whose id, in `field`, is none that anything could point to.
    async fn strays(
        &self,
        name: &'static str,
        collection: &Collection<Document>,
        field: &str,
    ) -> Result<Vec<Problem>, StoreError> {
        let stray = doc! { field: { "$not": { "$type": "objectId" } } };
        let found = self.find(collection, stray, doc! { "_id": 1 }, doc! {}, ALL).await?;
        let what = format!("its `{field}` is no ObjectId; it is left out");
        Ok(found.iter().map(|stray| problem(name, stray, &what)).collect())
    }

    /// Those of the accounts that are carried.
    async fn accounts(&self, ids: HashSet<UserId>) -> Result<HashSet<UserId>, StoreError> {
        let ids: Vec<_> = ids.into_iter().collect();
        let mut carried = HashSet::with_capacity(ids.len());
        for ids in ids.chunks(DOCUMENTS) {
            let wanted = doc! { "_id": { "$in": doc::ids(ids.iter().copied()) } };
            let found = self.find(&self.db.users, wanted, doc! {}, doc! {}, DOCUMENTS).await?;
            carried.extend(found.iter().filter_map(|user| account(user).ok()).map(|account| account.id));
        }
        Ok(carried)
    }

    async fn read_accounts(&self, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let found = self.page(&self.db.users, after).await?;
        let mut items = Items { last: last(&found), ..Items::default() };
        for user in &found {
            match account(user) {
                Ok(account) => items.items.push(Item::Account(account)),
                Err(what) => items.problems.push(problem(USERS, user, format!("{what}; the account is left out"))),
            }
        }
        Ok(items)
    }

    /// The classes that these documents are, as far as they are carried.
    async fn classes(&self, found: &[Document]) -> Result<(Vec<ClassWithStudents>, Vec<Problem>), StoreError> {
        let mut users: HashSet<UserId> = HashSet::new();
        for class in found {
            users.extend(doc::as_id::<UserId>(class.get("teacherId")));
            users.extend(doc::students(class));
        }
        let accounts = self.accounts(users).await?;
        let (mut classes, mut problems) = (Vec::with_capacity(found.len()), Vec::new());
        for document in found {
            let mut tell = |what: &str| problems.push(problem(CLASSES, document, what));
            let class = match doc::class(document) {
                Ok(class) if accounts.contains(&class.teacher_id) => class,
                Ok(Class { teacher_id, .. }) => {
                    tell(&format!("its teacher {teacher_id} has no account that is copied; the class is left out"));
                    continue;
                }
                Err(what) => {
                    tell(&format!("{what}; the class is left out"));
                    continue;
                }
            };
            for listed in document.get("studentIds").and_then(Bson::as_array).into_iter().flatten() {
                if listed.as_object_id().is_none() {
                    tell(&format!("{listed} in `studentIds` is no id; it is left out"));
                }
            }
            let mut student_ids = doc::students(document);
            student_ids.retain(|student| {
                let carried = accounts.contains(student);
                if !carried {
                    tell(&format!("the student {student} has no account that is copied, and is left out of the class"));
                }
                carried
            });
            classes.push(ClassWithStudents { class, student_ids });
        }
        Ok((classes, problems))
    }

    async fn read_classes(&self, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let found = self.page(&self.db.classes, after).await?;
        let (classes, problems) = self.classes(&found).await?;
        Ok(Items { items: classes.into_iter().map(Item::Class).collect(), problems, last: last(&found) })
    }

    /// The ids and sizes of the next sessions of a part.
    async fn next_sessions(&self, part: Part, after: Option<ObjectId>) -> Result<Vec<Document>, StoreError> {
        let fields = doc! { "bytes": { "$bsonSize": "$$ROOT" } };
        if part == Part::FinishedSessions {
            let finished = doc! { "state": { "$ne": "open" }, "_id": behind(after) };
            return self.find(&self.db.sessions, finished, fields, doc! { "_id": 1 }, WHOLE).await;
        }
        let mut open = doc! { "state": "open", "_id": behind(None), "opened": { "$type": "timestamp" } };
        if let Some(after) = after {
            let before = self.find(&self.db.sessions, doc! { "_id": oid(after) }, doc! { "opened": 1 }, doc! {}, 1);
            let opened = before.await?.first().and_then(|before| before.get("opened")).cloned();
            let opened = opened.ok_or_else(|| internal(Gone("a session is gone that was just read").into()))?;
            let same = doc! { "opened": opened.clone(), "_id": behind(Some(after)) };
            open.insert("$or", vec![doc! { "opened": { "$gt": opened } }, same]);
        }
        self.find(&self.db.sessions, open, fields, doc! { "opened": 1, "_id": 1 }, WHOLE).await
    }

    async fn read_sessions(&self, part: Part, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let next = self.next_sessions(part, after).await?;
        let mut bytes = 0;
        let mut ids: Vec<SessionId> = Vec::new();
        for session in &next {
            ids.extend(doc::as_id::<SessionId>(session.get("_id")));
            bytes += doc::get_number(session, "bytes").unwrap_or(0);
            if bytes >= BYTES {
                break;
            }
        }
        let Some(last) = ids.last().map(|id| id.0) else { return Ok(Items::default()) };
        let mut items = Items { last: Some(last), ..Items::default() };

        let wanted = doc! { "_id": { "$in": doc::ids(ids.iter().copied()) } };
        let found = self.find(&self.db.sessions, wanted, doc! {}, doc! {}, DOCUMENTS).await?;
        let class_ids: HashSet<ClassId> = found.iter().filter_map(|one| doc::as_id(one.get("classId"))).collect();
        let wanted = doc! { "_id": { "$in": doc::ids(class_ids) } };
        let classes = self.find(&self.db.classes, wanted, doc! {}, doc! {}, DOCUMENTS).await?;
        // What is wrong with them was told with them.
        let (classes, _) = self.classes(&classes).await?;
        let classes: HashMap<_, _> = classes.into_iter().map(|class| (class.class.id, class.student_ids)).collect();
        let mut users: HashSet<UserId> = found.iter().filter_map(|one| doc::as_id(one.get("teacherId"))).collect();
        if part == Part::OpenSessions {
            users.extend(found.iter().flat_map(|session| doc::get_ids::<UserId>(session, "roster")));
        }
        let accounts = self.accounts(users).await?;
        let mut records = match part {
            Part::FinishedSessions => self.records(&ids).await?,
            _ => HashMap::new(),
        };

        let mut found: HashMap<_, _> =
            found.into_iter().filter_map(|one| Some((doc::as_id::<SessionId>(one.get("_id"))?, one))).collect();
        for id in ids {
            let Some(document) = found.remove(&id) else { continue };
            let own = records.remove(&id).unwrap_or_default();
            match whole(&document, own, &classes, &accounts, &mut items.problems) {
                Ok(session) => items.items.push(Item::Session(session)),
                Err(what) => {
                    items.problems.push(problem(
                        SESSIONS,
                        &document,
                        format!("{what}; the session is left out, with its records"),
                    ));
                }
            }
        }
        Ok(items)
    }

    /// The records of these sessions, by student.
    async fn records(&self, sessions: &[SessionId]) -> Result<HashMap<SessionId, Vec<Document>>, StoreError> {
        let wanted = doc! { "sessionId": { "$in": doc::ids(sessions.iter().copied()) } };
        let order = doc! { "sessionId": 1, "studentId": 1 };
        let found = self.find(&self.db.records, wanted, doc! {}, order, ALL).await?;
        let mut records: HashMap<_, Vec<_>> = HashMap::new();
        for record in found {
            if let Some(session) = doc::as_id::<SessionId>(record.get("sessionId"))
                && id_in(record.get("_id")).is_some()
            {
                records.entry(session).or_default().push(record);
            }
        }
        Ok(records)
    }

    /// Both collections that an earlier backend may have used, as one list by id. Records of sessions are met here too:
    /// those whose session is not there would otherwise be lost without a word.
    async fn read_earlier(&self, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let both = [(RECORDS, &self.db.records), (EARLIER_RECORDS, &self.db.earlier_records)];
        let mut found = Vec::new();
        let mut end: Option<ObjectId> = None;
        for (name, collection) in both {
            let page = self.page(collection, after).await?;
            if page.len() == DOCUMENTS {
                end = end.into_iter().chain(last(&page)).min();
            }
            found.extend(page.into_iter().map(|record| (name, record)));
        }
        let key = |record: &Document| record.get("_id").and_then(Bson::as_object_id).map(from_oid);
        found.retain(|(_, record)| end.is_none_or(|end| key(record).is_some_and(|id| id <= end)));
        found.sort_by_key(|(_, record)| key(record));
        let sessions = found.iter().filter_map(|(_, record)| doc::as_id::<SessionId>(record.get("sessionId")));
        let sessions = self.finished(sessions.collect()).await?;

        let mut items = Items { last: found.last().and_then(|(_, record)| key(record)), ..Items::default() };
        let mut before: Option<EarlierRecord> = None;
        for (name, record) in &found {
            let of_session = record.contains_key("sessionId");
            if of_session && *name == RECORDS {
                let session = doc::as_id::<SessionId>(record.get("sessionId"));
                if session.is_none_or(|session| !sessions.contains(&session)) {
                    items.problems.push(problem(name, record, "there is no finished session of it; it is left out"));
                }
                continue;
            }
            match doc::earlier_record(record) {
                _ if of_session => {
                    items.problems.push(problem(
                        name,
                        record,
                        "it is of a session, and stands where none are; it is left out",
                    ));
                }
                Err(what) => items.problems.push(problem(name, record, format!("{what}; it is left out"))),
                Ok(Record { class_id, student_id, status, .. }) => {
                    let Some(id) = key(record) else { continue };
                    let earlier = EarlierRecord { id, class_id, student_id, status };
                    // The same document in both collections is one record.
                    match before.filter(|before| before.id == id) {
                        None => items.items.push(Item::EarlierRecord(earlier)),
                        Some(before) if before == earlier => {}
                        Some(_) => {
                            let what = format!("another one in {RECORDS} has the same id; it is left out");
                            items.problems.push(problem(name, record, &what));
                        }
                    }
                    before = Some(earlier);
                }
            }
        }
        Ok(items)
    }

    async fn read_mails(&self, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let (wanted, order) = (doc! { "mailId": behind(after) }, doc! { "mailId": 1 });
        let found = self.find(&self.db.mails, wanted, doc! {}, order, DOCUMENTS).await?;
        let last = id_in(found.last().and_then(|last| last.get("mailId")));
        let mut items = Items { last, ..Items::default() };
        for mail in &found {
            match doc::stored_mail(mail) {
                Ok(mail) => items.items.push(Item::Mail(mail)),
                Err(what) => items.problems.push(problem(MAILS, mail, format!("{what}; it is left out"))),
            }
        }
        Ok(items)
    }

    async fn read_absences(&self, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let found = self.page(&self.db.absences, after).await?;
        let mut items = Items { last: last(&found), ..Items::default() };
        for noted in &found {
            match doc::absences(noted) {
                Ok(absences) => items.items.push(Item::Absences(absences)),
                Err(what) => items.problems.push(problem(ABSENCES, noted, format!("{what}; it is left out"))),
            }
        }
        Ok(items)
    }

    /// Those of the sessions that are there and not open.
    async fn finished(&self, ids: HashSet<SessionId>) -> Result<HashSet<SessionId>, StoreError> {
        let wanted = doc! { "_id": { "$in": doc::ids(ids) }, "state": { "$ne": "open" } };
        let found = self.find(&self.db.sessions, wanted, doc! { "_id": 1 }, doc! {}, ALL).await?;
        Ok(found.iter().filter_map(|session| doc::as_id(session.get("_id"))).collect())
    }

    /// What nothing else meets on its way through a part.
    async fn overlooked(&self, part: Part) -> Result<Vec<Problem>, StoreError> {
        match part {
            Part::Accounts => self.strays(USERS, &self.db.users, "_id").await,
            Part::Classes => self.strays(CLASSES, &self.db.classes, "_id").await,
            Part::FinishedSessions => self.strays(SESSIONS, &self.db.sessions, "_id").await,
            Part::OpenSessions => {
                let lost = doc! { "state": "open", "opened": { "$not": { "$type": "timestamp" } } };
                let found = self.find(&self.db.sessions, lost, doc! { "_id": 1 }, doc! {}, ALL).await?;
                let what = "`opened` is missing or of another kind than it must be; the session is left out";
                Ok(found.iter().map(|session| problem(SESSIONS, session, what)).collect())
            }
            Part::EarlierRecords => {
                let mut problems = self.strays(RECORDS, &self.db.records, "_id").await?;
                problems.extend(self.strays(EARLIER_RECORDS, &self.db.earlier_records, "_id").await?);
                Ok(problems)
            }
            Part::Mails => self.strays(MAILS, &self.db.mails, "mailId").await,
            Part::Absences => self.strays(ABSENCES, &self.db.absences, "_id").await,
        }
    }

    /// Adds documents of which some may be there already.
    async fn add(&self, collection: &Collection<Document>, documents: &[Document]) -> Result<(), StoreError> {
        for documents in documents.chunks(DOCUMENTS) {
            let insert = || async {
                match collection.insert_many(documents).ordered(false).await {
                    Err(error) if only_duplicates(&error) => Ok(()),
                    added => added.map(drop),
                }
            };
            self.send(insert).await?;
        }
        Ok(())
    }

    async fn write_items(&self, items: Vec<Item>) -> Result<(), StoreError> {
        let (mut users, mut classes, mut earlier) = (Vec::new(), Vec::new(), Vec::new());
        let (mut finished, mut open, mut records) = (Vec::new(), Vec::new(), Vec::new());
        let (mut mails, mut absences) = (Vec::new(), Vec::new());
        for item in items {
            match item {
                Item::Account(account) => users.push(doc::account_doc(&account)),
                Item::Class(ClassWithStudents { class, student_ids }) => {
                    let mut document = doc::class_doc(&class);
                    document.insert("studentIds", doc::ids(student_ids));
                    classes.push(document);
                }
                Item::Session(session) => {
                    records.extend(session.records.iter().map(doc::record_doc));
                    if session.info.state == SessionState::Open { open.push(session) } else { finished.push(session) }
                }
                Item::EarlierRecord(EarlierRecord { id, class_id, student_id, status }) => earlier.push(doc! {
                    "_id": oid(id),
                    "classId": doc::id(class_id),
                    "studentId": doc::id(student_id),
                    "status": status.as_str(),
                }),
                Item::Mail(mail) => mails.push(doc::stored_mail_doc(&mail)),
                Item::Absences(noted) => absences.push(doc::absences_doc(&noted)),
            }
        }
        self.add(&self.db.users, &users).await?;
        self.add(&self.db.classes, &classes).await?;
        self.add(&self.db.records, &records).await?;
        let documents: Result<Vec<_>, _> = finished.iter().map(|session| session_doc(session, &[])).collect();
        self.add(&self.db.sessions, &documents?).await?;
        self.add(&self.db.records, &earlier).await?;
        self.add(&self.db.mails, &mails).await?;
        self.add(&self.db.absences, &absences).await?;
        if open.is_empty() {
            return Ok(());
        }
        let class_ids = doc::ids(open.iter().map(|session| session.info.class_id));
        let wanted = doc! { "_id": { "$in": class_ids } };
        let found = self.find(&self.db.classes, wanted, doc! { "studentIds": 1 }, doc! {}, ALL).await?;
        let rosters: HashMap<ClassId, Vec<UserId>> =
            found.iter().filter_map(|class| Some((doc::as_id(class.get("_id"))?, doc::students(class)))).collect();
        for session in &open {
            let roster = rosters.get(&session.info.class_id).map(Vec::as_slice).unwrap_or_default();
            // One after another: the database gives each the time by which they are in order.
            self.add(&self.db.sessions, &[session_doc(session, roster)?]).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Transfer for MongoTransfer {
    async fn read(&self, part: Part, after: Option<ObjectId>) -> Result<Items, StoreError> {
        let mut items = match part {
            Part::Accounts => self.read_accounts(after).await?,
            Part::Classes => self.read_classes(after).await?,
            Part::FinishedSessions | Part::OpenSessions => self.read_sessions(part, after).await?,
            Part::EarlierRecords => self.read_earlier(after).await?,
            Part::Mails => self.read_mails(after).await?,
            Part::Absences => self.read_absences(after).await?,
        };
        if after.is_none() {
            items.problems.extend(self.overlooked(part).await?);
        }
        Ok(items)
    }

    fn is_held(&self) -> bool {
        false
    }

    async fn state(&self) -> Result<State, StoreError> {
        let found = self.send(|| marker(&self.db)).await?;
        if let Some(found) = found {
            let read = || {
                let progress =
                    Progress { part: found.get_str("part").ok()?.parse().ok()?, after: id_in(found.get("after")) };
                Some(State::Unfinished(Marker { fingerprint: found.get_str("fingerprint").ok()?.to_owned(), progress }))
            };
            return read()
                .ok_or_else(|| internal(Gone("what the unfinished copy says of itself cannot be read").into()));
        }
        for name in self.send(|| self.db.database.list_collection_names()).await? {
            let collection: Collection<Document> = self.db.database.collection(&name);
            let own = name.starts_with("system.") || name == PROOF;
            if !own && !self.find(&collection, doc! {}, doc! { "_id": 1 }, doc! {}, 1).await?.is_empty() {
                return Ok(State::Filled);
            }
        }
        Ok(State::Empty)
    }

    async fn begin(&self, Marker { fingerprint, progress }: &Marker) -> Result<(), StoreError> {
        let prepared = open::prepare(&self.db).await;
        prepared.map_err(|error| StoreError::Unavailable(error.into()))?;
        // It was empty when the copy began to read its source, which may be long ago.
        if self.state().await? == State::Empty {
            let mut own = progress_fields(*progress);
            own.extend(doc! { "_id": MARKER, "fingerprint": fingerprint });
            self.add(&self.db.database.collection(MARKER), &[own]).await?;
        }
        match self.state().await? {
            State::Unfinished(marker) if marker.fingerprint == *fingerprint => Ok(()),
            _ => Err(internal(Gone("it was empty, and now holds something that this copy did not write").into())),
        }
    }

    async fn write(&self, items: Vec<Item>, progress: Progress) -> Result<(), StoreError> {
        let markers: Collection<Document> = self.db.database.collection(MARKER);
        let own = doc! { "_id": MARKER };
        if self.send(|| marker(&self.db)).await?.is_none() {
            return Err(internal(Gone("the database is no unfinished copy").into()));
        }
        self.write_items(items).await?;
        let update = doc! { "$set": progress_fields(progress) };
        let gone_on = self.send(|| markers.update_one(own.clone(), update.clone())).await?;
        match gone_on.matched_count {
            1 => Ok(()),
            _ => Err(internal(Gone("the database is no unfinished copy any more").into())),
        }
    }

    async fn finish(&self) -> Result<(), StoreError> {
        let markers: Collection<Document> = self.db.database.collection(MARKER);
        self.send(|| markers.delete_one(doc! { "_id": MARKER })).await.map(drop)
    }

    async fn close(&self) {
        self.db.shut_down().await;
    }
}

/// What an unfinished copy says of itself.
pub(crate) async fn marker(db: &Db) -> Result<Option<Document>, Error> {
    db.database.collection(MARKER).find_one(doc! { "_id": MARKER }).await
}

fn progress_fields(Progress { part, after }: Progress) -> Document {
    doc! { "part": part.as_str(), "after": after.map(oid) }
}

fn oid(id: ObjectId) -> oid::ObjectId {
    oid::ObjectId::from_bytes(id.bytes())
}

fn from_oid(id: oid::ObjectId) -> ObjectId {
    ObjectId::from_bytes(id.bytes())
}

fn id_in(value: Option<&Bson>) -> Option<ObjectId> {
    value.and_then(Bson::as_object_id).map(from_oid)
}

fn last(found: &[Document]) -> Option<ObjectId> {
    id_in(found.last().and_then(|last| last.get("_id")))
}

/// Ids behind this one; without it all that are ids: others are `strays`.
fn behind(after: Option<ObjectId>) -> Document {
    after.map_or(doc! { "$type": "objectId" }, |after| doc! { "$gt": oid(after) })
}

fn problem(collection: &'static str, document: &Document, what: impl Into<String>) -> Problem {
    let Damaged { collection, id, problem } = doc::damage(collection, document, doc::Problem(what.into()));
    Problem { place: format!("{collection} {id}"), what: problem.0 }
}

/// The account that the document is, if another store can hold it.
fn account(document: &Document) -> Result<Account, doc::Problem> {
    let account = doc::account(document)?;
    let own = document.get("emailKey").and_then(Bson::as_str);
    if own == Some(account.email.key().as_str()) {
        Ok(account)
    } else {
        Err(doc::Problem(
            "another account has the same e-mail address, or `emailKey` is not that of `email`".to_owned(),
        ))
    }
}

/// The session that the document is, with its records.
fn whole(
    document: &Document,
    own: Vec<Document>,
    classes: &HashMap<ClassId, Vec<UserId>>,
    accounts: &HashSet<UserId>,
    problems: &mut Vec<Problem>,
) -> Result<WholeSession, doc::Problem> {
    let info = doc::info(document)?;
    let SessionInfo { class_id, teacher_id, .. } = info;
    let students = classes.get(&class_id);
    let students = students.ok_or_else(|| doc::Problem(format!("its class {class_id} is not copied")))?;
    if !accounts.contains(&teacher_id) {
        return Err(doc::Problem(format!("its teacher {teacher_id} has no account that is copied")));
    }
    let mut log = doc::log(document)?;
    log.sort_by_key(|entry| entry.revision);
    let marks = match info.state {
        SessionState::Open => doc::marks(document)?,
        SessionState::Finished { .. } => Vec::new(),
    };
    if info.state == SessionState::Open {
        // Who has no account was told with the class.
        let roster: HashSet<UserId> = doc::get_ids(document, "roster").into_iter().collect();
        if roster.iter().filter(|id| accounts.contains(id)).copied().collect::<HashSet<_>>()
            != students.iter().copied().collect()
        {
            problems.push(problem(SESSIONS, document, "its roster is not its class's; the class's is taken"));
        }
    }
    let mut records = Vec::with_capacity(own.len());
    for document in own {
        match doc::record(&document) {
            Ok(record) if record.class_id == class_id => records.push(record),
            Ok(_) => problems.push(problem(RECORDS, &document, "its class is not its session's; it is left out")),
            Err(what) => problems.push(problem(RECORDS, &document, format!("{what}; it is left out"))),
        }
    }
    Ok(WholeSession { info, log, marks, records })
}

/// The document of a session; `roster` if it is open.
fn session_doc(session: &WholeSession, roster: &[UserId]) -> Result<Document, StoreError> {
    let WholeSession { info, log, marks, .. } = session;
    let by_name = log.iter().filter(|entry| matches!(entry.origin.operation, OperationId::Client(_)));
    let actors: HashSet<_> = by_name.map(|entry| entry.origin.by).collect();
    let mut document = doc::session_fields(info, roster.to_vec());
    document.insert("actors", actors.into_iter().map(actor).collect::<Vec<_>>());
    document.insert("log", log.iter().map(doc::entry_doc).collect::<Vec<_>>());
    if info.state == SessionState::Open {
        let marks: Document = marks.iter().map(|(id, mark)| (id.to_string(), doc::mark_doc(mark).into())).collect();
        document.insert("marks", marks);
    } else {
        document.extend(doc::finish_fields(info));
    }
    if document.to_vec().is_ok_and(|bytes| bytes.len() > LARGEST) {
        let cause: Cause = format!("the log of session {} is larger than a document of MongoDB may be", info.id).into();
        return Err(internal(cause));
    }
    Ok(document)
}

/// Whether nothing went wrong but that documents were there already.
fn only_duplicates(error: &Error) -> bool {
    let ErrorKind::InsertMany(many) = &*error.kind else { return false };
    let mut errors = many.write_errors.iter().flatten();
    many.write_concern_error.is_none() && errors.all(|error| error.code == DUPLICATE_KEY)
}

/// Whether the one thing that is wrong is how many members hold what was written.
fn has_no_majority(error: &Error) -> bool {
    let ErrorKind::InsertMany(many) = &*error.kind else { return false };
    let mut errors = many.write_errors.iter().flatten();
    many.write_concern_error.is_some() && errors.all(|error| error.code == DUPLICATE_KEY)
}
