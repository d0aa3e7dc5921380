//! Classes and who is in them.
//!
//! Every change to a class writes `lastChange`, new each time: from it the committed stream tells what happened.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{FutureExt, TryStreamExt};
use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc, oid};
use mongodb::options::ReturnDocument;
use rollcall_core::class::{Class, ClassChange, ClassWithStudents};
use rollcall_core::id::{ClassId, UserId};
use rollcall_core::session::{LogEntry, OpenSession, Origin};
use rollcall_core::store::{ClassChanged, Classes, Page, StoreError};
use rollcall_core::user::Person;

use crate::MongoStore;
use crate::db::{Db, Halt, SERVER};
use crate::doc::{self, Key, class_doc, healthy, id, name_damage, unless};
use crate::error::{internal, is_duplicate};
use crate::session;
use crate::user::USERS;

pub(crate) const CLASSES: &str = "classes";

#[async_trait]
impl Classes for MongoStore {
    async fn insert_class(&self, class: Class) -> Result<(), StoreError> {
        let document = class_doc(&class);
        let write = || async {
            match self.db.classes.insert_one(&document).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.db.settle(write).await? {
            return Ok(());
        }
        // Its own attempt before this one may have been what stands in its way.
        let found = self.db.find_one(&self.db.classes, doc! { "_id": id(class.id) }, doc! {}).await?;
        if found.as_ref() == Some(&document) { Ok(()) } else { Err(internal("the class's id is taken".into())) }
    }

    async fn class(&self, id: ClassId) -> Result<Option<Class>, StoreError> {
        let wanted = doc! { "_id": doc::id(id) };
        let found = self.db.find_one(&self.db.classes, wanted, doc::class_fields()).await?;
        Ok(found.and_then(|class| healthy(CLASSES, &class, doc::class)))
    }

    async fn student_ids(&self, id: ClassId) -> Result<Vec<UserId>, StoreError> {
        let found = self.db.find_one(&self.db.classes, doc! { "_id": doc::id(id) }, doc! { "studentIds": 1 }).await?;
        Ok(found.map(|class| doc::students(&class)).unwrap_or_default())
    }

    async fn class_students(&self, id: ClassId) -> Result<Vec<Person>, StoreError> {
        let students = self.student_ids(id).await?;
        let wanted = doc! { "_id": { "$in": doc::ids(students.iter().copied()) } };
        let find = self.db.users.find(wanted).projection(doc! { "name": 1, "email": 1 }).max_time(SERVER);
        let found: Vec<Document> = self.db.read(async { find.await?.try_collect().await }).await?;
        let people = found.iter().filter_map(|user| healthy(USERS, user, doc::person));
        let mut people: HashMap<_, _> = people.map(|person| (person.id, person)).collect();
        // An id of nobody's is passed over.
        Ok(students.iter().filter_map(|student| people.remove(student)).collect())
    }

    async fn is_enrolled(&self, class: ClassId, student: UserId) -> Result<bool, StoreError> {
        let enrolled = doc! { "_id": id(class), "studentIds": id(student) };
        Ok(self.db.find_one(&self.db.classes, enrolled, doc! { "_id": 1 }).await?.is_some())
    }

    async fn classes_of_teacher(
        &self,
        teacher: UserId,
        archived: bool,
        page: Page<ClassId>,
    ) -> Result<Vec<ClassWithStudents>, StoreError> {
        let archived = if archived { Bson::Boolean(true) } else { doc! { "$ne": true }.into() };
        let own = doc! { "teacherId": id(teacher), "archived": archived };
        self.db.page(CLASSES, &self.db.classes, own, page, doc! {}, doc::class_with_students).await
    }

    async fn classes_of_student(&self, student: UserId, page: Page<ClassId>) -> Result<Vec<Class>, StoreError> {
        let own = doc! { "studentIds": id(student), "archived": { "$ne": true } };
        self.db.page(CLASSES, &self.db.classes, own, page, doc::class_fields(), doc::class).await
    }

    async fn class_ids_of(&self, user: UserId) -> Result<Vec<ClassId>, StoreError> {
        let hears = doc! {
            "$or": [{ "teacherId": id(user) }, { "studentIds": id(user) }], "archived": { "$ne": true },
        };
        let find = self.db.classes.find(hears).projection(doc! { "_id": 1 }).sort(doc! { "_id": 1 }).max_time(SERVER);
        let found: Vec<Document> = self.db.read(async { find.await?.try_collect().await }).await?;
        Ok(found.iter().filter_map(|class| doc::as_id(class.get("_id"))).collect())
    }

    async fn change_class(&self, id: ClassId, change: ClassChange) -> Result<ClassChanged, StoreError> {
        let active = doc! { "_id": doc::id(id), "archived": { "$ne": true } };
        let (mut differs, mut set) = (Vec::new(), doc! {});
        if let Some(name) = &change.name {
            differs.push(doc! { "className": { "$ne": name.as_str() } });
            set.insert("className", name.as_str());
        }
        if let Some(wanted) = change.absence_notices {
            differs.push(doc! { "absenceNotices": unless(wanted, false) });
            set.insert("absenceNotices", wanted);
        }
        let mut changed = None;
        if !differs.is_empty() {
            let mut another = active.clone();
            another.insert("$or", differs);
            let write = || {
                let mut set = set.clone();
                set.insert("lastChange", last_change(doc! {}));
                let update = self.db.classes.find_one_and_update(another.clone(), doc! { "$set": set });
                update.return_document(ReturnDocument::After)
            };
            changed = self.db.settle(write).await?;
        }
        if changed.is_none() {
            changed = self.db.find_one(&self.db.classes, active, doc! {}).await?;
        }
        now(changed.as_ref())
    }

    async fn archive_class(&self, id: ClassId, origin: Origin) -> Result<ClassChanged, StoreError> {
        let db = Arc::clone(&self.db);
        self.db
            .transact(move |tx| {
                let (db, origin) = (Arc::clone(&db), origin.clone());
                async move {
                    let Some(class) = find_active(&db, tx, id).await? else { return Ok(ClassChanged::NoClass) };
                    if let Some(open) = session::find_open(&db, tx, id).await? {
                        session::write_end(&db, tx, &open.finish(origin)).await?;
                    }
                    change(&db, tx, id, doc! { "$set": { "archived": true, "lastChange": last_change(doc! {}) } })
                        .await?;
                    let ClassWithStudents { class, student_ids } = class;
                    Ok(ClassChanged::Now(ClassWithStudents { class: Class { archived: true, ..class }, student_ids }))
                }
                .boxed()
            })
            .await
    }

    async fn enrol(&self, class: ClassId, student: UserId, origin: Origin) -> Result<ClassChanged, StoreError> {
        self.change_roster(class, student, true, origin).await
    }

    async fn remove_student(
        &self,
        class: ClassId,
        student: UserId,
        origin: Origin,
    ) -> Result<ClassChanged, StoreError> {
        self.change_roster(class, student, false, origin).await
    }
}

impl MongoStore {
    /// Takes a student into a class and its open session, or out of both.
    async fn change_roster(
        &self,
        class_id: ClassId,
        student: UserId,
        enrolled: bool,
        origin: Origin,
    ) -> Result<ClassChanged, StoreError> {
        let db = Arc::clone(&self.db);
        self.db
            .transact(move |tx| {
                let (db, origin) = (Arc::clone(&db), origin.clone());
                async move {
                    let Some(mut class) = find_active(&db, tx, class_id).await? else {
                        return Ok(ClassChanged::NoClass);
                    };
                    let students = &mut class.student_ids;
                    if students.contains(&student) != enrolled {
                        let told = last_change(doc! { "studentId": id(student), "enrolled": enrolled });
                        let list = doc! { "studentIds": id(student) };
                        let update = if enrolled {
                            students.push(student);
                            doc! { "$push": list, "$set": { "lastChange": told } }
                        } else {
                            students.retain(|other| *other != student);
                            doc! { "$pull": list, "$set": { "lastChange": told } }
                        };
                        change(&db, tx, class_id, update).await?;
                    }
                    if let Some(mut open) = session::find_open(&db, tx, class_id).await? {
                        let decide: fn(&mut OpenSession, UserId, Origin) -> Option<LogEntry> =
                            if enrolled { OpenSession::enrol } else { OpenSession::remove };
                        if let Some(entry) = decide(&mut open, student, origin) {
                            session::write_roster(&db, tx, open.info(), &entry, student, enrolled).await?;
                        }
                    }
                    Ok(ClassChanged::Now(class))
                }
                .boxed()
            })
            .await
    }
}

/// What tells the committed stream of a change, different from all before.
fn last_change(mut what: Document) -> Document {
    what.insert("id", oid::ObjectId::new());
    what
}

fn now(found: Option<&Document>) -> Result<ClassChanged, StoreError> {
    let Some(found) = found else { return Ok(ClassChanged::NoClass) };
    let class = name_damage(CLASSES, found, doc::class_with_students(found));
    class.map(ClassChanged::Now).map_err(|damage| internal(damage.into()))
}

/// The class, if it takes changes. Those of others since this transaction began make it start anew.
pub(crate) async fn find_active(
    db: &Db,
    tx: &mut ClientSession,
    id: ClassId,
) -> Result<Option<ClassWithStudents>, Halt> {
    let active = doc! { "_id": doc::id(id), "archived": { "$ne": true } };
    let found = db.classes.find_one(active).session(tx).await?;
    match now(found.as_ref())? {
        ClassChanged::Now(class) => Ok(Some(class)),
        ClassChanged::NoClass => Ok(None),
    }
}

/// Changes the class, and so keeps all others who want to change it or start in it out of this moment.
pub(crate) async fn change(db: &Db, tx: &mut ClientSession, id: impl Key, update: Document) -> Result<(), Halt> {
    let changed = db.classes.update_one(doc! { "_id": doc::id(id) }, update).session(tx).await?;
    if changed.matched_count == 1 { Ok(()) } else { Err(Halt::Again) }
}
