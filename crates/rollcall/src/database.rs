//! Which database, and its adapter: chosen here and nowhere else.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rollcall_core::Clock;
use rollcall_core::store::Store;
#[cfg(feature = "mongodb")]
use rollcall_store_mongo::MongoStore;
use rollcall_store_sqlite::{OpenMode, SqliteStore};
#[cfg(feature = "mongodb")]
use secrecy::{ExposeSecret, SecretString};

/// Which database.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    /// The embedded one, in this file.
    File(PathBuf),
    /// MongoDB at this address, which may hold a password.
    #[cfg(feature = "mongodb")]
    Mongo(SecretString),
}

impl Database {
    /// The file of the embedded database.
    #[cfg_attr(not(feature = "mongodb"), expect(clippy::unnecessary_wraps, reason = "MongoDB has no file"))]
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) => Some(path),
            #[cfg(feature = "mongodb")]
            Self::Mongo(_) => None,
        }
    }

    /// Opens it. `clock` tells the age of sessions.
    #[cfg_attr(not(feature = "mongodb"), expect(clippy::unused_async, reason = "MongoDB is far away"))]
    pub(crate) async fn open(&self, mode: OpenMode, clock: Arc<dyn Clock>) -> anyhow::Result<Opened> {
        match self {
            Self::File(path) => Ok(Opened::File(SqliteStore::open(path, mode, clock)?)),
            #[cfg(feature = "mongodb")]
            Self::Mongo(url) => Ok(Opened::Mongo(MongoStore::connect(url, clock).await?)),
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            #[cfg(feature = "mongodb")]
            Self::Mongo(url) => {
                // Options may be secrets too.
                let url = url.expose_secret().split('?').next().unwrap_or_default();
                match (url.split_once("://"), url.rsplit_once('@')) {
                    (Some((scheme, _)), Some((_, place))) => write!(f, "{scheme}://…@{place}"),
                    _ => f.write_str(url),
                }
            }
        }
    }
}

/// An open database.
pub(crate) enum Opened {
    /// The embedded one.
    File(Arc<SqliteStore>),
    /// MongoDB.
    #[cfg(feature = "mongodb")]
    Mongo(Arc<MongoStore>),
}

impl Opened {
    /// The port to it.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::File(store) => Arc::clone(store) as _,
            #[cfg(feature = "mongodb")]
            Self::Mongo(store) => Arc::clone(store) as _,
        }
    }

    /// What kind of database it is, by OpenTelemetry's names.
    pub(crate) fn system(&self) -> &'static str {
        match self {
            Self::File(_) => "sqlite",
            #[cfg(feature = "mongodb")]
            Self::Mongo(_) => "mongodb",
        }
    }

    /// Finishes what was asked for so far, refuses the rest, and lets go of it.
    pub(crate) async fn close(&self) {
        match self {
            Self::File(store) => store.close().await,
            #[cfg(feature = "mongodb")]
            Self::Mongo(store) => store.close().await,
        }
    }
}

#[cfg(all(test, feature = "mongodb"))]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("mongodb://user:p@ss@a:1,b:2/school?replicaSet=rs0", "mongodb://…@a:1,b:2/school"),
            ("mongodb+srv://cluster.example/?authMechanismProperties=X:hunter2", "mongodb+srv://cluster.example/"),
        ] {
            assert_eq!(Database::Mongo(url.into()).to_string(), shown);
            assert!(!format!("{:?}", Database::Mongo(url.into())).contains("ss@"));
        }
    }
}
