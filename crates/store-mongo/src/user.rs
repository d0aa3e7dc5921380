//! Accounts.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use mongodb::bson::{Document, doc};
use mongodb::options::ReturnDocument;
use rollcall_core::id::UserId;
use rollcall_core::mail::{NewMail, Reason};
use rollcall_core::store::{Inserted, Page, StoreError, Users};
use rollcall_core::user::{Account, AccountChange, EmailKey, Person};

use crate::MongoStore;
use crate::db::SERVER;
use crate::doc::{self, account_doc, healthy, id, unless};
use crate::error::is_duplicate;

pub(crate) const USERS: &str = "users";

#[async_trait]
impl Users for MongoStore {
    async fn insert_user(&self, account: Account, welcome: Option<NewMail>) -> Result<Inserted, StoreError> {
        let document = account_doc(&account);
        if let Some(welcome) = welcome {
            return self.insert_with_welcome(document, doc::mail_doc(&welcome)).await;
        }
        let write = || async {
            match self.db.users.insert_one(&document).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.db.settle(write).await? {
            return Ok(Inserted::Created);
        }
        // Its own attempt before this one may have been what stands in its way.
        let found = self.db.find_one(&self.db.users, doc! { "_id": id(account.id) }, doc! {}).await?;
        Ok(if found == Some(document) { Inserted::Created } else { Inserted::EmailExists })
    }

    async fn user(&self, id: UserId) -> Result<Option<Account>, StoreError> {
        self.find_account(doc! { "_id": doc::id(id) }).await
    }

    async fn user_by_email(&self, email: &EmailKey) -> Result<Option<Account>, StoreError> {
        self.find_account(doc! { "emailKey": email.as_str() }).await
    }

    async fn change_user(&self, id: UserId, change: AccountChange) -> Result<Option<Account>, StoreError> {
        if change.ends_tokens() {
            // First: whoever has the link must not be faster.
            let reset = doc! { "_id": Reason::ResetPassword.key(id) };
            let end = doc! { "$unset": { "token": "", "dueAt": "" } };
            self.db.settle(|| self.db.mails.update_one(reset.clone(), end.clone())).await?;
        }
        let (unless, update) = update(&change);
        let mut filter = doc! { "_id": doc::id(id) };
        filter.extend(unless);
        let write = || {
            let update = self.db.users.find_one_and_update(filter.clone(), update.clone());
            update.return_document(ReturnDocument::After)
        };
        match self.db.settle(write).await? {
            Some(changed) => Ok(healthy(USERS, &changed, doc::account)),
            None => self.user(id).await,
        }
    }

    async fn users(&self, page: Page<UserId>) -> Result<Vec<Account>, StoreError> {
        self.db.page(USERS, &self.db.users, doc! {}, page, doc! {}, doc::account).await
    }

    async fn students(&self, page: Page<UserId>) -> Result<Vec<Person>, StoreError> {
        let enabled = doc! { "role": "student", "disabled": { "$ne": true } };
        self.db.page(USERS, &self.db.users, enabled, page, doc! { "name": 1, "email": 1 }, doc::person).await
    }
}

impl MongoStore {
    async fn insert_with_welcome(&self, account: Document, welcome: Document) -> Result<Inserted, StoreError> {
        let db = Arc::clone(&self.db);
        self.db
            .transact(move |tx| {
                let (db, account, welcome) = (Arc::clone(&db), account.clone(), welcome.clone());
                async move {
                    let taken = doc! { "emailKey": account.get("emailKey").cloned() };
                    if let Some(found) = db.users.find_one(taken).session(&mut *tx).await? {
                        // Its own attempt before this one may have been what stands in its way.
                        return Ok(if found == account { Inserted::Created } else { Inserted::EmailExists });
                    }
                    // Whoever takes the address at the same moment makes this start anew, and is found then.
                    db.users.insert_one(account).session(&mut *tx).await?;
                    db.mails.insert_one(welcome).session(tx).await?;
                    Ok(Inserted::Created)
                }
                .boxed()
            })
            .await
    }

    async fn find_account(&self, filter: Document) -> Result<Option<Account>, StoreError> {
        let found = self.db.read(self.db.users.find_one(filter).max_time(SERVER)).await?;
        Ok(found.and_then(|user| healthy(USERS, &user, doc::account)))
    }
}

/// Finds those whom the change changes, and changes them.
pub(crate) fn update(change: &AccountChange) -> (Document, Document) {
    let raise = doc! { "tokenVersion": 1_i64 };
    let flag = |field: &str, wanted, usual| (doc! { field: unless(wanted, usual) }, doc! { "$set": { field: wanted } });
    match change {
        AccountChange::Disable | AccountChange::Enable => {
            let (those, mut update) = flag("disabled", matches!(change, AccountChange::Disable), false);
            update.insert("$inc", raise);
            (those, update)
        }
        AccountChange::SetPassword(hash) => (doc! {}, doc! { "$set": { "password": hash.expose() }, "$inc": raise }),
        AccountChange::ResetPassword(hash) => {
            let set = doc! { "password": hash.expose(), "emailConfirmed": true };
            (doc! {}, doc! { "$set": set, "$inc": raise })
        }
        AccountChange::ConfirmEmail => flag("emailConfirmed", true, false),
        AccountChange::AbsenceNotices(wanted) => flag("absenceNotices", *wanted, true),
    }
}
