//! The store conformance suite on MongoDB.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rollcall_core::Clock;
use rollcall_core::store::Store;
use rollcall_store_mongo::MongoStore;
use rollcall_testkit::conformance::Stores;
use rollcall_testkit::mongo;
use secrecy::SecretString;

/// A store on a database of its own, on a server that all share.
struct Mongo;

struct Data {
    url: SecretString,
    clock: Arc<dyn Clock>,
    store: Arc<MongoStore>,
}

impl Stores for Mongo {
    type Data = Data;

    async fn fresh(&self, clock: Arc<dyn Clock>) -> Data {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let url: SecretString = mongo::shared().await.url(&format!("world{number}")).into();
        let store = MongoStore::connect(&url, Arc::clone(&clock)).await.unwrap();
        Data { url, clock, store }
    }

    fn store(data: &Data) -> Arc<dyn Store> {
        Arc::<MongoStore>::clone(&data.store)
    }

    async fn beside(data: &Data) -> Arc<dyn Store> {
        MongoStore::connect(&data.url, Arc::clone(&data.clock)).await.unwrap()
    }

    async fn close(data: &Data) {
        data.store.close().await;
    }

    async fn reopen(data: &mut Data) {
        data.store = MongoStore::connect(&data.url, Arc::clone(&data.clock)).await.unwrap();
    }
}

rollcall_testkit::store_conformance!(Mongo, ignore = "needs MongoDB: cargo xtask test");
