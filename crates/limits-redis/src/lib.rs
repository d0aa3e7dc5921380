//! Limits that all replicas count together, in Redis: the adapter of [`rollcall_core::limit::SharedLimits`].
//!
//! The rule is a small script, `gcra.lua`, which does in one step in Redis, by the clock of Redis, what
//! [`rollcall_core::limit::Usage`] does in memory. Nothing here is needed to serve: while Redis is away, nobody waits for
//! it, and whoever asks is told at once to do without.

mod address;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Script};
use rollcall_core::limit::{Limit, SharedLimits, Step};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

pub use address::Address;

/// How long Redis may take for one step: far more than it needs, and little beside the hashing of a password.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// How long it may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// How often it is asked whether it is there, and tried again if it is not.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// What all keys begin with.
const PREFIX: &str = "rollcall:limit:";

/// Why Redis did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// Redis says why, or the network does.
    #[error(transparent)]
    Failed(#[from] RedisError),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Limits in Redis.
pub struct RedisLimits {
    address: Address,
    script: Script,
    /// Makes names of keys that say nothing about whose they are, and are the same on every replica.
    names: hmac::Key,
    /// `None` while Redis is away.
    connection: Mutex<Option<Arc<MultiplexedConnection>>>,
}

impl RedisLimits {
    /// Connects. Where Redis is away the log says so, and it is tried again by [`keep`](Self::keep). `secret` is the same
    /// on all replicas that share limits, and on no others.
    pub async fn start(address: Address, secret: &[u8]) -> Arc<Self> {
        describe_gauge!("rollcall_limits_shared", Unit::Count, "1 while limits are counted for all replicas together.");
        describe_counter!("rollcall_limits_redis_errors_total", Unit::Count, "What Redis did not do, or too late.");
        counter!("rollcall_limits_redis_errors_total").increment(0);
        let limits = Arc::new(Self::new(address, secret));
        match limits.connect().await {
            Ok(()) => tracing::info!(redis = %limits.address, "limits are shared"),
            Err(error) => limits.warn(&error),
        }
        limits
    }

    fn new(address: Address, secret: &[u8]) -> Self {
        // Tokens are signed with the secret itself, so names are not.
        let names = hmac::sign(&hmac::Key::new(HMAC_SHA256, secret), b"the names of limits in Redis");
        Self {
            address,
            script: Script::new(include_str!("gcra.lua")),
            names: hmac::Key::new(HMAC_SHA256, names.as_ref()),
            connection: Mutex::new(None),
        }
    }

    /// Whether all that is needed of the Redis at `address` can be done.
    pub async fn examine(address: Address) -> Result<(), Away> {
        Self::new(address, &[]).connect().await
    }

    /// Where Redis is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether limits are shared at this moment.
    pub fn is_shared(&self) -> bool {
        self.connection.lock().is_some()
    }

    /// Notices that Redis is away where nobody asks it, and that it is back, until `work` is cancelled.
    pub async fn keep(self: Arc<Self>, work: CancellationToken) {
        let mut tick = tokio::time::interval(TRY_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let run = async {
            loop {
                tick.tick().await;
                let connection = self.connection.lock().clone();
                if let Some(connection) = connection {
                    if let Err(error) = self.probe(&connection).await {
                        self.lose(&connection, &error);
                    }
                } else if self.connect().await.is_ok() {
                    tracing::info!(redis = %self.address, "Redis is back: limits are shared again");
                }
            }
        };
        work.run_until_cancelled(run).await;
    }

    async fn connect(&self) -> Result<(), Away> {
        let connect = async {
            let client = self.address.client()?;
            let connection = client.get_multiplexed_async_connection().await?;
            self.probe(&connection).await?;
            Ok(connection)
        };
        let connected = timeout(CONNECT_WITHIN, connect).await.unwrap_or(Err(Away::Late(CONNECT_WITHIN)));
        let connection = connected.inspect_err(|_| counter!("rollcall_limits_redis_errors_total").increment(1))?;
        *self.connection.lock() = Some(Arc::new(connection));
        gauge!("rollcall_limits_shared").set(1.0);
        Ok(())
    }

    /// Does all that a limit needs: one that can be read and not written to, or not reached by a script, is of no use.
    async fn probe(&self, connection: &MultiplexedConnection) -> Result<(), Away> {
        let limit = Limit::new(1, 1, Duration::from_millis(1));
        self.run(connection, Step::Charge, limit, &format!("{PREFIX}probe")).await.map(drop)
    }

    /// Answers how many microseconds to wait.
    async fn run(&self, connection: &MultiplexedConnection, step: Step, limit: Limit, name: &str) -> Result<u64, Away> {
        let step = match step {
            Step::Take => "take",
            Step::Check => "check",
            Step::Charge => "charge",
            Step::GiveBack => "give-back",
        };
        let interval = u64::try_from(limit.interval().as_micros()).unwrap_or(u64::MAX);
        let mut script = self.script.key(name);
        script.arg(step).arg(limit.burst()).arg(interval);
        match timeout(ANSWER_WITHIN, script.invoke_async(&mut connection.clone())).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Away::Late(ANSWER_WITHIN)),
        }
    }

    /// The name of `key` in Redis.
    fn name(&self, what: &str, key: &str) -> String {
        let mut name = hmac::Context::with_key(&self.names);
        for part in [what, "\0", key] {
            name.update(part.as_bytes());
        }
        let name = name.sign().as_ref().iter().take(16).fold(0, |name, byte| name << 8 | u128::from(*byte));
        format!("{PREFIX}{what}:{name:032x}")
    }

    /// From now on nobody asks Redis, until there is another connection. Many may find out, some late; the log has it once.
    fn lose(&self, lost: &Arc<MultiplexedConnection>, error: &Away) {
        counter!("rollcall_limits_redis_errors_total").increment(1);
        let is_lost = |connection: &mut Arc<_>| Arc::ptr_eq(connection, lost);
        if self.connection.lock().take_if(is_lost).is_some() {
            self.warn(error);
        }
    }

    fn warn(&self, error: &Away) {
        gauge!("rollcall_limits_shared").set(0.0);
        tracing::warn!(redis = %self.address, %error, "Redis is away: each replica counts limits alone");
    }
}

#[async_trait]
impl SharedLimits for RedisLimits {
    async fn count(&self, step: Step, limit: Limit, what: &str, key: &str) -> Option<Result<(), Duration>> {
        let connection = self.connection.lock().clone()?;
        match self.run(&connection, step, limit, &self.name(what, key)).await {
            Ok(0) => Some(Ok(())),
            Ok(wait) => Some(Err(Duration::from_micros(wait))),
            Err(error) => {
                self.lose(&connection, &error);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(secret: &str) -> RedisLimits {
        RedisLimits::new(Address::parse("redis://127.0.0.1").unwrap(), secret.as_bytes())
    }

    #[test]
    fn names_are_the_same_on_all_replicas_and_tell_nothing() {
        let name = limits("secret").name("logins-of-account", "ada@school.example");
        assert_eq!(name, limits("secret").name("logins-of-account", "ada@school.example"));
        assert!(name.starts_with("rollcall:limit:logins-of-account:") && name.len() == 65, "{name}");
        assert!(!name.contains("ada"));
        for other in [
            limits("other").name("logins-of-account", "ada@school.example"),
            limits("secret").name("logins-of-account", "bob@school.example"),
            limits("secret").name("sign-ups", "ada@school.example").replace("sign-ups", "logins-of-account"),
        ] {
            assert_ne!(name, other);
        }
    }
}
