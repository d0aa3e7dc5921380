//! What every call gets: an id, figures, a line in the log, headers that keep browsers from guessing, and an answer
//! even where a handler breaks.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rollcall_core::Error;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use crate::Api;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `router` with all of this around it.
pub(crate) fn wrap(router: Router<Arc<Api>>, api: &Arc<Api>) -> Router<Arc<Api>> {
    router.layer(CatchPanicLayer::custom(panicked)).layer(axum::middleware::from_fn_with_state(Arc::clone(api), around))
}

async fn around(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = method_name(request.method());
    // The route's pattern and never the address itself: that may hold a token, and figures by address would not end.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str).to_owned();
    let id = api.services.ids.next(api.services.clock.now()).to_string();
    let span = tracing::info_span!("request", %id, method, route);

    let mut response = next.run(request).instrument(span.clone()).await;

    let elapsed = began.elapsed();
    let status = response.status();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    // A proxy that keeps its connections takes the next request elsewhere, before this server closes them.
    if api.draining.load(Ordering::Relaxed) && status != StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    span.in_scope(|| {
        tracing::debug!(
            status = status.as_u16(),
            micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            "answered"
        );
    });
    metrics::counter!("rollcall_http_requests_total", "route" => route.clone(), "method" => method, "status" => status_name(status.as_u16())).increment(1);
    metrics::histogram!("rollcall_http_request_seconds", "route" => route, "method" => method).record(elapsed);
    response
}

/// Methods by name; whatever else a client makes up is one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The statuses that there are, without making a string for each answer.
fn status_name(status: u16) -> &'static str {
    match status {
        101 => "101",
        200 => "200",
        201 => "201",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        413 => "413",
        429 => "429",
        500 => "500",
        503 => "503",
        _ => "other",
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    metrics::counter!("rollcall_panics_total").increment(1);
    ApiError::from(Error::Internal(format!("a handler panicked: {text}"))).into_response()
}
