//! Sessions and their history.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use rollcall_core::policy::{ClassAccess, Participant, Student};
use rollcall_core::service::OpenView;
use rollcall_core::session::{Door, Revision, SessionInfo};
use rollcall_core::store::Page;
use rollcall_core::{ClassId, SessionId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, list, ok};
use crate::Api;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{AddressedTeacher, As, Body, PageOf, PageQuery, PathId, PathIds};
use crate::model::{
    Envelope, HistoryOut, LogOut, MarkOut, MyAttendanceOut, OpenSessionOut, PersonOut, RecordOut, SessionOut,
    StartBody, StartedOut,
};

/// What a student without a mark is told.
pub(crate) const NOT_YET: &str = "not yet updated";

/// The most entries of a session's log in one answer when no limit is given: all that a session has.
const WHOLE_LOG: u32 = 50_000;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(my_attendance))
        .routes(routes!(open_session))
        .routes(routes!(sessions))
        .routes(routes!(session))
}

/// Opens a session
///
/// While a session of the class is open, that one is answered.
#[utoipa::path(post, path = "/attendance/start", tag = "attendance", security(("bearer" = [])), request_body = StartBody, responses(
    (status = 200, description = "The open session", body = Envelope<StartedOut>),
    (status = 400, description = "`Invalid request schema`", body = ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required` or `Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn start(
    State(api): State<Arc<Api>>,
    caller: AddressedTeacher,
    Body(body): Body<StartBody>,
) -> Answer<StartedOut> {
    let class = api.services.classes.own(caller.teacher, ClassId::named(&body.class_id)).await?;
    let origin = api.services.attendance.origin(caller.teacher.id(), Door::Http, caller.address, None);
    Ok(ok(api.services.attendance.start(&class, origin).await?.into()))
}

/// My attendance
///
/// The caller's status in the class's last finished session, or null.
#[utoipa::path(get, path = "/class/{id}/my-attendance", tag = "attendance", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), responses(
    (status = 200, description = "The status", body = Envelope<MyAttendanceOut>),
    (status = 403, description = "`Forbidden, student access required` or `Forbidden, not enrolled in class`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn my_attendance(
    State(api): State<Arc<Api>>,
    As(student): As<Student>,
    PathId(id): PathId,
) -> Answer<MyAttendanceOut> {
    let class = api.services.classes.enrolled(student, ClassId::named(&id)).await?;
    let record = api.services.attendance.last_record(student, class.id).await?;
    Ok(ok(MyAttendanceOut::new(class.id, record.as_ref())))
}

/// The open session of a class
///
/// For the teacher with roster, marks and counts; for a student with the own status. Null while none is open.
#[utoipa::path(get, path = "/class/{id}/session", tag = "attendance", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), responses(
    (status = 200, description = "The open session, or null", body = Envelope<Option<OpenSessionOut>>),
    (status = 403, description = "`Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn open_session(
    State(api): State<Arc<Api>>,
    As(participant): As<Participant>,
    PathId(id): PathId,
) -> Answer<Option<OpenSessionOut>> {
    let access = api.services.classes.active_access(participant, ClassId::named(&id)).await?;
    let view = api.services.attendance.open(&access).await?;
    Ok(ok(view.map(|view| match view {
        OpenView::Full { session, students } => {
            let mut marks: Vec<_> = session.marks().iter().map(|(student, mark)| (*student, *mark)).collect();
            marks.sort_unstable_by_key(|(student, _)| *student);
            OpenSessionOut {
                session: session.info().into(),
                counts: Some(session.counts().into()),
                roster: Some(students.into_iter().map(PersonOut::from).collect()),
                marks: Some(marks.into_iter().map(|(student, mark)| MarkOut::new(student, mark)).collect()),
                status: None,
            }
        }
        OpenView::Own { info, mark } => OpenSessionOut {
            session: (&info).into(),
            counts: None,
            roster: None,
            marks: None,
            status: Some(mark.map_or(NOT_YET, |mark| mark.status.as_str())),
        },
    })))
}

/// The sessions of a class
///
/// Newest first, the open one included. They stay when the class is archived.
#[utoipa::path(get, path = "/class/{id}/sessions", tag = "attendance", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id"), PageQuery), responses(
    (status = 200, description = "The sessions", body = Envelope<Vec<SessionOut>>),
    (status = 400, description = "`Invalid request schema`: `limit` or `cursor`", body = ErrorBody),
    (status = 403, description = "`Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn sessions(
    State(api): State<Arc<Api>>,
    As(participant): As<Participant>,
    PathId(id): PathId,
    page: PageOf<Revision>,
) -> Result<Response, ApiError> {
    let access = history_access(&api, participant, &id).await?;
    list(
        page,
        |info: &SessionInfo| info.first_revision,
        |info| SessionOut::from(info),
        move |page| {
            let (services, access) = (Arc::clone(&api.services), access.clone());
            async move { services.attendance.sessions(&access, page).await }
        },
    )
    .await
}

/// A session with its records and its log
///
/// For a student, the own part. `limit` and `cursor` page the log; the records come with the first page.
#[utoipa::path(get, path = "/class/{id}/sessions/{sessionId}", tag = "attendance", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id"), ("sessionId" = String, Path, description = "The session's id"), PageQuery),
    responses(
    (status = 200, description = "The session", body = Envelope<HistoryOut>),
    (status = 400, description = "`Invalid request schema`: `limit` or `cursor`", body = ErrorBody),
    (status = 403, description = "`Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`, or `Not found` for the session", body = ErrorBody),
))]
async fn session(
    State(api): State<Arc<Api>>,
    As(participant): As<Participant>,
    PathIds(id, session): PathIds,
    page: PageOf<Revision>,
) -> Result<Response, ApiError> {
    let access = history_access(&api, participant, &id).await?;
    // One more than wanted tells whether more follows.
    let limit = page.limit.map_or(WHOLE_LOG, |limit| limit + 1);
    let asked = Page { after: page.after, limit };
    let mut history = api.services.attendance.history(&access, SessionId::named(&session), asked).await?;
    let wanted = page.limit.map_or(usize::MAX, |limit| limit as usize);
    let more = history.log.len() > wanted;
    history.log.truncate(wanted);
    let next_cursor = history.log.last().filter(|_| more).map(|last| last.revision.to_string());
    let for_teacher = matches!(access, ClassAccess::Owner(_));
    let records = if page.after.is_none() { history.records } else { Vec::new() };
    let data = HistoryOut {
        session: (&history.info).into(),
        records: records.into_iter().map(RecordOut::from).collect(),
        log: history.log.into_iter().map(|entry| LogOut::new(entry, for_teacher)).collect(),
    };
    Ok(Json(Envelope { success: true, data, next_cursor }).into_response())
}

async fn history_access(api: &Api, participant: Participant, id: &str) -> Result<ClassAccess, ApiError> {
    Ok(api.services.classes.history_access(participant, ClassId::named(id)).await?)
}
