//! Limits on how often something may happen, by the generic cell rate algorithm (ITU-T I.371): a burst, and then one
//! more for every interval that passed. Unlike the libraries at hand it can give back what turned out to be free, so
//! that only failed logins count.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    burst: u32,
    interval: Duration,
}

impl Limit {
    /// `burst` at once, and `count` in every `period` from then on. Both counts are at least 1.
    pub(crate) fn new(burst: u32, count: u32, period: Duration) -> Self {
        Self { burst, interval: period / count }
    }
}

/// How much of one limit is used, in 8 bytes: the moment at which nothing of it is used any more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage(Duration);

impl Usage {
    /// Takes one at `now` (monotonic), or says how long to wait for it.
    pub(crate) fn take(&mut self, limit: Limit, now: Duration) -> Result<(), Duration> {
        let free_at = self.0.max(now) + limit.interval;
        let full = now + limit.interval * limit.burst;
        if free_at > full {
            return Err(free_at.saturating_sub(full));
        }
        self.0 = free_at;
        Ok(())
    }

    fn give_back(&mut self, limit: Limit) {
        self.0 = self.0.saturating_sub(limit.interval);
    }

    /// Takes one at `now` though there may be no room: it is made up for by a longer wait.
    fn charge(&mut self, limit: Limit, now: Duration) {
        self.0 = self.0.max(now) + limit.interval;
    }
}

/// At most so many keys are told apart; beyond, arbitrary ones are forgotten, so that an attacker with many addresses
/// costs no more memory than this. About 20 MB.
const MAX_KEYS: usize = 200_000;

/// One limit for each of many keys.
pub(crate) struct Keyed<K> {
    limit: Limit,
    usage: Mutex<HashMap<K, Usage>>,
}

impl<K: Hash + Eq + Clone> Keyed<K> {
    /// `limit` for each key by itself.
    pub(crate) fn new(limit: Limit) -> Self {
        Self { limit, usage: Mutex::new(HashMap::new()) }
    }

    /// Takes one for `key` at `now`, or says how long to wait for it.
    pub(crate) fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        self.with(key, now, |usage, limit| usage.take(limit, now))
    }

    /// Says how long `key` would have to wait for one at `now`, if it would.
    pub(crate) fn check(&self, key: &K, now: Duration) -> Result<(), Duration> {
        let mut usage = self.usage.lock().get(key).copied().unwrap_or_default();
        usage.take(self.limit, now)
    }

    /// Takes one for `key` at `now` though there may be no room: it is made up for by a longer wait.
    pub(crate) fn charge(&self, key: K, now: Duration) {
        self.with(key, now, |usage, limit| usage.charge(limit, now));
    }

    fn with<T>(&self, key: K, now: Duration, change: impl FnOnce(&mut Usage, Limit) -> T) -> T {
        let mut usage = self.usage.lock();
        if usage.len() >= MAX_KEYS && !usage.contains_key(&key) {
            usage.retain(|_, usage| usage.0 > now);
            // Half at once, so that the next sweep is far away.
            let surplus = usage.len().saturating_sub(MAX_KEYS / 2);
            if surplus > 0 && usage.len() >= MAX_KEYS {
                let forgotten: Vec<K> = usage.keys().take(surplus).cloned().collect();
                for key in &forgotten {
                    usage.remove(key);
                }
            }
        }
        change(usage.entry(key).or_default(), self.limit)
    }

    /// Gives back what was taken for `key`.
    pub(crate) fn give_back(&self, key: &K) {
        if let Some(usage) = self.usage.lock().get_mut(key) {
            usage.give_back(self.limit);
        }
    }
}

/// What counts as one address: an IPv6 network of 64 bits is one customer (RFC 6177).
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { burst: 3, interval: Duration::from_secs(10) };

    #[test]
    fn a_burst_and_then_one_for_every_interval() {
        let mut usage = Usage::default();
        let start = Duration::from_hours(1);
        for _ in 0..3 {
            assert_eq!(usage.take(LIMIT, start), Ok(()));
        }
        assert_eq!(usage.take(LIMIT, start), Err(Duration::from_secs(10)));
        assert_eq!(usage.take(LIMIT, start + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        assert_eq!(usage.take(LIMIT, start + Duration::from_secs(10)), Ok(()));
        assert!(usage.take(LIMIT, start + Duration::from_secs(10)).is_err());
        let later = start + Duration::from_mins(5);
        assert_eq!((0..9).filter(|_| usage.take(LIMIT, later).is_ok()).count(), 3, "the burst does not pile up");
    }

    #[test]
    fn what_is_given_back_is_free_again_and_keys_are_apart() {
        let keyed = Keyed::new(LIMIT);
        let now = Duration::from_hours(1);
        for _ in 0..100 {
            assert_eq!(keyed.take("a", now), Ok(()));
            keyed.give_back(&"a");
        }
        assert_eq!((0..9).filter(|_| keyed.take("a", now).is_ok()).count(), 3);
        assert_eq!(keyed.take("b", now), Ok(()));
    }

    #[test]
    fn what_is_charged_beyond_the_limit_is_made_up_for() {
        let keyed = Keyed::new(LIMIT);
        let now = Duration::from_hours(1);
        for _ in 0..5 {
            assert_eq!(keyed.check(&"a", now), Ok(()), "asking takes nothing");
        }
        (0..5).for_each(|_| keyed.charge("a", now));
        assert_eq!(keyed.check(&"a", now), Err(Duration::from_secs(30)));
        assert_eq!(keyed.check(&"a", now + Duration::from_secs(30)), Ok(()));
        assert_eq!(keyed.check(&"b", now), Ok(()));
    }

    #[test]
    fn memory_is_bounded() {
        let keyed = Keyed::new(LIMIT);
        let now = Duration::from_hours(1);
        for key in 0..MAX_KEYS + 10 {
            assert_eq!(keyed.take(key, now), Ok(()));
        }
        assert!(keyed.usage.lock().len() <= MAX_KEYS);
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
