//! The connections of this process, by user and by topic.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::{task, time};

use crate::metric::Metrics;
use crate::outbox::{Chunk, Closing, Limits, Outbox};
use crate::topic::{Command, Event, Message, Topic, Versions, Wait};
use crate::{Close, Frame, Key, Tier};

/// How long [`Hub::reached`] waits for a version of a topic of which nothing was published yet: the version may be
/// older than this process, and then it never comes.
const UNKNOWN_WAIT: Duration = Duration::from_millis(300);
/// How long it waits otherwise.
const KNOWN_WAIT: Duration = Duration::from_secs(5);

/// Topics without members whose versions are remembered: at least this many, at most twice.
const REMEMBERED: usize = 65_536;

/// What a hub allows.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Connections of one user at the same time.
    pub max_per_user: usize,
    /// Frames that may wait for one connection.
    pub outbox_frames: usize,
    /// Bytes that may wait for one connection.
    pub outbox_bytes: usize,
    /// How long [`Tier::Rest`] waits for the sockets of [`Tier::First`].
    pub first_tier_wait: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            max_per_user: 50,
            outbox_frames: 4_096,
            outbox_bytes: 1024 * 1024,
            first_tier_wait: Duration::from_millis(5),
        }
    }
}

/// The user has as many connections as one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyConnections;

impl fmt::Display for TooManyConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many connections of one user")
    }
}

impl std::error::Error for TooManyConnections {}

/// Names a connection of this process; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// A connection, for those who send to it. Cheap to clone; it does not keep the connection open.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    id: ConnectionId,
    user: Key,
    tag: u64,
    outbox: Outbox,
    hub: Weak<Hub>,
    memberships: Mutex<Vec<Membership>>,
}

struct Membership {
    topic: Key,
    tier: Tier,
    held: bool,
}

impl Connection {
    fn new(id: u64, user: Key, tag: u64, hub: Weak<Hub>, limits: Limits) -> Self {
        let memberships = Mutex::default();
        Self(Arc::new(Inner { id: ConnectionId(id), user, tag, outbox: Outbox::new(limits), hub, memberships }))
    }

    /// A connection that no hub knows, for a socket that is only told why it may not stay.
    pub(crate) fn unregistered() -> Self {
        let limits = Limits { frames: 1, bytes: usize::MAX };
        Self::new(0, Key::default(), 0, Weak::new(), limits)
    }

    /// Its name.
    pub fn id(&self) -> ConnectionId {
        self.0.id
    }

    /// Whose it is.
    pub fn user(&self) -> Key {
        self.0.user
    }

    /// What [`Hub::register`] was told of it.
    pub fn tag(&self) -> u64 {
        self.0.tag
    }

    /// Resolves when what was sent up to now is written to the socket, or the connection has ended.
    pub async fn flushed(&self) {
        let (ticket, mut written) = mpsc::channel(1);
        self.push(Chunk { bytes: Bytes::new(), frames: 0, ticket: Some(ticket) });
        // Nothing is ever sent: the channel closes when the outbox lets go of the ticket.
        written.recv().await;
    }

    /// Sends a frame behind all that was sent before. Never waits: a connection whose outbox is full is closed with
    /// [`close::TOO_SLOW`](crate::close::TOO_SLOW). Frames for a connection that is closed or gone are dropped.
    pub fn send(&self, frame: Frame) {
        self.push(Chunk::from(frame));
    }

    /// Ends the connection after the frames that were sent before.
    pub fn close(&self, close: Close) {
        self.0.outbox.close(Closing { close, graceful: false });
    }

    /// Ends the hold of a topic (see [`Registration::join_all`]): the frames that were held and whose version is
    /// higher than `after` follow, then those that come. Frames up to `after` are never sent, even if they come later.
    pub fn release(&self, topic: Key, after: u64) {
        if let Some(hub) = self.0.hub.upgrade()
            && let Some(topic) = hub.topics.lock().live.get(&topic)
        {
            topic.order(Command::Release { id: self.id(), after });
        }
    }

    /// The topic's frames are not held any more.
    pub(crate) fn released(&self, topic: Key) {
        for membership in self.0.memberships.lock().iter_mut().filter(|membership| membership.topic == topic) {
            membership.held = false;
        }
    }

    pub(crate) fn push(&self, chunk: Chunk) {
        self.0.outbox.push(chunk);
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.0.outbox
    }

    /// The tier in which the connection hears the topic, and whether its frames are held.
    fn membership(&self, topic: Key) -> (Tier, bool) {
        let memberships = self.0.memberships.lock();
        let found = memberships.iter().find(|membership| membership.topic == topic);
        found.map_or((Tier::Rest, false), |membership| (membership.tier, membership.held))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.0.id.0).finish()
    }
}

/// A user with connections.
#[derive(Default)]
struct User {
    /// Raised by every change of the user's memberships.
    generation: u64,
    present: Vec<Present>,
}

struct Present {
    connection: Connection,
    /// Whether [`Registration::join_all`] took effect. Until then changes reach the connection by its asking again.
    joined: bool,
}

#[derive(Default)]
struct Users {
    present: HashMap<Key, User>,
    /// Set by [`Hub::close_all`], for those who come later.
    closing: Option<Close>,
}

#[derive(Default)]
struct Topics {
    /// With members, or with somebody who waits.
    live: HashMap<Key, Arc<Topic>>,
    /// Without: two generations, of which the older is forgotten when the younger is full. Who is forgotten is as
    /// after a restart: [`Hub::reached`] waits the shorter time.
    younger: HashMap<Key, Versions>,
    older: HashMap<Key, Versions>,
}

impl Topics {
    fn remembered(&self, key: Key) -> Versions {
        self.younger.get(&key).or_else(|| self.older.get(&key)).copied().unwrap_or_default()
    }

    fn remember(&mut self, key: Key, versions: Versions) {
        if versions == Versions::default() {
            return;
        }
        if self.younger.len() >= REMEMBERED && !self.younger.contains_key(&key) {
            self.older = std::mem::take(&mut self.younger);
        }
        self.younger.insert(key, versions);
    }

    fn publish(&mut self, key: Key, event: Event) {
        if let Some(topic) = self.live.get(&key) {
            topic.publish(event);
        } else if let Some(version) = event.version {
            let versions = self.remembered(key);
            if version > versions.published {
                self.remember(key, Versions { published: version, ..versions });
            }
        }
    }

    /// The live topic, made from what is remembered if there is none.
    fn live(&mut self, key: Key) -> &Arc<Topic> {
        let versions = self.remembered(key);
        self.live.entry(key).or_insert_with(|| Arc::new(Topic::new(key, versions)))
    }
}

/// All connections of this process. Its methods must be called within a Tokio runtime.
///
/// Locks are taken in this order: users, a connection's memberships, topics, one topic, one outbox.
pub struct Hub {
    config: HubConfig,
    users: Mutex<Users>,
    topics: Mutex<Topics>,
    last_id: AtomicU64,
    count: AtomicUsize,
    empty: Notify,
    metrics: Metrics,
}

impl Hub {
    /// A hub without connections.
    pub fn new(config: HubConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            users: Mutex::default(),
            topics: Mutex::default(),
            last_id: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            empty: Notify::new(),
            metrics: Metrics::new(),
        })
    }

    /// Registers a connection of the user. Done before the upgrade is answered: a client that has the answer misses
    /// nothing. Dropping the guard unregisters, however the connection ends.
    /// The tag is the caller's own: [`Connection::tag`] gives it back.
    pub fn register(self: &Arc<Self>, user: Key, tag: u64) -> Result<Registration, TooManyConnections> {
        let mut users = self.users.lock();
        let closing = users.closing;
        let entry = users.present.entry(user).or_default();
        if entry.present.len() >= self.config.max_per_user {
            if entry.present.is_empty() {
                users.present.remove(&user);
            }
            return Err(TooManyConnections);
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let connection = Connection::new(id, user, tag, Arc::downgrade(self), self.limits());
        if let Some(close) = closing {
            connection.outbox().close(Closing { close, graceful: true });
        }
        entry.present.push(Present { connection: connection.clone(), joined: false });
        self.count.fetch_add(1, Ordering::SeqCst);
        self.metrics.sockets.increment(1);
        Ok(Registration { hub: Arc::clone(self), connection })
    }

    /// The user's connections on this process.
    pub fn connections(&self, user: Key) -> Vec<Connection> {
        let users = self.users.lock();
        let Some(user) = users.present.get(&user) else { return Vec::new() };
        user.present.iter().map(|present| present.connection.clone()).collect()
    }

    /// The users who have connections on this process.
    pub fn connected_users(&self) -> Vec<Key> {
        self.users.lock().present.keys().copied().collect()
    }

    /// The topics that any of the user's connections hears.
    pub fn topics_of(&self, user: Key) -> Vec<Key> {
        let connections = self.connections(user);
        let mut topics: Vec<Key> = connections
            .iter()
            .flat_map(|connection| {
                let memberships = connection.0.memberships.lock();
                memberships.iter().map(|membership| membership.topic).collect::<Vec<_>>()
            })
            .collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Lets the user's connections hear the topic from now on; one that hears it already changes its tier. A
    /// connection that is still loading what it may hear learns from [`Registration::join_all`] that it must load again.
    pub fn join_user(self: &Arc<Self>, user: Key, topic: Key, tier: Tier) {
        let mut users = self.users.lock();
        let Some(user) = users.present.get_mut(&user) else { return };
        user.generation += 1;
        for present in user.present.iter().filter(|present| present.joined) {
            self.join(&present.connection, topic, tier, false);
        }
    }

    /// Lets the user's connections hear the topic no longer: not what is published after this call.
    pub fn leave_user(&self, user: Key, topic: Key) {
        let mut users = self.users.lock();
        let Some(user) = users.present.get_mut(&user) else { return };
        user.generation += 1;
        for Present { connection, .. } in &user.present {
            connection.0.memberships.lock().retain(|membership| membership.topic != topic);
            if let Some(topic) = self.topics.lock().live.get(&topic) {
                topic.order(Command::Leave(connection.id()));
            }
        }
    }

    /// Orders the topic's version, with what its members are sent, if anything. Versions grow; one that is not higher
    /// than the last is ignored. The order of the calls is the order on every socket.
    pub fn publish(&self, topic: Key, version: u64, message: Option<Message>) {
        self.topics.lock().publish(topic, Event { version: Some(version), message });
    }

    /// [`publish`](Self::publish) for many.
    pub fn publish_batch(&self, items: impl IntoIterator<Item = (Key, u64, Option<Message>)>) {
        // What the caller computes is not computed under the lock.
        let items: Vec<_> = items.into_iter().collect();
        let mut topics = self.topics.lock();
        for (topic, version, message) in items {
            topics.publish(topic, Event { version: Some(version), message });
        }
    }

    /// Orders a frame for the topic's members that has no version of its own, such as one of several that together
    /// make up for versions which this process missed.
    pub fn announce(&self, topic: Key, message: Message) {
        self.topics.lock().publish(topic, Event { version: None, message: Some(message) });
    }

    /// Resolves when every frame of the topic up to `version` that is for this connection is in its outbox: what is
    /// sent afterwards follows them. A version that nobody publishes is waited for at most 5 s; if nothing of the topic
    /// was published since the process started, 300 ms, and then that version counts as published for who asks again.
    pub async fn reached(&self, connection: &Connection, topic: Key, version: u64) {
        let (tier, held) = connection.membership(topic);
        let live = {
            let mut topics = self.topics.lock();
            let versions = topics.remembered(topic);
            let known = versions.published.max(versions.assumed);
            // What is remembered is older than what a live topic knows, and without a live one there are no frames.
            (topics.live.contains_key(&topic) || known < version).then(|| Arc::clone(topics.live(topic)))
        };
        let Some(live) = live else { return };
        let live = Awaited { hub: self, topic: Some(live) };
        if let Wait::For { reached, known } = live.wait(tier, version) {
            let limit = if known { KNOWN_WAIT } else { UNKNOWN_WAIT };
            if time::timeout(limit, reached).await.is_err() && !known {
                live.assume(version);
            }
        }
        if held {
            let (done, released) = oneshot::channel();
            live.order(Command::Released { id: connection.id(), done });
            // An error means that the connection left the topic.
            let _ = time::timeout(KNOWN_WAIT, released).await;
        }
    }

    /// Ends all connections, and those that come later, with the same close, spread evenly over the time so that not
    /// all come back at once. Commands that are being carried out are answered first.
    pub fn close_all(self: &Arc<Self>, close: Close, spread: Duration) {
        let connections: Vec<Connection> = {
            let mut users = self.users.lock();
            users.closing = Some(close);
            // The map's order is random, and so is who has to wait.
            users.present.values().flat_map(|user| &user.present).map(|present| present.connection.clone()).collect()
        };
        let Ok(count) = u32::try_from(connections.len().max(1)) else { return };
        task::spawn(async move {
            let start = time::Instant::now();
            for (index, connection) in (0..count).zip(connections) {
                time::sleep_until(start + spread * index / count).await;
                connection.outbox().close(Closing { close, graceful: true });
            }
        });
    }

    /// Resolves when no connection is registered.
    pub async fn drained(&self) {
        loop {
            let mut empty = pin!(self.empty.notified());
            empty.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            empty.await;
        }
    }

    /// How many connections are registered.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { frames: self.config.outbox_frames, bytes: self.config.outbox_bytes }
    }

    pub(crate) fn first_tier_wait(&self) -> Duration {
        self.config.first_tier_wait
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn join(self: &Arc<Self>, connection: &Connection, topic: Key, tier: Tier, hold: bool) {
        {
            let mut memberships = connection.0.memberships.lock();
            match memberships.iter_mut().find(|membership| membership.topic == topic) {
                Some(membership) => {
                    membership.tier = tier;
                    membership.held |= hold;
                }
                None => memberships.push(Membership { topic, tier, held: hold }),
            }
        }
        self.topics.lock().live(topic).join(self, connection.clone(), tier, hold);
    }

    /// Forgets a live topic, except for its versions, if nobody needs it any more.
    pub(crate) fn retire(&self, topic: Arc<Topic>) {
        let mut topics = self.topics.lock();
        // Clones are made under this lock alone: with two, the map's and this one, nobody else has it.
        if Arc::strong_count(&topic) == 2
            && let Some(versions) = topic.idle()
        {
            topics.live.remove(&topic.key());
            topics.remember(topic.key(), versions);
        }
        // Still under the lock: of two who retire at once, the second finds itself alone.
        drop(topic);
    }
}

/// A live topic that is given back however the waiting ends.
struct Awaited<'hub> {
    hub: &'hub Hub,
    topic: Option<Arc<Topic>>,
}

impl std::ops::Deref for Awaited<'_> {
    type Target = Topic;

    fn deref(&self) -> &Topic {
        self.topic.as_deref().expect("given back when dropped alone")
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if let Some(topic) = self.topic.take() {
            self.hub.retire(topic);
        }
    }
}

/// The guard of a registered connection: it is registered as long as this lives.
pub struct Registration {
    hub: Arc<Hub>,
    connection: Connection,
}

impl Registration {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The state of the user's memberships: read it before loading them.
    pub fn generation(&self) -> u64 {
        self.hub.users.lock().present.get(&self.connection.user()).map_or(0, |user| user.generation)
    }

    /// Lets the connection hear the topics, unless the user's memberships changed since `generation`: then nothing
    /// happens and the answer is false; load again and retry. A topic with `true` is held: its frames are kept for
    /// this connection until [`Connection::release`].
    pub fn join_all(&self, generation: u64, topics: impl IntoIterator<Item = (Key, Tier, bool)>) -> bool {
        let topics: Vec<_> = topics.into_iter().collect();
        let mut users = self.hub.users.lock();
        let Some(user) = users.present.get_mut(&self.connection.user()) else { return false };
        if user.generation != generation {
            return false;
        }
        for (topic, tier, hold) in topics {
            self.hub.join(&self.connection, topic, tier, hold);
        }
        for present in user.present.iter_mut().filter(|present| present.connection.id() == self.connection.id()) {
            present.joined = true;
        }
        true
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let id = self.connection.id();
        self.connection.outbox().seal();
        let mut users = self.hub.users.lock();
        if let Entry::Occupied(mut user) = users.present.entry(self.connection.user()) {
            user.get_mut().present.retain(|present| present.connection.id() != id);
            if user.get().present.is_empty() {
                user.remove();
            }
        }
        let memberships = std::mem::take(&mut *self.connection.0.memberships.lock());
        {
            let topics = self.hub.topics.lock();
            for topic in memberships.iter().filter_map(|membership| topics.live.get(&membership.topic)) {
                topic.order(Command::Leave(id));
            }
        }
        drop(users);
        self.hub.metrics.sockets.decrement(1);
        if self.hub.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.hub.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Hub, HubConfig, REMEMBERED, Topics, Versions};
    use crate::topic::Event;
    use crate::{Frame, Key, Tier};

    fn key(number: usize) -> Key {
        let mut key = Key::default();
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }

    async fn no_topic_is_live(hub: &Hub) {
        let check = async {
            while !hub.topics.lock().live.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), check).await.expect("the topics' tasks end");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_topic_ends_with_its_last_member_and_its_versions_are_kept() {
        let hub = Hub::new(HubConfig::default());
        for round in 1..=500 {
            let first = hub.register(key(1), 0).expect("few connections");
            let second = hub.register(key(2), 0).expect("few connections");
            assert!(first.join_all(first.generation(), [(key(7), Tier::First, false)]));
            assert!(second.join_all(second.generation(), [(key(7), Tier::Rest, true), (key(8), Tier::Rest, false)]));
            hub.publish(key(7), round, Some(Frame::from("frame").into()));
            drop(first);
            hub.leave_user(key(2), key(7));
            // Sometimes the topic is being given up when the next round joins it.
            drop(second);
            if round % 2 == 0 {
                no_topic_is_live(&hub).await;
            }
        }
        no_topic_is_live(&hub).await;
        assert_eq!(hub.topics.lock().remembered(key(7)), Versions { published: 500, assumed: 0 });
    }

    #[tokio::test]
    async fn who_waits_for_a_topic_leaves_nothing_behind() {
        let hub = Hub::new(HubConfig::default());
        let registration = hub.register(key(1), 0).expect("few connections");
        let waiting = hub.reached(registration.connection(), key(7), 3);
        assert!(tokio::time::timeout(Duration::from_millis(5), waiting).await.is_err());
        assert!(hub.topics.lock().live.is_empty());
        let waiting = hub.reached(registration.connection(), key(7), 3);
        tokio::join!(waiting, async { hub.publish(key(7), 3, None) });
        assert!(hub.topics.lock().live.is_empty());
        assert_eq!(hub.topics.lock().remembered(key(7)).published, 3);
    }

    #[test]
    fn the_memory_of_versions_is_bounded() {
        let mut topics = Topics::default();
        let count = 3 * REMEMBERED;
        for number in 0..count {
            topics.publish(key(number), Event { version: Some(1), message: None });
            // One that is still in use is not forgotten.
            topics.publish(key(0), Event { version: Some(number as u64 + 1), message: None });
        }
        assert!(topics.younger.len() + topics.older.len() <= 2 * REMEMBERED);
        assert_eq!(topics.remembered(key(0)).published, count as u64);
        assert_eq!(topics.remembered(key(count - REMEMBERED)).published, 1);
        assert_eq!(topics.remembered(key(1)), Versions::default());
    }
}
