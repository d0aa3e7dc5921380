//! What this replica remembers of open sessions, so that a mark needs one message to the database.
//!
//! Nothing is acknowledged or refused by memory alone. A commit says on which revision and epoch of the session it is
//! based, and the database refuses it if the session has moved on; a refusal is decided on what was just read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mongodb::bson::{Bson, Document, doc};
use parking_lot::Mutex;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::session::{Actor, Command, LogEntry, OpenSession, OperationId, Origin, Revision, SessionInfo};
use rollcall_core::store::{REPEAT_WINDOW, SessionChange, StoreError, Target};
use rollcall_core::time::Timestamp;

use crate::db::Db;
use crate::doc::{self, id, integer};
use crate::session;

/// How many sessions, and how many teachers, are remembered. Beyond that memory begins anew.
const REMEMBERED: usize = 4_096;

/// An open session as it stood after the commit that made `session`'s revision.
pub(crate) struct Live {
    pub(crate) session: OpenSession,
    /// Raised whenever the session's teacher opens another one.
    epoch: i64,
    /// Who named a command in it.
    actors: HashSet<Actor>,
    /// The least size of its document.
    pub(crate) bytes: usize,
    named: Option<Named>,
}

/// All changes since a moment that were made under a client's name and may be asked for again.
struct Named {
    since: Timestamp,
    changes: HashMap<Arc<str>, Vec<Arc<SessionChange>>>,
}

impl Live {
    pub(crate) fn read(session: &Document) -> Result<Self, StoreError> {
        let actors = session.get("actors").and_then(Bson::as_array).into_iter().flatten();
        let actors = actors.map(|by| doc::as_id(Some(by)).map_or(Actor::System, Actor::User));
        let bytes = doc::get_number(session, "bytes").and_then(|bytes| usize::try_from(bytes).ok());
        Ok(Self {
            session: session::read(session, doc::open_session)?,
            epoch: doc::get_number(session, "epoch").unwrap_or_default(),
            actors: actors.collect(),
            bytes: bytes.unwrap_or_default(),
            named: None,
        })
    }

    fn info(&self) -> &SessionInfo {
        self.session.info()
    }

    /// What the database must have for a commit that is based on `revision`.
    pub(crate) fn fence(&self, revision: Revision) -> Document {
        doc! { "_id": id(self.info().id), "state": "open", "rev": integer(revision.0), "epoch": self.epoch }
    }

    /// Whether the session's document must still learn that `by` names commands.
    pub(crate) fn is_new_actor(&mut self, by: Actor) -> bool {
        self.actors.insert(by)
    }

    /// Makes sure that [`Self::repeated`] knows all that `origin` may be a repetition of.
    pub(crate) async fn recall_named(&mut self, db: &Db, origin: &Origin) -> Result<(), StoreError> {
        let since = origin.at.before(REPEAT_WINDOW);
        if self.named.as_ref().is_some_and(|named| named.since <= since) {
            return Ok(());
        }
        let info = self.info();
        let whose = doc! { "$or": [{ "classId": id(info.class_id) }, { "actors": id(info.teacher_id) }] };
        let mut named = Named { since, changes: HashMap::new() };
        for change in session::named_since(db, whose, since).await? {
            named.add(change);
        }
        self.named = Some(named);
        Ok(())
    }

    /// What the same command did when it was sent before.
    pub(crate) fn repeated(&self, target: Target, command: &Command, origin: &Origin) -> Option<Arc<SessionChange>> {
        let changes = self.named.as_ref()?.changes.get(origin.operation.as_str())?;
        changes.iter().rev().find(|change| change.is_repeated_by(target, command, origin)).cloned()
    }

    /// Notes what was decided.
    pub(crate) fn note(&mut self, change: &Arc<SessionChange>) {
        if let Some(named) = &mut self.named
            && let OperationId::Client(_) = change.entry.origin.operation
        {
            named.add(Arc::clone(change));
        }
    }
}

impl Named {
    fn add(&mut self, change: Arc<SessionChange>) {
        let name: Arc<str> = change.entry.origin.operation.as_str().into();
        self.changes.entry(name).or_default().push(change);
    }
}

/// How many bytes an entry adds to its session's document at most, with the mark that it makes.
pub(crate) fn size_of(entry: &LogEntry) -> usize {
    /// Field names, ids, numbers and an IPv6 address.
    const FIXED: usize = 480;
    let reason = match &entry.event {
        rollcall_core::session::Event::Marked { reason: Some(reason), .. } => reason.as_str().len(),
        _ => 0,
    };
    FIXED + reason + entry.origin.operation.as_str().len()
}

/// The session that a teacher opened last, as of one epoch of it.
#[derive(Clone, Copy)]
struct Last {
    class: ClassId,
    session: SessionId,
    epoch: i64,
}

#[derive(Default)]
pub(crate) struct Memory {
    sessions: Mutex<HashMap<ClassId, Live>>,
    last_opened: Mutex<HashMap<UserId, Last>>,
}

impl Memory {
    /// Takes the class's session out, to change it: it comes back only when that succeeded.
    pub(crate) fn take(&self, class: ClassId) -> Option<Live> {
        self.sessions.lock().remove(&class)
    }

    pub(crate) fn keep(&self, live: Live) {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= REMEMBERED {
            sessions.clear();
        }
        sessions.insert(live.info().class_id, live);
    }

    /// The class whose session the teacher opened last, as far as is remembered.
    pub(crate) fn class_of(&self, teacher: UserId) -> Option<ClassId> {
        self.last_opened.lock().get(&teacher).map(|last| last.class)
    }

    /// Notes that `live` was found to be the session that its teacher opened last.
    pub(crate) fn opened_last(&self, live: &Live) {
        let info = live.info();
        let mut last_opened = self.last_opened.lock();
        if last_opened.len() >= REMEMBERED {
            last_opened.clear();
        }
        last_opened.insert(info.teacher_id, Last { class: info.class_id, session: info.id, epoch: live.epoch });
    }

    pub(crate) fn forget_last(&self, teacher: UserId) {
        self.last_opened.lock().remove(&teacher);
    }

    /// Whether a command for `target` concerns this session, if it still is as remembered.
    pub(crate) fn concerns(&self, target: Target, live: &Live) -> bool {
        let info = live.info();
        match target {
            Target::Class(class) => class == info.class_id,
            Target::Session(session) => session == info.id,
            Target::OpenedBy(teacher) => {
                let last = self.last_opened.lock().get(&teacher).copied();
                last.is_some_and(|last| last.session == info.id && last.epoch == live.epoch)
            }
        }
    }
}
