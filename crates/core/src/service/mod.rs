//! The verbs. Both doors call these and nothing else; each call is one decision by [`crate::policy`] and one step of
//! the store.

mod accounts;
mod attendance;
mod classes;

use std::sync::Arc;

pub use accounts::{Accounts, SignUp, TeacherSignup};
pub use attendance::{Attendance, Committed, History, OpenView, Pending};
pub use classes::{ClassView, Classes};

use crate::directory::Directory;
use crate::id::Ids;
use crate::password::PasswordHasher;
use crate::store::Store;
use crate::time::Clock;

/// What the services stand on.
pub struct Ports {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Password hashing.
    pub hasher: Arc<dyn PasswordHasher>,
    /// New ids.
    pub ids: Ids,
}

/// All services over one set of ports.
pub struct Services {
    /// Sign-up, login and who somebody is.
    pub accounts: Accounts,
    /// Classes and who is in them.
    pub classes: Classes,
    /// Sessions, marks and history.
    pub attendance: Attendance,
    /// What is remembered; whoever follows the committed stream keeps it true.
    pub directory: Arc<Directory>,
    /// The time, for the doors.
    pub clock: Arc<dyn Clock>,
    /// New ids, for the doors.
    pub ids: Arc<Ids>,
    /// The database, for whoever follows what it committed.
    pub store: Arc<dyn Store>,
}

impl Services {
    /// The services over `ports`; new teachers are let in as `teacher_signup` says.
    pub fn new(ports: Ports, teacher_signup: TeacherSignup) -> Self {
        let Ports { store, clock, hasher, ids } = ports;
        let ids = Arc::new(ids);
        let directory = Arc::new(Directory::new(Arc::clone(&store), Arc::clone(&clock)));
        Self {
            accounts: Accounts {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                hasher,
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
                teacher_signup,
            },
            classes: Classes {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
            },
            attendance: Attendance {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
            },
            directory,
            clock,
            ids,
            store,
        }
    }
}
