//! The WebSocket door: who may open a socket, what it hears, and what it missed.

mod door;
mod named;
pub(crate) mod protocol;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::Response;
use rollcall_core::session::{Event, Revision};
use rollcall_core::store::SessionChange;
use rollcall_core::user::Role;
use rollcall_core::{ClassId, Error, UserId};
use rollcall_realtime::{
    Close, Connection, Frame, Registration, Socket, SocketConfig, Tier, Upgrade, UpgradeRejection, close,
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use named::NamedCommands;

use self::door::Door;
use crate::Api;
use crate::error::{ApiError, Detail, ErrorBody, log_failure, socket_text};
use crate::extract::ClientAddress;
use crate::token::Bearer;
use crate::trace;

/// The subprotocol under which a token can come.
const BEARER: &str = "bearer";
/// A missed frame waits in the socket's outbox with at most so many others.
const CHUNK: usize = 512;
/// When a socket could be opened that was refused because there are too many.
const RETRY_TOO_MANY: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(open))
}

/// What an account was when its socket was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The token's version.
    pub version: u32,
    /// The account's role.
    pub role: Role,
}

impl Seat {
    /// The seat as the hub carries it.
    pub(crate) fn tag(self) -> u64 {
        let role = match self.role {
            Role::Teacher => 0,
            Role::Student => 1,
            Role::Admin => 2,
        };
        u64::from(self.version) << 2 | role
    }

    /// The seat behind a tag.
    pub(crate) fn from_tag(tag: u64) -> Self {
        let role = match tag & 3 {
            0 => Role::Teacher,
            1 => Role::Student,
            _ => Role::Admin,
        };
        Self { version: u32::try_from(tag >> 2).unwrap_or(u32::MAX), role }
    }
}

/// When somebody of this role hears of a class.
pub(crate) fn tier(role: Role) -> Tier {
    if role == Role::Teacher { Tier::First } else { Tier::Rest }
}

/// What comes with the request for a socket.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the parameters; `since` may come more than once, so they are read one by one")]
struct SocketQuery {
    /// The token. It may come as `Sec-WebSocket-Protocol: bearer, <token>` instead.
    token: Option<String>,
    /// `<classId>:<revision>`, once for each class: the last revision that the client knows. It is sent what it missed.
    since: Option<String>,
}

/// The request for a socket, taken apart.
struct Opening {
    upgrade: Upgrade,
    token: Option<String>,
    since: Vec<Result<(ClassId, Revision), ()>>,
    origin_allowed: bool,
}

impl FromRequestParts<Arc<Api>> for Opening {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let mut upgrade = Upgrade::from_request_parts(parts, api).await.map_err(not_an_upgrade)?;
        let mut token = None;
        let mut since = Vec::new();
        for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "token" => token = Some(value.into_owned()),
                "since" => since.extend(value.split(',').map(parse_since)),
                _ => {}
            }
        }
        let offered: Vec<_> = upgrade.requested_protocols().filter_map(|value| value.to_str().ok()).collect();
        if let [BEARER, offered, ..] = offered[..] {
            token = token.or_else(|| Some(offered.to_owned()));
            upgrade.set_selected_protocol(HeaderValue::from_static(BEARER));
        }
        Ok(Self { upgrade, token, since, origin_allowed: api.origin_allowed(&parts.headers) })
    }
}

fn not_an_upgrade(rejection: UpgradeRejection) -> ApiError {
    ApiError::Schema(vec![Detail { field: String::new(), message: format!("open a WebSocket here: {rejection}") }])
}

fn parse_since(text: &str) -> Result<(ClassId, Revision), ()> {
    let (class, revision) = text.split_once(':').ok_or(())?;
    Ok((ClassId::parse(class).ok_or(())?, Revision(revision.parse().map_err(|_| ())?)))
}

/// Opens a WebSocket
///
/// The events are described in `/asyncapi.json`. A missing or bad token gets the upgrade, one `ERROR` frame and a
/// close with 1008.
#[utoipa::path(get, path = "/ws", tag = "realtime", params(SocketQuery), responses(
    (status = 101, description = "The socket is open"),
    (status = 400, description = "`Invalid request schema`: not a WebSocket upgrade", body = ErrorBody),
    (status = 429, description = "`Too many requests`: the account has too many sockets", body = ErrorBody),
    (status = 503, description = "`Service unavailable`; `Retry-After` says when to try again", body = ErrorBody),
))]
async fn open(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    opening: Opening,
) -> Result<Response, ApiError> {
    let Opening { upgrade, token, since, origin_allowed } = opening;
    if !origin_allowed {
        return Ok(refuse(upgrade, "Origin not allowed", close::POLICY));
    }
    let now = api.services.clock.now();
    let admitted = match token.ok_or(Error::Unauthenticated).and_then(|token| api.tokens.verify(&token, now)) {
        Ok(bearer) => api.services.accounts.member(bearer.user_id, bearer.version).await.map(|member| (bearer, member)),
        Err(error) => Err(error),
    };
    let (bearer, member) = match admitted {
        Ok(admitted) => admitted,
        Err(Error::Unauthenticated) => {
            return Ok(refuse(upgrade, "Unauthorized or invalid token", close::POLICY));
        }
        Err(error) => return Err(error.into()),
    };
    let seat = Seat { version: bearer.version, role: member.account().role };
    let user = member.id();
    // Registered before the upgrade answers: from the answer on the client misses nothing.
    let registration = api.hub.register(user.bytes(), seat.tag()).map_err(|_| {
        metrics::counter!("rollcall_sockets_refused_total").increment(1);
        ApiError::TooManyRequests { retry_after: RETRY_TOO_MANY }
    })?;
    let config = SocketConfig { expires_in: Some(remaining(bearer, now)), ..SocketConfig::default() };
    let mut missed = Missed::of(since);
    join(&api, &registration, user, seat.role, &mut missed).await?;
    let door = Door::new(Arc::clone(&api), user, seat, address, trace::current().map(Box::new));
    Ok(upgrade.on_upgrade(move |socket| serve(api, socket, registration, door, missed, config)))
}

/// How long the token is still good. Sockets end with it to the second; a new one can be opened before.
fn remaining(bearer: Bearer, now: rollcall_core::Timestamp) -> Duration {
    let left = bearer.expires_at.millis().saturating_sub(now.millis());
    Duration::from_millis(u64::try_from(left).unwrap_or_default())
}

fn refuse(upgrade: Upgrade, why: &str, close: Close) -> Response {
    let frame = protocol::error(why, None);
    upgrade.on_upgrade(move |socket| rollcall_realtime::refuse(socket, frame, close, SocketConfig::default()))
}

/// Lets the connection hear of all classes of its user. What changes while they are loaded is loaded again.
///
/// Nobody knows the future: who claims to, as after a restored backup, hears all that comes. So what the client knows
/// is held against what there is before it is let in: what is committed from then on is sent.
async fn join(
    api: &Api,
    registration: &Registration,
    user: UserId,
    role: Role,
    missed: &mut Missed,
) -> Result<(), ApiError> {
    loop {
        let generation = registration.generation();
        let classes = api.services.classes.heard_by(user).await?;
        for class in &classes {
            if let Some(known) = missed.since.get_mut(class) {
                *known = api.services.attendance.revision(*class).await?.min(*known);
            }
        }
        let topics = classes.iter().map(|class| (class.bytes(), tier(role), missed.since.contains_key(class)));
        if registration.join_all(generation, topics) {
            return Ok(());
        }
    }
}

/// What a client says it knows already.
struct Missed {
    since: HashMap<ClassId, Revision>,
    unreadable: bool,
}

impl Missed {
    fn of(since: Vec<Result<(ClassId, Revision), ()>>) -> Self {
        let unreadable = since.iter().any(Result::is_err);
        Self { since: since.into_iter().flatten().collect(), unreadable }
    }
}

async fn serve(
    api: Arc<Api>,
    socket: Socket,
    registration: Registration,
    door: Door,
    missed: Missed,
    config: SocketConfig,
) {
    let connection = registration.connection().clone();
    if missed.unreadable {
        connection.send(protocol::error("Invalid message format", None));
    }
    let user = door.user();
    let actor = rollcall_realtime::run(socket, registration, Arc::new(door), config);
    if missed.since.is_empty() {
        actor.await;
    } else {
        // Beside the actor, which writes what this sends. Boxed: idle sockets must not pay for its size.
        tokio::spawn(Box::pin(async move { api.resend(&connection, user, missed.since).await }));
        actor.await;
    }
}

impl Api {
    /// Whether a browser's page may open a socket: pages of the server's own host, and of the origins that the
    /// operator named. Programs that are no browsers send no origin.
    fn origin_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(ORIGIN) else { return true };
        let Ok(origin) = origin.to_str() else { return false };
        if self.allowed_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin)) {
            return true;
        }
        let own = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Ok(theirs) = origin.parse::<Uri>() else { return false };
        // Where HTTPS is served, a page that came over plain HTTP may be anybody's.
        if self.tls && theirs.scheme_str() != Some("https") {
            return false;
        }
        own.zip(theirs.authority()).is_some_and(|(own, theirs)| theirs.as_str().eq_ignore_ascii_case(own))
    }

    /// What a client that knows of the class up to `known` missed, and up to where it knows of it then.
    async fn missed(&self, class: ClassId, known: Revision) -> Result<(Revision, Vec<Arc<SessionChange>>), Error> {
        let missed = self.services.attendance.missed(class, known).await?;
        let last = missed.last().map_or(known, |change| change.entry.revision);
        Ok((last, missed))
    }

    /// Sends a connection what it missed of each class that it hears, and ends the hold on what comes.
    async fn resend(&self, connection: &Connection, user: UserId, since: HashMap<ClassId, Revision>) {
        let hears = match self.services.classes.heard_by(user).await {
            Ok(hears) => hears,
            Err(error) => return fail(connection, &error),
        };
        for (class, known) in since {
            if !hears.contains(&class) {
                connection.release(class.bytes(), 0);
                continue;
            }
            let (last, missed) = match self.missed(class, known).await {
                Ok(missed) => missed,
                Err(error) => return fail(connection, &error),
            };
            let answer = |change: &SessionChange| self.named.answer_to(connection.id(), change);
            for chunk in latest(&missed, answer).chunks(CHUNK) {
                for frame in chunk {
                    connection.send(frame.clone());
                }
                connection.flushed().await;
            }
            connection.release(class.bytes(), last.0);
        }
    }
}

fn fail(connection: &Connection, error: &Error) {
    log_failure(error);
    connection.send(protocol::error(socket_text(error), None));
    connection.close(close::RESTART);
}

/// What is left of many events for somebody who saw none of them: of each student the last mark, of the announced
/// summaries the last, every end, and what answers a command that the client sent meanwhile.
fn latest(missed: &[Arc<SessionChange>], answer: impl Fn(&SessionChange) -> Option<Frame>) -> Vec<Frame> {
    let mut seen = HashSet::new();
    let mut latest: Vec<_> = missed
        .iter()
        .rev()
        .filter_map(|change| {
            let is_last = match &change.entry.event {
                Event::Marked { student_id, .. } => seen.insert((change.session_id, Some(*student_id))),
                Event::Summarised(_) => seen.insert((change.session_id, None)),
                Event::Finished(_) => true,
                Event::Started | Event::Enrolled { .. } | Event::Removed { .. } => false,
            };
            answer(change).or_else(|| protocol::change(change, None).filter(|_| is_last))
        })
        .collect();
    latest.reverse();
    latest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_survive_the_hub() {
        for role in [Role::Teacher, Role::Student, Role::Admin] {
            for version in [0, 1, u32::MAX] {
                let seat = Seat { version, role };
                assert_eq!(Seat::from_tag(seat.tag()), seat);
            }
        }
    }

    #[test]
    fn since_is_a_class_and_a_revision() {
        assert_eq!(
            parse_since("6553f1000102030405060708:12"),
            Ok((ClassId::named("6553f1000102030405060708"), Revision(12)))
        );
        for bad in
            ["", ":", "6553f1000102030405060708", "6553f1000102030405060708:", "6553f1000102030405060708:-1", "x:1"]
        {
            assert_eq!(parse_since(bad), Err(()), "{bad}");
        }
    }
}
