//! The API's description, for people and for programs, from the binary and with no network.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{Html, IntoResponse};
use axum::routing::{MethodRouter, get};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::packed::Packed;
use crate::Api;

/// Swagger UI sets styles from its script and draws its icons from `data:`.
const SWAGGER_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
/// ReDoc is one page with its script in it, which searches in a worker. A logo that it would fetch from elsewhere is
/// refused by this.
const REDOC_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; \
     worker-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const SCRIPT: &str = "text/javascript; charset=utf-8";

static OPENAPI: LazyLock<Packed> = LazyLock::new(|| Packed::pack(&crate::openapi().to_json().unwrap_or_default()));
static ASYNCAPI: LazyLock<Packed> = LazyLock::new(|| Packed::pack(include_str!("../../assets/asyncapi.json")));

/// What `build.rs` packed under this name.
macro_rules! packed {
    ($name:literal) => {
        Packed::new(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz")))
    };
}

/// The documents; the pages that show them are in [`router`].
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(openapi))
        .routes(routes!(asyncapi))
        .routes(routes!(swagger))
        .routes(routes!(redoc))
}

/// The files that the Swagger UI page loads.
pub(crate) fn router() -> Router<Arc<Api>> {
    Router::new()
        .route("/docs/start.js", get(async || ([(CONTENT_TYPE, SCRIPT)], include_str!("../../assets/docs.js"))))
        .route("/docs/swagger-ui-bundle.js", file(SCRIPT, packed!("swagger-ui-bundle.js")))
        .route("/docs/swagger-ui.css", file("text/css; charset=utf-8", packed!("swagger-ui.css")))
        .route("/docs/favicon-32x32.png", file("image/png", packed!("favicon-32x32.png")))
}

/// Answers with a file that changes with the version of Rollcall alone.
fn file(kind: &'static str, packed: Packed) -> MethodRouter<Arc<Api>> {
    let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "public, max-age=3600")];
    get(async move |asked: HeaderMap| (headers, packed.answer(&asked)))
}

/// This description
#[utoipa::path(get, path = "/openapi.json", tag = "documentation", responses(
    (status = 200, description = "The OpenAPI 3.1 document", content_type = "application/json", body = Object),
))]
async fn openapi(headers: HeaderMap) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], OPENAPI.answer(&headers))
}

/// The WebSocket events
#[utoipa::path(get, path = "/asyncapi.json", tag = "documentation", responses(
    (status = 200, description = "The AsyncAPI 3.0 document", content_type = "application/json", body = Object),
))]
async fn asyncapi(headers: HeaderMap) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], ASYNCAPI.answer(&headers))
}

/// This description as a page to try the calls on
#[utoipa::path(get, path = "/docs", tag = "documentation", responses(
    (status = 200, description = "Swagger UI", content_type = "text/html", body = String),
))]
async fn swagger() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, SWAGGER_POLICY)], Html(include_str!("../../assets/docs.html")))
}

/// This description as a page to read
#[utoipa::path(get, path = "/redoc", tag = "documentation", responses(
    (status = 200, description = "ReDoc", content_type = "text/html", body = String),
))]
async fn redoc(headers: HeaderMap) -> impl IntoResponse {
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    ([(CONTENT_SECURITY_POLICY, REDOC_POLICY), (CONTENT_TYPE, kind)], packed!("redoc.html").answer(&headers))
}
