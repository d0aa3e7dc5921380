//! What must hold for whatever a client sends, as functions that panic where it does not: `fuzz/` looks for such
//! inputs, and `tests/corpus.rs` feeds those that are known.

use axum::response::IntoResponse as _;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use rollcall_core::user::{Email, EmailKey, NewPassword, PersonName};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::extract;
use crate::model::{AddStudentBody, ClassBody, LoginBody, SignupBody, StartBody};
use crate::ws::protocol::{self, Incoming, Request};

/// A text message of a socket.
pub fn frame(bytes: &[u8]) {
    // The socket closes on what is no text.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let frame = Incoming::parse(text);
    match &frame.request {
        Ok(Request::Mark) => drop(frame.mark().map(|mark| {
            let again = json!({"event": "ATTENDANCE_MARKED", "requestId": frame.request_id, "data": {
                "studentId": mark.student_id.to_string(),
                "status": mark.status.as_str(),
                "reason": mark.reason.as_ref().map(rollcall_core::session::Reason::as_str),
                "classId": frame.class().ok().flatten().map(|class| class.to_string()),
            }});
            let again = Incoming::parse(&again.to_string());
            let twin = again.mark().expect("a mark that was understood is understood when said anew");
            assert_eq!(
                (mark.student_id, mark.status, mark.reason, frame.operation()),
                (twin.student_id, twin.status, twin.reason, again.operation())
            );
        })),
        Ok(_) => assert!(text.trim_start().starts_with('{'), "only an object is a request"),
        Err(malformed) => assert!(!malformed.text().is_empty()),
    }
    // The same frame written by another library is the same request. Names that serde_json keeps for itself mean
    // something else in another place.
    let twin = serde_json::from_str::<Value>(text).map(|value| value.to_string());
    if let Ok(twin) = twin
        && !twin.contains("$serde_json::private::")
    {
        let twin = Incoming::parse(&twin);
        assert_eq!(
            (&frame.request, frame.class(), frame.operation(), frame.mark().err()),
            (&twin.request, twin.class(), twin.operation(), twin.mark().err())
        );
    }
    // An answer carries the request's name as it came, if that is one.
    if frame.operation().is_ok() {
        let answer = protocol::error("Unknown event", frame.request_id.as_ref());
        let answer: Value = serde_json::from_str(answer.as_str()).expect("an answer is JSON");
        assert_eq!(answer["data"].get("requestId"), frame.request_id.as_ref());
    }
}

/// A request's body, for every call that takes one.
pub fn body(bytes: &[u8]) {
    if let Some(body) = read::<SignupBody>(bytes) {
        kept(&body.name, |text| PersonName::parse(text).ok().map(|name| name.as_str().to_owned()));
        kept(&body.email, |text| Email::parse(text).ok().map(|email| email.as_str().to_owned()));
        if let Ok(password) = NewPassword::parse(&body.password) {
            let other = NewPassword::parse("another password").expect("a valid password");
            assert_eq!(format!("{password:?}"), format!("{other:?}"), "a password shows itself");
        }
    }
    if let Some(body) = read::<LoginBody>(bytes) {
        let key = EmailKey::of(&body.email);
        assert_eq!(EmailKey::of(key.as_str()), key, "an address has one key");
    }
    if let Some(body) = read::<ClassBody>(bytes)
        && let Ok(name) = body.name()
    {
        kept(name.as_str(), |text| Some(text.trim().to_owned()));
    }
    drop(read::<AddStudentBody>(bytes));
    drop(read::<StartBody>(bytes));
}

/// What a rule makes of a text is what it makes of its own outcome.
fn kept(text: &str, rule: impl Fn(&str) -> Option<String>) {
    if let Some(kept) = rule(text) {
        assert_eq!(rule(&kept).as_ref(), Some(&kept), "a kept value is no valid value");
    }
}

/// The body as `T`, which must be an object then; else it is refused as the contract says.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match extract::parse::<T>(bytes) {
        Ok(body) => {
            // Not as a `Value`, which is not as deep as what may stand in a member that nobody reads.
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes).expect("what was understood is JSON");
            assert!(bytes.trim_ascii_start().starts_with(b"{"), "only an object is a body");
            Some(body)
        }
        Err(error) => {
            refused(error);
            None
        }
    }
}

fn refused(error: ApiError) {
    let response = error.into_response();
    assert_eq!(response.status(), 400);
    let body =
        response.into_body().collect().now_or_never().expect("a refusal is whole").expect("a refusal can be read");
    let body: Value = serde_json::from_slice(&body.to_bytes()).expect("a refusal is JSON");
    assert_eq!((&body["success"], &body["error"]), (&json!(false), &json!("Invalid request schema")));
    let details = body["details"].as_array().expect("a refusal says what is wrong");
    assert!(!details.is_empty() && details.iter().all(|detail| detail["message"].is_string()));
}
