//! Accounts and classes as they are now, mostly without asking the database.
//!
//! The committed stream tells what changed; whoever follows it calls [`Directory::alive`], [`Directory::account_changed`]
//! and the like. The cache answers only while the stream proved alive within [`TRUST`]; otherwise, and before any
//! refusal, the store is asked.

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
    clock: Arc<dyn Clock>,
    accounts: Cache<UserId, Arc<Account>>,
    classes: Cache<ClassId, Arc<Class>>,
    /// Raised before every removal: a value that was read before is then not put back.
    changes: AtomicU64,
    /// Until when, in microseconds of the monotonic clock, the cache may answer.
    trusted_until: AtomicU64,
}

impl Directory {
    /// An empty directory, which asks the store until it hears that the stream is alive.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            accounts: Cache::new(REMEMBERED),
            classes: Cache::new(REMEMBERED),
            changes: AtomicU64::new(0),
            trusted_until: AtomicU64::new(0),
        }
    }

    /// The committed stream proved that all before this moment has been told.
    pub fn alive(&self) {
        self.trusted_until.store(micros(self.clock.monotonic() + TRUST), Ordering::Release);
    }

    /// The committed stream lost changes: nothing remembered is believed any more.
    pub fn lost(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.trusted_until.store(0, Ordering::Release);
        self.accounts.clear();
        self.classes.clear();
    }

    /// The committed stream told of `change`.
    pub fn changed(&self, change: &Change) {
        match change {
            Change::Account(id) => {
                self.changes.fetch_add(1, Ordering::AcqRel);
                self.accounts.remove(id);
            }
            Change::Class { class_id, .. } => {
                self.changes.fetch_add(1, Ordering::AcqRel);
                self.classes.remove(class_id);
            }
            Change::Enrolment { .. } | Change::Session(_) => {}
        }
    }

    /// Decides by the account with this id; a refusal is never based on what is remembered.
    pub async fn account<T>(
        &self,
        id: UserId,
        decide: impl Fn(Option<Arc<Account>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(account) = self.trusted().then(|| self.accounts.get(&id)).flatten()
            && let Ok(decision) = decide(Some(account))
        {
            return Ok(decision);
        }
        decide(self.read(id, &self.accounts, self.store.user(id)).await?)
    }

    /// Decides by the class with this id; a refusal is never based on what is remembered.
    pub async fn class<T>(
        &self,
        id: ClassId,
        decide: impl Fn(Option<Arc<Class>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(class) = self.trusted().then(|| self.classes.get(&id)).flatten()
            && let Ok(decision) = decide(Some(class))
        {
            return Ok(decision);
        }
        decide(self.read(id, &self.classes, self.store.class(id)).await?)
    }

    async fn read<K: std::hash::Hash + Eq + Copy, V>(
        &self,
        id: K,
        cache: &Cache<K, Arc<V>>,
        read: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<Arc<V>>, Error> {
        // What was read while nothing was followed may have changed unheard since, and would never be removed.
        let before = self.trusted().then(|| self.changes.load(Ordering::Acquire));
        let value = read.await?.map(Arc::new);
        if let (Some(value), Some(before)) = (&value, before) {
            cache.insert(id, Arc::clone(value));
            // A change that came between is already removed, or is seen here: either way no old value stays.
            if self.changes.load(Ordering::Acquire) != before {
                cache.remove(&id);
            }
        }
        Ok(value)
    }

    fn trusted(&self) -> bool {
        micros(self.clock.monotonic()) < self.trusted_until.load(Ordering::Acquire)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
