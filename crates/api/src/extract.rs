//! What handlers take out of a request. The order of a handler's arguments is the contract's order of checks:
//! authentication, role, body.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use ipnet::IpNet;
use rollcall_core::Error;
use rollcall_core::policy::{Member, Participant, Student, Teacher};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::Api;
use crate::error::{ApiError, Detail};

/// The most bytes that a request's body has.
pub(crate) const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// The most items of one page of a list.
const MAX_PAGE: u32 = 1_000;

/// What an account can be asked for, each with its own refusal.
pub(crate) trait FromMember: Sized {
    /// The account in this part, if it may play it.
    fn from_member(member: Member) -> Result<Self, Error>;
}

impl FromMember for Member {
    fn from_member(member: Member) -> Result<Self, Error> {
        Ok(member)
    }
}

impl FromMember for Teacher {
    fn from_member(member: Member) -> Result<Self, Error> {
        member.teacher()
    }
}

impl FromMember for Student {
    fn from_member(member: Member) -> Result<Self, Error> {
        member.student()
    }
}

impl FromMember for Participant {
    fn from_member(member: Member) -> Result<Self, Error> {
        member.participant()
    }
}

/// The caller, signed in and in the part that the call is for.
pub(crate) struct As<T>(pub T);

impl<T: FromMember> FromRequestParts<Arc<Api>> for As<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers).ok_or(Error::Unauthenticated)?;
        let bearer = api.tokens.verify(token, api.services.clock.now())?;
        let member = api.services.accounts.member(bearer.user_id, bearer.version).await?;
        Ok(Self(T::from_member(member)?))
    }
}

/// The token of an `Authorization` header: behind `Bearer`, or bare.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?.trim();
    match value.split_once(' ') {
        Some((scheme, token)) => scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start()),
        None => Some(value),
    }
}

/// The address that a request comes from, as far as it can be believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress(pub Option<IpAddr>);

impl ClientAddress {
    /// The peer's address or, while the peer is a trusted proxy, the one it names last in `X-Forwarded-For`.
    pub(crate) fn of(extensions: &Extensions, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let Some(ConnectInfo(peer)) = extensions.get::<ConnectInfo<SocketAddr>>() else { return Self(None) };
        let mut address = peer.ip().to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
        if !is_trusted(address) {
            return Self(Some(address));
        }
        let forwarded = headers.get_all("x-forwarded-for").iter().rev();
        let hops = forwarded.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
        for hop in hops {
            let Some(hop) = parse_hop(hop.trim()) else { break };
            address = hop;
            if !is_trusted(hop) {
                break;
            }
        }
        Self(Some(address))
    }
}

/// An address as proxies write it: bare, or with a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

impl FromRequestParts<Arc<Api>> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions, &parts.headers, &api.trusted_proxies))
    }
}

/// A teacher and the address that the call came from: what a log entry says of a command.
pub(crate) struct AddressedTeacher {
    /// The teacher.
    pub teacher: Teacher,
    /// The address, if it is known.
    pub address: Option<IpAddr>,
}

impl FromRequestParts<Arc<Api>> for AddressedTeacher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, ApiError> {
        let As(teacher) = As::from_request_parts(parts, api).await?;
        let ClientAddress(address) = ClientAddress::of(&parts.extensions, &parts.headers, &api.trusted_proxies);
        Ok(Self { teacher, address })
    }
}

/// The one id in the path, as text. What is no UTF-8 names nothing.
pub(crate) struct PathId(pub String);

impl FromRequestParts<Arc<Api>> for PathId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Infallible> {
        let PathIds(id, _) = PathIds::from_request_parts(parts, api).await?;
        Ok(Self(id))
    }
}

/// The two ids in the path, in their order, as text. What is no UTF-8 names nothing.
pub(crate) struct PathIds(pub String, pub String);

impl FromRequestParts<Arc<Api>> for PathIds {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Infallible> {
        let params = RawPathParams::from_request_parts(parts, api).await.ok();
        let mut values = params.iter().flatten().map(|(_, value)| value.to_owned());
        Ok(Self(values.next().unwrap_or_default(), values.next().unwrap_or_default()))
    }
}

/// Which part of a list is wanted. Without both members it is the whole list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// At most so many items: 1 to 1000.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    limit: Option<String>,
    /// The `nextCursor` of the page before.
    cursor: Option<String>,
}

/// A checked [`PageQuery`]; `K` is what the list is ordered by.
pub(crate) struct PageOf<K> {
    /// How many; `None` is all.
    pub limit: Option<u32>,
    /// After which item.
    pub after: Option<K>,
}

/// What a list can be ordered by.
pub(crate) trait CursorKey: Sized + Send {
    /// Reads a cursor.
    fn parse(text: &str) -> Option<Self>;
}

impl CursorKey for rollcall_core::UserId {
    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

impl CursorKey for rollcall_core::ClassId {
    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

impl CursorKey for rollcall_core::session::Revision {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

/// The query's members as `T`, or the contract's error.
pub(crate) async fn query<T: DeserializeOwned + Send>(parts: &mut Parts) -> Result<T, ApiError> {
    let Query(value) = Query::<T>::from_request_parts(parts, &())
        .await
        .map_err(|error| ApiError::Schema(vec![Detail { field: String::new(), message: error.body_text() }]))?;
    Ok(value)
}

impl<K: CursorKey> FromRequestParts<Arc<Api>> for PageOf<K> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, ApiError> {
        let PageQuery { limit, cursor } = query(parts).await?;
        let mut details = Vec::new();
        let mut wrong = |field: &str, message: String| details.push(Detail { field: field.to_owned(), message });
        let limit = limit.and_then(|text| {
            let limit = text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
            if limit.is_none() {
                wrong("limit", format!("must be a number from 1 to {MAX_PAGE}"));
            }
            limit
        });
        let after = cursor.and_then(|text| {
            let key = K::parse(&text);
            if key.is_none() {
                wrong("cursor", "must be the nextCursor of the page before".to_owned());
            }
            key
        });
        if details.is_empty() { Ok(Self { limit, after }) } else { Err(ApiError::Schema(details)) }
    }
}

/// A JSON body. Members that `T` does not know are ignored; the media type is not asked for.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<Api>) -> Result<Self, ApiError> {
        let announced =
            request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
            return Err(ApiError::TooLarge);
        }
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        let wrong =
            |message: &str| ApiError::Schema(vec![Detail { field: String::new(), message: message.to_owned() }]);
        let bytes = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(ApiError::TooLarge),
            Ok(Err(_)) => return Err(wrong("the body broke off")),
            Err(_) => return Err(wrong("the body did not arrive in time")),
        };
        parse(&bytes).map(Self)
    }
}

/// Reads a JSON object as `T`.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let wrong = |field: String, message: String| ApiError::Schema(vec![Detail { field, message }]);
    // A derived type would take an array's items for its members.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(wrong(String::new(), "must be a JSON object".to_owned()));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        // The body as a whole, or a member whose name cannot be read.
        wrong(if path == "." || path == "?" { String::new() } else { path }, error.into_inner().to_string())
    })?;
    json.end().map_err(|error| wrong(String::new(), error.to_string()))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn forwarded_addresses_are_believed_only_from_trusted_proxies() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let of = |peer: &str, forwarded: &[&str]| {
            let mut extensions = Extensions::new();
            extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", HeaderValue::from_str(value).unwrap());
            }
            ClientAddress::of(&extensions, &headers, &trusted).0.unwrap().to_string()
        };
        assert_eq!(of("192.0.2.1:1", &["203.0.113.9"]), "192.0.2.1", "anybody can write a header");
        assert_eq!(of("10.0.0.1:1", &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            of("10.0.0.1:1", &["198.51.100.7, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9",
            "the last that is not ours"
        );
        assert_eq!(of("10.0.0.1:1", &["198.51.100.7", "203.0.113.9"]), "203.0.113.9", "over several headers");
        assert_eq!(of("10.0.0.1:1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(of("10.0.0.1:1", &["garbage"]), "10.0.0.1");
        assert_eq!(of("10.0.0.1:1", &[]), "10.0.0.1");
        assert_eq!(of("[::ffff:10.0.0.1]:1", &["203.0.113.9"]), "203.0.113.9");
    }

    #[test]
    fn tokens_come_behind_bearer_or_bare() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc").as_deref(), Some("abc"));
        assert_eq!(of("abc").as_deref(), Some("abc"));
        assert_eq!(of("Basic abc"), None);
    }

    #[test]
    fn only_objects_are_bodies() {
        #[derive(Debug, Deserialize)]
        struct One {
            a: String,
        }
        assert_eq!(parse::<One>(br#" {"a": "x", "b": [1]} "#).unwrap().a, "x");
        let deep = format!(r#"{{"a":"x","b":{}"#, "[".repeat(10_000));
        let wrong: [&[u8]; 8] =
            [b"", b"[\"x\"]", b"\"x\"", b"{}", br#"{"a":1}"#, br#"{"a":"x"} {}"#, b"{\"a\":\"\xff\"}", deep.as_bytes()];
        for body in wrong {
            assert!(matches!(parse::<One>(body), Err(ApiError::Schema(_))), "{body:?}");
        }
    }
}
