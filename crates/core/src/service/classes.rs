//! Classes and who is in them.

use std::sync::Arc;

use super::Mails;
use crate::class::{Class, ClassChange, ClassName, ClassWithStudents};
use crate::directory::Directory;
use crate::error::Error;
use crate::id::{ClassId, Ids, UserId};
use crate::policy::{ClassAccess, OwnClass, Participant, Student, Teacher, class_access};
use crate::session::Origin;
use crate::store::{Change, ClassChanged, Page, Store};
use crate::time::Clock;
use crate::user::{Person, Role};

/// A class as one of its people sees it.
#[derive(Clone, Debug)]
pub struct ClassView {
    /// The class.
    pub class: Arc<Class>,
    /// Its students, in the order in which they were enrolled.
    pub students: Vec<Person>,
}

/// Classes.
pub struct Classes {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ids: Arc<Ids>,
    pub(super) directory: Arc<Directory>,
    pub(super) mails: Arc<Mails>,
}

impl Classes {
    /// Makes a class of the teacher's.
    pub async fn create(&self, teacher: Teacher, name: ClassName) -> Result<ClassWithStudents, Error> {
        let now = self.clock.now();
        let class = Class {
            id: ClassId(self.ids.next(now)),
            name,
            teacher_id: teacher.id(),
            archived: false,
            absence_notices: false,
            created_at: now,
        };
        self.store.insert_class(class.clone()).await?;
        Ok(ClassWithStudents { class, student_ids: Vec::new() })
    }

    /// The teacher's own class, unless it is archived.
    pub async fn own(&self, teacher: Teacher, id: ClassId) -> Result<OwnClass, Error> {
        self.directory.class(id, |class| teacher.own(active(class)?)).await
    }

    /// A class as the participant may see it, with its students.
    pub async fn view(&self, participant: Participant, id: ClassId) -> Result<ClassView, Error> {
        let class = self.directory.class(id, active).await?;
        self.access(participant, Arc::clone(&class)).await?;
        Ok(ClassView { class, students: self.store.class_students(id).await? })
    }

    /// How the participant may see a class that is not archived.
    pub async fn active_access(&self, participant: Participant, id: ClassId) -> Result<ClassAccess, Error> {
        let class = self.directory.class(id, active).await?;
        self.access(participant, class).await
    }

    /// How the participant may see a class's history, which outlives the class.
    pub async fn history_access(&self, participant: Participant, id: ClassId) -> Result<ClassAccess, Error> {
        let class = self.any(id).await?;
        self.access(participant, class).await
    }

    /// The class, for one of its students, archived or not.
    pub async fn enrolled(&self, student: Student, id: ClassId) -> Result<Arc<Class>, Error> {
        let class = self.any(id).await?;
        if self.store.is_enrolled(id, student.id()).await? { Ok(class) } else { Err(Error::NotEnrolled) }
    }

    /// The teacher's classes by id; archived ones only if `archived`, others only if not.
    pub async fn of_teacher(
        &self,
        teacher: Teacher,
        archived: bool,
        page: Page<ClassId>,
    ) -> Result<Vec<ClassWithStudents>, Error> {
        Ok(self.store.classes_of_teacher(teacher.id(), archived, page).await?)
    }

    /// The classes that the student is in, by id.
    pub async fn of_student(&self, student: Student, page: Page<ClassId>) -> Result<Vec<Class>, Error> {
        Ok(self.store.classes_of_student(student.id(), page).await?)
    }

    /// The ids of all classes that the participant hears of.
    pub async fn heard_by(&self, user: UserId) -> Result<Vec<ClassId>, Error> {
        Ok(self.store.class_ids_of(user).await?)
    }

    /// All students by id, for any teacher.
    pub async fn students(&self, _: Teacher, page: Page<UserId>) -> Result<Vec<Person>, Error> {
        Ok(self.store.students(page).await?)
    }

    /// Changes a class. Notices by e-mail are not promised where none are sent.
    pub async fn change(&self, class: &OwnClass, change: ClassChange) -> Result<ClassWithStudents, Error> {
        if change.absence_notices == Some(true) {
            self.mails.set_up()?;
        }
        let outcome = self.store.change_class(class.id(), change).await?;
        self.forget(class);
        changed(outcome)
    }

    /// Archives a class; an open session of it is finished as DONE would.
    pub async fn archive(&self, class: &OwnClass, origin: Origin) -> Result<ClassWithStudents, Error> {
        let outcome = self.store.archive_class(class.id(), origin).await?;
        self.forget(class);
        changed(outcome)
    }

    /// Enrols a student.
    pub async fn add_student(
        &self,
        class: &OwnClass,
        student: UserId,
        origin: Origin,
    ) -> Result<ClassWithStudents, Error> {
        self.directory
            .account(student, |account| match account {
                None => Err(Error::StudentNotFound),
                Some(account) if account.role == Role::Student => Ok(()),
                Some(_) => Err(Error::NotAStudent),
            })
            .await?;
        changed(self.store.enrol(class.id(), student, origin).await?)
    }

    /// Takes a student out of a class.
    pub async fn remove_student(
        &self,
        class: &OwnClass,
        student: UserId,
        origin: Origin,
    ) -> Result<ClassWithStudents, Error> {
        if !self.store.is_enrolled(class.id(), student).await? {
            return Err(Error::StudentNotFound);
        }
        changed(self.store.remove_student(class.id(), student, origin).await?)
    }

    /// The class was changed here.
    fn forget(&self, class: &OwnClass) {
        self.directory.changed(&Change::Class { class_id: class.id(), teacher_id: class.class().teacher_id });
    }

    async fn any(&self, id: ClassId) -> Result<Arc<Class>, Error> {
        self.directory.class(id, |class| class.ok_or(Error::ClassNotFound)).await
    }

    async fn access(&self, participant: Participant, class: Arc<Class>) -> Result<ClassAccess, Error> {
        let enrolled = match participant {
            Participant::Teacher(_) => false,
            Participant::Student(student) => self.store.is_enrolled(class.id, student.id()).await?,
        };
        class_access(participant, class, enrolled)
    }
}

pub(super) fn active(class: Option<Arc<Class>>) -> Result<Arc<Class>, Error> {
    class.filter(|class| !class.archived).ok_or(Error::ClassNotFound)
}

fn changed(outcome: ClassChanged) -> Result<ClassWithStudents, Error> {
    match outcome {
        ClassChanged::Now(class) => Ok(class),
        ClassChanged::NoClass => Err(Error::ClassNotFound),
    }
}
