//! Accounts, under both published forms.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rollcall_core::policy::{Member, Teacher};
use rollcall_core::service::SignUp;
use rollcall_core::user::{Account, EmailKey, Person, Role};
use rollcall_core::{Error, UserId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, list, ok};
use crate::Api;
use crate::error::ApiError;
use crate::extract::{As, Body, ClientAddress, PageOf, PageQuery};
use crate::limits::network;
use crate::metric;
use crate::middleware::{in_request, to_the_end};
use crate::model::{Envelope, LoginBody, PersonOut, SignupBody, SignupRole, TokenOut, UserOut};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(sign_up))
        .routes(routes!(auth_sign_up))
        .routes(routes!(log_in))
        .routes(routes!(auth_log_in))
        .routes(routes!(me))
        .routes(routes!(auth_me))
        .routes(routes!(students))
}

/// Makes an account
///
/// A teacher or a student. Whether teachers may sign up is the operator's choice.
#[utoipa::path(post, path = "/signup", tag = "accounts", request_body = SignupBody, responses(
    (status = 201, description = "The account", body = Envelope<UserOut>),
    (status = 400, description = "`Invalid request schema` or `Email already exists`", body = crate::error::ErrorBody),
    (status = 403, description = "`Forbidden, teacher sign-up is closed`", body = crate::error::ErrorBody),
    (status = 429, description = "`Too many requests`", body = crate::error::ErrorBody),
))]
async fn sign_up(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    Body(body): Body<SignupBody>,
) -> Result<(StatusCode, Json<Envelope<UserOut>>), ApiError> {
    if let (Some(limits), Some(address)) = (&api.limits, address) {
        let now = api.services.clock.monotonic();
        limits.signups.take(&network(address), now).await.map_err(|retry_after| {
            metrics::counter!("rollcall_signups_refused_total").increment(1);
            ApiError::TooManyRequests { retry_after }
        })?;
    }
    let role = match body.role {
        SignupRole::Teacher => Role::Teacher,
        SignupRole::Student => Role::Student,
    };
    let wanted = SignUp {
        name: &body.name,
        email: &body.email,
        password: &body.password,
        role,
        code: body.signup_code.map(Into::into),
    };
    // Nobody is kept from signing up by how many mails a stranger may be sent, who can be sent one later.
    let welcome = api.services.mails.set_up().is_ok() && super::mail::limit(&api, address, &body.email).await.is_ok();
    let account = api.services.accounts.sign_up(wanted, welcome).await?;
    in_request(|| tracing::info!(user = %account.id, role = %account.role, "signed up"));
    Ok((StatusCode::CREATED, ok(UserOut::from(&account))))
}

/// Makes an account (the same call under its other published path)
#[utoipa::path(post, path = "/auth/signup", tag = "accounts", request_body = SignupBody, responses(
    (status = 201, description = "The account", body = Envelope<UserOut>),
    (status = 400, description = "`Invalid request schema` or `Email already exists`", body = crate::error::ErrorBody),
    (status = 403, description = "`Forbidden, teacher sign-up is closed`", body = crate::error::ErrorBody),
    (status = 429, description = "`Too many requests`", body = crate::error::ErrorBody),
))]
async fn auth_sign_up(
    state: State<Arc<Api>>,
    address: ClientAddress,
    body: Body<SignupBody>,
) -> Result<(StatusCode, Json<Envelope<UserOut>>), ApiError> {
    sign_up(state, address, body).await
}

/// Logs in
///
/// The answer has no envelope. Only failed logins count against the limits.
#[utoipa::path(post, path = "/login", tag = "accounts", request_body = LoginBody, responses(
    (status = 200, description = "A token", body = TokenOut),
    (status = 400, description = "`Invalid request schema` or `Invalid email or password`", body = crate::error::ErrorBody),
    (status = 429, description = "`Too many requests`", body = crate::error::ErrorBody),
))]
async fn log_in(
    State(api): State<Arc<Api>>,
    ClientAddress(address): ClientAddress,
    Body(body): Body<LoginBody>,
) -> Result<Json<TokenOut>, ApiError> {
    let account = checked_login(Arc::clone(&api), address, body).await?;
    let token = api.tokens.issue(&account, api.services.clock.now(), &api.services.ids)?;
    Ok(Json(TokenOut { token, kind: "bearer" }))
}

/// Logs in (the other published form, with the envelope)
#[utoipa::path(post, path = "/auth/login", tag = "accounts", request_body = LoginBody, responses(
    (status = 200, description = "A token", body = Envelope<TokenOut>),
    (status = 400, description = "`Invalid request schema` or `Invalid email or password`", body = crate::error::ErrorBody),
    (status = 429, description = "`Too many requests`", body = crate::error::ErrorBody),
))]
async fn auth_log_in(state: State<Arc<Api>>, address: ClientAddress, body: Body<LoginBody>) -> Answer<TokenOut> {
    let Json(token) = log_in(state, address, body).await?;
    Ok(ok(token))
}

/// Checks a login within the limits on failed ones, to its end: who hangs up has failed, or not, all the same.
///
/// Of an account an attempt is counted before it is checked, so that many at once are no way around the limit, and
/// given back when it did not fail by its credentials. Of an address it is counted when it has failed: a whole school
/// that logs in at the same moment has failed at nothing yet. What is tried beyond the limit meanwhile, which the queue
/// for hashing bounds, is made up for by a longer wait.
async fn checked_login(api: Arc<Api>, address: Option<std::net::IpAddr>, body: LoginBody) -> Result<Account, ApiError> {
    to_the_end(async move {
        let now = || api.services.clock.monotonic();
        let key = EmailKey::of(&body.email);
        let address = address.map(network);
        let attempt = match &api.limits {
            Some(limits) => {
                let refused = |retry_after| {
                    metric::logins_refused("limit").increment(1);
                    ApiError::TooManyRequests { retry_after }
                };
                if let Some(address) = &address {
                    limits.logins_of_address.check(address, now()).await.map_err(refused)?;
                }
                Some((limits, limits.logins_of_account.take(key.as_str(), now()).await.map_err(refused)?))
            }
            None => None,
        };
        let outcome = api.services.accounts.log_in(&body.email, body.password.into()).await;
        match (&outcome, attempt) {
            (Err(Error::InvalidCredentials), attempt) => {
                metric::logins_refused("credentials").increment(1);
                if let (Some((limits, _)), Some(address)) = (attempt, &address) {
                    limits.logins_of_address.charge(address, now()).await;
                }
            }
            (_, Some((limits, taken))) => limits.logins_of_account.give_back(taken, key.as_str(), now()).await,
            (_, None) => {}
        }
        Ok(outcome?)
    })
    .await
}

/// Who am I?
#[utoipa::path(get, path = "/me", tag = "accounts", security(("bearer" = [])), responses(
    (status = 200, description = "The caller's account", body = Envelope<UserOut>),
))]
async fn me(As(member): As<Member>) -> Json<Envelope<UserOut>> {
    ok(UserOut::from(&**member.account()))
}

/// Who am I? (the same call under its other published path)
#[utoipa::path(get, path = "/auth/me", tag = "accounts", security(("bearer" = [])), responses(
    (status = 200, description = "The caller's account", body = Envelope<UserOut>),
))]
async fn auth_me(member: As<Member>) -> Json<Envelope<UserOut>> {
    me(member).await
}

/// All students
///
/// By id. Without `limit` the whole list.
#[utoipa::path(get, path = "/students", tag = "accounts", security(("bearer" = [])), params(PageQuery), responses(
    (status = 200, description = "The students", body = Envelope<Vec<PersonOut>>),
    (status = 400, description = "`Invalid request schema`: `limit` or `cursor`", body = crate::error::ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required`", body = crate::error::ErrorBody),
))]
async fn students(
    State(api): State<Arc<Api>>,
    As(teacher): As<Teacher>,
    page: PageOf<UserId>,
) -> Result<axum::response::Response, ApiError> {
    list(
        page,
        |person: &Person| person.id,
        |person| PersonOut::from(person.clone()),
        move |page| {
            let services = Arc::clone(&api.services);
            async move { services.classes.students(teacher, page).await }
        },
    )
    .await
}
