//! Who may do what.
//!
//! Services take [`Teacher`], [`Student`] and [`OwnClass`], and only this module makes them. A door cannot forget a
//! check: without it, it has nothing to call the service with.

use std::sync::Arc;

use crate::class::Class;
use crate::error::Error;
use crate::id::{ClassId, UserId};
use crate::user::{Account, Role};

/// A signed-in account, as it is now.
#[derive(Clone, Debug)]
pub struct Member(Arc<Account>);

impl Member {
    /// The account behind a token that was issued at `token_version`: refused when the account is disabled or has
    /// revoked its tokens since.
    pub fn admit(account: Arc<Account>, token_version: u32) -> Result<Self, Error> {
        if account.disabled || account.token_version != token_version {
            return Err(Error::Unauthenticated);
        }
        Ok(Self(account))
    }

    /// The account.
    pub fn account(&self) -> &Arc<Account> {
        &self.0
    }

    /// The account's id.
    pub fn id(&self) -> UserId {
        self.0.id
    }

    /// The account as a teacher.
    pub fn teacher(&self) -> Result<Teacher, Error> {
        match self.0.role {
            Role::Teacher => Ok(Teacher(self.0.id)),
            Role::Student | Role::Admin => Err(Error::TeacherRequired),
        }
    }

    /// The account as a student.
    pub fn student(&self) -> Result<Student, Error> {
        match self.0.role {
            Role::Student => Ok(Student(self.0.id)),
            Role::Teacher | Role::Admin => Err(Error::StudentRequired),
        }
    }

    /// The account as one that takes part in classes.
    pub fn participant(&self) -> Result<Participant, Error> {
        match self.0.role {
            Role::Teacher => Ok(Participant::Teacher(Teacher(self.0.id))),
            Role::Student => Ok(Participant::Student(Student(self.0.id))),
            Role::Admin => Err(Error::TeacherRequired),
        }
    }
}

/// Proof that somebody is a teacher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Teacher(UserId);

impl Teacher {
    /// The teacher's account.
    pub fn id(self) -> UserId {
        self.0
    }

    /// The class as the teacher's own; refused when it is another's.
    pub fn own(self, class: Arc<Class>) -> Result<OwnClass, Error> {
        if class.teacher_id == self.0 { Ok(OwnClass(class)) } else { Err(Error::NotClassTeacher) }
    }
}

/// Proof that somebody is a student.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Student(UserId);

impl Student {
    /// The student's account.
    pub fn id(self) -> UserId {
        self.0
    }
}

/// Somebody who takes part in classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Participant {
    /// As a teacher.
    Teacher(Teacher),
    /// As a student.
    Student(Student),
}

/// Proof that a class is the teacher's who asks.
#[derive(Clone, Debug)]
pub struct OwnClass(Arc<Class>);

impl OwnClass {
    /// The class.
    pub fn class(&self) -> &Arc<Class> {
        &self.0
    }

    /// The class's id.
    pub fn id(&self) -> ClassId {
        self.0.id
    }
}

/// How somebody may see a class that they take part in.
#[derive(Clone, Debug)]
pub enum ClassAccess {
    /// Everything: it is theirs.
    Owner(OwnClass),
    /// What students see, and their own part.
    Enrolled(Student, Arc<Class>),
}

/// How `participant` may see `class`; `enrolled` says whether they are one of its students.
///
/// A student who is not in the class is told the same as a teacher whose class it is not.
pub fn class_access(participant: Participant, class: Arc<Class>, enrolled: bool) -> Result<ClassAccess, Error> {
    match participant {
        Participant::Teacher(teacher) => teacher.own(class).map(ClassAccess::Owner),
        Participant::Student(student) if enrolled => Ok(ClassAccess::Enrolled(student, class)),
        Participant::Student(_) => Err(Error::NotClassTeacher),
    }
}
