//! What the server is compared with, each in a process of its own as the server is: the same work by the same
//! libraries, with nothing of Rollcall around it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures_util::future::try_join_all;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rollcall_core::session::{Actor, Command, Door, OperationId, Origin, Status};
use rollcall_core::store::{Outcome, Sessions as _, Target};
use rollcall_core::{Clock as _, SessionId};
use rollcall_store_sqlite::{OpenMode, SqliteStore};
use rollcall_testkit::mongo::mongodb::bson::{Document, doc};
use rollcall_testkit::mongo::mongodb::options::{Acknowledgment, ClientOptions, WriteConcern};
use rollcall_testkit::mongo::mongodb::{Client, Collection};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::world::{Class, PASSWORD, SystemClock, TEACHERS};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A server of the same HTTP library that answers every `GET /me` with this
    Http { body: String },
    /// A loop that writes what the first socket sends to every socket
    Sockets,
    /// Marks that tasks, one for each teacher, give to the store itself; prints marks a second
    Store { database: PathBuf, in_flight: usize, marks: usize },
    /// Updates in a MongoDB by tasks, each so many after one another; prints updates a second
    MongoUpdates { url: String, tasks: usize, documents: usize, updates: usize },
    /// Updates in a MongoDB, one after another; prints for each the seconds until its change stream told of it
    MongoStream { url: String, updates: usize },
    /// Passwords checked on all cores for so many milliseconds; prints checks a second
    Bcrypt { millis: u64 },
}

pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    end_with_parent();
    match options.what {
        What::Http { body } => block_on(http(body)),
        What::Sockets => block_on(sockets()),
        What::Store { database, in_flight, marks } => {
            println!("{}", block_on(store(&database, in_flight, marks))?);
            Ok(())
        }
        What::MongoUpdates { url, tasks, documents, updates } => {
            println!("{}", block_on(mongo_updates(&url, tasks, documents, updates))?);
            Ok(())
        }
        What::MongoStream { url, updates } => {
            for seconds in block_on(mongo_stream(&url, updates))? {
                println!("{seconds}");
            }
            Ok(())
        }
        What::Bcrypt { millis } => {
            println!("{}", bcrypt(Duration::from_millis(millis))?);
            Ok(())
        }
    }
}

/// However the parent ends, its end of this process's standard input closes with it.
fn end_with_parent() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn listen() -> anyhow::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(4096)?;
    println!("reference listens on http://{}", listener.local_addr()?);
    Ok(listener)
}

async fn http(body: String) -> anyhow::Result<()> {
    // For as long as the process lives.
    let body: &'static str = body.leak();
    let router = Router::new().route("/me", get(async move || ([(CONTENT_TYPE, "application/json")], body)));
    let listener = listen()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            // A client that leaves is no news.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn sockets() -> anyhow::Result<()> {
    let listener = listen()?;
    let (opened, mut newcomers) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(socket) = open(stream).await else { continue };
            if opened.send(socket).is_err() {
                break;
            }
        }
    });
    let mut sender = newcomers.recv().await.context("a first socket")?;
    let mut others: Vec<WebSocketStream<TcpStream>> = Vec::new();
    loop {
        let mut frames = vec![sender.next().await.context("the first socket ended")??];
        while let Some(Some(frame)) = sender.next().now_or_never() {
            frames.push(frame?);
        }
        while let Ok(newcomer) = newcomers.try_recv() {
            others.push(newcomer);
        }
        for socket in std::iter::once(&mut sender).chain(&mut others) {
            for frame in &frames {
                socket.feed(frame.clone()).await?;
            }
            socket.flush().await?;
        }
    }
}

async fn open(stream: TcpStream) -> anyhow::Result<WebSocketStream<TcpStream>> {
    stream.set_nodelay(true)?;
    // As small as in the server: the memory of idle connections is compared too.
    let config = WebSocketConfig::default().read_buffer_size(4096);
    Ok(tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?)
}

async fn store(database: &Path, in_flight: usize, marks: usize) -> anyhow::Result<f64> {
    let clock = Arc::new(SystemClock::start());
    let store = SqliteStore::open(database, OpenMode::Serve, clock.clone())?;
    for number in 0..TEACHERS {
        let class = Class::ordinary(number);
        let id = SessionId(class.id.0);
        store.start(id, class.id, class.teacher.id, origin(&clock, class, 0)).await?;
    }
    let started = Instant::now();
    let teachers = (0..TEACHERS).map(|number| {
        let (store, clock) = (Arc::clone(&store), clock.clone());
        tokio::spawn(async move { mark(&store, &clock, Class::ordinary(number), in_flight, marks).await })
    });
    for teacher in teachers.collect::<Vec<_>>() {
        teacher.await??;
    }
    let rate = (TEACHERS * marks) as f64 / started.elapsed().as_secs_f64();
    store.close().await;
    Ok(rate)
}

/// Marks a class's students in turn, so many at the same time.
async fn mark(
    store: &SqliteStore,
    clock: &SystemClock,
    class: Class,
    in_flight: usize,
    marks: usize,
) -> anyhow::Result<()> {
    let students: Vec<_> = class.students().collect();
    let mut waiting = VecDeque::with_capacity(in_flight);
    for number in 1..=marks {
        let status = if number / students.len() % 2 == 0 { Status::Present } else { Status::Absent };
        let command = Command::Mark { student_id: students[number % students.len()].id, status, reason: None };
        waiting.push_back(store.submit(Target::Class(class.id), command, origin(clock, class, number)).await?);
        if waiting.len() == in_flight
            && let Some(first) = waiting.pop_front()
        {
            done(first.await?)?;
        }
    }
    for receipt in waiting {
        done(receipt.await?)?;
    }
    Ok(())
}

fn done(outcome: Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Done(_) => Ok(()),
        other => bail!("a mark was not made: {other:?}"),
    }
}

fn origin(clock: &SystemClock, class: Class, number: usize) -> Origin {
    Origin {
        by: Actor::User(class.teacher.id),
        at: clock.now(),
        door: Door::WebSocket,
        address: Some([127, 0, 0, 1].into()),
        operation: OperationId::Door(number.to_string().into()),
    }
}

/// A majority has every update before the task makes its next.
async fn mongo_updates(url: &str, tasks: usize, documents: usize, count: usize) -> anyhow::Result<f64> {
    let collection = mongo_documents(url, documents).await?;
    // All connections are there before the time begins.
    try_join_all((0..tasks).map(|_| collection.find_one(doc! { "_id": 0_i64 }).into_future())).await?;
    let started = Instant::now();
    let tasks = (0..tasks).map(|task| {
        let collection = collection.clone();
        tokio::spawn(async move {
            let document = doc! { "_id": i64::try_from(task % documents)? };
            for number in 0..i64::try_from(count)? {
                let set = doc! { "$set": { "by": i64::try_from(task)?, "number": number } };
                let updated = collection.update_one(document.clone(), set).await?;
                ensure!(updated.matched_count == 1, "an update of nothing");
            }
            anyhow::Ok(())
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let all = tasks.len() * count;
    for task in tasks {
        task.await??;
    }
    Ok(all as f64 / started.elapsed().as_secs_f64())
}

async fn mongo_stream(url: &str, count: usize) -> anyhow::Result<Vec<f64>> {
    let collection = mongo_documents(url, 1).await?;
    let mut stream = collection.watch().await?;
    let mut times = Vec::with_capacity(count);
    for number in 0..i64::try_from(count)? {
        let started = Instant::now();
        let update = collection.update_one(doc! { "_id": 0_i64 }, doc! { "$set": { "number": number } });
        let (done, heard) = tokio::join!(update.into_future(), stream.next());
        done?;
        heard.context("the change stream ended")??;
        times.push(started.elapsed().as_secs_f64());
    }
    Ok(times)
}

/// A collection of so many documents, by a client that may have a connection for each of 64 users at once.
async fn mongo_documents(url: &str, documents: usize) -> anyhow::Result<Collection<Document>> {
    let mut options = ClientOptions::parse(url).await?;
    options.max_pool_size = Some(64);
    options.write_concern = Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
    let database = Client::with_options(options)?.default_database().context("a database in the address")?;
    let collection = database.collection("documents");
    let documents = (0..i64::try_from(documents)?).map(|id| doc! { "_id": id, "by": 0_i64, "number": -1_i64 });
    collection.insert_many(documents).await?;
    Ok(collection)
}

fn bcrypt(length: Duration) -> anyhow::Result<f64> {
    let hash = bcrypt::non_truncating_hash(PASSWORD, 10)?;
    let started = Instant::now();
    let checked: u32 = std::thread::scope(|scope| {
        let check = || {
            let mut checked = 0;
            while started.elapsed() < length {
                if !bcrypt::non_truncating_verify(PASSWORD, &hash).unwrap_or_default() {
                    break;
                }
                checked += 1;
            }
            checked
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(check)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).sum()
    });
    Ok(f64::from(checked) / started.elapsed().as_secs_f64())
}
