//! Where limits are counted beside this process: chosen here and nowhere else.

use std::fmt;
use std::sync::Arc;

use rollcall_core::limit::SharedLimits;
#[cfg(feature = "redis")]
use rollcall_limits_redis::RedisLimits;
#[cfg(feature = "redis")]
use secrecy::ExposeSecret;
use secrecy::SecretSlice;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How limits are counted.
pub(crate) enum Limits {
    /// There are none.
    Off,
    /// By this process alone.
    Alone,
    /// In Redis too.
    #[cfg(feature = "redis")]
    Shared(Arc<RedisLimits>),
}

impl Limits {
    /// As `config` says, until `work` is cancelled. `secret` is the same on all replicas.
    #[cfg_attr(not(feature = "redis"), expect(clippy::unused_async, reason = "Redis is far away"))]
    pub(crate) async fn start(config: &Config, secret: &SecretSlice<u8>, work: &CancellationToken) -> Self {
        #[cfg(not(feature = "redis"))]
        let _ = (secret, work);
        #[cfg(feature = "redis")]
        if config.limits
            && let Some(address) = &config.redis
        {
            let redis = RedisLimits::start(address.clone(), secret.expose_secret()).await;
            tokio::spawn(Arc::clone(&redis).keep(work.clone()));
            return Self::Shared(redis);
        }
        if config.limits { Self::Alone } else { Self::Off }
    }

    /// What counts for all replicas.
    pub(crate) fn shared(&self) -> Option<Arc<dyn SharedLimits>> {
        match self {
            Self::Off | Self::Alone => None,
            #[cfg(feature = "redis")]
            Self::Shared(redis) => Some(Arc::clone(redis) as _),
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Alone => f.write_str("on"),
            #[cfg(feature = "redis")]
            Self::Shared(redis) if redis.is_shared() => write!(f, "on, shared in {}", redis.address()),
            #[cfg(feature = "redis")]
            Self::Shared(redis) => write!(f, "on, of each replica alone: {} is away", redis.address()),
        }
    }
}
