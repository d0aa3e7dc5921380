//! The HTTP calls, a file for each noun. A handler reads: extract, one service call, render.
//!
//! To add a call: write the handler with its `utoipa::path` beside its noun, name it in that file's `routes`, and
//! add its row to the permission matrix; tests fail for a call that is missing from either.

mod class;
mod docs;
mod health;
mod mail;
mod packed;
mod session;
mod user;

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use rollcall_core::Error;
use rollcall_core::store::Page;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;

pub(crate) use docs::router as docs;
pub(crate) use health::metrics;
pub(crate) use mail::router as mail;
pub(crate) use session::NOT_YET;

use crate::Api;
use crate::error::ApiError;
use crate::extract::PageOf;
use crate::model::Envelope;

/// All documented calls.
pub(crate) fn documented() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(user::routes())
        .merge(class::routes())
        .merge(session::routes())
        .merge(mail::routes())
        .merge(health::routes())
        .merge(docs::routes())
        .merge(crate::ws::routes())
}

/// What a handler answers with: the envelope, or an error.
type Answer<T> = Result<Json<Envelope<T>>, ApiError>;

fn ok<T>(data: T) -> Json<Envelope<T>> {
    Json(Envelope::of(data))
}

/// How many items are read from the store at once when a whole list is wanted.
const CHUNK: u32 = 1_000;

/// A list in the published shape. With a limit it is one page and says where the next begins; without, it is the
/// whole list, read and sent in chunks, so that no list is too long.
async fn list<K, T, O, F>(
    page: PageOf<K>,
    key: fn(&T) -> K,
    render: fn(&T) -> O,
    read: impl Fn(Page<K>) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    K: ToString + Copy + Send + 'static,
    T: Send + 'static,
    O: Serialize + 'static,
    F: Future<Output = Result<Vec<T>, Error>> + Send + 'static,
{
    if let Some(limit) = page.limit {
        // One more than wanted tells whether more follows.
        let mut items = read(Page { after: page.after, limit: limit + 1 }).await?;
        let more = items.len() > limit as usize;
        items.truncate(limit as usize);
        let next_cursor = items.last().filter(|_| more).map(|last| key(last).to_string());
        let data: Vec<O> = items.iter().map(render).collect();
        return Ok(Json(Envelope { success: true, data, next_cursor }).into_response());
    }
    // The first chunk is read before the answer begins: a failure then still has its status.
    let first = read(Page { after: page.after, limit: CHUNK }).await?;
    let state = (Some(first), true);
    let chunks = stream::try_unfold((state, read), move |((items, begins), read)| async move {
        let Some(items) = items else { return Ok(None) };
        let mut text = if begins { br#"{"success":true,"data":["#.to_vec() } else { Vec::new() };
        for (index, item) in items.iter().enumerate() {
            if index > 0 || !begins {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, &render(item)).map_err(|error| Error::Internal(error.to_string()))?;
        }
        let next = match items.last().filter(|_| items.len() == CHUNK as usize) {
            Some(last) => {
                Some(read(Page { after: Some(key(last)), limit: CHUNK }).await?).filter(|next| !next.is_empty())
            }
            None => None,
        };
        if next.is_none() {
            text.extend_from_slice(b"]}");
        }
        Ok::<_, Error>(Some((Bytes::from(text), ((next, false), read))))
    });
    let json = HeaderValue::from_static("application/json");
    Ok(([(CONTENT_TYPE, json)], Body::from_stream(chunks)).into_response())
}
