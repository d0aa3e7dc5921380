//! Histories: what clients asked, when, what they were answered and what they heard, and whether that can be.
//!
//! A [`Recorder`] writes a [`History`] down while [`workload`] runs; [`History::check`] holds it against the promises:
//!
//! * [`register`]: a student's mark is a linearizable register. Some order of the operations, each at one moment
//!   between its question and its answer, explains all answers. Operations of unknown outcome may have taken effect at any later
//!   time, or never. It trusts no revision and no log.
//! * [`witness`]: the log at the end is such an order, for whole classes. It is whole; every answer and every frame
//!   says what it says; nobody was answered from before what had been seen; nothing is done twice or in spite of "not
//!   recorded".
//! * [`screen`]: frames come in the order of their revisions on every socket, follow and precede answers as they
//!   should, and whoever is connected ends on what the store holds.
//!
//! To record another kind of operation: add it to [`Call`] and [`Answer`], say in [`register`] what it does or shows,
//! and in [`witness`] what the log must then say.

pub mod random;
mod recorder;
mod register;
mod screen;
#[cfg(test)]
mod tests;
mod witness;
pub mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rollcall_core::session::{Counts, Status};

pub use recorder::{Recorder, Ticket};

/// An id as clients see it.
pub type Id = Arc<str>;

/// Nanoseconds since the recording began, by the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `POST /attendance/start`
    Start,
    /// `ATTENDANCE_MARKED`
    Mark {
        /// Who.
        student: Id,
        /// What.
        status: Status,
    },
    /// `TODAY_SUMMARY`
    Summary,
    /// `DONE`
    Done,
    /// `GET /class/{id}/session` by the teacher.
    View,
    /// `MY_ATTENDANCE`, or `GET /class/{id}/session` by a student.
    OwnMark {
        /// Who asks.
        student: Id,
    },
    /// `GET /class/{id}/my-attendance`
    LastRecord {
        /// Who asks.
        student: Id,
    },
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The session that is open now.
    Started {
        /// It.
        session: Id,
        /// The class's revision.
        revision: u64,
    },
    /// The mark stands.
    Marked {
        /// The revision that made it.
        revision: u64,
    },
    /// The summary was announced, or the session is finished.
    Counted {
        /// The revision that did it.
        revision: u64,
        /// What it said.
        counts: Counts,
    },
    /// The open session with everybody's mark.
    Viewed {
        /// It.
        session: Id,
        /// The class's revision.
        revision: u64,
        /// Who is marked what.
        marks: BTreeMap<Id, Status>,
    },
    /// The own mark in the open session.
    Own {
        /// The class's revision.
        revision: u64,
        /// The mark, if there is one yet.
        status: Option<Status>,
    },
    /// The session and status of the last record, if there is one.
    Recorded(Option<(Id, Status)>),
    /// Nothing is open.
    NoSession,
    /// Proven to the client: nothing was done. For a question: it was not answered.
    NotDone,
    /// The client does not know, or not yet.
    Unknown,
}

impl Answer {
    /// The revision that the answer carries.
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Started { revision, .. }
            | Self::Marked { revision }
            | Self::Counted { revision, .. }
            | Self::Viewed { revision, .. }
            | Self::Own { revision, .. } => Some(*revision),
            Self::Recorded(_) | Self::NoSession | Self::NotDone | Self::Unknown => None,
        }
    }
}

/// One call, from the question to its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who asked, as an index of [`History::clients`].
    pub client: usize,
    /// The class it is about.
    pub class: Id,
    /// What was asked.
    pub call: Call,
    /// The command's own name, which its log entry keeps.
    pub name: Option<Id>,
    /// The socket it went over, as an index of [`History::sockets`]; the last one of several.
    pub socket: Option<usize>,
    /// When it was asked first.
    pub invoked: Moment,
    /// When it was sent again last, on another connection, because no answer had come.
    pub resent: Option<Moment>,
    /// When the answer came; `None` as long as the outcome is unknown.
    pub answered: Option<Moment>,
    /// The answer.
    pub answer: Answer,
}

/// What a frame said about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// `ATTENDANCE_MARKED`
    Marked {
        /// Who.
        student: Id,
        /// What.
        status: Status,
    },
    /// `TODAY_SUMMARY`
    Summary(Counts),
    /// `DONE`
    Done(Counts),
    /// `MY_ATTENDANCE`, which is an answer to the sender alone.
    Own,
}

/// A frame about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it was read.
    pub at: Moment,
    /// The class.
    pub class: Id,
    /// The class's revision.
    pub revision: u64,
    /// What it said.
    pub said: Said,
    /// The operation whose name it carried, as an index of [`History::operations`].
    pub answers: Option<usize>,
}

/// One connection and what came over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Whose, as an index of [`History::clients`].
    pub client: usize,
    /// What the client said that it knows, by class; empty for one that asked for nothing.
    pub since: BTreeMap<Id, u64>,
    /// The frames in the order in which they came.
    pub frames: Vec<Frame>,
    /// When it was opened.
    pub opened: Moment,
    /// When it ended; `None` for one that was open when everything was quiet at the end.
    pub ended: Option<Moment>,
}

/// Somebody who asked and listened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What to call them.
    pub name: String,
    /// The classes whose frames they are to hear.
    pub hears: Vec<Id>,
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `START`
    Started,
    /// `ATTENDANCE_MARKED`
    Marked {
        /// Who.
        student: Id,
        /// What it was before.
        old: Option<Status>,
        /// What it is from then on.
        new: Status,
    },
    /// `TODAY_SUMMARY`
    Summary(Counts),
    /// `DONE`
    Done(Counts),
}

/// An entry of a session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The class's revision from then on.
    pub revision: u64,
    /// What happened.
    pub event: Event,
    /// The command's name.
    pub operation: Id,
}

/// A session as the store holds it at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: Id,
    /// Whether it is open.
    pub open: bool,
    /// Its log.
    pub log: Vec<Entry>,
    /// The marks of an open session, the records of a finished one.
    pub standing: BTreeMap<Id, Status>,
}

/// A class as the store holds it at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its id.
    pub id: Id,
    /// Its students, the same all the time.
    pub students: Vec<Id>,
    /// Its sessions, oldest first.
    pub sessions: Vec<Session>,
}

/// Everything that was asked, answered and heard, and what the store holds in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Who took part.
    pub clients: Vec<Client>,
    /// Every call.
    pub operations: Vec<Operation>,
    /// Every connection.
    pub sockets: Vec<Socket>,
    /// What the store holds at the end.
    pub classes: Vec<Class>,
    /// Short names of ids, for explanations.
    pub names: BTreeMap<Id, String>,
    /// Answers that the contract does not know, as they came.
    pub surprises: Vec<String>,
}

/// Which promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Answers are those that the contract knows.
    Contract,
    /// Some order of the operations on one student explains all answers.
    Linearizable,
    /// The log has no gap, one START and one DONE a session, and adds up to marks and records.
    WholeLog,
    /// What was acknowledged is in the log as acknowledged, what was refused is not, and nothing is there twice.
    Acknowledged,
    /// An answer shows the class as it was at the answer's revision.
    Consistent,
    /// Nobody is answered from before what had been seen already.
    RealTime,
    /// Commands of one socket take effect in their order.
    CommandOrder,
    /// Frames say what the log says.
    TrueFrames,
    /// Frames of a class come in the order of their revisions, each once, answers in their place.
    FrameOrder,
    /// Whoever is connected ends on what the store holds.
    Convergence,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What happened, for people.
    pub story: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.story)
    }
}

/// How much a history that keeps all promises has in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Commands that were done.
    pub acknowledged: usize,
    /// Questions that were answered.
    pub read: usize,
    /// Calls that found no open session.
    pub refused: usize,
    /// Commands that were sent again on another connection.
    pub resent: usize,
    /// Commands whose outcome stayed unknown.
    pub unknown: usize,
    /// Frames.
    pub heard: usize,
    /// Sessions that were finished.
    pub finished: usize,
    /// Connections.
    pub connections: usize,
    /// The longest that a client was without a connection.
    pub gap: Duration,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, read, refused, resent, unknown, heard, finished, connections, gap } = self;
        write!(
            f,
            "{acknowledged} commands done, {read} questions answered, {refused} refusals, {resent} sent again, \
             {unknown} unknown, {heard} frames on {connections} connections and at most {gap:.0?} without one, \
             {finished} sessions finished"
        )
    }
}

impl History {
    /// Holds the history against every promise.
    pub fn check(&self) -> Result<Sum, Vec<Violation>> {
        let mut violations: Vec<_> =
            self.surprises.iter().map(|story| Violation { rule: Rule::Contract, story: story.clone() }).collect();
        violations.extend(register::check(self));
        violations.extend(witness::check(self));
        violations.extend(screen::check(self));
        if violations.is_empty() { Ok(self.sum()) } else { Err(violations) }
    }

    fn sum(&self) -> Sum {
        let mut sum = Sum { connections: self.sockets.len(), gap: self.longest_gap(), ..Sum::default() };
        for operation in &self.operations {
            sum.resent += usize::from(operation.resent.is_some());
            match operation.answer {
                Answer::Started { .. } | Answer::Marked { .. } | Answer::Counted { .. } => sum.acknowledged += 1,
                Answer::Viewed { .. } | Answer::Own { .. } | Answer::Recorded(_) => sum.read += 1,
                Answer::NoSession => sum.refused += 1,
                Answer::NotDone => {}
                Answer::Unknown => sum.unknown += usize::from(operation.changes()),
            }
        }
        sum.heard = self.sockets.iter().map(|socket| socket.frames.len()).sum();
        sum.finished = self.classes.iter().flat_map(|class| &class.sessions).filter(|session| !session.open).count();
        sum
    }

    /// The longest time between the end of a client's connection and the next one.
    fn longest_gap(&self) -> Duration {
        let mut ended = BTreeMap::new();
        let mut longest = 0;
        for socket in &self.sockets {
            if let Some(Some(Moment(ended))) = ended.insert(socket.client, socket.ended) {
                longest = longest.max(socket.opened.0.saturating_sub(ended));
            }
        }
        Duration::from_nanos(longest)
    }

    /// What people call this id.
    fn name<'a>(&'a self, id: &'a Id) -> &'a str {
        self.names.get(id).map_or(id, |name| name)
    }

    /// One line about an operation.
    fn line(&self, index: usize) -> String {
        let operation = &self.operations[index];
        let until = match operation.answered {
            Some(moment) => moment.to_string(),
            None => "never".to_owned(),
        };
        let again = operation.resent.map(|moment| format!(" (again at {moment})")).unwrap_or_default();
        let call = match &operation.call {
            Call::Start => "START".to_owned(),
            Call::Mark { student, status } => format!("mark {} {status}", self.name(student)),
            Call::Summary => "TODAY_SUMMARY".to_owned(),
            Call::Done => "DONE".to_owned(),
            Call::View => "see the session".to_owned(),
            Call::OwnMark { student } => format!("see own mark of {}", self.name(student)),
            Call::LastRecord { student } => format!("see last record of {}", self.name(student)),
        };
        let answer = match &operation.answer {
            Answer::Started { session, revision } => format!("open at {revision}, session {session}"),
            Answer::Marked { revision } => format!("done at {revision}"),
            Answer::Counted { revision, counts } => format!("done at {revision}, {} in all", counts.total()),
            Answer::Viewed { session, revision, marks } => {
                let marks: Vec<_> =
                    marks.iter().map(|(student, status)| format!("{} {status}", self.name(student))).collect();
                format!("at {revision}, session {session}: {}", marks.join(", "))
            }
            Answer::Own { revision, status } => format!("at {revision}: {}", show(*status)),
            Answer::Recorded(None) => "none".to_owned(),
            Answer::Recorded(Some((session, status))) => format!("{status} in session {session}"),
            Answer::NoSession => "nothing is open".to_owned(),
            Answer::NotDone => "not done".to_owned(),
            Answer::Unknown => "unknown".to_owned(),
        };
        let who = &self.clients[operation.client].name;
        format!("{} .. {until}{again}  {who}: {call} -> {answer}", operation.invoked)
    }
}

impl Operation {
    /// Whether it is a command: what it does is seen by others.
    fn changes(&self) -> bool {
        matches!(self.call, Call::Start | Call::Mark { .. } | Call::Summary | Call::Done)
    }
}

fn show(status: Option<Status>) -> &'static str {
    status.map_or("not yet marked", Status::as_str)
}
