//! Mails that wait to be sent.

use async_trait::async_trait;
use rollcall_core::id::{SessionId, UserId};
use rollcall_core::mail::{Fate, Kind, Mail, NewMail, Reason, StoredMail, TokenHash};
use rollcall_core::store::{Absences, Outbox, StoreError};
use rollcall_core::time::Timestamp;
use rollcall_core::user::{Account, AccountChange};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::row::Columns;
use crate::tx::Tx;
use crate::{SqliteStore, user};

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, user_id, kind, class_id, session_id, token, queued_at, due_at, attempts FROM mails ", $rest)
    };
}
pub(crate) use select;

#[async_trait]
impl Outbox for SqliteStore {
    async fn queue_mails(&self, mails: Vec<NewMail>) -> Result<(), StoreError> {
        if mails.is_empty() {
            return Ok(());
        }
        self.writer.call(move |tx| mails.iter().try_for_each(|mail| queue(tx.connection(), mail))).await
    }

    async fn take_mails(&self, now: Timestamp, until: Timestamp, limit: u32) -> Result<Vec<Mail>, StoreError> {
        // Most often there is nothing to do: that shall not cost a write.
        let some = self.readers.read(move |connection| Ok(!due(connection, now, 1)?.is_empty()));
        if !some.await? {
            return Ok(Vec::new());
        }
        self.writer.call(move |tx| take(tx.connection(), now, until, limit)).await
    }

    async fn settle_mail(&self, mail: &Mail, fate: Fate) -> Result<(), StoreError> {
        let (id, attempt) = (mail.id, mail.attempt);
        let due_at = match fate {
            Fate::Over => None,
            Fate::Due(at) => Some(at.millis()),
        };
        self.writer
            .call(move |tx| {
                tx.connection()
                    .prepare_cached(
                        "UPDATE mails SET due_at = ?3
                         WHERE id = ?1 AND due_at IS NOT NULL AND (attempts = ?2 OR ?3 IS NULL)",
                    )?
                    .execute(params![id.bytes(), attempt, due_at])
                    .map(drop)
            })
            .await
    }

    async fn token_owner(&self, token: TokenHash, kind: Kind, now: Timestamp) -> Result<Option<UserId>, StoreError> {
        self.readers.read(move |connection| owner(connection, token, kind, now)).await
    }

    async fn use_token(
        &self,
        token: TokenHash,
        kind: Kind,
        now: Timestamp,
        change: AccountChange,
    ) -> Result<Option<Account>, StoreError> {
        self.writer.call(move |tx| use_token(tx, token, kind, now, change)).await
    }

    async fn mails_since(&self, to: UserId, kind: Kind, since: Timestamp) -> Result<u64, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached("SELECT count(*) FROM mails WHERE user_id = ?1 AND kind = ?2 AND queued_at >= ?3")?
                    .query_row(params![to.bytes(), kind.as_str(), since.millis()], |row| Columns::new(row).sequence())
            })
            .await
    }

    async fn forget_mails(&self, now: Timestamp) -> Result<u64, StoreError> {
        let some = self.readers.read(move |connection| {
            connection.prepare_cached("SELECT 1 FROM mails WHERE expires_at <= ?1")?.exists([now.millis()])
        });
        if !some.await? {
            return Ok(0);
        }
        self.writer
            .call(move |tx| {
                let unsent = tx
                    .connection()
                    .prepare_cached("SELECT count(*) FROM mails WHERE expires_at <= ?1 AND due_at IS NOT NULL")?
                    .query_row([now.millis()], |row| Columns::new(row).sequence())?;
                tx.connection().prepare_cached("DELETE FROM mails WHERE expires_at <= ?1")?.execute([now.millis()])?;
                Ok(unsent)
            })
            .await
    }

    async fn absences(&self, limit: u32) -> Result<Vec<Absences>, StoreError> {
        self.readers
            .read(move |connection| {
                connection
                    .prepare_cached("SELECT session_id, class_id FROM absences ORDER BY session_id LIMIT ?1")?
                    .query_map([limit], absences)?
                    .collect()
            })
            .await
    }

    async fn absences_queued(&self, session: SessionId) -> Result<(), StoreError> {
        self.writer
            .call(move |tx| {
                tx.connection()
                    .prepare_cached("DELETE FROM absences WHERE session_id = ?1")?
                    .execute([session.bytes()])
                    .map(drop)
            })
            .await
    }
}

/// Queues a mail, unless one stands in its way.
pub(crate) fn queue(connection: &Connection, mail: &NewMail) -> rusqlite::Result<()> {
    let NewMail { id, to, reason, token, queued_at, replaces_before } = *mail;
    connection
        .prepare_cached("DELETE FROM mails WHERE key = ?1 AND (queued_at < ?2 OR queued_at > ?3)")?
        .execute(params![reason.key(to), replaces_before.millis(), mail.future().millis()])?;
    insert_row(connection, &StoredMail { id, to, reason, token, queued_at, due_at: Some(queued_at), attempts: 0 })
}

/// Writes a mail, unless one for the same person and reason is there.
pub(crate) fn insert_row(connection: &Connection, mail: &StoredMail) -> rusqlite::Result<()> {
    let StoredMail { id, to, reason, token, queued_at, due_at, attempts } = mail;
    let (class, session) = match reason {
        Reason::Absence { class_id, session_id } => (Some(class_id.bytes()), Some(session_id.bytes())),
        Reason::ConfirmEmail | Reason::ResetPassword => (None, None),
    };
    connection
        .prepare_cached(
            "INSERT INTO mails
                 (id, key, user_id, kind, class_id, session_id, token, queued_at, expires_at, due_at, attempts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (key) DO NOTHING",
        )?
        .execute(params![
            id.bytes(),
            reason.key(*to),
            to.bytes(),
            reason.kind().as_str(),
            class,
            session,
            token.as_ref().map(TokenHash::bytes),
            queued_at.millis(),
            reason.kind().expires_at(*queued_at).millis(),
            due_at.map(Timestamp::millis),
            attempts,
        ])
        .map(drop)
}

/// Ends a mail, and its token.
pub(crate) fn end(connection: &Connection, reason: Reason, to: UserId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE mails SET token = NULL, due_at = NULL WHERE key = ?1")?
        .execute([reason.key(to)])
        .map(drop)
}

/// Notes a session whose absent students are to be told.
pub(crate) fn note(connection: &Connection, Absences { session_id, class_id }: Absences) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO absences (session_id, class_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute([session_id.bytes(), class_id.bytes()])
        .map(drop)
}

/// What is due: what somebody waits for, then notices, each oldest first.
fn due(connection: &Connection, now: Timestamp, limit: u32) -> rusqlite::Result<Vec<StoredMail>> {
    let mut found = Vec::new();
    for notices in [false, true] {
        let left = limit - u32::try_from(found.len()).unwrap_or(limit);
        let mut statement = connection.prepare_cached(select!(
            "WHERE (kind = 'absence') = ?3 AND due_at <= ?1 AND expires_at > ?1 ORDER BY due_at LIMIT ?2"
        ))?;
        for mail in statement.query_map(params![now.millis(), left, notices], stored)? {
            found.push(mail?);
        }
    }
    Ok(found)
}

fn take(connection: &Connection, now: Timestamp, until: Timestamp, limit: u32) -> rusqlite::Result<Vec<Mail>> {
    let due = due(connection, now, limit)?;
    let mut take = connection.prepare_cached("UPDATE mails SET due_at = ?2, attempts = ?3 WHERE id = ?1")?;
    let mut taken = Vec::with_capacity(due.len());
    for StoredMail { id, to, reason, queued_at, attempts, .. } in due {
        let attempt = attempts.saturating_add(1);
        take.execute(params![id.bytes(), until.millis(), attempt])?;
        taken.push(Mail { id, to, reason, queued_at, attempt });
    }
    Ok(taken)
}

/// Reads what [`select`] names.
pub(crate) fn stored(row: &Row<'_>) -> rusqlite::Result<StoredMail> {
    let mut columns = Columns::new(row);
    let (id, to, kind) = (columns.id()?, columns.id()?, columns.named()?);
    let (class, session) = (columns.optional_id()?, columns.optional_id()?);
    let reason = match (kind, class, session) {
        (Kind::ConfirmEmail, ..) => Reason::ConfirmEmail,
        (Kind::ResetPassword, ..) => Reason::ResetPassword,
        (Kind::Absence, Some(class_id), Some(session_id)) => Reason::Absence { class_id, session_id },
        (Kind::Absence, ..) => return Err(columns.impossible("a mail lacks what belongs to it")),
    };
    Ok(StoredMail {
        id,
        to,
        reason,
        token: columns.optional_bytes()?.map(TokenHash::from_bytes),
        queued_at: columns.time()?,
        due_at: columns.optional_time()?,
        attempts: columns.number()?,
    })
}

/// Reads `session_id, class_id`.
pub(crate) fn absences(row: &Row<'_>) -> rusqlite::Result<Absences> {
    let mut columns = Columns::new(row);
    Ok(Absences { session_id: columns.id()?, class_id: columns.id()? })
}

fn owner(connection: &Connection, token: TokenHash, kind: Kind, now: Timestamp) -> rusqlite::Result<Option<UserId>> {
    connection
        .prepare_cached("SELECT user_id FROM mails WHERE token = ?1 AND kind = ?2 AND expires_at > ?3")?
        .query_row(params![token.bytes(), kind.as_str(), now.millis()], |row| Columns::new(row).id())
        .optional()
}

fn use_token(
    tx: &mut Tx<'_>,
    token: TokenHash,
    kind: Kind,
    now: Timestamp,
    change: AccountChange,
) -> rusqlite::Result<Option<Account>> {
    let Some(owner) = owner(tx.connection(), token, kind, now)? else { return Ok(None) };
    if user::find(tx.connection(), owner)?.is_none_or(|account| account.disabled) {
        return Ok(None);
    }
    tx.connection()
        .prepare_cached("UPDATE mails SET token = NULL, due_at = NULL WHERE token = ?1")?
        .execute([token.bytes()])?;
    user::apply(tx, owner, change)
}
