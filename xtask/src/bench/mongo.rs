//! A MongoDB for the rows that need one: a replica set on this machine.
//!
//! Most rows take one member, because three would share the machine's cores and disk, where in earnest each has its own.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rollcall_testkit::mongo::ReplicaSet;
use rollcall_testkit::mongo::mongodb::bson::oid::ObjectId;
use rollcall_testkit::mongo::mongodb::bson::{DateTime, Document, doc};
use tokio::runtime::Runtime;

use super::Bench;
use super::process::Process;
use super::world::{CREATED, Class, Database, PASSWORD, Person, classes, everybody};

/// The replica set. It ends with the value.
pub(crate) struct Mongo {
    runtime: Runtime,
    set: ReplicaSet,
    databases: AtomicU32,
}

/// A database on it with the school, dropped with the value.
pub(crate) struct School<'a> {
    mongo: &'a Mongo,
    name: String,
    /// Where the servers on it run.
    folder: Database,
}

impl Mongo {
    /// Starts one of so many members.
    pub(crate) fn start(members: usize) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let set = runtime.block_on(ReplicaSet::start(members)).context("a MongoDB to measure with")?;
        Ok(Self { runtime, set, databases: AtomicU32::new(0) })
    }

    /// The address of an empty database that nobody else uses.
    pub(crate) fn scratch(&self) -> String {
        self.set.url(&self.next("bare"))
    }

    /// A new database with the school.
    pub(crate) fn school(&self, bench: &Bench) -> anyhow::Result<School<'_>> {
        let school = School { mongo: self, name: self.next("school"), folder: bench.databases.none()? };
        let created = DateTime::from_millis(CREATED);
        let hash = bcrypt::non_truncating_hash(PASSWORD, 4)?;
        let user = |person: Person| {
            let email = person.email();
            doc! {
                "_id": object_id(person.id.bytes()), "name": person.name(), "email": &email, "emailKey": email,
                "role": person.role, "password": &hash, "tokenVersion": 1_i64, "disabled": false, "createdAt": created,
            }
        };
        let class = |class: Class| {
            let students: Vec<_> = class.students().map(|student| object_id(student.id.bytes())).collect();
            doc! {
                "_id": object_id(class.id.bytes()), "className": "A class", "studentIds": students, "archived": false,
                "teacherId": object_id(class.teacher.id.bytes()), "createdAt": created,
            }
        };
        self.runtime.block_on(async {
            let database = self.set.client().await?.database(&school.name);
            database.collection("users").insert_many(everybody().map(user)).await?;
            database.collection("classes").insert_many(classes().map(class)).await?;
            anyhow::Ok(())
        })?;
        Ok(school)
    }

    /// Processor time that its primary has used.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        self.runtime.block_on(async {
            let status = self.set.client().await?.database("admin").run_command(doc! { "serverStatus": 1 }).await?;
            let used = status.get_document("extra_info").context("what the server uses")?;
            let micros = used.get_i64("user_time_us")? + used.get_i64("system_time_us")?;
            Ok(Duration::from_micros(u64::try_from(micros)?))
        })
    }

    fn next(&self, what: &str) -> String {
        format!("{what}{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }
}

impl School<'_> {
    pub(crate) fn url(&self) -> String {
        self.mongo.set.url(&self.name)
    }

    /// Starts a server on it.
    pub(crate) fn replica(&self, bench: &Bench) -> anyhow::Result<Process> {
        let database = self.folder.path();
        Process::replica(bench, &self.url(), database.parent().unwrap_or(Path::new(".")))
    }

    /// What the database says of one of its collections.
    pub(crate) fn statistics(&self, collection: &str) -> anyhow::Result<Document> {
        self.mongo.runtime.block_on(async {
            let client = self.mongo.set.client().await?;
            // What is written is not counted before it is in the files.
            client.database("admin").run_command(doc! { "fsync": 1 }).await?;
            Ok(client.database(&self.name).run_command(doc! { "collStats": collection }).await?)
        })
    }
}

fn object_id(id: [u8; 12]) -> ObjectId {
    ObjectId::from_bytes(id)
}

impl Drop for School<'_> {
    fn drop(&mut self) {
        let dropped: anyhow::Result<()> = self.mongo.runtime.block_on(async {
            self.mongo.set.client().await?.database(&self.name).drop().await?;
            Ok(())
        });
        if let Err(error) = dropped {
            eprintln!("  {} is left in MongoDB: {error:#}", self.name);
        }
    }
}
