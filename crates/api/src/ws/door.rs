//! The WebSocket door: one frame in, one service call, the answer in its place.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rollcall_core::limit::{Limit, Step, Usage};
use rollcall_core::policy::Member;
use rollcall_core::service::Pending;
use rollcall_core::session::{Command, Door as Way, OperationId};
use rollcall_core::store::Target;
use rollcall_core::user::Role;
use rollcall_core::{ClassId, Error, UserId};
use rollcall_realtime::{Connection, Frame, Handled, Handler, Incoming, close};
use serde_json::Value;

use super::Seat;
use super::named::Named;
use super::protocol::{self, Malformed, Request};
use crate::Api;
use crate::error::{log_failure, socket_text};
use crate::routes::NOT_YET;
use crate::trace::{self, SpanContext, Traces};

/// After this time a client is told that the outcome of its command is not known yet.
const UNKNOWN_AFTER: Duration = Duration::from_secs(5);

const SECOND: Duration = Duration::from_secs(1);
/// How often a client may be told that it sends too much before it is closed, and once more every second.
const PATIENCE: u32 = 100;

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
    /// The span of the request that opened the socket. Boxed: idle sockets must not pay for it.
    opened: Option<Box<SpanContext>>,
    speed: Mutex<Speed>,
}

impl Door {
    /// The door for a connection of an admitted account, which came from `address` and was opened in the span `opened`.
    pub(super) fn new(
        api: Arc<Api>,
        user: UserId,
        seat: Seat,
        address: Option<IpAddr>,
        opened: Option<Box<SpanContext>>,
    ) -> Self {
        Self { api, user, seat, address, opened, speed: Mutex::default() }
    }

    /// Whose connection it is.
    pub(super) fn user(&self) -> UserId {
        self.user
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
        speed.messages.count(Step::Take, limit, now).err()?;
        metrics::counter!("rollcall_messages_refused_total").increment(1);
        Some(match speed.warnings.count(Step::Take, Limit::new(PATIENCE, 1, SECOND), now) {
            Ok(()) => answer(refused("Too many messages", None)),
            Err(_) => Handled::Close(close::FLOODING),
        })
    }

    /// Takes a message in a span of its own, which ends with the answer.
    async fn traced(self: Arc<Self>, traces: Arc<Traces>, connection: Connection, incoming: Incoming) -> Handled {
        let span = traces.message(self.opened.as_deref().copied());
        match span.clone().around(self.take(connection, incoming)).await {
            Handled::Reply(reply) => Handled::Reply(Box::pin(span.around(reply))),
            Handled::Close(close) => {
                span.note("rollcall.outcome", "refused");
                span.note("rollcall.refusal", close.reason);
                Handled::Close(close)
            }
        }
    }

    async fn take(self: Arc<Self>, connection: Connection, incoming: Incoming) -> Handled {
        if let Some(handled) = self.too_fast() {
            return handled;
        }
        match incoming {
            Incoming::Text(text) => self.command(connection, text.as_str()).await,
            Incoming::Binary => answer(refused(Malformed::Format.text(), None)),
        }
    }

    async fn command(self: &Arc<Self>, connection: Connection, text: &str) -> Handled {
        let frame = protocol::Incoming::parse(text);
        let request_id = frame.request_id.as_ref();
        let operation = match frame.operation() {
            Ok(operation) => operation,
            Err(malformed) => return answer(refused(malformed.text(), None)),
        };
        let request = match &frame.request {
            Ok(request) => request,
            Err(malformed) => return answer(refused(malformed.text(), request_id)),
        };
        trace::event(request.event());
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
            return answer(refused("Forbidden, teacher event only", request_id));
        };
        let (command, class) = match command(frame) {
            Ok(command) => command,
            Err(malformed) => return answer(refused(malformed.text(), request_id)),
        };
        let attendance = &self.api.services.attendance;
        let origin = attendance.origin(self.user, Way::WebSocket, self.address, operation);
        let named = request_id.map(|id| {
            let target = class.map_or(Target::OpenedBy(self.user), Target::Class);
            let (command, origin) = (command.clone(), origin.clone());
            Named::new(&self.api, connection.id(), self.user, id.clone(), target, command, origin)
        });
        let began = Instant::now();
        match attendance.submit(teacher, class, command, origin).await {
            Ok(pending) => {
                let door = Arc::clone(self);
                let request_id = request_id.cloned();
                Handled::Reply(Box::pin(async move {
                    door.outcome(&connection, pending, began, named, request_id.as_ref()).await
                }))
            }
            Err(error) => answer(failure(&error, request_id)),
        }
    }

    /// Waits for what became of a command. What was done is told to the whole class, its sender among them; a refusal,
    /// and a named command of which the sender was not told by its name, have an answer of their own: because it
    /// had been done before, or because only what it left could be told. Either follows all that it saw.
    async fn outcome(
        &self,
        connection: &Connection,
        mut pending: Pending,
        began: Instant,
        named: Option<Named>,
        request_id: Option<&Value>,
    ) -> Option<Frame> {
        // The committed stream may be faster than the store's own answer.
        let is_told = || named.as_ref().is_some_and(Named::is_told);
        let outcome = if let Ok(outcome) = tokio::time::timeout(UNKNOWN_AFTER, &mut pending).await {
            outcome
        } else {
            if !is_told() {
                connection.send(protocol::error("Outcome unknown, still checking", request_id));
            }
            pending.await
        };
        self.api.command_seconds.record(began.elapsed());
        match outcome {
            Ok(committed) => {
                let change = &committed.change;
                trace::class(change.class_id);
                trace::note("rollcall.revision", change.entry.revision.0);
                trace::outcome(if committed.repeated { "repeated" } else { "done" });
                self.reached(connection, change.class_id, change.entry.revision.0).await;
                named.as_ref()?.answer(change)
            }
            Err(_) if is_told() => {
                trace::outcome("done");
                None
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
            return answer(refused("Forbidden, student event only", request_id.as_ref()));
        };
        let class = match frame.class() {
            Ok(class) => class,
            Err(malformed) => return answer(refused(malformed.text(), request_id.as_ref())),
        };
        let door = Arc::clone(self);
        Handled::Reply(Box::pin(async move {
            let request_id = request_id.as_ref();
            match door.api.services.attendance.own_mark(student, class).await {
                Ok((seen, status)) => {
                    trace::class(seen.class_id);
                    trace::outcome("done");
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
        match self.api.traces.clone() {
            None => self.take(connection, incoming).boxed(),
            Some(traces) => self.traced(traces, connection, incoming).boxed(),
        }
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

fn refused(text: &'static str, request_id: Option<&Value>) -> Frame {
    trace::refused(text);
    protocol::error(text, request_id)
}

fn failure(error: &Error, request_id: Option<&Value>) -> Frame {
    log_failure(error);
    trace::failed(error);
    protocol::error(socket_text(error), request_id)
}
