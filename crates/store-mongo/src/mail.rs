//! Mails that wait to be sent.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{FutureExt, TryStreamExt};
use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc, oid};
use mongodb::options::{ReadConcern, ReturnDocument};
use rollcall_core::id::{SessionId, UserId};
use rollcall_core::mail::{Fate, Kind, Mail, NewMail, TokenHash};
use rollcall_core::session::SessionInfo;
use rollcall_core::store::{Absences, Outbox, StoreError};
use rollcall_core::time::Timestamp;
use rollcall_core::user::{Account, AccountChange};

use crate::MongoStore;
use crate::db::{Db, Halt, SERVER, millis};
use crate::doc::{self, healthy, id, integer, time};
use crate::error::{Failure, ServerError};
use crate::user::{self, USERS};

pub(crate) const MAILS: &str = "mails";
pub(crate) const ABSENCES: &str = "absences";

/// How many mails one message queues at most.
const TOGETHER: usize = 500;

#[async_trait]
impl Outbox for MongoStore {
    async fn queue_mails(&self, mails: Vec<NewMail>) -> Result<(), StoreError> {
        for mails in mails.chunks(TOGETHER) {
            let statements: Vec<_> = mails.iter().map(|mail| Bson::Document(queue(mail))).collect();
            self.db.settle_with(|| send(&self.db, &statements)).await?;
        }
        Ok(())
    }

    async fn take_mails(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Mail>, StoreError> {
        // What this call took, whoever else takes at the same moment, and however often it has to ask.
        let call = oid::ObjectId::new();
        let due = doc! { "dueAt": { "$lte": time(now) }, "expiresAt": { "$gt": time(now) }, "taker": { "$ne": call } };
        // What somebody waits for comes before notices.
        let first = doc! { "$in": [Kind::ConfirmEmail.as_str(), Kind::ResetPassword.as_str()] };
        let mut kinds = [Bson::Document(first), Bson::from(Kind::Absence.as_str())].into_iter();
        let Some(mut kind) = kinds.next() else { return Ok(Vec::new()) };
        let mut taken = Vec::new();
        while taken.len() < limit as usize {
            let left = i64::from(limit) - integer(taken.len() as u64);
            let mut due = due.clone();
            due.insert("kind", kind.clone());
            let find = self.db.mails.find(due.clone()).projection(doc! { "_id": 1 }).sort(doc! { "dueAt": 1 });
            // What others took a moment ago need not be found to be seen once more.
            let find = find.limit(left).read_concern(ReadConcern::local()).max_time(SERVER);
            let found: Vec<Document> = self.db.read(async { find.await?.try_collect().await }).await?;
            let keys: Vec<_> = found.into_iter().filter_map(|mut mail| mail.remove("_id")).collect();
            if keys.is_empty() {
                let Some(next) = kinds.next() else { break };
                kind = next;
                continue;
            }
            let among = doc! { "_id": { "$in": &keys } };
            let mut free = due;
            free.extend(among.clone());
            let take = doc! { "$set": { "dueAt": time(until), "taker": call }, "$inc": { "attempts": 1_i64 } };
            self.db.settle(|| self.db.mails.update_many(free.clone(), take.clone())).await?;
            let mut own = among;
            own.insert("taker", call);
            let find = self.db.mails.find(own).max_time(SERVER);
            let mut own: Vec<Document> = self.db.read(async { find.await?.try_collect().await }).await?;
            own.sort_by_key(|mail| keys.iter().position(|key| mail.get("_id") == Some(key)));
            taken.extend(own);
        }
        Ok(taken.iter().filter_map(|mail| healthy(MAILS, mail, doc::mail)).collect())
    }

    async fn settle_mail(&self, mail: &Mail, fate: Fate) -> Result<(), StoreError> {
        // What is over stays so, whatever comes late.
        let mut own = doc! { "_id": mail.reason.key(mail.to), "mailId": id(mail.id), "dueAt": { "$exists": true } };
        let update = match fate {
            Fate::Over => doc! { "$unset": { "dueAt": "" } },
            Fate::Due(at) => {
                own.insert("attempts", i64::from(mail.attempt));
                doc! { "$set": { "dueAt": time(at) } }
            }
        };
        self.db.settle(|| self.db.mails.update_one(own.clone(), update.clone())).await.map(drop)
    }

    async fn token_owner(&self, token: TokenHash, kind: Kind, now: Timestamp) -> Result<Option<UserId>, StoreError> {
        let found = self.db.find_one(&self.db.mails, good(token, kind, now), doc! { "to": 1 }).await?;
        Ok(found.and_then(|mail| doc::as_id(mail.get("to"))))
    }

    async fn use_token(
        &self,
        token: TokenHash,
        kind: Kind,
        now: Timestamp,
        change: AccountChange,
    ) -> Result<Option<Account>, StoreError> {
        let db = Arc::clone(&self.db);
        let good = good(token, kind, now);
        self.db
            .transact(move |tx| {
                let (db, good, change) = (Arc::clone(&db), good.clone(), change.clone());
                async move { use_token(&db, tx, good, &change).await }.boxed()
            })
            .await
    }

    async fn mails_since(&self, to: UserId, kind: Kind, since: Timestamp) -> Result<u64, StoreError> {
        let those = doc! { "to": id(to), "kind": kind.as_str(), "queuedAt": { "$gte": time(since) } };
        self.db.read(self.db.mails.count_documents(those).max_time(SERVER)).await
    }

    async fn forget_mails(&self, now: Timestamp) -> Result<u64, StoreError> {
        let expired = doc! { "expiresAt": { "$lte": time(now) } };
        let mut unsent = expired.clone();
        unsent.insert("dueAt", doc! { "$exists": true });
        let unsent = self.db.settle(|| self.db.mails.delete_many(unsent.clone())).await?;
        self.db.settle(|| self.db.mails.delete_many(expired.clone())).await?;
        Ok(unsent.deleted_count)
    }

    async fn absences(&self, limit: u32) -> Result<Vec<Absences>, StoreError> {
        let found = self.db.list(&self.db.absences, doc! {}, doc! {}, doc! { "_id": 1 }, limit).await?;
        Ok(found.iter().filter_map(|noted| healthy(ABSENCES, noted, doc::absences)).collect())
    }

    async fn absences_queued(&self, session: SessionId) -> Result<(), StoreError> {
        let noted = doc! { "_id": id(session) };
        self.db.settle(|| self.db.absences.delete_one(noted.clone())).await.map(drop)
    }
}

/// Notes a session that was just finished if its class sends notices.
pub(crate) async fn note_absences(db: &Db, tx: &mut ClientSession, session: &SessionInfo) -> Result<(), Halt> {
    let told = doc! { "_id": id(session.class_id), "absenceNotices": true };
    if db.classes.find_one(told).projection(doc! { "_id": 1 }).session(&mut *tx).await?.is_some() {
        let noted = Absences { session_id: session.id, class_id: session.class_id };
        db.absences.insert_one(doc::absences_doc(&noted)).session(tx).await?;
    }
    Ok(())
}

/// The statement that queues a mail. It may be repeated: the mail itself does not make room for itself.
fn queue(mail: &NewMail) -> Document {
    let room = doc! {
        "_id": mail.reason.key(mail.to),
        "$or": [
            { "queuedAt": { "$lt": time(mail.replaces_before) } }, { "queuedAt": { "$gt": time(mail.future()) } },
        ],
        "mailId": { "$ne": id(mail.id) },
    };
    doc! { "q": room, "u": doc::mail_doc(mail), "upsert": true }
}

/// Sends such statements. One that finds no room is refused as a second document with its id, and that is well.
async fn send(db: &Db, statements: &[Bson]) -> Result<(), Failure> {
    let command = doc! {
        "update": MAILS,
        "updates": statements,
        "ordered": false,
        "writeConcern": { "w": "majority", "j": true, "wtimeout": millis(SERVER) },
    };
    let said = db.send(db.database.run_command(command)).await?;
    if let Ok(concern) = said.get_document("writeConcernError") {
        return Err(Failure::Unknown(ServerError::read(concern).into()));
    }
    let errors = said.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document);
    match errors.map(ServerError::read).find(|error| !error.is_duplicate()) {
        Some(error) => Err(Failure::of_server(error)),
        None => Ok(()),
    }
}

/// The mail whose token is good.
fn good(token: TokenHash, kind: Kind, now: Timestamp) -> Document {
    doc! { "token": doc::token(token), "kind": kind.as_str(), "expiresAt": { "$gt": time(now) } }
}

async fn use_token(
    db: &Db,
    tx: &mut ClientSession,
    good: Document,
    change: &AccountChange,
) -> Result<Option<Account>, Halt> {
    let Some(mail) = db.mails.find_one(good.clone()).session(&mut *tx).await? else { return Ok(None) };
    let Some(owner) = doc::as_id::<UserId>(mail.get("to")) else { return Ok(None) };
    let owner = doc! { "_id": id(owner), "disabled": { "$ne": true } };
    let found = db.users.find_one(owner.clone()).session(&mut *tx).await?;
    let Some(account) = found.and_then(|found| healthy(USERS, &found, doc::account)) else { return Ok(None) };
    // Whoever uses it at the same moment makes this start anew, and then it is not good any more.
    if db.mails.update_one(good, doc! { "$unset": { "token": "", "dueAt": "" } }).session(&mut *tx).await?.matched_count
        != 1
    {
        return Err(Halt::Again);
    }
    let (those, update) = user::update(change);
    let mut different = owner;
    different.extend(those);
    let update = db.users.find_one_and_update(different, update).return_document(ReturnDocument::After);
    match update.session(tx).await? {
        Some(changed) => Ok(healthy(USERS, &changed, doc::account)),
        None => Ok(Some(account)),
    }
}
