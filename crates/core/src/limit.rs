//! Limits on how often something may happen, by the generic cell rate algorithm (ITU-T I.371): a burst, and then one
//! more for every interval that passed. Unlike the libraries at hand it can give back what turned out to be free, so
//! that only failed logins count.
//!
//! [`Usage`] is the rule. [`SharedLimits`] is the port to whatever counts by the same rule for all replicas together.

use std::time::Duration;

use async_trait::async_trait;

/// How often something may happen.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    burst: u32,
    interval: Duration,
}

impl Limit {
    /// `burst` at once, and `count` in every `period` from then on. Both counts are at least 1.
    pub fn new(burst: u32, count: u32, period: Duration) -> Self {
        Self { burst, interval: period / count }
    }

    /// How often at once.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// How long until there is one more.
    pub fn interval(self) -> Duration {
        self.interval
    }
}

/// What may be done with the usage of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes one, or says how long to wait for it.
    Take,
    /// Takes nothing; says how long one would have to wait, if so.
    Check,
    /// Takes one though there may be no room: it is made up for by a longer wait.
    Charge,
    /// Gives back one that was taken.
    GiveBack,
}

/// How much of one limit is used, in 8 bytes: the moment at which nothing of it is used any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage(Duration);

impl Usage {
    /// Does `step` at `now` (monotonic). The error is how long to wait.
    pub fn count(&mut self, step: Step, limit: Limit, now: Duration) -> Result<(), Duration> {
        let free_at = self.0.max(now) + limit.interval;
        let full = now + limit.interval * limit.burst;
        match step {
            Step::Take | Step::Check if free_at > full => return Err(free_at.saturating_sub(full)),
            Step::Take | Step::Charge => self.0 = free_at,
            Step::Check => {}
            Step::GiveBack => self.0 = self.0.saturating_sub(limit.interval),
        }
        Ok(())
    }

    /// Whether something of it is still used at `now`.
    pub fn is_used(self, now: Duration) -> bool {
        self.0 > now
    }
}

/// Counts for all replicas together, by its own clock.
#[async_trait]
pub trait SharedLimits: Send + Sync {
    /// Does `step` with what `key` has used of `limit`, and answers as [`Usage::count`]; `None` if it cannot be done now,
    /// and then soon, whatever is the matter. `what` tells limits apart. `key` may be an e-mail address or a client's:
    /// it must not be readable wherever it is kept.
    async fn count(&self, step: Step, limit: Limit, what: &str, key: &str) -> Option<Result<(), Duration>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { burst: 3, interval: Duration::from_secs(10) };

    #[test]
    fn a_burst_and_then_one_for_every_interval() {
        let mut usage = Usage::default();
        let mut take = |now| usage.count(Step::Take, LIMIT, now);
        let start = Duration::from_hours(1);
        for _ in 0..3 {
            assert_eq!(take(start), Ok(()));
        }
        assert_eq!(take(start), Err(Duration::from_secs(10)));
        assert_eq!(take(start + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        assert_eq!(take(start + Duration::from_secs(10)), Ok(()));
        assert!(take(start + Duration::from_secs(10)).is_err());
        let later = start + Duration::from_mins(5);
        assert_eq!((0..9).filter(|_| take(later).is_ok()).count(), 3, "the burst does not pile up");
    }

    #[test]
    fn what_is_given_back_is_free_again() {
        let mut usage = Usage::default();
        let mut count = |step| usage.count(step, LIMIT, Duration::from_hours(1));
        for _ in 0..100 {
            assert_eq!(count(Step::Take), Ok(()));
            assert_eq!(count(Step::GiveBack), Ok(()));
        }
        assert_eq!((0..9).filter(|_| count(Step::Take).is_ok()).count(), 3);
    }

    #[test]
    fn what_is_charged_beyond_the_limit_is_made_up_for() {
        let mut usage = Usage::default();
        let now = Duration::from_hours(1);
        for _ in 0..5 {
            assert_eq!(usage.count(Step::Check, LIMIT, now), Ok(()), "asking takes nothing");
        }
        for _ in 0..5 {
            assert_eq!(usage.count(Step::Charge, LIMIT, now), Ok(()));
        }
        assert_eq!(usage.count(Step::Check, LIMIT, now), Err(Duration::from_secs(30)));
        assert_eq!(usage.count(Step::Check, LIMIT, now + Duration::from_secs(30)), Ok(()));
    }
}
