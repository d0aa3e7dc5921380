//! The OpenAPI document: what the handlers say of themselves, and what is true of all of them.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::error::{Detail, ErrorBody};

/// The frame of the document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rollcall",
        description = "A real-time attendance server. Successes come as `{\"success\": true, \"data\": …}`, errors as \
            `{\"success\": false, \"error\": \"…\"}` with `details` where they help. The WebSocket events are described \
            in `/asyncapi.json`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "accounts", description = "Who somebody is"),
        (name = "classes", description = "Classes and who is in them"),
        (name = "attendance", description = "Sessions and what they recorded"),
        (name = "mail", description = "What mails are asked for, and what their links lead to"),
        (name = "realtime", description = "WebSockets"),
        (name = "operation", description = "For those who run the server"),
        (name = "documentation", description = "The API's own description"),
    ),
    components(schemas(ErrorBody, Detail)),
    modifiers(&Common),
)]
struct Document;

/// Says once what is true of many calls.
struct Common;

impl Modify for Common {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
        let scheme = scheme.description(Some("The token that a login gave, behind `Bearer` or bare."));
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme.build()));
    }
}

/// The whole document, as `/openapi.json` shows it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let (_, described) = crate::routes::documented().split_for_parts();
    let mut openapi = Document::openapi();
    openapi.merge(described);
    for item in openapi.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete, &mut item.put, &mut item.head];
        operations.into_iter().flatten().for_each(add_common_errors);
    }
    openapi
}

fn add_common_errors(operation: &mut Operation) {
    let mut add = |status: &str, text: &str| {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let response = ResponseBuilder::new().description(text).content("application/json", body).build();
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| response.into());
    };
    if operation.security.is_some() {
        add("401", "`Unauthorized, token missing or invalid`");
        add("503", "`Service unavailable`; `Retry-After` says when to try again");
        add("500", "`Internal error`");
    }
    if operation.request_body.is_some() {
        add("413", "`Request too large`: more than 64 KiB");
        add("503", "`Service unavailable`; `Retry-After` says when to try again");
        add("500", "`Internal error`");
    }
}
