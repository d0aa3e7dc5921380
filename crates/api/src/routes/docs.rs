//! The API's description, for people and for programs, from the binary and with no network.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::Config;

use super::packed::Packed;
use crate::Api;
use crate::error::ApiError;

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

static REDOC: LazyLock<Packed> =
    LazyLock::new(|| Packed::pack(&aide::redoc::Redoc::new("/openapi.json").with_title("Rollcall API").html()));
static OPENAPI: LazyLock<Packed> = LazyLock::new(|| Packed::pack(&crate::openapi().to_json().unwrap_or_default()));
static ASYNCAPI: LazyLock<Packed> = LazyLock::new(|| Packed::pack(include_str!("../../assets/asyncapi.json")));

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
        .route("/docs/start.js", get(|| async { js(include_str!("../../assets/docs.js")) }))
        .route("/docs/{file}", get(swagger_file))
}

fn js(text: &'static str) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], text)
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
    ([(CONTENT_SECURITY_POLICY, REDOC_POLICY), (CONTENT_TYPE, kind)], REDOC.answer(&headers))
}

async fn swagger_file(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Ok(Some(found)) = utoipa_swagger_ui::serve(&file, Arc::new(Config::from("/openapi.json"))) else {
        return ApiError::NotFound.into_response();
    };
    let kind = HeaderValue::from_str(&found.content_type).unwrap_or(HeaderValue::from_static("text/plain"));
    let cache = HeaderValue::from_static("public, max-age=3600");
    let bytes = match found.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let body = if found.gzpipped { Packed(bytes).answer(&headers) } else { bytes.into_response() };
    ([(CONTENT_TYPE, kind), (CACHE_CONTROL, cache)], body).into_response()
}
