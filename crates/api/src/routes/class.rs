//! Classes and who is in them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use rollcall_core::class::{Class, ClassWithStudents};
use rollcall_core::policy::{OwnClass, Participant, Teacher};
use rollcall_core::session::{Door, Origin};
use rollcall_core::{ClassId, UserId};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, list, ok};
use crate::Api;
use crate::error::{ApiError, ErrorBody};
use crate::extract::{AddressedTeacher, As, Body, PageOf, PageQuery, PathId, PathIds, query};
use crate::model::{AddStudentBody, ClassBody, ClassDetail, ClassItem, ClassOut, ClassPatch, Envelope};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(classes))
        .routes(routes!(class, change, archive))
        .routes(routes!(add_student))
        .routes(routes!(remove_student))
}

/// Makes a class
#[utoipa::path(post, path = "/class", tag = "classes", security(("bearer" = [])), request_body = ClassBody, responses(
    (status = 201, description = "The class", body = Envelope<ClassOut>),
    (status = 400, description = "`Invalid request schema`", body = ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required`", body = ErrorBody),
))]
async fn create(
    State(api): State<Arc<Api>>,
    As(teacher): As<Teacher>,
    Body(body): Body<ClassBody>,
) -> Result<(StatusCode, Json<Envelope<ClassOut>>), ApiError> {
    let class = api.services.classes.create(teacher, body.name()?).await?;
    Ok((StatusCode::CREATED, ok(class.into())))
}

/// Which classes are listed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ClassesQuery {
    /// `true` lists the teacher's archived classes instead of the others.
    #[param(value_type = Option<bool>)]
    archived: Option<String>,
}

/// Whether archived classes are wanted.
struct Archived(bool);

impl axum::extract::FromRequestParts<Arc<Api>> for Archived {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, ApiError> {
        let ClassesQuery { archived } = query(parts).await?;
        match archived.as_deref() {
            None | Some("false") => Ok(Self(false)),
            Some("true") => Ok(Self(true)),
            Some(_) => Err(rollcall_core::Error::invalid("archived", "must be true or false").into()),
        }
    }
}

/// My classes
///
/// The teacher's own, or those that the student is in. By id.
#[utoipa::path(get, path = "/classes", tag = "classes", security(("bearer" = [])), params(ClassesQuery, PageQuery), responses(
    (status = 200, description = "The classes", body = Envelope<Vec<ClassItem>>),
    (status = 400, description = "`Invalid request schema`: `limit`, `cursor` or `archived`", body = ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required`, for administrators", body = ErrorBody),
))]
async fn classes(
    State(api): State<Arc<Api>>,
    As(participant): As<Participant>,
    Archived(archived): Archived,
    page: PageOf<ClassId>,
) -> Result<Response, ApiError> {
    let services = Arc::clone(&api.services);
    match participant {
        Participant::Teacher(teacher) => {
            list(
                page,
                |class: &ClassWithStudents| class.class.id,
                ClassItem::for_teacher,
                move |page| {
                    let services = Arc::clone(&services);
                    async move { services.classes.of_teacher(teacher, archived, page).await }
                },
            )
            .await
        }
        Participant::Student(student) => {
            list(
                page,
                |class: &Class| class.id,
                ClassItem::for_student,
                move |page| {
                    let services = Arc::clone(&services);
                    async move { services.classes.of_student(student, page).await }
                },
            )
            .await
        }
    }
}

/// A class with its students
///
/// For its teacher and its students.
#[utoipa::path(get, path = "/class/{id}", tag = "classes", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), responses(
    (status = 200, description = "The class", body = Envelope<ClassDetail>),
    (status = 403, description = "`Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn class(
    State(api): State<Arc<Api>>,
    As(participant): As<Participant>,
    PathId(id): PathId,
) -> Answer<ClassDetail> {
    let view = api.services.classes.view(participant, ClassId::named(&id)).await?;
    Ok(ok(ClassDetail::new(&view.class, view.students)))
}

/// Changes a class
///
/// Its name, or whether students are told by e-mail that they were absent: those with a confirmed address, once the
/// session is finished.
#[utoipa::path(patch, path = "/class/{id}", tag = "classes", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), request_body = ClassPatch, responses(
    (status = 200, description = "The class", body = Envelope<ClassOut>),
    (status = 400, description = "`Invalid request schema`", body = ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required` or `Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
    (status = 501, description = "`E-mail is not set up`", body = ErrorBody),
))]
async fn change(
    State(api): State<Arc<Api>>,
    As(teacher): As<Teacher>,
    PathId(id): PathId,
    Body(body): Body<ClassPatch>,
) -> Answer<ClassOut> {
    let change = body.change()?;
    let class = own(&api, teacher, &id).await?;
    Ok(ok(api.services.classes.change(&class, change).await?.into()))
}

/// Archives a class
///
/// An open session of it is finished as `DONE` would. Its history stays.
#[utoipa::path(delete, path = "/class/{id}", tag = "classes", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), responses(
    (status = 200, description = "The class as it was archived", body = Envelope<ClassOut>),
    (status = 403, description = "`Forbidden, teacher access required` or `Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found`", body = ErrorBody),
))]
async fn archive(State(api): State<Arc<Api>>, caller: AddressedTeacher, PathId(id): PathId) -> Answer<ClassOut> {
    let class = own(&api, caller.teacher, &id).await?;
    Ok(ok(api.services.classes.archive(&class, origin(&api, &caller)).await?.into()))
}

/// Enrols a student
///
/// Enrolling twice changes nothing. A student who is connected hears of the class from then on.
#[utoipa::path(post, path = "/class/{id}/add-student", tag = "classes", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id")), request_body = AddStudentBody, responses(
    (status = 200, description = "The class", body = Envelope<ClassOut>),
    (status = 400, description = "`Invalid request schema` or `User is not a student`", body = ErrorBody),
    (status = 403, description = "`Forbidden, teacher access required` or `Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found` or `Student not found`", body = ErrorBody),
))]
async fn add_student(
    State(api): State<Arc<Api>>,
    caller: AddressedTeacher,
    PathId(id): PathId,
    Body(body): Body<AddStudentBody>,
) -> Answer<ClassOut> {
    let class = own(&api, caller.teacher, &id).await?;
    let student = UserId::named(&body.student_id);
    Ok(ok(api.services.classes.add_student(&class, student, origin(&api, &caller)).await?.into()))
}

/// Takes a student out of a class
///
/// What was recorded of the student stays.
#[utoipa::path(delete, path = "/class/{id}/students/{studentId}", tag = "classes", security(("bearer" = [])),
    params(("id" = String, Path, description = "The class's id"), ("studentId" = String, Path, description = "The student's id")),
    responses(
    (status = 200, description = "The class", body = Envelope<ClassOut>),
    (status = 403, description = "`Forbidden, teacher access required` or `Forbidden, not class teacher`", body = ErrorBody),
    (status = 404, description = "`Class not found` or `Student not found`", body = ErrorBody),
))]
async fn remove_student(
    State(api): State<Arc<Api>>,
    caller: AddressedTeacher,
    PathIds(id, student): PathIds,
) -> Answer<ClassOut> {
    let class = own(&api, caller.teacher, &id).await?;
    let student = UserId::named(&student);
    Ok(ok(api.services.classes.remove_student(&class, student, origin(&api, &caller)).await?.into()))
}

async fn own(api: &Api, teacher: Teacher, id: &str) -> Result<OwnClass, ApiError> {
    Ok(api.services.classes.own(teacher, ClassId::named(id)).await?)
}

fn origin(api: &Api, caller: &AddressedTeacher) -> Origin {
    api.services.attendance.origin(caller.teacher.id(), Door::Http, caller.address, None)
}
