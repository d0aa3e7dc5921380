//! What stands after DONE.

use crate::id::{ClassId, SessionId, UserId};
use crate::session::Status;
use crate::time::Timestamp;

/// One student's attendance in one finished session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The session.
    pub session_id: SessionId,
    /// The session's class.
    pub class_id: ClassId,
    /// The student.
    pub student_id: UserId,
    /// What stands.
    pub status: Status,
    /// When the student was last marked; `None` for one who was never marked and so became absent.
    pub marked_at: Option<Timestamp>,
}
