//! What operators and their machines ask.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use rollcall_core::store::StoreError;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, ok};
use crate::error::{ApiError, ErrorBody};
use crate::model::Envelope;
use crate::{Api, Exposition, MetricsRoute};

/// How long the database may take to prove itself alive.
const READY_TIMEOUT: Duration = Duration::from_secs(3);
/// Headers that proxies add to what they pass on.
const PROXIES_SAY: [&str; 6] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(index))
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(own_metrics))
}

/// What this server is.
#[derive(Serialize, ToSchema)]
struct Index {
    #[schema(example = "Rollcall")]
    name: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// Where the calls are described for people.
    docs: &'static str,
    /// Where the calls are described for programs.
    openapi: &'static str,
    /// Where the WebSocket events are described for programs.
    asyncapi: &'static str,
    /// Where a WebSocket is opened.
    websocket: &'static str,
}

/// What this server is
#[utoipa::path(get, path = "/", tag = "operation", responses(
    (status = 200, description = "The server", body = Envelope<Index>),
))]
async fn index() -> axum::Json<Envelope<Index>> {
    ok(Index {
        name: "Rollcall",
        version: env!("CARGO_PKG_VERSION"),
        docs: "/docs",
        openapi: "/openapi.json",
        asyncapi: "/asyncapi.json",
        websocket: "/ws",
    })
}

/// How the server is.
#[derive(Serialize, ToSchema)]
struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Is the process alive?
///
/// Whoever gets no answer may restart it.
#[utoipa::path(get, path = "/health/live", tag = "operation", responses(
    (status = 200, description = "It is", body = Envelope<Health>),
))]
async fn live() -> axum::Json<Envelope<Health>> {
    ok(Health { status: "ok" })
}

/// Can it do its work?
///
/// The database answers, the writer is alive and the committed stream is followed. Not while it shuts down.
#[utoipa::path(get, path = "/health/ready", tag = "operation", responses(
    (status = 200, description = "It can", body = Envelope<Health>),
    (status = 503, description = "`Service unavailable`", body = ErrorBody),
))]
async fn ready(State(api): State<Arc<Api>>) -> Answer<Health> {
    check(&api).await?;
    Ok(ok(Health { status: "ok" }))
}

async fn check(api: &Api) -> Result<(), ApiError> {
    if api.draining.load(Ordering::Relaxed) {
        return Err(ApiError::ShuttingDown);
    }
    if !*api.following.borrow() {
        return Err(StoreError::Unavailable("the committed stream is not followed".into()).into());
    }
    tokio::time::timeout(READY_TIMEOUT, api.services.store.ping())
        .await
        .map_err(|_| StoreError::Unavailable("the database does not answer".into()))??;
    Ok(())
}

/// Figures for Prometheus
///
/// To loopback peers alone, or on an address of its own (`METRICS_ADDR`); for everybody else there is no such path.
#[utoipa::path(get, path = "/metrics", tag = "operation", responses(
    (status = 200, description = "The figures in Prometheus's text format", body = String, content_type = "text/plain"),
    (status = 404, description = "`Not found`", body = ErrorBody),
))]
async fn own_metrics(State(api): State<Arc<Api>>, request: Request) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    // A proxy on this machine is a loopback peer too; most say that they are one.
    let proxied = PROXIES_SAY.iter().any(|name| request.headers().contains_key(*name));
    let local = !proxied && peer.is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    match &api.metrics {
        Some(MetricsRoute::LoopbackOnly(figures)) if local => metrics(&api, figures).await,
        _ => ApiError::NotFound.into_response(),
    }
}

/// The figures as an answer, with whether the server is ready as of now. That takes [`READY_TIMEOUT`] at most.
pub(crate) async fn metrics(api: &Api, figures: &Exposition) -> Response {
    let ready = check(api).await.is_ok();
    metrics::gauge!("rollcall_ready").set(f64::from(u8::from(ready)));
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], figures()).into_response()
}
