//! Commands whose sender named them, as long as they are not answered.
//!
//! What was done is told to the whole class, and the sender's own frame carries the name. That frame may come from
//! the feed, or with what a client missed that comes back; when neither told it, the door answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rollcall_core::UserId;
use rollcall_core::session::{Actor, Command, OperationId, Origin};
use rollcall_core::store::{SessionChange, Target};
use rollcall_realtime::{ConnectionId, Frame};
use serde_json::Value;

use super::protocol;
use crate::Api;

/// Names are each user's own.
type CommandName = (UserId, Arc<str>);

/// All named commands that wait for their answer.
#[derive(Default)]
pub(crate) struct NamedCommands(Mutex<HashMap<CommandName, Arc<Waiting>>>);

/// A command that waits for its answer.
struct Waiting {
    connection: ConnectionId,
    request_id: Value,
    target: Target,
    command: Command,
    origin: Origin,
    /// Whether the sender was given the frame that answers it.
    told: AtomicBool,
}

impl Waiting {
    fn answer(&self, change: &SessionChange) -> Option<Frame> {
        let frame = protocol::change(change, Some(&self.request_id))?;
        self.told.store(true, Ordering::Relaxed);
        Some(frame)
    }
}

impl NamedCommands {
    /// The frame for the one connection that asked for what happened.
    pub(crate) fn variant_for(&self, change: &SessionChange) -> Option<(ConnectionId, Frame)> {
        let waiting = self.behind(change)?;
        Some((waiting.connection, waiting.answer(change)?))
    }

    /// The frame for this connection, if it is the one that asked for what happened.
    pub(super) fn answer_to(&self, connection: ConnectionId, change: &SessionChange) -> Option<Frame> {
        self.behind(change).filter(|waiting| waiting.connection == connection)?.answer(change)
    }

    fn behind(&self, change: &SessionChange) -> Option<Arc<Waiting>> {
        let origin = &change.entry.origin;
        let (Actor::User(user), OperationId::Client(name)) = (origin.by, &origin.operation) else { return None };
        let waiting = Arc::clone(self.0.lock().get(&(user, Arc::clone(name)))?);
        // A name may have been another command's before.
        change.is_repeated_by(waiting.target, &waiting.command, &waiting.origin).then_some(waiting)
    }
}

/// Keeps a command's name as long as its answer is open.
pub(super) struct Named {
    api: Arc<Api>,
    key: CommandName,
    waiting: Arc<Waiting>,
}

impl Named {
    /// Waits for what becomes of `command`, which `connection` sent. From now on: the feed may be faster than
    /// whoever submits it. The newest sender of a name is the one that still listens.
    pub(super) fn new(
        api: &Arc<Api>,
        connection: ConnectionId,
        user: UserId,
        request_id: Value,
        target: Target,
        command: Command,
        origin: Origin,
    ) -> Self {
        let key = (user, Arc::from(origin.operation.as_str()));
        let told = AtomicBool::new(false);
        let waiting = Arc::new(Waiting { connection, request_id, target, command, origin, told });
        api.named.0.lock().insert(key.clone(), Arc::clone(&waiting));
        Self { api: Arc::clone(api), key, waiting }
    }

    /// Whether the sender was given the frame that answers the command.
    pub(super) fn is_told(&self) -> bool {
        self.waiting.told.load(Ordering::Relaxed)
    }

    /// The answer, unless the sender was given it.
    pub(super) fn answer(&self, change: &SessionChange) -> Option<Frame> {
        if self.is_told() { None } else { self.waiting.answer(change) }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let mut named = self.api.named.0.lock();
        if named.get(&self.key).is_some_and(|newest| Arc::ptr_eq(newest, &self.waiting)) {
            named.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use rollcall_core::session::{Counts, Door, Event, LogEntry, Revision, Status};
    use rollcall_core::{ClassId, SessionId, Timestamp};
    use rollcall_realtime::{Hub, HubConfig};
    use serde_json::json;

    use super::*;

    fn change(origin: &Origin, event: Event) -> SessionChange {
        let entry = LogEntry { revision: Revision(7), event, origin: origin.clone() };
        SessionChange { session_id: SessionId::NOTHING, class_id: ClassId::NOTHING, entry }
    }

    #[test]
    fn a_name_goes_with_the_very_command_that_is_open() {
        let registration = Hub::new(HubConfig::default()).register([1; 12], 0).unwrap();
        let connection = registration.connection().id();
        let user = UserId::NOTHING;
        let operation = OperationId::Client("1".into());
        let at = Timestamp::from_millis(0);
        let origin = Origin { by: Actor::User(user), at, door: Door::WebSocket, address: None, operation };
        let command = Command::Mark { student_id: user, status: Status::Late, reason: None };
        let waiting = Arc::new(Waiting {
            connection,
            request_id: json!("1"),
            target: Target::Class(ClassId::NOTHING),
            command,
            origin: origin.clone(),
            told: AtomicBool::new(false),
        });
        let named = NamedCommands::default();
        named.0.lock().insert((user, "1".into()), Arc::clone(&waiting));

        let marked = |new| Event::Marked { student_id: user, old: None, new, reason: None };
        let nobody = Origin { by: Actor::System, ..origin.clone() };
        for other in [
            change(&origin, marked(Status::Present)),
            change(&origin, Event::Finished(Counts::default())),
            change(&nobody, marked(Status::Late)),
        ] {
            assert!(named.variant_for(&other).is_none(), "{other:?}");
        }
        assert!(!waiting.told.load(Ordering::Relaxed), "nothing was told of it yet");

        let (to, frame) = named.variant_for(&change(&origin, marked(Status::Late))).unwrap();
        assert_eq!(to, connection);
        assert!(frame.as_str().contains(r#""requestId":"1""#), "{}", frame.as_str());
        assert!(waiting.told.load(Ordering::Relaxed));
    }
}
