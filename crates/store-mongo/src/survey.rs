//! What a database holds, and what in it breaks the rules: for `rollcall doctor`. It changes nothing.
//!
//! Whoever serves the database passes over what is named here; nothing of it hides what is healthy.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::Error;
use rollcall_core::id::{ClassId, UserId};
use rollcall_core::user::{EmailKey, Role};
use secrecy::{ExposeSecret, SecretString};

use crate::class::CLASSES;
use crate::db::Db;
use crate::doc::{self, Damaged};
use crate::error::OpenError;
use crate::record::{EARLIER_RECORDS, RECORDS};
use crate::session::SESSIONS;
use crate::user::USERS;
use crate::{MongoStore, open, transfer};

/// How many findings are told one by one.
const TOLD: usize = 1_000;

/// What a database holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The database's name.
    pub database: String,
    /// Whether it is an unfinished copy of another, which no server takes.
    pub unfinished_copy: bool,
    /// Accounts.
    pub users: u64,
    /// Classes.
    pub classes: u64,
    /// Sessions, open and finished.
    pub sessions: u64,
    /// Records of finished sessions.
    pub records: u64,
    /// Records that an earlier backend left.
    pub earlier_records: u64,
    /// What breaks the rules, up to a thousand findings.
    pub findings: Vec<Finding>,
    /// How many more findings there are.
    pub more: u64,
}

/// A document that breaks the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its collection.
    pub collection: &'static str,
    /// Its `_id`.
    pub id: String,
    /// What is wrong, and what follows from it.
    pub problem: String,
}

impl MongoStore {
    /// Looks through the whole database that `url` names. It changes nothing; a server may run meanwhile.
    pub async fn survey(url: &SecretString) -> Result<Survey, OpenError> {
        let db = open::open(url.expose_secret(), false).await?;
        let survey = Surveyor::default().look(&db).await.map_err(OpenError::Database);
        db.shut_down().await;
        survey
    }
}

#[derive(Default)]
struct Surveyor {
    survey: Survey,
    roles: HashMap<UserId, Option<Role>>,
    addresses: HashMap<EmailKey, Bson>,
    classes: HashSet<ClassId>,
}

impl Surveyor {
    async fn look(mut self, db: &Db) -> Result<Survey, Error> {
        db.database.name().clone_into(&mut self.survey.database);
        self.survey.unfinished_copy = transfer::marker(db).await?.is_some();
        let everything = doc! {};
        self.each(&db.users, everything.clone(), Self::user).await?;
        self.each(&db.classes, everything.clone(), Self::class).await?;
        let mut fields = doc::info_fields();
        fields.insert("roster", 1);
        self.each(&db.sessions, fields, Self::session).await?;
        self.each(&db.records, everything.clone(), |this, record| this.record(RECORDS, record)).await?;
        self.each(&db.earlier_records, everything, |this, record| this.record(EARLIER_RECORDS, record)).await?;
        Ok(self.survey)
    }

    /// Shows every document of a collection to `look`, by id: the oldest first.
    async fn each(
        &mut self,
        collection: &Collection<Document>,
        fields: Document,
        look: impl Fn(&mut Self, &Document),
    ) -> Result<(), Error> {
        let mut found = collection.find(doc! {}).projection(fields).sort(doc! { "_id": 1 }).await?;
        while let Some(document) = found.try_next().await? {
            look(self, &document);
        }
        Ok(())
    }

    fn find(&mut self, collection: &'static str, document: &Document, problem: impl Into<String>) {
        let Damaged { collection, id, problem } = doc::damage(collection, document, doc::Problem(problem.into()));
        if self.survey.findings.len() < TOLD {
            self.survey.findings.push(Finding { collection, id, problem: problem.0 });
        } else {
            self.survey.more += 1;
        }
    }

    fn user(&mut self, user: &Document) {
        self.survey.users += 1;
        let account = doc::account(user);
        if let Some(id) = doc::as_id(user.get("_id")) {
            self.roles.insert(id, account.as_ref().ok().map(|account| account.role));
        }
        if let Err(problem) = account {
            self.find(USERS, user, format!("{problem}; the account cannot be used"));
        }
        let Some(key) = user.get("email").and_then(Bson::as_str).map(EmailKey::of) else { return };
        let id = user.get("_id").cloned().unwrap_or(Bson::Null);
        if let Some(older) = self.addresses.get(&key) {
            let problem = format!("the older account {older} has the same e-mail address; this one cannot log in");
            self.find(USERS, user, problem);
        } else {
            self.addresses.insert(key, id);
        }
    }

    fn class(&mut self, class: &Document) {
        self.survey.classes += 1;
        self.classes.extend(doc::as_id::<ClassId>(class.get("_id")));
        match doc::class(class) {
            Err(problem) => self.find(CLASSES, class, format!("{problem}; the class does not show")),
            Ok(found) if self.roles.get(&found.teacher_id) != Some(&Some(Role::Teacher)) => {
                self.find(CLASSES, class, format!("its teacher {} is not there, or no teacher", found.teacher_id));
            }
            Ok(_) => {}
        }
        let Some(students) = class.get("studentIds").and_then(Bson::as_array) else {
            self.find(CLASSES, class, "`studentIds` is missing or no list; the class has no students");
            return;
        };
        let mut seen = HashSet::new();
        for student in students {
            let Some(id) = doc::as_id::<UserId>(Some(student)) else {
                self.find(CLASSES, class, format!("{student} in `studentIds` is no id; it is passed over"));
                continue;
            };
            if !seen.insert(id) {
                self.find(CLASSES, class, format!("the student {id} is listed twice, and counts once"));
            }
            match self.roles.get(&id) {
                Some(Some(Role::Student)) => {}
                Some(_) => self.find(CLASSES, class, format!("{id} in `studentIds` is not a student's account")),
                None => self.find(CLASSES, class, format!("the student {id} has no account")),
            }
        }
    }

    fn session(&mut self, session: &Document) {
        self.survey.sessions += 1;
        match doc::info(session) {
            Err(problem) => self.find(SESSIONS, session, problem.to_string()),
            Ok(info) if !self.classes.contains(&info.class_id) => {
                self.find(SESSIONS, session, format!("its class {} is not there", info.class_id));
            }
            Ok(_) => {}
        }
    }

    fn record(&mut self, collection: &'static str, record: &Document) {
        let earlier = !record.contains_key("sessionId");
        let read = if earlier { doc::earlier_record(record) } else { doc::record(record) };
        *(if earlier { &mut self.survey.earlier_records } else { &mut self.survey.records }) += 1;
        match read {
            Err(problem) => self.find(collection, record, format!("{problem}; it is not shown")),
            Ok(found) if !self.classes.contains(&found.class_id) => {
                self.find(collection, record, format!("its class {} is not there", found.class_id));
            }
            Ok(found) if !self.roles.contains_key(&found.student_id) => {
                self.find(collection, record, format!("its student {} has no account", found.student_id));
            }
            Ok(_) => {}
        }
    }
}
