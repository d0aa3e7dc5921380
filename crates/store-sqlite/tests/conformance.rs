//! The store conformance suite on SQLite.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rollcall_core::Clock;
use rollcall_core::store::Store;
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use rollcall_testkit::conformance::Stores;
use tempfile::TempDir;

/// A store on a file in a folder of its own.
struct Sqlite;

struct Data {
    folder: TempDir,
    clock: Arc<dyn Clock>,
    store: Arc<SqliteStore>,
}

fn file(folder: &Path) -> PathBuf {
    folder.join("data").join("rollcall.db")
}

impl Stores for Sqlite {
    type Data = Data;

    async fn fresh(&self, clock: Arc<dyn Clock>) -> Data {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&file(folder.path()), OpenMode::Serve, Arc::clone(&clock)).unwrap();
        Data { folder, clock, store }
    }

    fn store(data: &Data) -> Arc<dyn Store> {
        Arc::<SqliteStore>::clone(&data.store)
    }

    async fn beside(data: &Data) -> Arc<dyn Store> {
        SqliteStore::open(&file(data.folder.path()), OpenMode::Tool, Arc::clone(&data.clock)).unwrap()
    }

    async fn close(data: &Data) {
        data.store.close().await;
    }

    async fn reopen(data: &mut Data) {
        let file = file(data.folder.path());
        data.store = SqliteStore::open(&file, OpenMode::Serve, Arc::clone(&data.clock)).unwrap();
    }
}

rollcall_testkit::store_conformance!(Sqlite);
