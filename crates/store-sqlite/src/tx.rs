//! What a command finds while it runs in the writer's transaction.

use std::collections::HashMap;
use std::sync::Arc;

use rollcall_core::id::ClassId;
use rollcall_core::session::{LogEntry, OpenSession, SessionInfo};
use rollcall_core::store::{Change, SessionChange};
use rusqlite::{Connection, params};

use crate::row::integer;
use crate::{session, stream};

/// The writer's memory of open sessions, by class. It holds what the tables say, or nothing: whoever changes a
/// session takes it out first, and only a success puts it back.
pub(crate) type OpenSessions = HashMap<ClassId, OpenSession>;

/// One transaction of the writer.
pub(crate) struct Tx<'a> {
    connection: &'a Connection,
    open: &'a mut OpenSessions,
    /// The last place in the committed stream before this transaction.
    head: u64,
    changes: Vec<Change>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(connection: &'a Connection, open: &'a mut OpenSessions, head: u64) -> Self {
        Self { connection, open, head, changes: Vec::new() }
    }

    pub(crate) fn connection(&self) -> &'a Connection {
        self.connection
    }

    /// How many changes this transaction has made, for [`Self::forget_after`].
    pub(crate) fn changes_made(&self) -> usize {
        self.changes.len()
    }

    /// A command failed and its savepoint was rolled back: what it changed is forgotten.
    pub(crate) fn forget_after(&mut self, changes_made: usize) {
        self.changes.truncate(changes_made);
        self.open.clear();
    }

    /// The last place in the committed stream before this transaction, and what it adds behind it.
    pub(crate) fn into_changes(self) -> (u64, Vec<Change>) {
        (self.head, self.changes)
    }

    /// Takes the class's open session out of the memory, to change it.
    pub(crate) fn take_open(&mut self, class: ClassId) -> rusqlite::Result<Option<OpenSession>> {
        match self.open.remove(&class) {
            Some(session) => Ok(Some(session)),
            None => session::load_open(self.connection, class),
        }
    }

    /// Remembers an open session as the tables now have it.
    pub(crate) fn keep_open(&mut self, session: OpenSession) {
        self.open.insert(session.info().class_id, session);
    }

    fn next_seq(&self) -> i64 {
        integer(self.head + 1) + i64::try_from(self.changes.len()).unwrap_or(i64::MAX)
    }

    /// Appends a session's entry to the log, and so to the committed stream.
    pub(crate) fn log(&mut self, session: &SessionInfo, entry: LogEntry) -> rusqlite::Result<Arc<SessionChange>> {
        session::insert_entry(self.connection, self.next_seq(), session.id, &entry)?;
        let change = Arc::new(SessionChange { session_id: session.id, class_id: session.class_id, entry });
        self.changes.push(Change::Session(Arc::clone(&change)));
        Ok(change)
    }

    /// Appends a change that is no session's to the committed stream.
    pub(crate) fn tell(&mut self, change: Change) -> rusqlite::Result<()> {
        if let Some((kind, id, user, flag)) = stream::columns(&change) {
            self.connection
                .prepare_cached("INSERT INTO changes (seq, kind, id, user_id, flag) VALUES (?1, ?2, ?3, ?4, ?5)")?
                .execute(params![self.next_seq(), kind, id, user, flag])?;
            self.changes.push(change);
        }
        Ok(())
    }
}
