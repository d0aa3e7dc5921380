//! All of Rollcall that a client can see: routes, frames, envelopes, error texts, tokens, limits, documentation.
//!
//! There are two doors and one set of verbs: [`routes`] is the HTTP door, [`ws`] the WebSocket door, and both call
//! [`rollcall_core::service`]. [`feed`] turns what the store committed into frames. [`secure`] is what browsers are told
//! to keep to, and the way from HTTP to HTTPS. [`trace`] is what others can follow of all that.

mod error;
mod extract;
mod feed;
#[doc(hidden)]
pub mod fuzzing;
mod limits;
mod mail_token;
mod metric;
mod middleware;
mod model;
mod openapi;
mod routes;
mod secure;
mod token;
pub mod trace;
mod ws;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::response::IntoResponse;
use ipnet::IpNet;
use metrics::Histogram;
use rollcall_core::limit::SharedLimits;
use rollcall_core::service::Services;
use rollcall_realtime::Hub;
use secrecy::SecretSlice;
use tokio::sync::watch;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use mail_token::MailKey;
pub use openapi::openapi;
pub use secure::{Secure, https_only_router, redirect_router};

use crate::error::ApiError;
use crate::limits::Limits;
use crate::trace::Traces;

/// What an operator can set of what clients see.
pub struct ApiConfig {
    /// The key that tokens are signed with, at least 32 bytes.
    pub jwt_secret: SecretSlice<u8>,
    /// How long a token is good.
    pub token_ttl: Duration,
    /// The origins whose pages may call, beside the server's own; `*` is any.
    pub allowed_origins: Vec<String>,
    /// The networks of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether there are limits on logins, sign-ups, messages and sockets.
    pub limits: bool,
    /// What counts logins and sign-ups for all replicas together.
    pub shared_limits: Option<Arc<dyn SharedLimits>>,
    /// Where the figures for Prometheus are shown; `None` is nowhere.
    pub metrics: Option<MetricsRoute>,
    /// Whether every connection is TLS.
    pub tls: bool,
    /// What makes spans, if anything does.
    pub traces: Option<Arc<Traces>>,
}

/// Gives the figures of the process in Prometheus's text format.
pub type Exposition = Arc<dyn Fn() -> String + Send + Sync>;

/// Where the figures for Prometheus are shown.
pub enum MetricsRoute {
    /// At `/metrics`, to loopback peers alone.
    LoopbackOnly(Exposition),
    /// On an address of its own, by [`Api::metrics_router`].
    Elsewhere,
}

/// What both doors share.
pub struct Api {
    services: Arc<Services>,
    hub: Arc<Hub>,
    tokens: token::Tokens,
    allowed_origins: Vec<String>,
    trusted_proxies: Vec<IpNet>,
    limits: Option<Limits>,
    metrics: Option<MetricsRoute>,
    tls: bool,
    /// Commands whose sender named them: the answer to each carries its name.
    named: ws::NamedCommands,
    figures: middleware::Figures,
    traces: Option<Arc<Traces>>,
    command_seconds: Histogram,
    following: watch::Sender<bool>,
    draining: AtomicBool,
}

impl Api {
    /// The doors to `services`, with sockets in `hub`.
    pub fn new(services: Arc<Services>, hub: Arc<Hub>, config: ApiConfig) -> Arc<Self> {
        metric::describe();
        Arc::new(Self {
            services,
            hub,
            tokens: token::Tokens::new(&config.jwt_secret, config.token_ttl),
            allowed_origins: config.allowed_origins,
            trusted_proxies: config.trusted_proxies,
            limits: config.limits.then(|| Limits::new(config.shared_limits.as_ref())),
            metrics: config.metrics,
            tls: config.tls,
            named: ws::NamedCommands::default(),
            figures: middleware::Figures::default(),
            traces: config.traces,
            command_seconds: metric::command_seconds(),
            following: watch::Sender::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// Everything that a client can call. Serve it with `ConnectInfo<SocketAddr>` and the headers of [`Secure`].
    pub fn router(self: &Arc<Self>) -> Router {
        let (router, _) = routes::documented().split_for_parts();
        let router = router
            .merge(routes::docs())
            .merge(routes::mail())
            .fallback(async || ApiError::NotFound)
            .method_not_allowed_fallback(async || ApiError::MethodNotAllowed);
        let router = middleware::wrap(router, self);
        match self.cors() {
            Some(cors) => router.layer(cors),
            None => router,
        }
        .with_state(Arc::clone(self))
    }

    /// The figures for Prometheus on an address of their own.
    pub fn metrics_router(self: &Arc<Self>, figures: Exposition) -> Router {
        let api = Arc::clone(self);
        Router::new()
            .route("/metrics", axum::routing::get(async move || routes::metrics(&api, &figures).await))
            .fallback(async || ApiError::NotFound.into_response())
    }

    /// Resolves once [`follow`](Self::follow) hears everything: a socket that opened before could miss an event.
    pub async fn following(&self) {
        // It fails only without a sender, and `self` is one.
        let _ = self.following.subscribe().wait_for(|following| *following).await;
    }

    /// From now on the server is not ready, and asks with each answer for the connection to be closed. Sockets go on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Pages of other origins may call only where the operator named them.
    fn cors(&self) -> Option<CorsLayer> {
        if self.allowed_origins.is_empty() {
            return None;
        }
        let origins = if self.allowed_origins.iter().any(|origin| origin == "*") {
            AllowOrigin::any()
        } else {
            AllowOrigin::list(self.allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
        };
        Some(
            CorsLayer::new()
                .allow_origin(origins)
                .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
                .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
                .expose_headers([header::RETRY_AFTER])
                .max_age(Duration::from_hours(1)),
        )
    }
}
