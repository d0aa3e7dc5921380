//! The port to whatever hashes passwords.

use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::error::Error;
use crate::user::{NewPassword, PasswordHash};

/// Why a password was neither hashed nor checked.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The work that waits already takes longer than anybody would wait.
    #[error("password hashing is busy")]
    Busy {
        /// When the queue will be short again.
        retry_after: Duration,
    },
    /// The hasher failed.
    #[error("password hashing failed: {0}")]
    Failed(String),
}

impl From<HashError> for Error {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Busy { retry_after } => Self::Busy { retry_after },
            HashError::Failed(why) => Self::Internal(why),
        }
    }
}

/// Hashes and checks passwords without holding up anything else.
#[async_trait]
pub trait PasswordHasher: Send + Sync + 'static {
    /// A hash to store.
    async fn hash(&self, password: NewPassword) -> Result<PasswordHash, HashError>;

    /// Whether `password` is the one behind `hash`. Without a hash it takes as long and is `false`, so that the
    /// time of an answer does not tell whether an account exists.
    async fn verify(&self, password: SecretString, hash: Option<PasswordHash>) -> Result<bool, HashError>;
}
