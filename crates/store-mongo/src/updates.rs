//! The way of updates to the database: those of many sessions share a message.
//!
//! A message costs the database several times what an update in it costs, and each waits for the same majority. So few
//! messages are on their way at any time, and whatever update is ready meanwhile goes with the next. With little to do
//! an update goes at once and alone. The updates of a message are independent: each has a fence of its own, and none
//! is kept from being done by another that is not.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use mongodb::bson::{Bson, Document, doc};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::db::{Db, SERVER, millis};
use crate::doc::get_number;
use crate::error::{Failure, Gone, ServerError};
use crate::session::SESSIONS;

/// How many messages are on their way at most. While the database makes one durable it works on another.
const MESSAGES: usize = 4;
/// How many updates a message takes at most.
const TOGETHER: usize = 128;
/// How many bytes of updates a message takes, unless it takes one only. MongoDB's limit is 16 MiB.
const SIZE: usize = 4 << 20;

/// How long an update may wait behind a message that fails: sent after that it would be answered too late.
const LATE: Duration = Duration::from_secs(1);

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It was done.
    Yes,
    /// Its fence did not hold.
    No,
    /// Some of a message were done and some were not, and this is one of them.
    Perhaps,
}

type Answer = Result<Applied, Failure>;

struct Update {
    fence: Document,
    change: Document,
    /// About how many bytes it has.
    size: usize,
    since: Instant,
    reply: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Update>,
    messages: usize,
}

/// Updates of sessions on their way.
pub(crate) struct Updates {
    db: Arc<Db>,
    state: Mutex<State>,
}

impl Updates {
    pub(crate) fn new(db: Arc<Db>) -> Arc<Self> {
        Arc::new(Self { db, state: Mutex::default() })
    }

    /// Makes a change of about `size` bytes to the session that `fence` picks, if it is as the fence says.
    pub(crate) async fn apply(self: &Arc<Self>, fence: Document, change: Document, size: usize) -> Answer {
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            state.waiting.push_back(Update { fence, change, size, since: Instant::now(), reply });
            if state.messages < MESSAGES {
                state.messages += 1;
                tokio::spawn(Arc::clone(self).send_all());
            }
        }
        answer.await.unwrap_or_else(|_| Err(Failure::Unknown(Gone("sending an update ended early").into())))
    }

    /// Sends until nothing waits.
    async fn send_all(self: Arc<Self>) {
        while let Some(updates) = self.next() {
            // After a panic the callers of these hear that it is not known what became of them.
            if AssertUnwindSafe(self.send(updates)).catch_unwind().await.is_err() {
                tracing::error!("sending updates panicked");
            }
        }
    }

    /// The updates of the next message; `None` ends the task that asks.
    fn next(&self) -> Option<Vec<Update>> {
        let mut state = self.state.lock();
        let (mut count, mut size) = (0, 0);
        for update in state.waiting.iter().take(TOGETHER) {
            size += update.size;
            if count > 0 && size > SIZE {
                break;
            }
            count += 1;
        }
        if count == 0 {
            state.messages -= 1;
            return None;
        }
        Some(state.waiting.drain(..count).collect())
    }

    async fn send(&self, updates: Vec<Update>) {
        let (mut statements, mut replies) = (Vec::with_capacity(updates.len()), Vec::with_capacity(updates.len()));
        for Update { fence, change, reply, .. } in updates {
            statements.push(Bson::Document(doc! { "q": fence, "u": change }));
            replies.push(reply);
        }
        let command = doc! {
            "update": SESSIONS,
            "updates": statements,
            "ordered": false,
            "writeConcern": { "w": "majority", "j": true, "wtimeout": millis(SERVER) },
        };
        let answers = match self.db.send(self.db.database.run_command(command)).await {
            Ok(said) => read(&said, replies.len()),
            Err(failure) => {
                // Those who wait shall not find out one message after the other.
                match failure {
                    Failure::Away(_) => self.give_up(Duration::ZERO),
                    _ => self.give_up(LATE),
                }
                replies.iter().map(|_| Err(failure.again())).collect()
            }
        };
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Who left does not need the answer; what was done stands.
            let _ = reply.send(answer);
        }
    }

    /// Tells those who have waited for so long that nothing was sent.
    fn give_up(&self, age: Duration) {
        // They wait in the order in which they came.
        let waiting = &mut self.state.lock().waiting;
        let late = waiting.partition_point(|update| update.since.elapsed() >= age);
        for update in waiting.drain(..late) {
            let _ = update.reply.send(Err(Failure::Away(Gone("the database does not answer").into())));
        }
    }
}

/// What the database's answer says of each of `count` updates.
fn read(said: &Document, count: usize) -> Vec<Answer> {
    let concern = said.get_document("writeConcernError").ok().map(ServerError::read);
    let mut failed: Vec<Option<ServerError>> = Vec::new();
    failed.resize_with(count, || None);
    for error in said.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
        let place = get_number(error, "index").and_then(|index| usize::try_from(index).ok());
        if let Some(place) = place.and_then(|index| failed.get_mut(index)) {
            *place = Some(ServerError::read(error));
        }
    }
    let others = failed.iter().filter(|error| error.is_none()).count();
    let applied = match get_number(said, "n").and_then(|matched| usize::try_from(matched).ok()) {
        Some(0) => Applied::No,
        Some(matched) if matched == others => Applied::Yes,
        _ => Applied::Perhaps,
    };
    let answer = |error: Option<ServerError>| match (error, &concern) {
        (Some(error), _) => Err(Failure::of_server(error)),
        // That a fence does not hold may be seen on what does not last.
        (None, Some(concern)) => Err(Failure::Unknown(concern.clone().into())),
        (None, None) => Ok(applied),
    };
    failed.into_iter().map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of each: `y`es, `n`o, `p`erhaps, `u`nknown, `r`efused.
    fn told(said: &Document, count: usize) -> String {
        let letter = |answer: Answer| match answer {
            Ok(Applied::Yes) => 'y',
            Ok(Applied::No) => 'n',
            Ok(Applied::Perhaps) => 'p',
            Err(Failure::Unknown(_)) => 'u',
            Err(Failure::Refused(_)) => 'r',
            Err(_) => '?',
        };
        read(said, count).into_iter().map(letter).collect()
    }

    #[test]
    fn a_message_tells_of_each_update() {
        assert_eq!(told(&doc! { "n": 3, "nModified": 3, "ok": 1 }, 3), "yyy");
        assert_eq!(told(&doc! { "n": 0, "ok": 1 }, 3), "nnn");
        assert_eq!(told(&doc! { "n": 2_i64, "ok": 1 }, 3), "ppp");
        // An answer that is none.
        assert_eq!(told(&doc! { "ok": 1 }, 2), "pp");
    }

    #[test]
    fn an_error_concerns_its_update_alone() {
        let too_large = doc! { "index": 1, "code": 17419, "errmsg": "Resulting document after update is larger" };
        let busy = doc! { "index": 0, "code": 112, "errmsg": "WriteConflict" };
        assert_eq!(told(&doc! { "n": 2, "writeErrors": [too_large.clone()] }, 3), "yry");
        assert_eq!(told(&doc! { "n": 1, "writeErrors": [busy, too_large.clone()] }, 3), "ury");
        assert_eq!(told(&doc! { "n": 1, "writeErrors": [too_large] }, 3), "prp");
    }

    #[test]
    fn without_a_majority_nothing_is_known() {
        let concern = doc! { "code": 64, "errmsg": "waiting for replication timed out" };
        assert_eq!(told(&doc! { "n": 2, "writeConcernError": concern }, 2), "uu");
    }
}
