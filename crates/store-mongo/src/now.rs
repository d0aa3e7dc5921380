//! Reads of now: they show all that was committed before they were asked for.
//!
//! Only a primary that still is one can make a write that a majority holds, and by then it holds all that was committed
//! before. So a read of now makes such a write first, and asks then for what a majority holds at the write's time or
//! later, from whichever member. Those who ask at the same time share the write.
//!
//! MongoDB's own linearizable reads write as well, each for itself, and do not ask for the journal: a set of one member
//! has them wait for the next time that it is written, which is every 100 ms.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::action::{Find, FindOne};
use mongodb::bson::{Document, Timestamp, doc};
use mongodb::error::Error;
use mongodb::{ClientSession, ClusterTime};
use rollcall_core::store::StoreError;
use tokio::sync::watch;

use crate::db::{Db, SERVER};
use crate::error::Failure;

/// The collection with the one document that is written to.
pub(crate) const PROOF: &str = "proof";
/// How long others wait for a write that does not come through, before the next of them makes one.
const STUCK: Duration = Duration::from_millis(250);

/// What proves that a read is of now.
#[derive(Default)]
pub(crate) struct Now {
    /// Held by who writes.
    turn: tokio::sync::Mutex<()>,
    /// Told to all at once: handed from one to the next with the turn, it would reach the last of many late.
    proven: watch::Sender<Option<Proven>>,
}

/// That everything which was committed by the moment `began` is seen at `time`.
struct Proven {
    began: Instant,
    time: Time,
}

/// A time of the database, and the cluster's, which a router has to be told with it.
#[derive(Clone)]
struct Time {
    operation: Timestamp,
    cluster: Option<ClusterTime>,
}

impl Db {
    /// Reads one document of now.
    pub(crate) async fn find_one_now(&self, find: FindOne<'_, Document>) -> Result<Option<Document>, StoreError> {
        self.in_time(async {
            let mut now = self.now().await?;
            let _place = self.place().await?;
            find.max_time(SERVER).session(&mut now).await.map_err(Failure::of)
        })
        .await
        .map_err(Failure::told_reader)
    }

    /// Reads a list of now.
    pub(crate) async fn list_now(&self, find: Find<'_, Document>) -> Result<Vec<Document>, StoreError> {
        self.in_time(async {
            let mut now = self.now().await?;
            let _place = self.place().await?;
            let mut found = find.max_time(SERVER).session(&mut now).await.map_err(Failure::of)?;
            found.stream(&mut now).try_collect().await.map_err(Failure::of)
        })
        .await
        .map_err(Failure::told_reader)
    }

    /// What is read in this session is of now. Nobody has a place while waiting for it.
    pub(crate) async fn now(&self) -> Result<ClientSession, Failure> {
        let time = self.prove().await.map_err(Failure::of)?;
        let mut session = self.client.start_session().await.map_err(Failure::of)?;
        if let Some(cluster) = &time.cluster {
            session.advance_cluster_time(cluster);
        }
        session.advance_operation_time(time.operation);
        Ok(session)
    }

    /// A time at which everything is seen that has been committed by now.
    async fn prove(&self) -> Result<Time, Error> {
        let asked = Instant::now();
        let mut proven = self.now.proven.subscribe();
        let mut turn = std::pin::pin!(self.now.turn.lock());
        let turn = loop {
            if let Some(proven) = &*proven.borrow_and_update()
                && proven.began >= asked
            {
                return Ok(proven.time.clone());
            }
            tokio::select! {
                biased;
                // It cannot end before `self`, which sends.
                Ok(()) = proven.changed() => {}
                turn = &mut turn => break turn,
            }
        };
        let began = Instant::now();
        let mut write = std::pin::pin!(self.write_proof());
        let time = if let Ok(time) = tokio::time::timeout(STUCK, &mut write).await {
            time?
        } else {
            drop(turn);
            write.await?
        };
        self.now.proven.send_if_modified(|proven| {
            let newer = proven.as_ref().is_none_or(|proven| proven.began < began);
            if newer {
                *proven = Some(Proven { began, time: time.clone() });
            }
            newer
        });
        Ok(time)
    }

    async fn write_proof(&self) -> Result<Time, Error> {
        let mut session = self.control.client().start_session().await?;
        let count = doc! { "$inc": { "count": 1_i64 } };
        self.proof.update_one(doc! { "_id": "now" }, count).upsert(true).session(&mut session).await?;
        let operation = session.operation_time();
        let operation = operation.ok_or_else(|| Error::custom("the database does not tell the time of a write"))?;
        Ok(Time { operation, cluster: session.cluster_time().cloned() })
    }
}
