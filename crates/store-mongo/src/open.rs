//! Opening a database: which one it is, whether it will do, and what has to be added to it.
//!
//! Everything here may happen in several replicas at once. An existing database is only added to: collections, indexes,
//! and `emailKey` in accounts that have none.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{
    ClientOptions, CollectionOptions, ConnectionString, IndexOptions, ReadConcern, ReadPreference, SelectionCriteria,
};
use mongodb::{Client, Collection, IndexModel};
use rollcall_core::user::EmailKey;

use crate::db::{Clients, Db, PAUSE, write_concern};
use crate::error::{Failure, OpenError, is_duplicate};
use crate::transfer;

/// The database that is used when the address names none.
const USUAL: &str = "rollcall";
/// The database of the earlier backend.
const EARLIER: &str = "attendence_db";
/// How long opening may take; making indexes on a large database that has none takes the longest.
const OPENING: Duration = Duration::from_mins(5);
/// How long the driver looks for a primary.
const SELECTION: Duration = Duration::from_secs(3);
/// How many connections there may be for what all wait for: more than proofs, questions and the stream have on their way
/// while nothing is answered.
const CONTROL: u32 = 32;

/// How long opening waits for a replica set whose members answer but that has no primary, or one that steps down.
const ELECTION: Duration = Duration::from_secs(30);

/// Opens the database that `url` names, and brings it up to date if `prepare`.
pub(crate) async fn open(url: &str, prepare: bool) -> Result<Db, OpenError> {
    let opening = async {
        let named = ConnectionString::parse(url).map_err(|error| address(url, &error))?.default_database;
        let clients = clients(options(url).await?, prepare).map_err(|error| address(url, &error))?;
        let name = named.filter(|name| !name.is_empty());
        let began = Instant::now();
        let mut told = false;
        loop {
            let error = match open_once(&clients, name.as_deref(), prepare).await {
                Err(OpenError::Database(error)) if prepare && began.elapsed() < ELECTION && passes(&error) => error,
                outcome => return outcome,
            };
            if !has_members(&clients.client).await {
                return Err(OpenError::Database(error));
            }
            if !told {
                tracing::warn!(%error, "MongoDB has no primary that can be used; waiting for one");
                told = true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(OPENING, opening).await.unwrap_or(Err(OpenError::Silent))
}

async fn open_once(clients: &Clients, name: Option<&str>, prepare: bool) -> Result<Db, OpenError> {
    check_kind(&clients.client).await?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => usual_database(&clients.client).await?,
    };
    let db = Db::new(clients.clone(), &name);
    if prepare {
        self::prepare(&db).await?;
    }
    Ok(db)
}

/// Whether the error says something of the moment only. All that opening does can be done again.
fn passes(error: &Error) -> bool {
    !matches!(&*error.kind, ErrorKind::Authentication { .. })
        && !matches!(Failure::of(error.clone()), Failure::Refused(_))
}

/// Whether any member answers, primary or not.
async fn has_members(client: &Client) -> bool {
    let anyone = SelectionCriteria::ReadPreference(ReadPreference::Nearest { options: None });
    client.database("admin").run_command(doc! { "hello": 1 }).selection_criteria(anyone).await.is_ok()
}

/// The driver's words about the address, unless they hold a secret of it.
fn address(url: &str, error: &Error) -> OpenError {
    let said = match &*error.kind {
        ErrorKind::InvalidArgument { message, .. } | ErrorKind::DnsResolve { message, .. } => message.clone(),
        _ => error.kind.to_string(),
    };
    let user = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map(|(user, _)| user);
    let password = user.and_then(|user| user.split_once(':')).map(|(_, password)| password);
    let secret = [user, password].into_iter().flatten().any(|secret| !secret.is_empty() && said.contains(secret));
    OpenError::Address(if secret { "it cannot be read".to_owned() } else { said })
}

async fn options(url: &str) -> Result<ClientOptions, OpenError> {
    let mut options = ClientOptions::parse(url).await.map_err(|error| address(url, &error))?;
    options.app_name.get_or_insert_with(|| "rollcall".to_owned());
    options.server_selection_timeout = Some(SELECTION);
    options.connect_timeout = Some(SELECTION);
    // As many as other drivers have, not ten: those who come back at one moment all ask.
    options.max_pool_size.get_or_insert(100);
    // When a school logs in at one moment, connections are made as fast as they are wanted.
    options.max_connecting.get_or_insert(16);
    options.heartbeat_freq = Some(Duration::from_secs(2));
    options.retry_reads = Some(true);
    options.retry_writes = Some(true);
    // Whatever the address says: what is acknowledged must stand, and what is read must be so.
    options.write_concern = Some(write_concern());
    options.read_concern = Some(ReadConcern::majority());
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
    Ok(options)
}

/// The clients of a database that is served, or else of one that is read through or filled, where nobody follows.
fn clients(mut options: ClientOptions, served: bool) -> Result<Clients, Error> {
    let client = Client::with_options(options.clone())?;
    // To the driver 0 is no limit.
    let connections = options.max_pool_size.and_then(NonZeroU32::new);
    if !served {
        return Ok(Clients { control: client.clone(), client, connections });
    }
    options.max_pool_size = Some(CONTROL);
    // They are made when they are wanted.
    options.min_pool_size = None;
    Ok(Clients { control: Client::with_options(options)?, client, connections })
}

/// Refuses a server that has no change streams.
async fn check_kind(client: &Client) -> Result<(), OpenError> {
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await.map_err(OpenError::Database)?;
    let routed = hello.get("msg").and_then(Bson::as_str) == Some("isdbgrid");
    if hello.contains_key("setName") || routed { Ok(()) } else { Err(OpenError::Standalone) }
}

async fn usual_database(client: &Client) -> Result<String, OpenError> {
    let names = client.list_database_names().await.map_err(OpenError::Database)?;
    if names.iter().any(|name| name == EARLIER) {
        return Err(OpenError::WhichDatabase { earlier: EARLIER, usual: USUAL });
    }
    Ok(USUAL.to_owned())
}

/// Brings a database that is open up to date, unless it is an unfinished copy.
pub(crate) async fn prepare(db: &Db) -> Result<(), OpenError> {
    let preparing = async {
        if transfer::marker(db).await.map_err(OpenError::Database)?.is_some() {
            return Err(OpenError::UnfinishedCopy);
        }
        prepare_collections(db).await.map_err(OpenError::Database)
    };
    tokio::time::timeout(OPENING, preparing).await.unwrap_or(Err(OpenError::Silent))
}

/// Adds what the database lacks.
async fn prepare_collections(db: &Db) -> Result<(), Error> {
    let open = || Some(doc! { "state": "open" });
    make(
        &db.users,
        vec![
            index(doc! { "emailKey": 1 }, true, Some(doc! { "emailKey": { "$exists": true } })),
            index(doc! { "role": 1, "_id": 1 }, false, None),
        ],
    )
    .await?;
    make(
        &db.classes,
        vec![
            index(doc! { "teacherId": 1, "_id": 1 }, false, None),
            index(doc! { "studentIds": 1, "_id": 1 }, false, None),
        ],
    )
    .await?;
    // Nothing that a mark changes is indexed: a mark is then one write to one place, however long the log.
    make(
        &db.sessions,
        vec![
            index(doc! { "classId": 1 }, true, open()),
            index(doc! { "classId": 1, "firstRev": -1 }, true, None),
            index(doc! { "classId": 1, "finishedAt": -1 }, false, None),
            index(doc! { "actors": 1, "finishedAt": -1 }, false, None),
            index(doc! { "teacherId": 1, "opened": -1 }, false, open()),
            index(doc! { "roster": 1, "opened": -1 }, false, open()),
            index(doc! { "opened": 1 }, false, open()),
        ],
    )
    .await?;
    make(
        &db.records,
        vec![
            index(doc! { "sessionId": 1, "studentId": 1 }, true, Some(doc! { "sessionId": { "$exists": true } })),
            index(doc! { "classId": 1, "studentId": 1, "_id": -1 }, false, None),
        ],
    )
    .await?;
    make(&db.openings, Vec::new()).await?;
    let there = |field| Some(doc! { field: { "$exists": true } });
    make(
        &db.mails,
        vec![
            index(doc! { "mailId": 1 }, true, None),
            index(doc! { "token": 1 }, true, there("token")),
            index(doc! { "kind": 1, "dueAt": 1 }, false, there("dueAt")),
            index(doc! { "to": 1, "kind": 1, "queuedAt": 1 }, false, None),
            index(doc! { "expiresAt": 1 }, false, None),
        ],
    )
    .await?;
    make(&db.absences, Vec::new()).await?;
    make(&db.proof, Vec::new()).await?;
    let names = db.database.list_collection_names().await?;
    if names.iter().any(|name| name == db.earlier_records.name()) {
        let by_student = index(doc! { "classId": 1, "studentId": 1, "_id": -1 }, false, None);
        make(&db.earlier_records, vec![by_student]).await?;
    }
    fill_email_keys(db).await
}

fn index(keys: Document, unique: bool, only: Option<Document>) -> IndexModel {
    let unique = unique.then_some(true);
    // Two on the same keys need names of their own.
    let mut name: Vec<_> = keys.iter().map(|(field, order)| format!("{field}_{order}")).collect();
    if only.is_some() {
        name.push("some".to_owned());
    }
    let options = IndexOptions::builder().name(name.join("_")).unique(unique).partial_filter_expression(only).build();
    IndexModel::builder().keys(keys).options(options).build()
}

/// Makes a collection with its indexes; what is there already is left as it is.
async fn make(collection: &Collection<Document>, indexes: Vec<IndexModel>) -> Result<(), Error> {
    const EXISTS: i32 = 48;
    let database = collection.client().database(&collection.namespace().db);
    match database.create_collection(collection.name()).await {
        Err(error) if matches!(&*error.kind, ErrorKind::Command(command) if command.code == EXISTS) => {}
        made => made?,
    }
    if !indexes.is_empty() {
        collection.create_indexes(indexes).await?;
    }
    Ok(())
}

/// Gives every account of an earlier backend the key that makes its address unique: of two with one address the older.
async fn fill_email_keys(db: &Db) -> Result<(), Error> {
    // As many replicas do so at once: each begins with the oldest, so that none gives a younger one the key first.
    let local = CollectionOptions::builder().write_concern(write_concern()).build();
    let users: Collection<Document> = db.database.collection_with_options(db.users.name(), local);
    let without = doc! { "emailKey": { "$exists": false }, "email": { "$type": "string" } };
    let mut found = users.find(without).projection(doc! { "email": 1 }).sort(doc! { "_id": 1 }).await?;
    let mut filled = 0_u64;
    while let Some(user) = found.try_next().await? {
        let (Some(id), Some(email)) = (user.get("_id"), user.get("email").and_then(Bson::as_str)) else { continue };
        let own = doc! { "_id": id.clone(), "email": email, "emailKey": { "$exists": false } };
        let key = doc! { "$set": { "emailKey": EmailKey::of(email).as_str() } };
        match users.update_one(own, key).await {
            Ok(updated) => filled += updated.modified_count,
            Err(error) if is_duplicate(&error) => {
                tracing::warn!(user = %id, "an older account has the same e-mail address; this one cannot log in");
            }
            Err(error) => return Err(error),
        }
    }
    if filled > 0 {
        tracing::info!(accounts = filled, "e-mail addresses of an earlier backend are unique from now on");
    }
    Ok(())
}
