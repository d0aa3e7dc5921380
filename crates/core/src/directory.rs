//! Accounts and classes as they are now, mostly without asking the database.
//!
//! The committed stream tells what changed; whoever follows it calls [`Directory::alive`], [`Directory::account_changed`]
//! and the like. The cache answers only while the stream proved alive within [`TRUST`]; otherwise, and before any
//! refusal, the store is asked.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;

use crate::class::Class;
use crate::error::Error;
use crate::id::{ClassId, UserId};
use crate::store::{Change, Store, StoreError};
use crate::time::Clock;
use crate::user::Account;

/// How long after its last sign of life the committed stream is believed.
pub const TRUST: Duration = Duration::from_millis(500);

/// How many accounts, and how many classes, are remembered. About 40 MB when full.
const REMEMBERED: usize = 100_000;

/// Looks accounts and classes up.
pub struct Directory {
    store: Arc<dyn Store>,
    accounts: Memory<UserId, Account>,
    classes: Memory<ClassId, Class>,
    trust: Trust,
}

impl Directory {
    /// An empty directory, which asks the store until it hears that the stream is alive.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { store, accounts: Memory::new(), classes: Memory::new(), trust: Trust::new(clock) }
    }

    /// The committed stream proved that all before this moment has been told. That is what
    /// [`crate::store::Followed::Alive`] says, and only that: a batch may have waited for long.
    pub fn alive(&self) {
        self.trust.renew();
    }

    /// The committed stream lost changes: nothing remembered is believed any more.
    pub fn lost(&self) {
        self.trust.end();
        self.accounts.forget_all();
        self.classes.forget_all();
    }

    /// The committed stream told of `change`, or this process made it: whoever was answered that it stands must not be shown
    /// what was before, and the stream may be a moment behind.
    pub fn changed(&self, change: &Change) {
        match change {
            Change::Account(id) => self.accounts.forget(id),
            Change::Class { class_id, .. } => self.classes.forget(class_id),
            Change::Enrolment { .. } | Change::Session(_) => {}
        }
    }

    /// Decides by the account with this id; a refusal is never based on what is remembered.
    pub async fn account<T>(
        &self,
        id: UserId,
        decide: impl Fn(Option<Arc<Account>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.accounts.decide(id, &self.trust, decide, || self.store.user(id)).await
    }

    /// Decides by the class with this id; a refusal is never based on what is remembered.
    pub async fn class<T>(
        &self,
        id: ClassId,
        decide: impl Fn(Option<Arc<Class>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.classes.decide(id, &self.trust, decide, || self.store.class(id)).await
    }
}

/// Until when what is remembered may be believed.
struct Trust {
    clock: Arc<dyn Clock>,
    /// In microseconds of the monotonic clock.
    until: AtomicU64,
}

impl Trust {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, until: AtomicU64::new(0) }
    }

    fn renew(&self) {
        self.until.store(micros(self.clock.monotonic() + TRUST), Ordering::Release);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    fn holds(&self) -> bool {
        micros(self.clock.monotonic()) < self.until.load(Ordering::Acquire)
    }
}

/// Values that were read, until they are said to have changed.
struct Memory<K, V> {
    values: Cache<K, Arc<V>>,
    /// Raised before every removal: a value that was read before is then not kept.
    changes: AtomicU64,
}

impl<K: Hash + Eq + Copy, V> Memory<K, V> {
    fn new() -> Self {
        Self { values: Cache::new(REMEMBERED), changes: AtomicU64::new(0) }
    }

    fn forget(&self, id: &K) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.values.remove(id);
    }

    fn forget_all(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.values.clear();
    }

    async fn decide<T, R>(
        &self,
        id: K,
        trust: &Trust,
        decide: impl Fn(Option<Arc<V>>) -> Result<T, Error>,
        read: impl FnOnce() -> R,
    ) -> Result<T, Error>
    where
        R: Future<Output = Result<Option<V>, StoreError>>,
    {
        // What was read while nothing was followed may have changed unheard, and would never be forgotten.
        let before = trust.holds().then(|| self.changes.load(Ordering::Acquire));
        if before.is_some()
            && let Some(value) = self.values.get(&id)
            && let Ok(decision) = decide(Some(value))
        {
            return Ok(decision);
        }
        let value = read().await?.map(Arc::new);
        if let (Some(before), Some(value)) = (before, &value) {
            self.values.insert(id, Arc::clone(value));
            // A change that came between has removed the value, or is seen here: either way no old value stays.
            if self.changes.load(Ordering::Acquire) != before {
                self.values.remove(&id);
            }
        }
        decide(value)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::time::Timestamp;

    /// A clock that stands still until it is moved.
    #[derive(Default)]
    struct Hands(Mutex<Duration>);

    impl Hands {
        fn advance(&self, time: Duration) {
            *self.0.lock().unwrap() += time;
        }
    }

    impl Clock for Hands {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(0)
        }

        fn monotonic(&self) -> Duration {
            *self.0.lock().unwrap()
        }
    }

    /// One value behind a memory of it. What is even is admitted, what is odd is refused.
    struct Desk {
        clock: Arc<Hands>,
        trust: Trust,
        memory: Memory<u8, u32>,
        stored: AtomicU32,
        reads: AtomicU32,
    }

    const ID: u8 = 7;

    impl Desk {
        fn new(stored: u32) -> Self {
            let clock = Arc::new(Hands::default());
            Self {
                trust: Trust::new(Arc::clone(&clock) as _),
                clock,
                memory: Memory::new(),
                stored: AtomicU32::new(stored),
                reads: AtomicU32::new(0),
            }
        }

        /// A desk whose stream is alive.
        fn following(stored: u32) -> Self {
            let desk = Self::new(stored);
            desk.trust.renew();
            desk
        }

        /// Commits `value`, of which the stream has not told yet.
        fn commit(&self, value: u32) {
            self.stored.store(value, Ordering::SeqCst);
        }

        /// Decides; `meanwhile` runs after the value was read and before it arrives.
        async fn ask_while(&self, meanwhile: impl FnOnce()) -> Result<u32, Error> {
            let decide = |value: Option<Arc<u32>>| match value {
                Some(value) if value.is_multiple_of(2) => Ok(*value),
                _ => Err(Error::Unauthenticated),
            };
            let read = || async {
                self.reads.fetch_add(1, Ordering::SeqCst);
                let value = self.stored.load(Ordering::SeqCst);
                meanwhile();
                tokio::task::yield_now().await;
                Ok((value > 0).then_some(value))
            };
            self.memory.decide(ID, &self.trust, decide, read).await
        }

        async fn ask(&self) -> Result<u32, Error> {
            self.ask_while(|| {}).await
        }

        fn reads(&self) -> u32 {
            self.reads.swap(0, Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn asks_once_while_the_stream_is_alive() {
        let desk = Desk::following(2);
        assert_eq!(desk.ask().await.unwrap(), 2);
        assert_eq!(desk.ask().await.unwrap(), 2);
        assert_eq!(desk.reads(), 1);
        desk.commit(4);
        desk.memory.forget(&ID);
        assert_eq!(desk.ask().await.unwrap(), 4, "a change that was told is seen at once");
        assert_eq!(desk.reads(), 1);
    }

    #[tokio::test]
    async fn believes_itself_no_longer_than_the_stream_is_trusted() {
        let desk = Desk::following(2);
        assert_eq!(desk.ask().await.unwrap(), 2);
        desk.clock.advance(TRUST.saturating_sub(Duration::from_micros(1)));
        assert_eq!(desk.ask().await.unwrap(), 2);
        assert_eq!(desk.reads(), 1);
        desk.clock.advance(Duration::from_micros(1));
        desk.commit(4);
        assert_eq!(desk.ask().await.unwrap(), 4, "the stream is silent: the store is asked");
        assert_eq!(desk.ask().await.unwrap(), 4);
        assert_eq!(desk.reads(), 2);
    }

    #[tokio::test]
    async fn keeps_nothing_that_was_read_before_the_stream_was_followed() {
        let desk = Desk::new(2);
        assert_eq!(desk.ask().await.unwrap(), 2);
        desk.commit(4);
        desk.trust.renew();
        assert_eq!(desk.ask().await.unwrap(), 4);
        assert_eq!(desk.reads(), 2);

        let desk = Desk::new(2);
        assert_eq!(desk.ask_while(|| desk.trust.renew()).await.unwrap(), 2, "alive came too late for this read");
        desk.commit(4);
        assert_eq!(desk.ask().await.unwrap(), 4);
    }

    #[tokio::test]
    async fn keeps_nothing_that_changed_while_it_was_read() {
        let desk = Desk::following(2);
        let change = || {
            desk.commit(4);
            desk.memory.forget(&ID);
        };
        assert_eq!(desk.ask_while(change).await.unwrap(), 2, "what was true when it was asked");
        assert_eq!(desk.ask().await.unwrap(), 4);

        let desk = Desk::following(2);
        let loss = || {
            desk.commit(4);
            desk.trust.end();
            desk.memory.forget_all();
            desk.trust.renew();
        };
        assert_eq!(desk.ask_while(loss).await.unwrap(), 2);
        assert_eq!(desk.ask().await.unwrap(), 4);
    }

    #[tokio::test]
    async fn a_slow_read_does_not_undo_a_newer_one() {
        let desk = Arc::new(Desk::following(2));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let slow = async {
            let read = || async {
                let old = desk.stored.load(Ordering::SeqCst);
                wait.await.unwrap();
                Ok(Some(old))
            };
            desk.memory.decide(ID, &desk.trust, |value| Ok(value.map(|value| *value)), read).await
        };
        let quick = async {
            desk.commit(4);
            desk.memory.forget(&ID);
            assert_eq!(desk.ask().await.unwrap(), 4);
            go.send(()).unwrap();
        };
        let (old, ()) = tokio::join!(slow, quick);
        assert_eq!(old.unwrap(), Some(2));
        assert_eq!(desk.ask().await.unwrap(), 4);
    }

    #[tokio::test]
    async fn refuses_only_by_what_stands_in_the_store() {
        let desk = Desk::following(3);
        assert!(matches!(desk.ask().await, Err(Error::Unauthenticated)));
        desk.commit(2);
        assert_eq!(desk.ask().await.unwrap(), 2, "the remembered value would have been refused");
        assert_eq!(desk.reads(), 2);

        let desk = Desk::following(0);
        assert!(matches!(desk.ask().await, Err(Error::Unauthenticated)), "nothing is there");
        desk.commit(2);
        assert_eq!(desk.ask().await.unwrap(), 2, "that nothing was there is not remembered");

        let desk = Desk::following(3);
        assert!(desk.ask().await.is_err());
        let away = || async { Err(StoreError::Unavailable("away".into())) };
        let refusal = desk.memory.decide::<(), _>(ID, &desk.trust, |_| Err(Error::Unauthenticated), away).await;
        assert!(matches!(refusal, Err(Error::Store(StoreError::Unavailable(_)))), "unknown is not refused");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn ends_on_what_stands_however_reads_and_changes_meet() {
        let desk = Arc::new(Desk::following(2));
        for round in 0..200 {
            let readers: Vec<_> = (0..8)
                .map(|_| {
                    let desk = Arc::clone(&desk);
                    tokio::spawn(async move {
                        for _ in 0..10 {
                            desk.ask().await.unwrap();
                            tokio::task::yield_now().await;
                        }
                    })
                })
                .collect();
            let writer = Arc::clone(&desk);
            let writer = tokio::spawn(async move {
                for step in 1..=10 {
                    writer.commit(2 + 20 * round + 2 * step);
                    writer.memory.forget(&ID);
                    tokio::task::yield_now().await;
                }
            });
            writer.await.unwrap();
            for reader in readers {
                reader.await.unwrap();
            }
            assert_eq!(desk.ask().await.unwrap(), 2 + 20 * (round + 1));
        }
    }
}
