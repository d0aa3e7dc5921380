//! The verbs. Both doors call these and nothing else; each call is one decision by [`crate::policy`] and one step of
//! the store.

mod accounts;
mod attendance;
mod classes;
mod mail;

use std::sync::Arc;

pub use accounts::{Accounts, SignUp, TeacherSignup};
pub use attendance::{Attendance, Committed, History, OpenView, Pending};
pub use classes::{ClassView, Classes};
pub use mail::{Letter, Mails, Subject};

use crate::directory::Directory;
use crate::id::Ids;
use crate::mail::MailTokens;
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
    /// Tokens in mails; `None` where no mails are sent.
    pub mail_tokens: Option<Arc<dyn MailTokens>>,
}

/// All services over one set of ports.
pub struct Services {
    /// Sign-up, login and who somebody is.
    pub accounts: Accounts,
    /// Classes and who is in them.
    pub classes: Classes,
    /// Sessions, marks and history.
    pub attendance: Attendance,
    /// E-mails.
    pub mails: Arc<Mails>,
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
        let Ports { store, clock, hasher, ids, mail_tokens } = ports;
        let ids = Arc::new(ids);
        let directory = Arc::new(Directory::new(Arc::clone(&store), Arc::clone(&clock)));
        let mails = Arc::new(Mails {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            hasher: Arc::clone(&hasher),
            ids: Arc::clone(&ids),
            directory: Arc::clone(&directory),
            tokens: mail_tokens,
        });
        Self {
            accounts: Accounts {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                hasher,
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
                mails: Arc::clone(&mails),
                teacher_signup,
            },
            classes: Classes {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
                mails: Arc::clone(&mails),
            },
            attendance: Attendance {
                store: Arc::clone(&store),
                clock: Arc::clone(&clock),
                ids: Arc::clone(&ids),
                directory: Arc::clone(&directory),
            },
            mails,
            directory,
            clock,
            ids,
            store,
        }
    }
}
