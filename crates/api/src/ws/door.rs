//! The WebSocket door: one frame in, one service call, the answer in its place.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rollcall_core::policy::Member;
use rollcall_core::service::Pending;
use rollcall_core::session::{Actor, Command, Door as Way, OperationId};
use rollcall_core::store::SessionChange;
use rollcall_core::user::Role;
use rollcall_core::{ClassId, Error, UserId};
use rollcall_realtime::{Connection, ConnectionId, Frame, Handled, Handler, Incoming, close};
use serde_json::Value;

use super::Seat;
use super::protocol::{self, Malformed, Request};
use crate::Api;
use crate::error::{log_failure, socket_text};
use crate::limits::{Limit, Usage};
use crate::routes::NOT_YET;

/// After this time a client is told that the outcome of its command is not known yet.
const UNKNOWN_AFTER: Duration = Duration::from_secs(5);

const SECOND: Duration = Duration::from_secs(1);
/// How often a client may be told that it sends too much before it is closed, and once more every second.
const PATIENCE: u32 = 100;

/// Commands whose sender named them and that are not answered yet, so that the frame which tells the class of one
/// tells its sender which one.
#[derive(Default)]
pub(crate) struct NamedCommands(Mutex<HashMap<CommandName, (ConnectionId, Value)>>);

/// Names are each user's own.
type CommandName = (UserId, Arc<str>);

impl NamedCommands {
    /// The frame for the one connection that asked for what happened.
    pub(crate) fn variant_for(&self, change: &SessionChange) -> Option<(ConnectionId, Frame)> {
        let origin = &change.entry.origin;
        let (Actor::User(user), OperationId::Client(name)) = (origin.by, &origin.operation) else { return None };
        let named = self.0.lock();
        let (connection, request_id) = named.get(&(user, Arc::clone(name)))?;
        Some((*connection, protocol::change(change, Some(request_id))?))
    }
}

/// Keeps a command's name as long as its answer is open.
struct Named {
    api: Arc<Api>,
    key: CommandName,
    connection: ConnectionId,
}

impl Named {
    fn new(door: &Door, connection: ConnectionId, operation: &OperationId, request_id: &Value) -> Self {
        let key = (door.user, Arc::from(operation.as_str()));
        // The newest sender is the one that still listens.
        door.api.named.0.lock().insert(key.clone(), (connection, request_id.clone()));
        Self { api: Arc::clone(&door.api), key, connection }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let mut named = self.api.named.0.lock();
        if named.get(&self.key).is_some_and(|(connection, _)| *connection == self.connection) {
            named.remove(&self.key);
        }
    }
}

/// How fast a client sends.
#[derive(Default)]
struct Speed {
    messages: Usage,
    warnings: Usage,
}

/// One client's side of the door.
pub(super) struct Door {
    api: Arc<Api>,
    user: UserId,
    seat: Seat,
    address: Option<IpAddr>,
    speed: Mutex<Speed>,
}

impl Door {
    /// The door for a connection of an admitted account, which came from `address`.
    pub(super) fn new(api: Arc<Api>, user: UserId, seat: Seat, address: Option<IpAddr>) -> Self {
        Self { api, user, seat, address, speed: Mutex::default() }
    }

    /// What to do with a client that sends too fast, if it does.
    fn too_fast(&self) -> Option<Handled> {
        self.api.limits.as_ref()?;
        let limit = match self.seat.role {
            Role::Student => Limit::new(40, 10, SECOND),
            Role::Teacher | Role::Admin => Limit::new(2_000, 200, SECOND),
        };
        let now = self.api.services.clock.monotonic();
        let mut speed = self.speed.lock();
        speed.messages.take(limit, now).err()?;
        metrics::counter!("rollcall_messages_refused_total").increment(1);
        Some(match speed.warnings.take(Limit::new(PATIENCE, 1, SECOND), now) {
            Ok(()) => answer(protocol::error("Too many messages", None)),
            Err(_) => Handled::Close(close::FLOODING),
        })
    }

    async fn command(self: &Arc<Self>, connection: Connection, text: &str) -> Handled {
        let frame = protocol::Incoming::parse(text);
        let request_id = frame.request_id.as_ref();
        let operation = match frame.operation() {
            Ok(operation) => operation,
            Err(malformed) => return answer(protocol::error(malformed.text(), None)),
        };
        let request = match &frame.request {
            Ok(request) => request,
            Err(malformed) => return answer(protocol::error(malformed.text(), request_id)),
        };
        // As the account is now, not as it was when the socket was opened.
        let member = match self.api.services.accounts.member(self.user, self.seat.version).await {
            Ok(member) => member,
            Err(Error::Unauthenticated) => return Handled::Close(close::ACCOUNT_CHANGED),
            Err(error) => return answer(failure(&error, request_id)),
        };
        match request {
            Request::MyAttendance => self.own_mark(connection, &member, &frame),
            Request::Mark | Request::Summary | Request::Done => {
                self.submit(connection, &member, &frame, operation).await
            }
        }
    }

    async fn submit(
        self: &Arc<Self>,
        connection: Connection,
        member: &Member,
        frame: &protocol::Incoming,
        operation: Option<OperationId>,
    ) -> Handled {
        let request_id = frame.request_id.as_ref();
        let Ok(teacher) = member.teacher() else {
            return answer(protocol::error("Forbidden, teacher event only", request_id));
        };
        let (command, class) = match command(frame) {
            Ok(command) => command,
            Err(malformed) => return answer(protocol::error(malformed.text(), request_id)),
        };
        // Named before it can be committed: the feed may be faster than this task.
        let named =
            operation.as_ref().zip(request_id).map(|(operation, id)| Named::new(self, connection.id(), operation, id));
        let attendance = &self.api.services.attendance;
        let origin = attendance.origin(self.user, Way::WebSocket, self.address, operation);
        match attendance.submit(teacher, class, command, origin).await {
            Ok(pending) => {
                let door = Arc::clone(self);
                let request_id = request_id.cloned();
                Handled::Reply(Box::pin(async move {
                    let reply = door.outcome(&connection, pending, request_id.as_ref()).await;
                    drop(named);
                    reply
                }))
            }
            Err(error) => answer(failure(&error, request_id)),
        }
    }

    /// Waits for what became of a command. What was done is told to the whole class, its sender among them; only a
    /// refusal, or a command that had been done before, has an answer of its own. Either follows all that it saw.
    async fn outcome(
        &self,
        connection: &Connection,
        mut pending: Pending,
        request_id: Option<&Value>,
    ) -> Option<Frame> {
        let outcome = if let Ok(outcome) = tokio::time::timeout(UNKNOWN_AFTER, &mut pending).await {
            outcome
        } else {
            connection.send(protocol::error("Outcome unknown, still checking", request_id));
            pending.await
        };
        match outcome {
            Ok(committed) => {
                let change = &committed.change;
                self.reached(connection, change.class_id, change.entry.revision.0).await;
                if committed.repeated { protocol::change(change, request_id) } else { None }
            }
            Err(error) => {
                if let Some(seen) = error.seen() {
                    self.reached(connection, seen.class_id, seen.revision.0).await;
                }
                Some(failure(&error, request_id))
            }
        }
    }

    fn own_mark(self: &Arc<Self>, connection: Connection, member: &Member, frame: &protocol::Incoming) -> Handled {
        let request_id = frame.request_id.clone();
        let Ok(student) = member.student() else {
            return answer(protocol::error("Forbidden, student event only", request_id.as_ref()));
        };
        let class = match frame.class() {
            Ok(class) => class,
            Err(malformed) => return answer(protocol::error(malformed.text(), request_id.as_ref())),
        };
        let door = Arc::clone(self);
        Handled::Reply(Box::pin(async move {
            let request_id = request_id.as_ref();
            match door.api.services.attendance.own_mark(student, class).await {
                Ok((seen, status)) => {
                    door.reached(&connection, seen.class_id, seen.revision.0).await;
                    let status = status.map_or(NOT_YET, rollcall_core::session::Status::as_str);
                    Some(protocol::own_status(seen.class_id, seen.revision.0, status, request_id))
                }
                Err(error) => {
                    if let Some(seen) = error.seen() {
                        door.reached(&connection, seen.class_id, seen.revision.0).await;
                    }
                    Some(failure(&error, request_id))
                }
            }
        }))
    }

    async fn reached(&self, connection: &Connection, class: ClassId, revision: u64) {
        self.api.hub.reached(connection, class.bytes(), revision).await;
    }
}

impl Handler for Door {
    fn handle(self: Arc<Self>, connection: Connection, incoming: Incoming) -> BoxFuture<'static, Handled> {
        async move {
            if let Some(handled) = self.too_fast() {
                return handled;
            }
            match incoming {
                Incoming::Text(text) => self.command(connection, text.as_str()).await,
                Incoming::Binary => answer(protocol::error(Malformed::Format.text(), None)),
            }
        }
        .boxed()
    }
}

/// What a teacher's frame asks for, and of which class.
fn command(frame: &protocol::Incoming) -> Result<(Command, Option<ClassId>), Malformed> {
    let command = match frame.request {
        Ok(Request::Mark) => {
            let mark = frame.mark()?;
            Command::Mark { student_id: mark.student_id, status: mark.status, reason: mark.reason }
        }
        Ok(Request::Summary) => Command::Summarise,
        Ok(Request::Done) => Command::Finish,
        Ok(Request::MyAttendance) => return Err(Malformed::Event),
        Err(malformed) => return Err(malformed),
    };
    Ok((command, frame.class()?))
}

fn answer(frame: Frame) -> Handled {
    Handled::Reply(Box::pin(std::future::ready(Some(frame))))
}

fn failure(error: &Error, request_id: Option<&Value>) -> Frame {
    log_failure(error);
    protocol::error(socket_text(error), request_id)
}
