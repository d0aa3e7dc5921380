//! The commands to open sessions: their order, and how many become one write.
//!
//! Commands wait in lanes. A lane's one task takes all that wait, decides them in their order by
//! [`OpenSession`](rollcall_core::session::OpenSession) in memory, and writes what was decided by one update of the
//! session's document, or by one transaction if it ends with DONE. The update holds only if the session is still at
//! the revision that was decided on; if another replica, or another lane, was faster, all is decided again.
//!
//! Such a write may be sent any number of times and takes effect once. That is how an unknown outcome is found out:
//! it is sent again until the database answers, and then the log says whose entries stand.
//!
//! A lane is a class's, or a teacher's where the class is not known yet. Any lane can carry out any command; who has
//! commands in one lane stays in it until they are answered, so that everybody's commands keep their order.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use mongodb::ClientSession;
use mongodb::bson::{Bson, Document, doc};
use parking_lot::Mutex;
use rollcall_core::error::Seen;
use rollcall_core::id::{ClassId, SessionId, UserId};
use rollcall_core::session::{
    Actor, Command, Event, FinishedSession, LogEntry, Mark, OperationId, Origin, Refusal, Revision, SessionState,
};
use rollcall_core::store::{Cause, Outcome, REPEAT_WINDOW, Receipt, SessionChange, StoreError, Target};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::db::{Db, PAUSE};
use crate::doc::{self, entry_doc, id, integer};
use crate::error::{Failure, Gone, internal};
use crate::memory::{Live, Memory, size_of};
use crate::session::{self, actor, named_since};
use crate::updates::{Applied, Updates};

/// How many commands wait at most; whoever comes then waits for a place.
const QUEUE: usize = 16_384;
/// How many commands one write takes at most.
const BATCH: usize = 1_024;
/// How long a command waits behind a write that does not come through before it is given back.
const WAIT: Duration = Duration::from_millis(4_500);
/// How long closing waits for what is in the queue.
const DRAIN: Duration = Duration::from_secs(10);
/// The size of a document from which on it takes no marks. MongoDB's limit is 16 MiB; DONE and the roster need room.
const FULL: usize = 15 << 20;
/// How often it is looked whether somebody has waited for too long.
const LOOK: Duration = Duration::from_millis(200);
/// The longest pause between two attempts to find out what became of a write.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

struct Order {
    target: Target,
    command: Command,
    origin: Origin,
    since: Instant,
    reply: oneshot::Sender<Result<Outcome, StoreError>>,
    _place: OwnedSemaphorePermit,
}

impl Order {
    fn answer(self, answer: Result<Outcome, StoreError>) {
        // A caller who left does not need the answer; what was done stands.
        let _ = self.reply.send(answer);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum LaneKey {
    Class(ClassId),
    Teacher(UserId),
    Session(SessionId),
}

#[derive(Default)]
struct Lanes {
    waiting: HashMap<LaneKey, VecDeque<Order>>,
    /// In which lane each actor has commands, and how many.
    actors: HashMap<Actor, (LaneKey, usize)>,
    closed: bool,
}

impl Lanes {
    fn leave(&mut self, by: Actor) {
        if let Some((_, waiting)) = self.actors.get_mut(&by) {
            *waiting -= 1;
            if *waiting == 0 {
                self.actors.remove(&by);
            }
        }
    }
}

struct Shared {
    db: Arc<Db>,
    memory: Memory,
    updates: Arc<Updates>,
    lanes: Mutex<Lanes>,
    places: Arc<Semaphore>,
}

/// The door to the lanes.
pub(crate) struct Queue {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Queue {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        let places = Arc::new(Semaphore::new(QUEUE));
        let updates = Updates::new(Arc::clone(&db));
        let shared = Shared { db, memory: Memory::default(), updates, lanes: Mutex::default(), places };
        Self { shared: Arc::new(shared), tasks: TaskTracker::new() }
    }

    /// Puts a command into its lane. When this returns, the place in it is taken.
    pub(crate) async fn submit(
        &self,
        target: Target,
        command: Command,
        origin: Origin,
    ) -> Result<Receipt<Outcome>, StoreError> {
        let closed = || StoreError::Unavailable(Gone("the store is closed").into());
        let place = Arc::clone(&self.shared.places).acquire_owned().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let by = origin.by;
        let order = Order { target, command, origin, since: Instant::now(), reply, _place: place };
        {
            let mut lanes = self.shared.lanes.lock();
            if lanes.closed {
                return Err(closed());
            }
            let key = lanes.actors.get(&by).map_or_else(|| self.shared.lane_of(target), |(key, _)| *key);
            lanes.actors.entry(by).or_insert((key, 0)).1 += 1;
            if let Some(lane) = lanes.waiting.get_mut(&key) {
                lane.push_back(order);
            } else {
                lanes.waiting.insert(key, VecDeque::from([order]));
                self.tasks.spawn(Arc::clone(&self.shared).run(key));
            }
        }
        Ok(Box::pin(async {
            let lost = |_| StoreError::OutcomeUnknown(Gone("the command ended without an answer").into());
            answer.await.map_err(lost)?
        }))
    }

    /// Lets what waits be done, and refuses the rest.
    pub(crate) async fn close(&self) {
        self.shared.lanes.lock().closed = true;
        self.shared.places.close();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("commands wait for a database that does not answer; they are given up");
            self.shared.db.closed.cancel();
            self.tasks.wait().await;
        }
    }
}

/// What was decided for the first few orders of a batch.
#[derive(Default)]
struct Decided {
    outcomes: Vec<Outcome>,
    changes: Vec<Arc<SessionChange>>,
    marks: HashMap<UserId, Mark>,
    new_actors: Vec<Bson>,
    refused: bool,
    finished: Option<FinishedSession>,
}

/// What a target turned out to be.
enum Found {
    Open(Box<Live>),
    /// No session is open that the target could mean.
    None(Option<Seen>),
}

/// What became of a write.
enum Written {
    Yes,
    /// The session has moved on: nothing was written.
    Overtaken,
    Failed(StoreError),
}

impl Shared {
    fn lane_of(&self, target: Target) -> LaneKey {
        match target {
            Target::Class(class) => LaneKey::Class(class),
            Target::Session(session) => LaneKey::Session(session),
            Target::OpenedBy(teacher) => {
                self.memory.class_of(teacher).map_or(LaneKey::Teacher(teacher), LaneKey::Class)
            }
        }
    }

    /// A lane's task: it ends when nothing waits in it.
    async fn run(self: Arc<Self>, key: LaneKey) {
        loop {
            let batch: VecDeque<_> = {
                let mut lanes = self.lanes.lock();
                let Some(lane) = lanes.waiting.get_mut(&key) else { return };
                if lane.is_empty() {
                    lanes.waiting.remove(&key);
                    return;
                }
                let count = lane.len().min(BATCH);
                lane.drain(..count).collect()
            };
            metrics::histogram!("rollcall_commit_batch_size").record(batch.len() as f64);
            metrics::gauge!("rollcall_store_queue_depth").set((QUEUE - self.places.available_permits()) as f64);
            let actors: Vec<_> = batch.iter().map(|order| order.origin.by).collect();
            // After a panic the batch is gone, and its callers hear so; the lane goes on.
            if AssertUnwindSafe(self.obey(key, batch)).catch_unwind().await.is_err() {
                tracing::error!("carrying out commands panicked");
            }
            let mut lanes = self.lanes.lock();
            for by in actors {
                lanes.leave(by);
            }
        }
    }

    /// Carries out a batch in its order, and answers all of it.
    async fn obey(&self, key: LaneKey, mut batch: VecDeque<Order>) {
        while let Some(first) = batch.front() {
            let (target, recalled) = (first.target, self.recall(first.target));
            let known = recalled.is_some();
            let found = match recalled {
                Some(live) => Ok(Found::Open(Box::new(live))),
                None => self.load(target).await,
            };
            let step = match found {
                Ok(Found::Open(live)) => self.decide_and_write(key, &mut batch, *live, known).await,
                Ok(Found::None(seen)) => self.find_nothing(&mut batch, seen).await,
                Err(error) => Err(error),
            };
            match step {
                Ok(()) => {}
                // One that cannot be carried out does not keep the others from it.
                Err(error @ StoreError::Internal(_)) => {
                    if let Some(order) = batch.pop_front() {
                        order.answer(Err(error));
                    }
                }
                // Those who wait behind it shall not find out one after the other.
                Err(error) => {
                    batch.extend(self.give_up_lane(key));
                    for order in batch.drain(..) {
                        order.answer(Err(again(&error)));
                    }
                }
            }
        }
    }

    /// The session that `target` means, as far as is remembered.
    fn recall(&self, target: Target) -> Option<Live> {
        let class = match target {
            Target::Class(class) => class,
            Target::OpenedBy(teacher) => self.memory.class_of(teacher)?,
            Target::Session(_) => return None,
        };
        let live = self.memory.take(class)?;
        if self.memory.concerns(target, &live) {
            return Some(live);
        }
        self.memory.keep(live);
        None
    }

    /// Asks the database which session `target` means.
    async fn load(&self, target: Target) -> Result<Found, StoreError> {
        let sessions = &self.db.sessions;
        let class = match target {
            Target::Class(class) => class,
            Target::OpenedBy(teacher) => {
                let open = doc! { "teacherId": id(teacher), "state": "open" };
                let find = sessions.find_one(open).projection(doc::open_fields()).sort(doc! { "opened": -1 });
                let Some(session) = self.db.find_one_now(find).await? else {
                    self.memory.forget_last(teacher);
                    return Ok(Found::None(None));
                };
                let live = Live::read(&session)?;
                self.memory.opened_last(&live);
                return Ok(Found::Open(Box::new(live)));
            }
            Target::Session(session) => {
                let find = sessions.find_one(doc! { "_id": id(session) }).projection(doc! { "classId": 1 });
                let found = self.db.find_one_now(find).await?;
                match found.and_then(|session| doc::as_id(session.get("classId"))) {
                    Some(class) => class,
                    None => return Ok(Found::None(None)),
                }
            }
        };
        let find = sessions.find_one(doc! { "classId": id(class) }).projection(doc::open_fields());
        // If one is open it is the newest.
        let newest = self.db.find_one_now(find.sort(doc! { "firstRev": -1 })).await?;
        let Some(newest) = newest else {
            return Ok(Found::None(Some(Seen { class_id: class, revision: Revision(0) })));
        };
        let info = session::read(&newest, doc::info)?;
        let another = matches!(target, Target::Session(session) if session != info.id);
        if another || info.state != SessionState::Open {
            return Ok(Found::None(Some(Seen { class_id: class, revision: info.revision })));
        }
        Ok(Found::Open(Box::new(Live::read(&newest)?)))
    }

    /// Answers the first order, which no open session is there for.
    async fn find_nothing(&self, batch: &mut VecDeque<Order>, seen: Option<Seen>) -> Result<(), StoreError> {
        let Some(Order { target, command, origin, .. }) = batch.front() else { return Ok(()) };
        let repeated = self.find_repeated(*target, command, origin).await?;
        let refused = || Outcome::Refused { refusal: Refusal::NoSession, seen };
        let outcome = repeated.map_or_else(refused, Outcome::Repeated);
        if let Some(order) = batch.pop_front() {
            order.answer(Ok(outcome));
        }
        Ok(())
    }

    /// Looks in the database for what the same command did when it was sent before.
    async fn find_repeated(
        &self,
        target: Target,
        command: &Command,
        origin: &Origin,
    ) -> Result<Option<Arc<SessionChange>>, StoreError> {
        let OperationId::Client(_) = origin.operation else { return Ok(None) };
        let whose = match target {
            Target::Class(class) => doc! { "classId": id(class) },
            Target::Session(session) => doc! { "_id": id(session) },
            Target::OpenedBy(_) => doc! { "actors": actor(origin.by) },
        };
        let changes = named_since(&self.db, whose, origin.at.before(REPEAT_WINDOW)).await?;
        Ok(changes.into_iter().rev().find(|change| change.is_repeated_by(target, command, origin)))
    }

    /// Decides as many orders as concern `live`, which was remembered if `known`, writes that, and answers them.
    async fn decide_and_write(
        &self,
        key: LaneKey,
        batch: &mut VecDeque<Order>,
        mut live: Live,
        known: bool,
    ) -> Result<(), StoreError> {
        let base = live.session.info().clone();
        let decided = self.decide(batch, &mut live).await?;
        let Some(first) = decided.changes.first() else {
            // A refusal is not based on memory alone.
            if decided.refused && known {
                return Ok(());
            }
            self.memory.keep(live);
            answer(batch, decided.outcomes);
            return Ok(());
        };
        let started = Instant::now();
        let fence = live.fence(base.revision);
        let written = self.write(key, batch, &fence, &decided, &first.entry, base.first_revision).await;
        metrics::histogram!("rollcall_commit_seconds").record(started.elapsed().as_secs_f64());
        match written {
            Written::Yes => {
                let marks = decided.changes.iter().filter(|change| matches!(change.entry.event, Event::Marked { .. }));
                metrics::counter!("rollcall_marks_total").increment(marks.count() as u64);
                if decided.finished.is_none() {
                    self.memory.keep(live);
                }
                answer(batch, decided.outcomes);
                Ok(())
            }
            Written::Overtaken => {
                self.memory.forget_last(base.teacher_id);
                Ok(())
            }
            Written::Failed(error @ StoreError::Unavailable(_)) => Err(error),
            Written::Failed(error) => {
                // Only what was tried to be written is in doubt; the rest has its turn.
                for order in batch.drain(..decided.outcomes.len()) {
                    order.answer(Err(again(&error)));
                }
                Ok(())
            }
        }
    }

    /// Decides the orders up to the first that concerns another session, or up to DONE.
    async fn decide(&self, batch: &VecDeque<Order>, live: &mut Live) -> Result<Decided, StoreError> {
        let mut decided = Decided::default();
        let (session_id, class_id) = (live.session.info().id, live.session.info().class_id);
        for Order { target, command, origin, .. } in batch {
            if decided.finished.is_some() || !self.memory.concerns(*target, live) {
                break;
            }
            if let OperationId::Client(_) = origin.operation {
                live.recall_named(&self.db, origin).await?;
                let mut repeated = live.repeated(*target, command, origin);
                if repeated.is_none() && is_somebody_elses(*target, origin) {
                    repeated = self.find_repeated(*target, command, origin).await?;
                }
                if let Some(change) = repeated {
                    decided.outcomes.push(Outcome::Repeated(change));
                    continue;
                }
            }
            let seen = Some(Seen { class_id, revision: live.session.info().revision });
            let entry = match decide_one(live, command, origin, &mut decided.finished) {
                Ok(entry) => entry,
                Err(refusal) => {
                    decided.refused = true;
                    decided.outcomes.push(Outcome::Refused { refusal, seen });
                    continue;
                }
            };
            live.bytes += size_of(&entry);
            if let Event::Marked { student_id, new, .. } = entry.event {
                let mark = Mark { status: new, at: entry.origin.at, revision: entry.revision };
                decided.marks.insert(student_id, mark);
            }
            if let OperationId::Client(_) = origin.operation
                && live.is_new_actor(origin.by)
            {
                decided.new_actors.push(actor(origin.by));
            }
            let change = Arc::new(SessionChange { session_id, class_id, entry });
            live.note(&change);
            decided.changes.push(Arc::clone(&change));
            decided.outcomes.push(Outcome::Done(change));
        }
        Ok(decided)
    }

    /// Writes what was decided. When this returns it is known what came of it, unless the store was closed.
    async fn write(
        &self,
        key: LaneKey,
        batch: &mut VecDeque<Order>,
        fence: &Document,
        decided: &Decided,
        first: &LogEntry,
        first_revision: Revision,
    ) -> Written {
        let update = update(decided);
        let mut cause: Option<Cause> = None;
        let mut pause = PAUSE;
        loop {
            let attempt = self.write_once(fence, &update, decided);
            let failure = match self.while_giving_back(key, batch, decided.outcomes.len(), attempt).await {
                Ok(Applied::Yes) => return Written::Yes,
                Ok(Applied::No) if cause.is_none() => return Written::Overtaken,
                // It, or an earlier attempt, may have been what raised the revision.
                Ok(Applied::No | Applied::Perhaps) => {
                    cause.get_or_insert_with(|| Gone("another update of the same message was overtaken").into());
                    match self.entry_at(fence, first.revision, first_revision).await {
                        Ok(Some(Some(entry))) if entry == *first => return Written::Yes,
                        Ok(Some(_)) => return Written::Overtaken,
                        // What raised it did not last: the fence holds again.
                        Ok(None) => Failure::NotDone(Gone("the session went back").into()),
                        Err(StoreError::Internal(defect)) => {
                            return Written::Failed(StoreError::OutcomeUnknown(defect));
                        }
                        Err(StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause)) => Failure::Away(cause),
                    }
                }
                Err(failure) => failure,
            };
            match failure {
                Failure::Away(away) if cause.is_none() => return Written::Failed(StoreError::Unavailable(away)),
                Failure::Refused(defect) if cause.is_none() => return Written::Failed(internal(defect)),
                // Nothing is in doubt: at once again.
                Failure::NotDone(_) if cause.is_none() => {}
                Failure::Away(why) | Failure::Refused(why) | Failure::NotDone(why) => {
                    tracing::debug!(error = &*why as &dyn std::error::Error, "a write's outcome is still unknown");
                }
                Failure::Unknown(why) => {
                    let error = &*why as &dyn std::error::Error;
                    if cause.is_none() {
                        tracing::warn!(error, "a write's outcome is unknown; finding out");
                    }
                    cause = Some(why);
                }
            }
            if self.db.closed.is_cancelled() {
                let cause = cause.unwrap_or_else(|| Gone("the store is closed").into());
                return Written::Failed(StoreError::OutcomeUnknown(cause));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One attempt.
    async fn write_once(&self, fence: &Document, update: &Document, decided: &Decided) -> Result<Applied, Failure> {
        let Some(finished) = &decided.finished else {
            let size = decided.changes.iter().map(|change| size_of(&change.entry)).sum();
            return self.updates.apply(fence.clone(), update.clone(), size).await;
        };
        let (db, fence, update) = (Arc::clone(&self.db), fence.clone(), update.clone());
        let finished = finished.clone();
        self.db
            .attempt(move |tx: &mut ClientSession| {
                let (db, fence, update, finished) = (Arc::clone(&db), fence.clone(), update.clone(), finished.clone());
                async move {
                    let updated = db.sessions.update_one(fence, update).session(&mut *tx).await?;
                    if updated.matched_count == 1 {
                        session::write_records(&db, tx, &finished).await?;
                    }
                    Ok(if updated.matched_count == 1 { Applied::Yes } else { Applied::No })
                }
                .boxed()
            })
            .await
    }

    /// The entry that stands at `revision` in the session, if it has come so far. `None` if it has not and `fence`
    /// may still hold.
    async fn entry_at(
        &self,
        fence: &Document,
        revision: Revision,
        first: Revision,
    ) -> Result<Option<Option<LogEntry>>, StoreError> {
        // A log has no gaps.
        let place = integer(revision.0.saturating_sub(first.0));
        let session = doc! { "_id": fence.get("_id").cloned() };
        let fields = doc! { "epoch": 1, "log": { "$slice": [place, 1_i64] } };
        let found = self.db.find_one_now(self.db.sessions.find_one(session).projection(fields)).await?;
        let Some(found) = found else { return Ok(Some(None)) };
        let entry = session::read(&found, doc::log)?.pop();
        // An epoch never comes back.
        let passed = entry.is_some() || found.get("epoch") != fence.get("epoch");
        Ok(passed.then_some(entry))
    }

    /// Waits for an attempt, and meanwhile gives back what waits behind it for too long.
    async fn while_giving_back<T>(
        &self,
        key: LaneKey,
        batch: &mut VecDeque<Order>,
        decided: usize,
        attempt: impl Future<Output = T>,
    ) -> T {
        let mut attempt = std::pin::pin!(attempt);
        loop {
            match tokio::time::timeout(LOOK, &mut attempt).await {
                Ok(outcome) => return outcome,
                Err(_) => self.give_back_late(key, batch, decided),
            }
        }
    }

    /// Takes everything that waits in a lane out of it.
    fn give_up_lane(&self, key: LaneKey) -> VecDeque<Order> {
        let mut lanes = self.lanes.lock();
        let waiting = lanes.waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
        for order in &waiting {
            lanes.leave(order.origin.by);
        }
        waiting
    }

    /// Gives those back who have waited for too long behind a write that does not come through: `decided` orders of
    /// the batch are part of it, the others have certainly not been carried out.
    fn give_back_late(&self, key: LaneKey, batch: &mut VecDeque<Order>, decided: usize) {
        let late = |order: &Order| order.since.elapsed() > WAIT;
        let mut given_back = Vec::new();
        let behind = batch.split_off(decided);
        for order in behind {
            if late(&order) { given_back.push(order) } else { batch.push_back(order) }
        }
        {
            let mut lanes = self.lanes.lock();
            let waiting = lanes.waiting.get_mut(&key).map(std::mem::take).unwrap_or_default();
            let mut kept = VecDeque::with_capacity(waiting.len());
            for order in waiting {
                if late(&order) {
                    lanes.leave(order.origin.by);
                    given_back.push(order);
                } else {
                    kept.push_back(order);
                }
            }
            if let Some(lane) = lanes.waiting.get_mut(&key) {
                *lane = kept;
            }
        }
        for order in given_back {
            order.answer(Err(StoreError::Unavailable(Gone("the database does not answer").into())));
        }
    }
}

/// Whether `origin` is of somebody whose named commands are not all remembered with the session.
fn is_somebody_elses(target: Target, origin: &Origin) -> bool {
    matches!(target, Target::OpenedBy(teacher) if origin.by != Actor::User(teacher))
}

fn decide_one(
    live: &mut Live,
    command: &Command,
    origin: &Origin,
    finished: &mut Option<FinishedSession>,
) -> Result<LogEntry, Refusal> {
    let full = live.bytes > FULL;
    let (session, origin) = (&mut live.session, origin.clone());
    match command {
        Command::Finish => {
            let end = session.clone().finish(origin);
            let entry = end.entry.clone();
            *finished = Some(end);
            Ok(entry)
        }
        Command::Mark { student_id, .. } if full && session.roster().contains(student_id) => Err(Refusal::LogFull),
        Command::Summarise if full => Err(Refusal::LogFull),
        Command::Summarise => session.summarise(origin),
        Command::Mark { student_id, status, reason } => session.mark(*student_id, *status, reason.clone(), origin),
    }
}

/// The one update that makes what was decided durable.
fn update(decided: &Decided) -> Document {
    let entries: Vec<_> = decided.changes.iter().map(|change| entry_doc(&change.entry)).collect();
    let revision = decided.changes.last().map_or(Revision(0), |change| change.entry.revision);
    let mut set = doc! { "rev": integer(revision.0) };
    let mut update = doc! { "$push": { "log": { "$each": entries } } };
    if let Some(finished) = &decided.finished {
        set = doc::finish_fields(&finished.info);
        update.insert("$unset", doc! { "marks": "" });
    } else {
        set.extend(
            decided
                .marks
                .iter()
                .map(|(student, mark)| (format!("marks.{student}"), Bson::Document(doc::mark_doc(mark)))),
        );
    }
    update.insert("$set", set);
    if !decided.new_actors.is_empty() {
        update.insert("$addToSet", doc! { "actors": { "$each": decided.new_actors.clone() } });
    }
    update
}

fn answer(batch: &mut VecDeque<Order>, outcomes: Vec<Outcome>) {
    for outcome in outcomes {
        if let Some(order) = batch.pop_front() {
            order.answer(Ok(outcome));
        }
    }
}

/// One failure as the answer to one of the many whom it hit.
fn again(error: &StoreError) -> StoreError {
    let said: Cause = match error {
        StoreError::Unavailable(cause) | StoreError::OutcomeUnknown(cause) | StoreError::Internal(cause) => {
            cause.to_string().into()
        }
    };
    match error {
        StoreError::Unavailable(_) => StoreError::Unavailable(said),
        StoreError::OutcomeUnknown(_) => StoreError::OutcomeUnknown(said),
        StoreError::Internal(_) => StoreError::Internal(said),
    }
}
