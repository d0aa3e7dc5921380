//! Limits on how often something may happen, by the rule of [`rollcall_core::limit`]: counted on this replica, in bounded
//! memory, and where replicas share their limits for all of them together as well.
//!
//! To add a limit: a member of [`Limits`], with a name of its own.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rollcall_core::limit::{Limit, SharedLimits, Step, Usage};

/// The limits on what one address or account can do, each generous to a whole school behind one address.
pub(crate) struct Limits {
    pub(crate) logins_of_account: Counts,
    pub(crate) logins_of_address: Counts,
    pub(crate) signups: Counts,
    pub(crate) mails_to: Counts,
    pub(crate) mails_of_address: Counts,
}

impl Limits {
    /// Counted by `shared` too, if there is one.
    pub(crate) fn new(shared: Option<&Arc<dyn SharedLimits>>) -> Self {
        let quarter = Duration::from_mins(15);
        let counts = |what, limit| Counts::new(what, limit, shared.cloned());
        Self {
            logins_of_account: counts("logins-of-account", Limit::new(10, 10, quarter)),
            logins_of_address: counts("logins-of-address", Limit::new(300, 300, quarter)),
            signups: counts("sign-ups", Limit::new(300, 1_000, Duration::from_hours(1))),
            mails_to: counts("mails-to", Limit::new(5, 5, Duration::from_hours(1))),
            mails_of_address: counts("mails-of-address", Limit::new(100, 300, Duration::from_hours(1))),
        }
    }
}

/// At most so many keys are told apart here; beyond, arbitrary ones are forgotten, so that an attacker with many
/// addresses costs no more memory than this. About 20 MB.
const MAX_KEYS: usize = 200_000;

/// One limit for each of many keys: counted here, always, and for all replicas together while that can be done. So
/// nobody has a fresh burst when it no longer can, or when what was counted for all is lost.
pub(crate) struct Counts {
    what: &'static str,
    limit: Limit,
    /// What was used here, by the hash of the key.
    used: Mutex<HashMap<u64, Usage>>,
    /// Secret, so that nobody can choose keys that share a hash.
    hasher: RandomState,
    shared: Option<Arc<dyn SharedLimits>>,
}

/// One that was taken, and may be given back.
pub(crate) struct Taken {
    /// For all replicas too: nothing is given back there that was not taken there.
    shared: bool,
}

impl Counts {
    fn new(what: &'static str, limit: Limit, shared: Option<Arc<dyn SharedLimits>>) -> Self {
        Self { what, limit, used: Mutex::default(), hasher: RandomState::new(), shared }
    }

    /// Takes one for `key` at `now` (monotonic), or says how long to wait for it.
    pub(crate) async fn take(&self, key: &str, now: Duration) -> Result<Taken, Duration> {
        self.count_here(Step::Take, key, now)?;
        let answer = self.count_for_all(Step::Take, key).await;
        if let Some(Err(wait)) = answer {
            let _ = self.count_here(Step::GiveBack, key, now);
            return Err(wait);
        }
        Ok(Taken { shared: answer.is_some() })
    }

    /// Gives back what was taken for `key`.
    pub(crate) async fn give_back(&self, taken: Taken, key: &str, now: Duration) {
        let _ = self.count_here(Step::GiveBack, key, now);
        if taken.shared {
            self.count_for_all(Step::GiveBack, key).await;
        }
    }

    /// Says how long `key` would have to wait for one at `now`, if it would.
    pub(crate) async fn check(&self, key: &str, now: Duration) -> Result<(), Duration> {
        self.count_here(Step::Check, key, now)?;
        self.count_for_all(Step::Check, key).await.unwrap_or(Ok(()))
    }

    /// Takes one for `key` at `now` though there may be no room: it is made up for by a longer wait.
    pub(crate) async fn charge(&self, key: &str, now: Duration) {
        let _ = self.count_here(Step::Charge, key, now);
        self.count_for_all(Step::Charge, key).await;
    }

    async fn count_for_all(&self, step: Step, key: &str) -> Option<Result<(), Duration>> {
        self.shared.as_ref()?.count(step, self.limit, self.what, key).await
    }

    fn count_here(&self, step: Step, key: &str, now: Duration) -> Result<(), Duration> {
        let key = self.hasher.hash_one(key);
        let mut used = self.used.lock();
        if let Some(usage) = used.get_mut(&key) {
            return usage.count(step, self.limit, now);
        }
        if matches!(step, Step::Check | Step::GiveBack) {
            return Ok(());
        }
        if used.len() >= MAX_KEYS {
            used.retain(|_, usage| usage.is_used(now));
            // Half at once, so that the next sweep is far away.
            let surplus = used.len().saturating_sub(MAX_KEYS / 2);
            if surplus > 0 && used.len() >= MAX_KEYS {
                let forgotten: Vec<u64> = used.keys().take(surplus).copied().collect();
                for key in &forgotten {
                    used.remove(key);
                }
            }
        }
        used.entry(key).or_default().count(step, self.limit, now)
    }
}

/// What counts as one address: an IPv6 network of 64 bits is one customer (RFC 6177).
pub(crate) fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;

    const NOW: Duration = Duration::from_hours(1);

    fn counts(shared: Option<Arc<dyn SharedLimits>>) -> Counts {
        Counts::new("tests", Limit::new(3, 1, Duration::from_secs(10)), shared)
    }

    async fn takes(counts: &Counts, key: &str) -> usize {
        let mut taken = 0;
        for _ in 0..9 {
            taken += usize::from(counts.take(key, NOW).await.is_ok());
        }
        taken
    }

    #[tokio::test]
    async fn keys_are_apart_and_what_is_given_back_is_free_again() {
        let counts = counts(None);
        for _ in 0..100 {
            let taken = counts.take("a", NOW).await.unwrap();
            counts.give_back(taken, "a", NOW).await;
        }
        assert_eq!((takes(&counts, "a").await, takes(&counts, "b").await), (3, 3));
        counts.charge("a", NOW).await;
        assert_eq!(counts.check("a", NOW).await, Err(Duration::from_secs(20)));
        assert_eq!(counts.check("c", NOW).await, Ok(()));
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let counts = counts(None);
        for key in 0..MAX_KEYS + 10 {
            counts.charge(&key.to_string(), NOW).await;
        }
        assert!(counts.used.lock().len() <= MAX_KEYS);
    }

    /// All replicas together, of which the others may have used something, or which may be away.
    #[derive(Default)]
    struct All(Mutex<Option<Usage>>);

    #[async_trait]
    impl SharedLimits for All {
        async fn count(&self, step: Step, limit: Limit, _: &str, _: &str) -> Option<Result<(), Duration>> {
            Some(self.0.lock().as_mut()?.count(step, limit, NOW))
        }
    }

    #[tokio::test]
    async fn what_others_took_counts_and_what_was_taken_here_counts_without_them() {
        let all = Arc::new(All(Mutex::new(Some(Usage::default()))));
        let (one, other) = (counts(Some(all.clone())), counts(Some(all.clone())));
        assert_eq!(takes(&one, "a").await, 3);
        assert_eq!(takes(&other, "a").await, 0);
        // What was refused for all was not used up here.
        *all.0.lock() = None;
        assert_eq!((takes(&one, "a").await, takes(&other, "a").await), (0, 3));
        // Nor does it help if those who count for all forgot.
        *all.0.lock() = Some(Usage::default());
        assert_eq!(takes(&one, "a").await, 0);
    }

    #[tokio::test]
    async fn nothing_is_given_back_to_all_that_was_not_taken_from_them() {
        let all = Arc::new(All::default());
        let counts = counts(Some(all.clone()));
        let taken = counts.take("a", NOW).await.unwrap();
        let mut used = Usage::default();
        used.count(Step::Charge, counts.limit, NOW).unwrap();
        *all.0.lock() = Some(used);
        counts.give_back(taken, "a", NOW).await;
        assert_eq!(takes(&counts, "a").await, 2);
    }

    #[test]
    fn addresses_of_one_customer_count_as_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
