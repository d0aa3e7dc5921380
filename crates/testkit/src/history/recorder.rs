//! Writing a history down while it happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Answer, Call, Class, Client, Frame, History, Id, Moment, Operation, Said, Socket};

/// A call that was written down, for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(usize);

/// Writes down what several tasks ask and hear, each at its time.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    history: Mutex<History>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { began: Instant::now(), history: Mutex::default() }
    }
}

impl Recorder {
    /// What people call this id.
    pub fn name(&self, id: &Id, name: impl Into<String>) {
        self.history().names.insert(id.clone(), name.into());
    }

    /// Somebody who is to hear of these classes.
    pub fn client(&self, name: impl Into<String>, hears: Vec<Id>) -> usize {
        let mut history = self.history();
        history.clients.push(Client { name: name.into(), hears });
        history.clients.len() - 1
    }

    /// A call, before it is sent.
    pub fn invoke(&self, client: usize, class: &Id, call: Call, name: Option<Id>, socket: Option<usize>) -> Ticket {
        let mut history = self.history();
        // Read under the lock: operations stand in the order of their times.
        let invoked = self.now();
        history.operations.push(Operation {
            client,
            class: class.clone(),
            call,
            name,
            socket,
            invoked,
            resent: None,
            answered: None,
            answer: Answer::Unknown,
        });
        Ticket(history.operations.len() - 1)
    }

    /// The same call, before it is sent once more over another socket.
    pub fn invoke_again(&self, ticket: Ticket, socket: usize) {
        let now = self.now();
        let operation = &mut self.history().operations[ticket.0];
        operation.resent = Some(now);
        operation.socket = Some(socket);
    }

    /// An answer, once it has come.
    pub fn answer(&self, ticket: Ticket, answer: Answer) {
        let now = self.now();
        let operation = &mut self.history().operations[ticket.0];
        operation.answered = (answer != Answer::Unknown).then_some(now);
        operation.answer = answer;
    }

    /// A connection that was opened. `since` is what it asked for.
    pub fn connected(&self, client: usize, since: BTreeMap<Id, u64>) -> usize {
        let opened = self.now();
        let mut history = self.history();
        history.sockets.push(Socket { client, since, frames: Vec::new(), opened, ended: None });
        history.sockets.len() - 1
    }

    /// A connection that ended.
    pub fn disconnected(&self, socket: usize) {
        let now = self.now();
        self.history().sockets[socket].ended = Some(now);
    }

    /// A frame about a session, once it has come.
    pub fn heard(&self, socket: usize, class: &Id, revision: u64, said: Said, answers: Option<Ticket>) {
        let at = self.now();
        let answers = answers.map(|ticket| ticket.0);
        self.history().sockets[socket].frames.push(Frame { at, class: class.clone(), revision, said, answers });
    }

    /// An answer that the contract does not know.
    pub fn surprise(&self, what: impl Into<String>) {
        self.history().surprises.push(what.into());
    }

    /// The history, with what the store holds now that all is quiet.
    pub fn finish(&self, classes: Vec<Class>) -> History {
        let mut history = std::mem::take(&mut *self.history());
        history.classes = classes;
        history
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
