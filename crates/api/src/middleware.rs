//! What every call gets: an id, figures, a line in the log, a span where there are traces, and an answer even where a
//! handler breaks. The headers that every answer has are in [`crate::secure`].

use std::any::Any;
use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use futures_util::FutureExt;
use metrics::{Counter, Histogram};
use parking_lot::RwLock;
use rollcall_core::{Error, ObjectId};
use tower::{Service, layer};
use tracing::Span;

use crate::Api;
use crate::error::ApiError;
use crate::trace::{self, Traces};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// As many headers as are added here and by [`crate::secure`], and room for what hyper adds.
const HEADERS: usize = 13;

tokio::task_local! {
    /// The request that the present task answers.
    static ASKED: Asked;
}

/// `router` with all of this around it.
pub(crate) fn wrap(router: Router<Arc<Api>>, api: &Arc<Api>) -> Router<Arc<Api>> {
    let api = Arc::clone(api);
    router.layer(layer::layer_fn(move |route| Around { route, api: Arc::clone(&api) }))
}

/// Runs `log` in the span of the request that is being answered, if one is. A span is made only where something is
/// logged: it costs more than a small call does.
pub(crate) fn in_request<T>(log: impl FnOnce() -> T) -> T {
    ASKED.try_with(Asked::span).unwrap_or_else(|_| Span::none()).in_scope(log)
}

/// Does `work` to its end also if whoever asked for it leaves meanwhile.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let asked = ASKED.try_with(Asked::clone).ok();
    let work = trace::carried(work);
    let done = tokio::spawn(async move {
        match asked {
            Some(asked) => ASKED.scope(asked, work).await,
            None => work.await,
        }
    });
    // A panic counts, and is answered, as in a handler.
    done.await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(Error::Internal(error.to_string()).into()),
    })
}

/// What is known of a request before it is answered.
#[derive(Clone)]
struct Asked {
    id: ObjectId,
    method: &'static str,
    route: Option<MatchedPath>,
}

impl Asked {
    /// The route's pattern and never the address itself: that may hold a token, and figures by address would not end.
    fn route(&self) -> &str {
        self.route.as_ref().map_or("none", MatchedPath::as_str)
    }

    /// The request as others follow it, by OpenTelemetry's names.
    fn trace(&self, traces: &Arc<Traces>, headers: &HeaderMap, tls: bool) -> trace::Span {
        let method = if self.method == "other" { "_OTHER" } else { self.method };
        let name = if self.method == "other" { "HTTP" } else { self.method };
        let span = match &self.route {
            Some(route) => traces.request(format!("{name} {}", route.as_str()), headers),
            None => traces.request(name.to_owned(), headers),
        };
        span.note("http.request.method", method);
        if let Some(route) = &self.route {
            span.note("http.route", route.as_str().to_owned());
        }
        span.note("url.scheme", if tls { "https" } else { "http" });
        span.note("rollcall.request.id", self.id.to_string());
        span
    }

    fn span(&self) -> Span {
        tracing::info_span!("request", id = %self.id, method = self.method, route = self.route())
    }
}

/// A route with all of this around it.
#[derive(Clone)]
struct Around {
    route: Route,
    api: Arc<Api>,
}

impl Service<Request> for Around {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Route as Service<Request>>::poll_ready(&mut self.route, cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let began = Instant::now();
        let api = Arc::clone(&self.api);
        let asked = Asked {
            id: api.services.ids.next(api.services.clock.now()),
            method: method_name(request.method()),
            route: request.extensions().get::<MatchedPath>().cloned(),
        };
        let span = api.traces.as_ref().map(|traces| asked.trace(traces, request.headers(), api.tls));
        let answer = AssertUnwindSafe(self.route.call(request)).catch_unwind();
        let answer = ASKED.scope(asked.clone(), async move {
            let Ok(answer) = answer.await.unwrap_or_else(|panic| Ok(panicked(&*panic)));
            answer
        });
        // Apart from each other: what is awaited inside of what is awaited makes a call's future larger.
        let Some(span) = span else {
            return Box::pin(async move {
                let mut answer = answer.await;
                finish(&api, &asked, &mut answer, began.elapsed());
                Ok(answer)
            });
        };
        Box::pin(async move {
            let answered = async {
                let mut answer = answer.await;
                finish(&api, &asked, &mut answer, began.elapsed());
                answer
            };
            let answer = span.clone().around(answered).await;
            let status = answer.status();
            span.note("http.response.status_code", u64::from(status.as_u16()));
            if status.is_server_error() {
                span.fail(status.as_u16().to_string());
            }
            Ok(answer)
        })
    }
}

/// Adds the headers to an answer, and counts it.
fn finish(api: &Api, asked: &Asked, answer: &mut Response, elapsed: Duration) {
    let status = answer.status();
    let headers = answer.headers_mut();
    headers.reserve(HEADERS);
    if let Ok(id) = HeaderValue::from_str(&asked.id.to_string()) {
        headers.insert(REQUEST_ID, id);
    }
    // A proxy that keeps its connections takes the next request elsewhere, before this server closes them.
    if api.draining.load(Ordering::Relaxed) && status != StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = status.as_u16();
    if tracing::enabled!(tracing::Level::DEBUG) {
        asked.span().in_scope(|| {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(status, micros, "answered");
        });
    }
    api.figures.count(asked, status_name(status), elapsed);
}

/// The figures of the answers, kept by route: to look them up by their labels costs more than to count.
#[derive(Default)]
pub(crate) struct Figures(RwLock<HashMap<String, Vec<Figure>>>);

/// The answers of one kind on a route.
struct Figure {
    method: &'static str,
    status: &'static str,
    requests: Counter,
    seconds: Histogram,
}

impl Figures {
    fn count(&self, asked: &Asked, status: &'static str, elapsed: Duration) {
        let counted = self.0.read().get(asked.route()).is_some_and(|figures| {
            let figure = figures.iter().find(|figure| figure.status == status && figure.method == asked.method);
            figure.map(|figure| figure.count(elapsed)).is_some()
        });
        if !counted {
            let figure = Figure::new(asked.route().to_owned(), asked.method, status);
            figure.count(elapsed);
            // Two at once may both come here. What they count is one figure all the same.
            self.0.write().entry(asked.route().to_owned()).or_default().push(figure);
        }
    }
}

impl Figure {
    fn new(route: String, method: &'static str, status: &'static str) -> Self {
        let seconds =
            metrics::histogram!("rollcall_http_request_seconds", "route" => route.clone(), "method" => method);
        let requests =
            metrics::counter!("rollcall_http_requests_total", "route" => route, "method" => method, "status" => status);
        Self { method, status, requests, seconds }
    }

    fn count(&self, elapsed: Duration) {
        self.requests.increment(1);
        self.seconds.record(elapsed);
    }
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
        202 => "202",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        413 => "413",
        429 => "429",
        500 => "500",
        501 => "501",
        503 => "503",
        _ => "other",
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    ApiError::from(Error::Internal(format!("a handler panicked: {text}"))).into_response()
}
