//! One topic: who hears it, and the order in which.
//!
//! While a topic has members, one task owns their list and works through an ordered queue of commands, so that frames,
//! joins and leaves take effect in the order in which they were given. The task starts with the first member and ends
//! when the last has left and nothing is queued; both are decided under the lock of the queue, so no command can fall
//! in between.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task;
use tokio::time;

use crate::hub::{Connection, ConnectionId, Hub};
use crate::outbox::{Chunk, Limits, Ticket};
use crate::{Frame, Key, Tier, close};

/// Frames that go to a member in one piece, which leaves a sound margin below what an outbox holds: between two
/// pieces the sockets get a chance to write.
const PIECE_FRAMES: usize = 256;
const PIECE_BYTES: usize = 64 * 1024;

/// What the members of a topic are sent.
#[derive(Clone, Debug)]
pub struct Message {
    /// What everybody gets.
    pub frame: Frame,
    /// The one connection that gets something else instead.
    pub variant: Option<(ConnectionId, Frame)>,
}

impl Message {
    fn for_connection(&self, id: ConnectionId) -> &Frame {
        match &self.variant {
            Some((other, frame)) if *other == id => frame,
            _ => &self.frame,
        }
    }
}

impl From<Frame> for Message {
    fn from(frame: Frame) -> Self {
        Self { frame, variant: None }
    }
}

/// Something that happened in a topic. Without a version it has its place in the order all the same.
pub(crate) struct Event {
    pub(crate) version: Option<u64>,
    pub(crate) message: Option<Message>,
}

pub(crate) enum Command {
    Publish(Event),
    Join {
        connection: Connection,
        tier: Tier,
        hold: bool,
    },
    Leave(ConnectionId),
    Release {
        id: ConnectionId,
        after: u64,
    },
    /// Answered as soon as the connection's frames are not held (any more).
    Released {
        id: ConnectionId,
        done: oneshot::Sender<()>,
    },
}

/// What is remembered of a topic without members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    /// The last version published; 0: none.
    pub(crate) published: u64,
    /// A version that was taken as published after nothing had been heard of it.
    pub(crate) assumed: u64,
}

#[derive(Default)]
struct State {
    versions: Versions,
    /// The versions up to which the first tier, and everybody, has all frames in the outbox.
    first: u64,
    rest: u64,
    queue: Vec<Command>,
    running: bool,
    waiters: Vec<Waiter>,
}

struct Waiter {
    tier: Tier,
    version: u64,
    done: oneshot::Sender<()>,
}

impl State {
    fn reached(&self, tier: Tier) -> u64 {
        let applied = match tier {
            Tier::First => self.first,
            Tier::Rest => self.rest,
        };
        applied.max(self.versions.assumed)
    }

    fn progress(&mut self, tier: Tier, version: u64) {
        self.first = self.first.max(version);
        if tier == Tier::Rest {
            self.rest = self.rest.max(version);
        }
        let (first, rest) = (self.reached(Tier::First), self.reached(Tier::Rest));
        let due = |waiter: &mut Waiter| waiter.version <= if waiter.tier == Tier::First { first } else { rest };
        for waiter in self.waiters.extract_if(.., due) {
            // Who waited may be gone.
            let _ = waiter.done.send(());
        }
    }
}

/// What [`Topic::wait`] found.
pub(crate) enum Wait {
    /// The version is reached.
    Over,
    /// It is not; the receiver hears when it is.
    For {
        reached: oneshot::Receiver<()>,
        /// Whether anything was ever published to the topic.
        known: bool,
    },
}

/// The part of a topic that others reach.
pub(crate) struct Topic {
    key: Key,
    state: Mutex<State>,
    news: Notify,
}

impl Topic {
    pub(crate) fn new(key: Key, versions: Versions) -> Self {
        let state = State { versions, first: versions.published, rest: versions.published, ..State::default() };
        Self { key, state: Mutex::new(state), news: Notify::new() }
    }

    pub(crate) fn key(&self) -> Key {
        self.key
    }

    /// Orders an event. An event of a version that was published before is ignored.
    pub(crate) fn publish(&self, event: Event) {
        let mut state = self.state.lock();
        if let Some(version) = event.version {
            if version <= state.versions.published {
                return;
            }
            state.versions.published = version;
        }
        if state.running {
            state.queue.push(Command::Publish(event));
            drop(state);
            self.news.notify_one();
        } else if let Some(version) = event.version {
            state.progress(Tier::Rest, version);
        }
    }

    pub(crate) fn join(self: &Arc<Self>, hub: &Arc<Hub>, connection: Connection, tier: Tier, hold: bool) {
        let mut state = self.state.lock();
        state.queue.push(Command::Join { connection, tier, hold });
        if mem::replace(&mut state.running, true) {
            drop(state);
            self.news.notify_one();
        } else {
            drop(state);
            task::spawn(Members::new(hub, self).run(Arc::clone(hub)));
        }
    }

    /// Orders a command that concerns a member; without members there is nothing to do.
    pub(crate) fn order(&self, command: Command) {
        let mut state = self.state.lock();
        if state.running {
            state.queue.push(command);
            drop(state);
            self.news.notify_one();
        }
    }

    /// Asks to hear when the members of the tier have all frames up to the version.
    pub(crate) fn wait(&self, tier: Tier, version: u64) -> Wait {
        let mut state = self.state.lock();
        if state.reached(tier) >= version {
            return Wait::Over;
        }
        let (done, reached) = oneshot::channel();
        // Those who gave up would otherwise stay until their version comes.
        state.waiters.retain(|waiter| !waiter.done.is_closed());
        state.waiters.push(Waiter { tier, version, done });
        Wait::For { reached, known: state.versions.published > 0 }
    }

    /// Takes the version as published for those who wait, though it may still come.
    pub(crate) fn assume(&self, version: u64) {
        let mut state = self.state.lock();
        state.versions.assumed = state.versions.assumed.max(version);
        let rest = state.rest;
        state.progress(Tier::Rest, rest);
    }

    /// What to remember, if nobody is a member. The caller sees to it that nobody else holds the topic.
    pub(crate) fn idle(&self) -> Option<Versions> {
        let state = self.state.lock();
        (!state.running).then_some(state.versions)
    }

    /// Fills `commands`, which is empty, with all that is queued. False: the queue was empty.
    fn take(&self, commands: &mut Vec<Command>) -> bool {
        mem::swap(&mut self.state.lock().queue, commands);
        !commands.is_empty()
    }

    /// Ends the task unless something is queued.
    fn stop(&self) -> bool {
        let mut state = self.state.lock();
        state.running = !state.queue.is_empty();
        !state.running
    }

    fn progress(&self, tier: Tier, version: u64) {
        self.state.lock().progress(tier, version);
    }
}

struct Member {
    connection: Connection,
    /// For the few that do not get every frame at once.
    pace: Option<Box<Pace>>,
}

struct Pace {
    held: Option<Held>,
    /// Frames up to this version reached the connection by another way.
    after: u64,
}

/// Frames that wait until the connection was sent what came before.
#[derive(Default)]
struct Held {
    frames: Vec<(Option<u64>, Frame)>,
    bytes: usize,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Member {
    fn give(&mut self, version: Option<u64>, frame: Frame, limits: Limits) {
        if let Some(pace) = &mut self.pace {
            if version.is_some_and(|version| version <= pace.after) {
                return;
            }
            if let Some(held) = &mut pace.held {
                held.bytes += frame.wire().len();
                held.frames.push((version, frame));
                if held.frames.len() > limits.frames || held.bytes > limits.bytes {
                    *held = Held { waiters: mem::take(&mut held.waiters), ..Held::default() };
                    self.connection.close(close::TOO_SLOW);
                }
                return;
            }
            if version.is_some() {
                // Versions grow: none comes any more that the connection already has.
                self.pace = None;
            }
        }
        self.connection.send(frame);
    }

    fn release(&mut self, topic: Key, after: u64, limits: Limits) {
        let Some(held) = self.pace.take().and_then(|pace| pace.held) else { return };
        self.pace = Some(Box::new(Pace { held: None, after }));
        for (version, frame) in held.frames {
            self.give(version, frame, limits);
        }
        self.connection.released(topic);
        for waiter in held.waiters {
            let _ = waiter.send(());
        }
    }
}

/// Frames that everybody without an exception gets as one chunk.
struct Piece {
    events: std::ops::Range<usize>,
    bytes: Bytes,
    frames: usize,
}

/// The task's own part of a topic.
struct Members {
    topic: Arc<Topic>,
    limits: Limits,
    wait: Duration,
    first: HashMap<ConnectionId, Member>,
    rest: HashMap<ConnectionId, Member>,
}

impl Members {
    fn new(hub: &Hub, topic: &Arc<Topic>) -> Self {
        Self {
            topic: Arc::clone(topic),
            limits: hub.limits(),
            wait: hub.first_tier_wait(),
            first: HashMap::new(),
            rest: HashMap::new(),
        }
    }

    async fn run(mut self, hub: Arc<Hub>) {
        let mut commands = Vec::new();
        let mut events = Vec::new();
        loop {
            while self.topic.take(&mut commands) {
                for command in commands.drain(..) {
                    if let Command::Publish(event) = command {
                        events.push(event);
                        continue;
                    }
                    self.deliver(&mut events).await;
                    self.apply(command);
                }
                self.deliver(&mut events).await;
                // A burst's memory goes with the burst.
                commands.shrink_to(64);
                events.shrink_to(64);
            }
            if self.first.is_empty() && self.rest.is_empty() && self.topic.stop() {
                break;
            }
            self.topic.news.notified().await;
        }
        let Self { topic, .. } = self;
        hub.retire(topic);
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Publish(_) => unreachable!("events are gathered and delivered together"),
            Command::Join { connection, tier, hold } => self.join(connection, tier, hold),
            Command::Leave(id) => {
                self.first.remove(&id);
                self.rest.remove(&id);
                self.first.shrink_to(self.first.len() * 2);
                self.rest.shrink_to(self.rest.len() * 2);
            }
            Command::Release { id, after } => {
                let (topic, limits) = (self.topic.key(), self.limits);
                if let Some(member) = self.member(id) {
                    member.release(topic, after, limits);
                }
            }
            Command::Released { id, done } => {
                let held = self.member(id).and_then(|member| member.pace.as_mut()?.held.as_mut());
                match held {
                    Some(held) => held.waiters.push(done),
                    None => drop(done.send(())),
                }
            }
        }
    }

    fn member(&mut self, id: ConnectionId) -> Option<&mut Member> {
        self.first.get_mut(&id).or_else(|| self.rest.get_mut(&id))
    }

    /// Joining again changes the tier, and begins to hold frames if that is asked for.
    fn join(&mut self, connection: Connection, tier: Tier, hold: bool) {
        let id = connection.id();
        let before = self.first.remove(&id).or_else(|| self.rest.remove(&id));
        let mut member = before.unwrap_or(Member { connection, pace: None });
        if hold {
            member.pace.get_or_insert_with(|| Box::new(Pace { held: None, after: 0 })).held.get_or_insert_default();
        }
        match tier {
            Tier::First => self.first.insert(id, member),
            Tier::Rest => self.rest.insert(id, member),
        };
    }

    /// Brings the events to everybody, in order, and leaves none.
    async fn deliver(&mut self, events: &mut Vec<Event>) {
        let Some(last) = events.iter().map(|event| event.version.unwrap_or(0)).max() else { return };
        let pieces = pieces(events);
        let variants = variants(events);

        if !pieces.is_empty() && !self.first.is_empty() {
            let (ticket, mut written) = mpsc::channel(1);
            for piece in &pieces {
                give(&mut self.first, piece, events, &variants, self.limits, Some(&ticket));
            }
            drop(ticket);
            self.topic.progress(Tier::First, last);
            if !self.rest.is_empty() {
                // Nothing is ever sent: the channel ends when the last chunk is written or given up.
                let _ = time::timeout(self.wait, written.recv()).await;
            }
        }
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                task::yield_now().await;
            }
            give(&mut self.rest, piece, events, &variants, self.limits, None);
        }
        self.topic.progress(Tier::Rest, last);
        events.clear();
    }
}

/// Gives one piece to all members of a tier: one lock and at most one waking for each.
fn give(
    members: &mut HashMap<ConnectionId, Member>,
    piece: &Piece,
    events: &[Event],
    variants: &[ConnectionId],
    limits: Limits,
    ticket: Option<&Ticket>,
) {
    for (id, member) in members {
        let ticket = ticket.cloned();
        if member.pace.is_none() && !variants.contains(id) {
            member.connection.push(Chunk { bytes: piece.bytes.clone(), frames: piece.frames, ticket });
            continue;
        }
        for event in &events[piece.events.clone()] {
            if let Some(message) = &event.message {
                member.give(event.version, message.for_connection(*id).clone(), limits);
            }
        }
        // The last of its frames speaks for all: an empty chunk behind them holds the ticket.
        if ticket.is_some() {
            member.connection.push(Chunk { bytes: Bytes::new(), frames: 0, ticket });
        }
    }
}

/// Puts the frames of successive events together.
fn pieces(events: &[Event]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < events.len() {
        let (mut end, mut frames, mut length) = (start, 0, 0);
        let mut only = None;
        for event in &events[start..] {
            if let Some(message) = &event.message {
                let size = message.frame.wire().len();
                if frames > 0 && (frames == PIECE_FRAMES || length + size > PIECE_BYTES) {
                    break;
                }
                frames += 1;
                length += size;
                only = Some(message.frame.wire());
            }
            end += 1;
        }
        if let Some(only) = only {
            let bytes = if frames == 1 {
                only.clone()
            } else {
                let mut bytes = BytesMut::with_capacity(length);
                for message in events[start..end].iter().filter_map(|event| event.message.as_ref()) {
                    bytes.extend_from_slice(message.frame.wire());
                }
                bytes.freeze()
            };
            pieces.push(Piece { events: start..end, bytes, frames });
        }
        start = end;
    }
    pieces
}

/// The connections that get something else than everybody.
fn variants(events: &[Event]) -> Vec<ConnectionId> {
    let mut ids = Vec::new();
    for message in events.iter().filter_map(|event| event.message.as_ref()) {
        if let Some((id, _)) = message.variant
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    ids
}
