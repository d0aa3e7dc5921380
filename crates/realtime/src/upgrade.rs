//! From an HTTP request to a socket.

use std::fmt;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tungstenite::handshake::derive_accept_key;

/// A request that asks for a WebSocket, as an extractor. Answer it with [`on_upgrade`](Self::on_upgrade).
///
/// HTTP/1.1 only. Whoever accepts the connection sets `TCP_NODELAY`: a second small frame otherwise waits until the
/// peer has acknowledged the first, which takes 40 ms and more. The size limits and the buffers of the socket are set
/// where it is [run](crate::run).
#[must_use = "a client waits for the answer"]
pub struct Upgrade {
    upgraded: OnUpgrade,
    accept: HeaderValue,
    requested: Vec<HeaderValue>,
    selected: Option<HeaderValue>,
}

impl Upgrade {
    /// The subprotocols that the client offers, in its order.
    pub fn requested_protocols(&self) -> impl Iterator<Item = &HeaderValue> {
        self.requested.iter()
    }

    /// Answers that this subprotocol is spoken. Clients give up when it is not one of those that they offered.
    pub fn set_selected_protocol(&mut self, protocol: HeaderValue) {
        self.selected = Some(protocol);
    }

    /// Answers the request and, once the client has the answer, runs the future that `callback` makes as a task of
    /// its own. If the client goes away before, `callback` is dropped uncalled, and so is what it owns.
    pub fn on_upgrade<C, F>(self, callback: C) -> Response
    where
        C: FnOnce(Socket) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let upgraded = self.upgraded;
        tokio::spawn(async move {
            match upgraded.await {
                Ok(upgraded) => callback(Socket { io: TokioIo::new(upgraded) }).await,
                Err(error) => tracing::debug!(%error, "the client left before its socket was open"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.selected {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        response
    }
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, UpgradeRejection> {
        let headers = &parts.headers;
        if parts.method != Method::GET || parts.version != Version::HTTP_11 {
            return Err(UpgradeRejection::NotAnUpgrade);
        }
        if !lists(headers, &header::CONNECTION, "upgrade") || !lists(headers, &header::UPGRADE, "websocket") {
            return Err(UpgradeRejection::NotAnUpgrade);
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(UpgradeRejection::UnknownVersion);
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or(UpgradeRejection::NotAnUpgrade)?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("Base64 is a header's value");
        let requested = values(headers, &header::SEC_WEBSOCKET_PROTOCOL)
            .filter_map(|protocol| HeaderValue::from_str(protocol).ok())
            .collect();
        let upgraded = parts.extensions.remove().ok_or(UpgradeRejection::NotAnUpgrade)?;
        Ok(Self { upgraded, accept, requested, selected: None })
    }
}

/// The members of a header that is a list.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|value| !value.is_empty())
}

fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    values(headers, name).any(|value| value.eq_ignore_ascii_case(wanted))
}

/// Why a request cannot become a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeRejection {
    /// It is not what RFC 6455, section 4.2.1, asks for.
    NotAnUpgrade,
    /// It is for another version of the protocol than 13.
    UnknownVersion,
}

impl fmt::Display for UpgradeRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnUpgrade => "not a WebSocket upgrade",
            Self::UnknownVersion => "unknown version of WebSocket",
        })
    }
}

impl std::error::Error for UpgradeRejection {}

impl IntoResponse for UpgradeRejection {
    /// 426 with what would be right, as RFC 6455, section 4.4, and RFC 9110, section 15.5.22, say.
    fn into_response(self) -> Response {
        let headers = [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        ];
        (StatusCode::UPGRADE_REQUIRED, headers, self.to_string()).into_response()
    }
}

/// An open socket, to be given to [`run`](crate::run) or [`refuse`](crate::refuse).
pub struct Socket {
    pub(crate) io: TokioIo<Upgraded>,
}
