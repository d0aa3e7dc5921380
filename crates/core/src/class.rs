//! Classes.

use std::sync::Arc;

use crate::error::FieldError;
use crate::id::{ClassId, UserId};
use crate::time::Timestamp;
use crate::user;

/// A class's name: trimmed, 1 to [`user::NAME_MAX_CHARS`] characters, no control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassName(Arc<str>);

impl ClassName {
    /// Holds `text`, sent as `className`, to the rule.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        user::name("className", text).map(Self)
    }

    /// What a store kept: older data may break today's rule and is shown as it is.
    pub fn stored(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A class as it stands in the store, without its students.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its id.
    pub id: ClassId,
    /// Its name.
    pub name: ClassName,
    /// The teacher who owns it; this never changes.
    pub teacher_id: UserId,
    /// An archived class takes no changes and no sessions; its history stays.
    pub archived: bool,
    /// Whether students are told by e-mail that they were absent.
    pub absence_notices: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Class {
    /// The class after `change`.
    #[must_use]
    pub fn changed(self, change: ClassChange) -> Self {
        let ClassChange { name, absence_notices } = change;
        Self {
            name: name.unwrap_or(self.name),
            absence_notices: absence_notices.unwrap_or(self.absence_notices),
            ..self
        }
    }
}

/// A change to a class: what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassChange {
    /// Another name.
    pub name: Option<ClassName>,
    /// Whether students are told by e-mail that they were absent.
    pub absence_notices: Option<bool>,
}

/// A class and the ids of its students, in the order in which they were enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassWithStudents {
    /// The class.
    pub class: Class,
    /// Who is enrolled.
    pub student_ids: Vec<UserId>,
}
