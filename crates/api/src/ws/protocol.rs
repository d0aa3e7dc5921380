//! The events that go over a WebSocket, in both directions.

use rollcall_core::session::{Event, OperationId, Reason, Status};
use rollcall_core::store::SessionChange;
use rollcall_core::{ClassId, UserId};
use rollcall_realtime::Frame;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::{CountsOut, Hex};

/// What a client asked for, well formed but not yet allowed.
#[derive(Debug, PartialEq)]
pub(crate) enum Request {
    /// `ATTENDANCE_MARKED`, its data not yet looked at.
    Mark,
    /// `TODAY_SUMMARY`
    Summary,
    /// `DONE`
    Done,
    /// `MY_ATTENDANCE`
    MyAttendance,
}

impl Request {
    /// The event's name.
    pub(crate) const fn event(&self) -> &'static str {
        match self {
            Self::Mark => "ATTENDANCE_MARKED",
            Self::Summary => "TODAY_SUMMARY",
            Self::Done => "DONE",
            Self::MyAttendance => "MY_ATTENDANCE",
        }
    }
}

/// A client's frame.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// What for.
    pub request: Result<Request, Malformed>,
    data: Map<String, Value>,
    /// The name that the client gave the request, for the answer.
    pub request_id: Option<Value>,
}

/// Why a frame is not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It is no frame of this protocol, or a member of it is not what it should be.
    Format,
    /// There is no such event.
    Event,
    /// There is no such status.
    Status,
}

impl Malformed {
    /// The contract's text.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Format => "Invalid message format",
            Self::Event => "Unknown event",
            Self::Status => "Invalid attendance status",
        }
    }
}

/// The data of `ATTENDANCE_MARKED`.
#[derive(Debug)]
pub(crate) struct MarkData {
    /// Who; [`UserId::NOTHING`] where the text was no id.
    pub student_id: UserId,
    /// What.
    pub status: Status,
    /// Why.
    pub reason: Option<Reason>,
}

impl Incoming {
    /// Reads a frame. What cannot be read at all has no request id either.
    pub(crate) fn parse(text: &str) -> Self {
        let malformed = Self { request: Err(Malformed::Format), data: Map::new(), request_id: None };
        let Ok(Value::Object(mut frame)) = serde_json::from_str(text) else { return malformed };
        let Some(Value::String(event)) = frame.remove("event") else { return malformed };
        let mut data = match frame.remove("data") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(data)) => data,
            Some(_) => return malformed,
        };
        let named = |from: &mut Map<String, Value>| from.remove("requestId").filter(|value| !value.is_null());
        let request_id = named(&mut data).or_else(|| named(&mut frame));
        let request = match event.as_str() {
            "ATTENDANCE_MARKED" => Ok(Request::Mark),
            "TODAY_SUMMARY" => Ok(Request::Summary),
            "DONE" => Ok(Request::Done),
            "MY_ATTENDANCE" => Ok(Request::MyAttendance),
            _ => Err(Malformed::Event),
        };
        Self { request, data, request_id }
    }

    /// The operation that the request id names: text of 1 to 64 bytes, or a whole number.
    pub(crate) fn operation(&self) -> Result<Option<OperationId>, Malformed> {
        let text = match &self.request_id {
            None => return Ok(None),
            Some(Value::String(text)) => OperationId::from_client(text),
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
                OperationId::from_client(&number.to_string())
            }
            Some(_) => None,
        };
        text.map(Some).ok_or(Malformed::Format)
    }

    /// The class that the request names; one that cannot be is [`ClassId::NOTHING`].
    pub(crate) fn class(&self) -> Result<Option<ClassId>, Malformed> {
        match self.data.get("classId") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(id)) => Ok(Some(ClassId::named(id))),
            Some(_) => Err(Malformed::Format),
        }
    }

    /// Who is to be marked what.
    pub(crate) fn mark(&self) -> Result<MarkData, Malformed> {
        let status = self.data.get("status").and_then(Value::as_str).ok_or(Malformed::Status)?;
        let status = status.parse().map_err(|_| Malformed::Status)?;
        let student = self.data.get("studentId").and_then(Value::as_str).ok_or(Malformed::Format)?;
        let reason = match self.data.get("reason") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Reason::parse(text).map_err(|_| Malformed::Format)?,
            Some(_) => return Err(Malformed::Format),
        };
        Ok(MarkData { student_id: UserId::named(student), status, reason })
    }
}

#[derive(Serialize)]
struct Outgoing<T> {
    event: &'static str,
    data: T,
}

/// What every frame about a session carries beside its own members.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct About<'a> {
    class_id: Hex,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Marked<'a> {
    student_id: Hex,
    status: &'static str,
    #[serde(flatten)]
    about: About<'a>,
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    #[serde(flatten)]
    counts: CountsOut,
    #[serde(flatten)]
    about: About<'a>,
}

#[derive(Serialize)]
struct OwnStatus<'a> {
    status: &'static str,
    #[serde(flatten)]
    about: About<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a Value>,
}

fn frame(event: &'static str, data: impl Serialize) -> Frame {
    // Nothing in these types can fail to be written.
    Frame::from(serde_json::to_string(&Outgoing { event, data }).unwrap_or_default())
}

/// The frame that tells the class of what happened in its session; `None` for what has no frame. With `request_id`
/// it is the answer to whoever asked.
pub(crate) fn change(change: &SessionChange, request_id: Option<&Value>) -> Option<Frame> {
    let about = About { class_id: change.class_id.into(), revision: change.entry.revision.0, request_id };
    match &change.entry.event {
        Event::Started | Event::Enrolled { .. } | Event::Removed { .. } => None,
        Event::Marked { student_id, new, .. } => {
            let data = Marked { student_id: (*student_id).into(), status: new.as_str(), about };
            Some(frame("ATTENDANCE_MARKED", data))
        }
        Event::Summarised(counts) => {
            Some(frame("TODAY_SUMMARY", Summary { message: None, counts: (*counts).into(), about }))
        }
        Event::Finished(counts) => {
            let message = Some("Attendance persisted");
            Some(frame("DONE", Summary { message, counts: (*counts).into(), about }))
        }
    }
}

/// The frame for a mark that is known only by what it left.
pub(crate) fn mark(class: ClassId, student: UserId, status: Status, revision: u64) -> Frame {
    let about = About { class_id: class.into(), revision, request_id: None };
    frame("ATTENDANCE_MARKED", Marked { student_id: student.into(), status: status.as_str(), about })
}

/// The answer to `MY_ATTENDANCE`.
pub(crate) fn own_status(class: ClassId, revision: u64, status: &'static str, request_id: Option<&Value>) -> Frame {
    let about = About { class_id: class.into(), revision, request_id };
    frame("MY_ATTENDANCE", OwnStatus { status, about })
}

/// An `ERROR` to the sender alone.
pub(crate) fn error(message: &str, request_id: Option<&Value>) -> Frame {
    frame("ERROR", Failure { message, request_id })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rollcall_core::session::{Actor, Counts, Door, LogEntry, Origin, Revision};
    use rollcall_core::{SessionId, Timestamp};
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_read_in_the_contracts_order() {
        let request = |text: &str| Incoming::parse(text).request;
        for no_frame in [
            "",
            "[]",
            "{}",
            "1",
            "null",
            "\"DONE\"",
            r#"["DONE",{}]"#,
            r#"{"event":1}"#,
            "{\"event\":\"DONE\"",
            r#"{"event":"DONE","data":[]}"#,
            r#"{"event":"NO","data":1}"#,
        ] {
            assert_eq!(request(no_frame), Err(Malformed::Format), "{no_frame}");
        }
        assert_eq!(request(&format!(r#"{{"event":"DONE","x":{}"#, "[".repeat(5_000))), Err(Malformed::Format));
        assert_eq!(request(r#"{"event":"done"}"#), Err(Malformed::Event));
        assert_eq!(request(r#"{"event":"DONE","data":null,"more":[1]}"#), Ok(Request::Done));
        assert_eq!(request(r#"{"event":"MY_ATTENDANCE"}"#), Ok(Request::MyAttendance));
    }

    #[test]
    fn a_marks_data_is_read_status_first() {
        let mark = |data: Value| {
            Incoming::parse(&json!({"event": "ATTENDANCE_MARKED", "data": data}).to_string())
                .mark()
                .map(|mark| mark.status)
        };
        let id = "6553f1000102030405060708";
        assert_eq!(mark(json!({})), Err(Malformed::Status));
        assert_eq!(mark(json!({"studentId": 1, "status": "Present"})), Err(Malformed::Status));
        assert_eq!(mark(json!({"status": "present"})), Err(Malformed::Format));
        assert_eq!(mark(json!({"studentId": 1, "status": "present"})), Err(Malformed::Format));
        assert_eq!(mark(json!({"studentId": id, "status": "present", "reason": 1})), Err(Malformed::Format));
        assert_eq!(
            mark(json!({"studentId": id, "status": "present", "reason": "x".repeat(201)})),
            Err(Malformed::Format)
        );
        assert_eq!(mark(json!({"studentId": "nobody", "status": "late", "reason": " bus "})), Ok(Status::Late));
    }

    #[test]
    fn request_ids_are_text_or_whole_numbers_inside_or_beside_the_data() {
        let of = |text: &str| Incoming::parse(text).operation().map(|id| id.map(|id| id.as_str().to_owned()));
        assert_eq!(of(r#"{"event":"DONE"}"#), Ok(None));
        assert_eq!(of(r#"{"event":"DONE","requestId":null}"#), Ok(None));
        assert_eq!(of(r#"{"event":"DONE","data":{"requestId":"a"}}"#), Ok(Some("a".to_owned())));
        assert_eq!(of(r#"{"event":"DONE","requestId":7}"#), Ok(Some("7".to_owned())));
        assert_eq!(of(r#"{"event":"DONE","data":{"requestId":"a"},"requestId":"b"}"#), Ok(Some("a".to_owned())));
        for bad in ["1.5", "true", "[]", "{}", "\"\"", &format!("\"{}\"", "x".repeat(65))] {
            assert_eq!(of(&format!(r#"{{"event":"DONE","requestId":{bad}}}"#)), Err(Malformed::Format), "{bad}");
        }
    }

    #[test]
    fn frames_say_what_the_contract_says_and_where_it_belongs() {
        let class_id = ClassId::named("6553f1000102030405060708");
        let of = |event| SessionChange {
            session_id: SessionId::NOTHING,
            class_id,
            entry: LogEntry {
                revision: Revision(7),
                event,
                origin: Origin {
                    by: Actor::System,
                    at: Timestamp::from_millis(0),
                    door: Door::WebSocket,
                    address: None,
                    operation: OperationId::Door(Arc::from("x")),
                },
            },
        };
        let text = |event, id: Option<&Value>| change(&of(event), id).map(|frame| frame.as_str().to_owned());
        let marked = Event::Marked { student_id: UserId::NOTHING, old: None, new: Status::Present, reason: None };
        assert_eq!(
            text(marked, Some(&json!("r1"))).as_deref(),
            Some(
                r#"{"event":"ATTENDANCE_MARKED","data":{"studentId":"000000000000000000000000","status":"present","classId":"6553f1000102030405060708","revision":7,"requestId":"r1"}}"#
            )
        );
        let counts = Counts { present: 2, absent: 1, late: 0, excused: 1 };
        assert_eq!(
            text(Event::Finished(counts), None).as_deref(),
            Some(
                r#"{"event":"DONE","data":{"message":"Attendance persisted","present":2,"absent":1,"excused":1,"total":4,"classId":"6553f1000102030405060708","revision":7}}"#
            )
        );
        assert_eq!(text(Event::Started, None), None);
        assert_eq!(error("Unknown event", None).as_str(), r#"{"event":"ERROR","data":{"message":"Unknown event"}}"#);
    }
}
