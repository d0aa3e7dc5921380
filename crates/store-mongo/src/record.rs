//! What stands after DONE, and what an earlier backend left.

use async_trait::async_trait;
use futures_util::TryStreamExt;
use mongodb::bson::doc;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::record::Record;
use rollcall_core::store::{Records, StoreError};

use crate::MongoStore;
use crate::db::SERVER;
use crate::doc::{self, healthy, id};
use crate::error::Failure;

pub(crate) const RECORDS: &str = "attendance_records";
/// The other name that an earlier backend may have given them.
pub(crate) const EARLIER_RECORDS: &str = "attendance";

#[async_trait]
impl Records for MongoStore {
    async fn records(&self, session: SessionId, student: Option<UserId>) -> Result<Vec<Record>, StoreError> {
        let mut filter = doc! { "sessionId": id(session) };
        if let Some(student) = student {
            filter.insert("studentId", id(student));
        }
        let find = self.db.records.find(filter).sort(doc! { "studentId": 1 }).max_time(SERVER);
        let found: Vec<_> = self.db.read(async { find.await?.try_collect().await }).await?;
        Ok(found.iter().filter_map(|record| healthy(RECORDS, record, doc::record)).collect())
    }

    async fn last_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError> {
        let finished = doc! { "classId": id(class), "state": "finished" };
        let last = self.db.sessions.find_one(finished).projection(doc! { "_id": 1 }).sort(doc! { "firstRev": -1 });
        let found = self.db.in_time(async {
            let mut now = self.db.now().await?;
            let _place = self.db.place().await?;
            let session = last.max_time(SERVER).session(&mut now).await.map_err(Failure::of)?;
            let Some(session) = session else { return Ok(None) };
            let own = doc! { "sessionId": session.get("_id").cloned(), "studentId": id(student) };
            self.db.records.find_one(own).max_time(SERVER).session(&mut now).await.map(Some).map_err(Failure::of)
        });
        match found.await.map_err(Failure::told_reader)? {
            Some(record) => Ok(record.and_then(|record| healthy(RECORDS, &record, doc::record))),
            None => self.earlier_record(class, student).await,
        }
    }
}

impl MongoStore {
    /// The newest record that an earlier backend left of the student in the class. Its records know no session; each
    /// is dated by its own id. They count as long as no session of the class has been finished.
    async fn earlier_record(&self, class: ClassId, student: UserId) -> Result<Option<Record>, StoreError> {
        let own = doc! {
            "classId": id(class), "studentId": id(student), "sessionId": { "$exists": false },
            "status": { "$in": ["present", "absent", "late", "excused"] },
        };
        let mut newest: Option<Record> = None;
        for (name, collection) in [(RECORDS, &self.db.records), (EARLIER_RECORDS, &self.db.earlier_records)] {
            let found = collection.find_one(own.clone()).sort(doc! { "_id": -1 }).max_time(SERVER);
            let found = self.db.read(found).await?.and_then(|record| healthy(name, &record, doc::earlier_record));
            if let Some(record) = found
                && newest.as_ref().is_none_or(|newest| newest.marked_at < record.marked_at)
            {
                newest = Some(record);
            }
        }
        Ok(newest)
    }
}
