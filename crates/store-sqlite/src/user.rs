//! Accounts.

use async_trait::async_trait;
use rollcall_core::id::UserId;
use rollcall_core::mail::{NewMail, Reason};
use rollcall_core::store::{Change, Inserted, Page, StoreError, Users};
use rollcall_core::user::{Account, AccountChange, Email, EmailKey, PasswordHash, Person, PersonName};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::row::Columns;
use crate::tx::Tx;
use crate::{SqliteStore, mail};

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, email, role, password_hash, token_version, disabled, email_confirmed, absence_notices,
                    created_at
             FROM users ",
            $rest
        )
    };
}
pub(crate) use select;

#[async_trait]
impl Users for SqliteStore {
    async fn insert_user(&self, account: Account, welcome: Option<NewMail>) -> Result<Inserted, StoreError> {
        self.writer.call(move |tx| insert(tx, &account, welcome.as_ref())).await
    }

    async fn user(&self, id: UserId) -> Result<Option<Account>, StoreError> {
        self.readers.read(move |connection| find(connection, id)).await
    }

    async fn user_by_email(&self, email: &EmailKey) -> Result<Option<Account>, StoreError> {
        let email = email.clone();
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(select!("WHERE email_key = ?1"))?
                    .query_row([email.as_str()], account)
                    .optional()
            })
            .await
    }

    async fn change_user(&self, id: UserId, change: AccountChange) -> Result<Option<Account>, StoreError> {
        self.writer.call(move |tx| apply(tx, id, change)).await
    }

    async fn users(&self, page: Page<UserId>) -> Result<Vec<Account>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(select!("WHERE id > ?1 ORDER BY id LIMIT ?2"))?
                    .query_map(params![after(page), page.limit], account)?
                    .collect()
            })
            .await
    }

    async fn students(&self, page: Page<UserId>) -> Result<Vec<Person>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached(
                        "SELECT id, name, email FROM users WHERE role = 'student' AND disabled = 0 AND id > ?1
                         ORDER BY id LIMIT ?2",
                    )?
                    .query_map(params![after(page), page.limit], person)?
                    .collect()
            })
            .await
    }
}

/// No id comes before the one that names nothing.
fn after(page: Page<UserId>) -> [u8; 12] {
    page.after.unwrap_or(UserId::NOTHING).bytes()
}

pub(crate) fn find(connection: &Connection, id: UserId) -> rusqlite::Result<Option<Account>> {
    connection.prepare_cached(select!("WHERE id = ?1"))?.query_row([id.bytes()], account).optional()
}

fn insert(tx: &mut Tx<'_>, account: &Account, welcome: Option<&NewMail>) -> rusqlite::Result<Inserted> {
    if !insert_row(tx.connection(), account)? {
        return Ok(Inserted::EmailExists);
    }
    if let Some(welcome) = welcome {
        mail::queue(tx.connection(), welcome)?;
    }
    tx.tell(Change::Account(account.id))?;
    Ok(Inserted::Created)
}

/// Writes the account, unless its address is another's: `false`.
pub(crate) fn insert_row(connection: &Connection, account: &Account) -> rusqlite::Result<bool> {
    let inserted = connection
        .prepare_cached(
            "INSERT INTO users
                 (id, name, email, email_key, role, password_hash, token_version, disabled, email_confirmed,
                  absence_notices, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (email_key) DO NOTHING",
        )?
        .execute(params![
            account.id.bytes(),
            account.name.as_str(),
            account.email.as_str(),
            account.email.key().as_str(),
            account.role.as_str(),
            account.password_hash.expose(),
            account.token_version,
            account.disabled,
            account.email_confirmed,
            account.absence_notices,
            account.created_at.millis(),
        ])?;
    Ok(inserted > 0)
}

pub(crate) fn apply(tx: &mut Tx<'_>, id: UserId, change: AccountChange) -> rusqlite::Result<Option<Account>> {
    let Some(before) = find(tx.connection(), id)? else { return Ok(None) };
    let account = before.clone().changed(change);
    if account == before {
        return Ok(Some(account));
    }
    tx.connection()
        .prepare_cached(
            "UPDATE users SET password_hash = ?2, token_version = ?3, disabled = ?4, email_confirmed = ?5,
                 absence_notices = ?6
             WHERE id = ?1",
        )?
        .execute(params![
            id.bytes(),
            account.password_hash.expose(),
            account.token_version,
            account.disabled,
            account.email_confirmed,
            account.absence_notices,
        ])?;
    if account.token_version != before.token_version {
        mail::end(tx.connection(), Reason::ResetPassword, id)?;
    }
    tx.tell(Change::Account(id))?;
    Ok(Some(account))
}

/// Reads what [`select`] names.
pub(crate) fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let mut columns = Columns::new(row);
    Ok(Account {
        id: columns.id()?,
        name: PersonName::stored(columns.text()?),
        email: Email::stored(columns.text()?),
        role: columns.named()?,
        password_hash: PasswordHash::stored(columns.text()?),
        token_version: columns.number()?,
        disabled: columns.flag()?,
        email_confirmed: columns.flag()?,
        absence_notices: columns.flag()?,
        created_at: columns.time()?,
    })
}

/// Reads `id, name, email`.
pub(crate) fn person(row: &Row<'_>) -> rusqlite::Result<Person> {
    let mut columns = Columns::new(row);
    Ok(Person { id: columns.id()?, name: PersonName::stored(columns.text()?), email: Email::stored(columns.text()?) })
}
