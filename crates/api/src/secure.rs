//! What every answer tells browsers to keep to, and the way from HTTP to HTTPS.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, HOST, LOCATION, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;

use crate::error::ApiError;

/// What holds for every answer, pages included.
const ALWAYS: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
/// What holds where an answer says nothing else: it is no page, and it is for whoever asked, now.
const UNLESS_SAID: [(HeaderName, HeaderValue); 2] = [
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// What every answer of an address tells browsers to keep to.
#[derive(Debug, Default)]
pub struct Secure {
    /// For `Strict-Transport-Security`, where HTTPS is served or may be, by a proxy.
    strict: Option<HeaderValue>,
    /// Whether every connection is TLS.
    tls: bool,
    trusted_proxies: Vec<IpNet>,
}

impl Secure {
    /// For an address where every connection is TLS, or where proxies of these networks may say that theirs are.
    /// Browsers use nothing but HTTPS for `max_age`; for zero seconds, they forget what they were told.
    pub fn strict(max_age: Duration, tls: bool, trusted_proxies: &[IpNet]) -> Self {
        let strict = HeaderValue::from_str(&format!("max-age={}", max_age.as_secs())).ok();
        Self { strict, tls, trusted_proxies: trusted_proxies.to_vec() }
    }

    /// The value of `Strict-Transport-Security` for the answer to a request of this peer, if it came over HTTPS. Who
    /// makes a proxy say so gets a header that browsers take over HTTPS only.
    pub fn transport(&self, peer: IpAddr, request: &HeaderMap) -> Option<HeaderValue> {
        let by_proxy = || {
            let said = request.get_all("x-forwarded-proto").iter().next_back();
            let said = said.and_then(|value| value.to_str().ok()?.rsplit(',').next());
            said.is_some_and(|scheme| scheme.trim().eq_ignore_ascii_case("https"))
        };
        let trusted = || self.trusted_proxies.iter().any(|net| net.contains(&peer));
        let holds = (self.tls || (trusted() && by_proxy())) && !is_for_this_machine(request);
        self.strict.clone().filter(|_| holds)
    }

    /// Adds all headers to an answer, with what [`transport`](Self::transport) said of its request.
    pub fn add(answer: &mut HeaderMap, transport: Option<HeaderValue>) {
        answer.reserve(ALWAYS.len() + UNLESS_SAID.len() + 1);
        for (name, value) in ALWAYS {
            answer.insert(name, value);
        }
        for (name, value) in UNLESS_SAID {
            answer.entry(name).or_insert(value);
        }
        if let Some(transport) = transport {
            answer.insert(STRICT_TRANSPORT_SECURITY, transport);
        }
    }
}

/// Browsers would apply it to whatever else is developed on `localhost`, on any port.
fn is_for_this_machine(request: &HeaderMap) -> bool {
    let host = request.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    host.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("localhost"))
}

/// Says to who speaks plain HTTP where HTTPS is served that this is so.
pub fn https_only_router() -> Router {
    Router::new().fallback(async || closing(ApiError::NotHttps.into_response()))
}

/// Sends who asks over plain HTTP to the same address under HTTPS, on `port`. Only a host for which `is_own` says that
/// the server is it: nobody is sent elsewhere by what a request says of itself.
pub fn redirect_router(port: u16, is_own: impl Fn(&str) -> bool + Send + Sync + 'static) -> Router {
    let is_own = Arc::new(is_own);
    let redirect = async move |request: Request| {
        closing(match elsewhere(&request, port, &*is_own) {
            Some(address) => (StatusCode::PERMANENT_REDIRECT, [(LOCATION, address)]).into_response(),
            None => ApiError::Misdirected.into_response(),
        })
    };
    Router::new().fallback(redirect)
}

/// Nobody has a second thing to ask there.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The address under HTTPS that a request is for.
fn elsewhere(request: &Request, port: u16, is_own: impl Fn(&str) -> bool) -> Option<HeaderValue> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host: Authority = match (request.uri().authority(), hosts.next(), hosts.next()) {
        // A whole address wins over the header: RFC 9112, section 3.2.2.
        (Some(authority), _, None) => authority.clone(),
        (None, Some(host), None) => host.to_str().ok()?.parse().ok()?,
        _ => return None,
    };
    let name = host.host().trim_end_matches('.');
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if host.as_str().contains('@') || !is_own(bare) {
        return None;
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map(PathAndQuery::as_str).filter(|path| path.starts_with('/'));
    HeaderValue::try_from(format!("https://{name}{port}{}", path.unwrap_or("/"))).ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn address(uri: &str, hosts: &[&str], port: u16) -> Option<String> {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let is_own = |host: &str| ["school.example", "192.0.2.7", "2001:db8::7"].contains(&host);
        let address = elsewhere(&request.body(Body::empty()).unwrap(), port, is_own)?;
        Some(address.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_redirect_keeps_path_and_query_and_nothing_else() {
        let to = |uri, host| address(uri, &[host], 443).unwrap();
        assert_eq!(
            to("/class/1?limit=2&after=%0d%0a", "school.example:80"),
            "https://school.example/class/1?limit=2&after=%0d%0a"
        );
        assert_eq!(to("*", "school.example"), "https://school.example/");
        assert_eq!(to("//evil.example/", "school.example."), "https://school.example//evil.example/");
        assert_eq!(to("/", "192.0.2.7:8080"), "https://192.0.2.7/");
        assert_eq!(to("/", "[2001:db8::7]:80"), "https://[2001:db8::7]/");
        assert_eq!(to("http://school.example/a", "evil.example"), "https://school.example/a");
        assert_eq!(address("/a", &["school.example"], 8443).unwrap(), "https://school.example:8443/a");
    }

    #[test]
    fn a_redirect_leads_nowhere_else() {
        for hosts in [
            &[][..],
            &[""],
            &["evil.example"],
            &["school.example.evil.example"],
            &["school.example@evil.example"],
            &["evil.example@school.example"],
            &["school.example/evil"],
            &["school.example evil.example"],
            &["school.example", "school.example"],
            &["[192.0.2.7"],
            &["école.example"],
        ] {
            assert_eq!(address("/", hosts, 443), None, "{hosts:?}");
        }
        assert_eq!(address("http://evil.example/", &["school.example"], 443), None);
    }
}
