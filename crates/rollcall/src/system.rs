//! The operating system's time and randomness, as the core takes them.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use rollcall_core::{Clock, Ids, Timestamp};

/// The clock of this machine.
#[derive(Debug)]
pub(crate) struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
    fn now(&self) -> Timestamp {
        timestamp(SystemTime::now())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The moment as the core counts it. A clock before 1970 is as wrong as one far beyond, and as harmless.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => millis(since),
        Err(before) => -millis(before.duration()),
    })
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the operating system gives no randomness")?;
    Ok(bytes)
}

/// Lowers the calling thread's priority, so that sockets and requests come first. Where it is refused, or would
/// concern the whole process, all are equal.
pub(crate) fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(10) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// A source of ids that no other process makes.
pub(crate) fn ids() -> anyhow::Result<Ids> {
    Ok(Ids::new(random()?, u32::from_ne_bytes(random()?)))
}
