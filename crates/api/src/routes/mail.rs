//! What the links in e-mails lead to, and how one is asked for.
//!
//! A link leads to a page, never to the deed: mail scanners follow links. Where it can be, the token is behind the `#`,
//! which no browser sends to a server, so that it is in no log on the way.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Json, Router};
use rollcall_core::policy::Member;
use rollcall_core::user::Email;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, ok};
use crate::Api;
use crate::error::{ApiError, ErrorBody, log_failure};
use crate::extract::{As, Body, ClientAddress, PathId};
use crate::limits::network;
use crate::middleware::in_request;
use crate::model::{ConfirmationOut, ConfirmedOut, EmailBody, Envelope, Nothing, NoticesOut, ResetBody, TokenBody};

/// How long an answer takes that must not tell by its time whether an account exists.
const FORGOTTEN_TAKES: Duration = Duration::from_millis(300);

/// The page of the links: its own script and style, calls to this server, and nothing else.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'",
);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(forgotten))
        .routes(routes!(reset_page, reset))
        .routes(routes!(ask_to_confirm))
        .routes(routes!(confirm_page, confirm))
        .routes(routes!(unsubscribe_page, unsubscribe, subscribe))
}

/// The files that the page loads.
pub(crate) fn router() -> Router<Arc<Api>> {
    let script = [(CONTENT_TYPE, "text/javascript; charset=utf-8")];
    let style = [(CONTENT_TYPE, "text/css; charset=utf-8")];
    Router::new()
        .route("/mail/page.js", get(async move || (script, include_str!("../../assets/mail.js"))))
        .route("/mail/page.css", get(async move || (style, include_str!("../../assets/mail.css"))))
}

fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(include_str!("../../assets/mail.html")))
}

/// Refuses who asks for too many mails, for one address or from one.
pub(super) async fn limit(api: &Api, address: Option<std::net::IpAddr>, email: &str) -> Result<(), ApiError> {
    let Some(limits) = &api.limits else { return Ok(()) };
    let refused = |retry_after| {
        metrics::counter!("rollcall_mail_requests_refused_total").increment(1);
        ApiError::TooManyRequests { retry_after }
    };
    let now = api.services.clock.monotonic();
    if let Some(address) = address {
        limits.mails_of_address.take(&network(address), now).await.map_err(refused)?;
    }
    limits.mails_to.take(&Email::mailbox(email), now).await.map(drop).map_err(refused)
}

/// I forgot my password
///
/// Sends a mail with a link to choose another, good for an hour and once. The answer is the same for an address that is
/// no account's.
#[utoipa::path(post, path = "/password/forgotten", tag = "mail", request_body = EmailBody, responses(
    (status = 202, description = "If the address is an account's, a mail is under way", body = Envelope<Nothing>),
    (status = 400, description = "`Invalid request schema`", body = ErrorBody),
    (status = 429, description = "`Too many requests`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn forgotten(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    Body(body): Body<EmailBody>,
) -> Result<(StatusCode, Json<Envelope<Nothing>>), ApiError> {
    api.services.mails.set_up()?;
    limit(&api, address, &body.email).await?;
    let answer_at = tokio::time::Instant::now() + FORGOTTEN_TAKES;
    if let Some(mail) = api.services.mails.forgot_password(&body.email).await? {
        // Not waited for: how long that takes, or that it fails, would tell as well.
        let api = Arc::clone(&api);
        tokio::spawn(async move {
            if let Err(error) = api.services.mails.queue(mail).await {
                log_failure(&error);
            }
        });
    }
    tokio::time::sleep_until(answer_at).await;
    Ok((StatusCode::ACCEPTED, ok(Nothing {})))
}

/// The page behind the link in such a mail
#[utoipa::path(get, path = "/password/reset", tag = "mail", responses(
    (status = 200, description = "The page; it sends what is behind the `#` of its address as `token`", content_type = "text/html", body = String),
))]
async fn reset_page() -> impl IntoResponse {
    page()
}

/// Sets the password
///
/// The token is good once. All logins of the account end, and its address is confirmed.
#[utoipa::path(post, path = "/password/reset", tag = "mail", request_body = ResetBody, responses(
    (status = 200, description = "The password is set", body = Envelope<Nothing>),
    (status = 400, description = "`Invalid request schema` or `Invalid or expired link`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn reset(State(api): State<Arc<Api>>, Body(body): Body<ResetBody>) -> Answer<Nothing> {
    let user = api.services.mails.reset_password(&body.token, &body.password).await?;
    in_request(|| tracing::info!(%user, "set another password by a mail"));
    Ok(ok(Nothing {}))
}

/// Send me the mail to confirm my address
#[utoipa::path(post, path = "/me/confirm-email", tag = "mail", security(("bearer" = [])), responses(
    (status = 202, description = "A mail is under way, unless the address is confirmed", body = Envelope<ConfirmationOut>),
    (status = 429, description = "`Too many requests`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn ask_to_confirm(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    As(member): As<Member>,
) -> Result<(StatusCode, Json<Envelope<ConfirmationOut>>), ApiError> {
    api.services.mails.set_up()?;
    limit(&api, address, member.account().email.as_str()).await?;
    let asked = api.services.mails.ask_to_confirm(&member).await?;
    Ok((StatusCode::ACCEPTED, ok(ConfirmationOut { email_confirmed: !asked })))
}

/// The page behind the link in such a mail
#[utoipa::path(get, path = "/email/confirm", tag = "mail", responses(
    (status = 200, description = "The page; it sends what is behind the `#` of its address as `token`", content_type = "text/html", body = String),
))]
async fn confirm_page() -> impl IntoResponse {
    page()
}

/// Confirms an address
///
/// The token is good once, for seven days.
#[utoipa::path(post, path = "/email/confirm", tag = "mail", request_body = TokenBody, responses(
    (status = 200, description = "The address is confirmed", body = Envelope<ConfirmedOut>),
    (status = 400, description = "`Invalid request schema` or `Invalid or expired link`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn confirm(State(api): State<Arc<Api>>, Body(body): Body<TokenBody>) -> Answer<ConfirmedOut> {
    let account = api.services.mails.confirm(&body.token).await?;
    in_request(|| tracing::info!(user = %account.id, "confirmed the e-mail address"));
    Ok(ok(ConfirmedOut { email: account.email.as_str().to_owned() }))
}

/// The page behind the link that stops notices
#[utoipa::path(get, path = "/unsubscribe/{token}", tag = "mail",
    params(("token" = String, Path, description = "What the link in the mail has there")), responses(
    (status = 200, description = "The page", content_type = "text/html", body = String),
))]
async fn unsubscribe_page() -> impl IntoResponse {
    page()
}

/// Stops notices of absences
///
/// Without signing in, as mail programs do by one click (RFC 8058). What is sent as the body does not matter.
#[utoipa::path(post, path = "/unsubscribe/{token}", tag = "mail",
    params(("token" = String, Path, description = "What the link in the mail has there")), responses(
    (status = 200, description = "No more notices come", body = Envelope<NoticesOut>),
    (status = 400, description = "`Invalid or expired link`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn unsubscribe(State(api): State<Arc<Api>>, PathId(token): PathId) -> Answer<NoticesOut> {
    set_notices(&api, &token, false).await
}

/// Starts them again
#[utoipa::path(delete, path = "/unsubscribe/{token}", tag = "mail",
    params(("token" = String, Path, description = "What the link in the mail has there")), responses(
    (status = 200, description = "Notices come again", body = Envelope<NoticesOut>),
    (status = 400, description = "`Invalid or expired link`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn subscribe(State(api): State<Arc<Api>>, PathId(token): PathId) -> Answer<NoticesOut> {
    set_notices(&api, &token, true).await
}

async fn set_notices(api: &Api, token: &str, wanted: bool) -> Answer<NoticesOut> {
    api.services.mails.set_notices(token, wanted).await?;
    Ok(ok(NoticesOut { absence_notices: wanted }))
}
