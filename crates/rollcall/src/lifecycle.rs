//! A server's life: started, served, drained, left.
//!
//! This is the one place where adapters are joined to the services.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::Router;
use rollcall_api::trace::{TracedStore, Traces};
use rollcall_api::{Api, ApiConfig, Exposition, MailKey, MetricsRoute, Secure, redirect_router};
use rollcall_core::Clock;
use rollcall_core::mail::MailTokens;
use rollcall_core::service::{Ports, Services, TeacherSignup};
use rollcall_core::store::Store;
use rollcall_mail::Sender;
use rollcall_realtime::{Hub, HubConfig, close};
use rollcall_store_sqlite::OpenMode;
use rustix::process::{Resource, Rlimit, Signal as Number, getrlimit, setrlimit};
use secrecy::SecretSlice;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::database::Opened;
use crate::healthcheck::reachable;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::passwords::BcryptPool;
use crate::system::{self, SystemClock};
use crate::tls::{Current, Tls};
#[cfg(feature = "otlp")]
use crate::traces::Exporter;
use crate::{secret_file, telemetry};

/// How long requests that are being answered may take to end when the server stops.
const FINISH_REQUESTS: Duration = Duration::from_secs(5);
/// Over how long sockets are closed when the server stops, so that not all come back in the same moment.
const CLOSE_OVER: Duration = Duration::from_secs(1);
/// How long sockets may take to close.
const FINISH_SOCKETS: Duration = Duration::from_secs(5);
/// How long the database may take to close.
const CLOSE_STORE: Duration = Duration::from_secs(10);
/// File descriptors that are not for connections: the database's, the log's, the listeners'.
const OWN_FILES: usize = 128;
/// Connections to the address that metrics have for themselves.
const METRICS_CONNECTIONS: usize = 64;
/// Connections to the address that sends to HTTPS: each is there for one answer.
const REDIRECT_CONNECTIONS: usize = 512;
/// How often at least sessions are looked at that nobody finishes.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);
/// For how long after an order another one is the same: some tell a process and then its whole group.
const SAME_ORDER: Duration = Duration::from_millis(500);
/// The exit code of a process that was told twice to end.
const INTERRUPTED: i32 = 130;

/// Serves until the process is told to end. An error means that the server could not start or could not go on.
pub(crate) fn serve(config: Config) -> anyhow::Result<()> {
    let files = raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let outcome = runtime.block_on(run(config, files));
    // What is left by now is waited for no longer.
    runtime.shutdown_background();
    outcome
}

/// Raises the limit on open files as far as it goes, and answers with what it is. Each connection is a file.
fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    // Some systems promise more than they give: macOS gives no more than this.
    let attempts = [limit.maximum, Some(10_240)];
    for current in attempts {
        let higher = current.is_none_or(|new| limit.current.is_some_and(|now| now < new));
        if higher && setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum }).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

async fn run(config: Config, open_files: usize) -> anyhow::Result<()> {
    let mut orders = Orders::listen().context("signals cannot be heard")?;
    // Heard and not obeyed: at a limit on the size of files a write then fails, as on a full disk, and nothing ends.
    let _ = signal(SignalKind::from_raw(Number::XFSZ.as_raw())).context("signals cannot be heard")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let figures = telemetry::start_metrics(&*clock, config.database.file().cloned())?;
    let figures: Exposition = Arc::new(move || figures.show());
    let tls = config.tls.as_ref().map(|source| Tls::start(source, &clock)).transpose()?;
    let sender = config.mail.clone().map(|mail| mail_sender(mail, Arc::clone(&clock))).transpose()?;
    let observer = Observer::start(&config, &clock)?;

    let database = tokio::select! {
        opened = config.database.open(OpenMode::Serve, Arc::clone(&clock)) => opened?,
        order = orders.next() => return told_early(order),
    };
    let jwt_secret = jwt_secret(&config)?;
    let ports = ports(&config, observer.around(&database), Arc::clone(&clock), &jwt_secret)?;
    let work = CancellationToken::new();
    let limits = Limits::start(&config, &jwt_secret, &work).await;
    let services = Arc::new(Services::new(ports, config.teacher_signup.clone()));
    let bounds = HubConfig::default();
    let max_per_user = if config.limits { bounds.max_per_user } else { usize::MAX };
    let hub = Hub::new(HubConfig { max_per_user, ..bounds });
    let listeners = Listeners::bind(&config, open_files, tls.as_ref())?;
    let addresses = listeners.addresses()?;
    let api = Api::new(
        Arc::clone(&services),
        Arc::clone(&hub),
        ApiConfig {
            jwt_secret,
            token_ttl: config.token_ttl,
            allowed_origins: config.allowed_origins.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            limits: config.limits,
            shared_limits: limits.shared(),
            metrics: Some(match addresses.metrics {
                Some(_) => MetricsRoute::Elsewhere,
                None => MetricsRoute::LoopbackOnly(Arc::clone(&figures)),
            }),
            tls: tls.is_some(),
            traces: observer.traces.clone(),
        },
    );

    let mut feed = tokio::spawn(Arc::clone(&api).follow(work.clone()));
    let stop = CancellationToken::new();
    let background = background(&config, services, sender, &stop);
    let server = Server { api, hub, database, stop, connections: TaskTracker::new(), work, background };
    tokio::select! {
        () = server.api.following() => {}
        ended = &mut feed => return Err(stopped(ended)),
        order = orders.next() => {
            server.drain(observer.finish()).await;
            return told_early(order);
        }
    }
    let certificate = tls.as_ref().map(Tls::current);
    let redirect = certificate.clone().map(|certificate| {
        let is_own = move |host: &str| certificate.get().is_some_and(|certificate| certificate.is_for(host));
        redirect_router(config.public_port(addresses.main.port()), is_own)
    });
    listeners.run(&server, figures, redirect);
    if let Some(tls) = tls {
        tls.keep(clock, server.work.clone())?;
    }
    announce(&config, &addresses, certificate.as_deref(), &limits);

    let ordered = tokio::select! {
        order = orders.next() => {
            server.api.start_draining();
            let (delay, connections) = (config.drain_delay, server.connections.len());
            tracing::info!(order, ?delay, connections, "ending: requests are finished, sockets closed");
            Ok(())
        }
        ended = &mut feed => Err(stopped(ended)),
    };
    let end = async {
        let outcome = match ordered {
            // Whoever sends clients here needs time to hear that it should not; until then nobody is refused.
            Ok(()) => tokio::select! {
                () = tokio::time::sleep(config.drain_delay) => Ok(()),
                ended = &mut feed => Err(stopped(ended)),
            },
            failed => failed,
        };
        server.drain(observer.finish()).await;
        outcome
    };
    let outcome = tokio::select! {
        outcome = end => outcome,
        order = orders.again() => {
            tracing::warn!(order, "told again to end: leaving at once");
            std::process::exit(INTERRUPTED);
        }
    };
    if outcome.is_ok() {
        // Cancelled with the rest of the work; a panic of its is in the log already.
        let _ = feed.await;
    }
    tracing::info!("ended");
    outcome
}

/// An order to end came before anybody could be served: that is no failure.
#[expect(clippy::unnecessary_wraps, reason = "it is what the server ends with")]
fn told_early(order: &str) -> anyhow::Result<()> {
    tracing::info!(order, "ending before anything was served");
    Ok(())
}

/// What the services stand on.
fn ports(
    config: &Config,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    jwt_secret: &SecretSlice<u8>,
) -> anyhow::Result<Ports> {
    let hasher = BcryptPool::start(config.bcrypt_cost).context("no threads for hashing passwords")?;
    let mail_key = || Arc::new(MailKey::new(jwt_secret)) as Arc<dyn MailTokens>;
    Ok(Ports {
        store,
        clock,
        hasher: Arc::new(hasher),
        ids: system::ids()?,
        mail_tokens: config.mail.as_ref().map(|_| mail_key()),
    })
}

/// What sends mails, with its templates tried.
pub(crate) fn mail_sender(config: rollcall_mail::Config, clock: Arc<dyn Clock>) -> anyhow::Result<Sender> {
    Sender::new(config, clock, u64::from_ne_bytes(system::random()?)).context("mails cannot be sent")
}

/// What tokens are signed with.
fn jwt_secret(config: &Config) -> anyhow::Result<SecretSlice<u8>> {
    match (config.jwt_secret.clone(), config.database.file()) {
        (Some(secret), _) => Ok(secret),
        (None, Some(file)) => secret_file::load_or_create(&secret_file::path_for(file)),
        (None, None) => bail!("JWT_SECRET is not set"),
    }
}

/// What makes spans and sends them, if a collector is named.
struct Observer {
    traces: Option<Arc<Traces>>,
    #[cfg(feature = "otlp")]
    exporter: Option<Exporter>,
}

impl Observer {
    #[cfg(feature = "otlp")]
    fn start(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        let exporter = config.collector.as_ref().map(|collector| Exporter::start(collector, clock)).transpose()?;
        Ok(Self { traces: exporter.as_ref().map(Exporter::traces), exporter })
    }

    #[cfg(not(feature = "otlp"))]
    #[expect(clippy::unnecessary_wraps, reason = "the same as with traces")]
    fn start(_: &Config, _: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        Ok(Self { traces: None })
    }

    /// The database's store, observed if anything is.
    fn around(&self, database: &Opened) -> Arc<dyn Store> {
        match &self.traces {
            None => database.store(),
            Some(traces) => Arc::new(TracedStore::new(database.store(), Arc::clone(traces), database.system())),
        }
    }

    /// Sends what is left.
    #[cfg_attr(not(feature = "otlp"), expect(clippy::unused_async, reason = "the same as with traces"))]
    async fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish().await;
        }
    }
}

/// Why nothing can be told to anybody any more. A new process starts with all that is committed.
fn stopped(ended: Result<Result<(), rollcall_core::store::StoreError>, tokio::task::JoinError>) -> anyhow::Error {
    let error = match ended {
        Ok(Ok(())) => anyhow!("the database stopped"),
        Ok(Err(error)) => anyhow::Error::new(error),
        Err(panic) => anyhow::Error::new(panic),
    };
    error.context("the server cannot go on and has to be started again")
}

/// What listens.
struct Listeners {
    main: Listener,
    metrics: Option<Listener>,
    redirect: Option<Listener>,
}

/// Where they listen, with the ports that were chosen.
struct Addresses {
    main: SocketAddr,
    metrics: Option<SocketAddr>,
    redirect: Option<SocketAddr>,
}

impl Listeners {
    fn bind(config: &Config, open_files: usize, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let own_files = OWN_FILES + config.redirect.map_or(0, |_| REDIRECT_CONNECTIONS);
        let most = open_files.saturating_sub(own_files).max(OWN_FILES);
        let main = bind("LISTEN_ADDR", config.listen, most)?;
        metrics::gauge!("rollcall_connections_limit").set(most as f64);
        let secure = Secure::strict(config.hsts_max_age, tls.is_some(), &config.trusted_proxies);
        let metrics = config.metrics.map(|address| bind("METRICS_ADDR", address, METRICS_CONNECTIONS));
        let redirect = config.redirect.map(|address| bind("HTTP_REDIRECT_ADDR", address, REDIRECT_CONNECTIONS));
        Ok(Self {
            main: main.secured(tls.map(Tls::acceptor), secure),
            metrics: metrics.transpose()?,
            redirect: redirect.transpose()?,
        })
    }

    fn addresses(&self) -> anyhow::Result<Addresses> {
        let address = |listener: &Option<Listener>| listener.as_ref().map(Listener::address).transpose();
        Ok(Addresses {
            main: self.main.address()?,
            metrics: address(&self.metrics)?,
            redirect: address(&self.redirect)?,
        })
    }

    fn run(self, server: &Server, figures: Exposition, redirect: Option<Router>) {
        let all = [
            (Some(self.main), Some(server.api.router())),
            (self.metrics, Some(server.api.metrics_router(figures))),
            (self.redirect, redirect),
        ];
        for (listener, router) in all {
            if let (Some(listener), Some(router)) = (listener, router) {
                tokio::spawn(listener.run(router, server.stop.clone(), server.connections.clone()));
            }
        }
    }
}

fn bind(setting: &str, address: SocketAddr, most: usize) -> anyhow::Result<Listener> {
    Listener::bind(address, most).map_err(|error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                ": another program uses it. Stop that one, or choose another port; port 0 takes a free one"
            }
            std::io::ErrorKind::PermissionDenied => {
                ": ports below 1024 need a privilege. Choose a higher one, or put a reverse proxy before it"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                ": this machine has no such address. 0.0.0.0 and [::] are all it has"
            }
            _ => "",
        };
        anyhow::Error::new(error).context(format!("cannot listen on {setting} {address}{advice}"))
    })
}

/// Starts what is done beside requests, until `stop`.
fn background(
    config: &Config,
    services: Arc<Services>,
    sender: Option<Sender>,
    stop: &CancellationToken,
) -> TaskTracker {
    let tasks = TaskTracker::new();
    if let (Some(backups), Some(file)) = (&config.backups, config.database.file()) {
        tasks.spawn(backups.clone().run(file.clone(), Arc::clone(&services.clock), stop.clone()));
    }
    if let Some(sender) = sender {
        tasks.spawn(sender.run(Arc::clone(&services.mails), stop.clone()));
    }
    tasks.spawn(expire(services, config.session_max_age, stop.clone()));
    tasks
}

/// Finishes sessions that nobody finishes.
async fn expire(services: Arc<Services>, max_age: Duration, work: CancellationToken) {
    // A short age is kept to within a tenth.
    let mut tick = tokio::time::interval((max_age / 10).clamp(Duration::from_secs(1), EXPIRE_EVERY));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let run = async {
        loop {
            tick.tick().await;
            match services.attendance.finish_older_than(max_age).await {
                Ok(0) => {}
                Ok(finished) => tracing::info!(finished, "finished sessions that were left open"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot finish old sessions now");
                }
            }
        }
    };
    work.run_until_cancelled(run).await;
}

/// Tells on standard output what runs where. The line with the address is what scripts read.
fn announce(config: &Config, addresses: &Addresses, certificate: Option<&Current>, limits: &Limits) {
    let address = addresses.main;
    let version = env!("CARGO_PKG_VERSION");
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let here = reachable(address);
    // A browser takes the certificate only with a name that is in it.
    let name = config.tls.as_ref().and_then(|source| source.host(certificate));
    let named = match (name, config.public_port(here.port())) {
        (None, _) => here.to_string(),
        (Some(name), 443) => name,
        (Some(name), port) => format!("{name}:{port}"),
    };
    let teachers = match config.teacher_signup {
        TeacherSignup::Open => "sign-up open to anybody",
        TeacherSignup::Closed => "sign-up closed; `rollcall user create` makes them",
        TeacherSignup::Code(_) => "sign-up with the code",
    };
    let metrics_at = match addresses.metrics {
        Some(metrics) => format!("http://{}/metrics", reachable(metrics)),
        None => format!("{scheme}://{here}/metrics, for this machine alone"),
    };
    let redirected =
        addresses.redirect.map(|redirect| format!("  redirect  http://{redirect} to HTTPS\n")).unwrap_or_default();
    let database = &config.database;
    tracing::info!(version, %address, scheme, %database, teachers, %limits, metrics = metrics_at, "started");
    let text = format!(
        "Rollcall {version} listens on {scheme}://{address}\n  \
           database  {database}\n  \
           teachers  {teachers}\n  \
           limits    {limits}\n  \
           metrics   {metrics_at}\n\
         {redirected}\
         Try: {scheme}://{named}/docs\n"
    );
    let mut out = std::io::stdout().lock();
    // A server whose output nobody reads serves all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What has to be ended in order.
struct Server {
    api: Arc<Api>,
    hub: Arc<Hub>,
    database: Opened,
    /// Stops the taking of connections and requests, and what is done in the background.
    stop: CancellationToken,
    connections: TaskTracker,
    /// Stops what tells sockets of commits.
    work: CancellationToken,
    /// What is done with the database beside requests: backups, mails, the end of old sessions.
    background: TaskTracker,
}

impl Server {
    /// Ends all; `observed` is what is left to do when nothing more happens.
    async fn drain(&self, observed: impl Future<Output = ()>) {
        self.api.start_draining();
        self.stop.cancel();
        self.connections.close();
        self.background.close();
        let clients = async {
            if timeout(FINISH_REQUESTS, self.connections.wait()).await.is_err() {
                tracing::warn!(connections = self.connections.len(), "requests are cut off that did not end in time");
            }
            // Requests first: one of them may just have become a socket.
            self.hub.close_all(close::RESTART, CLOSE_OVER);
            if timeout(FINISH_SOCKETS, self.hub.drained()).await.is_err() {
                tracing::warn!(sockets = self.hub.count(), "sockets are cut off that did not close in time");
            }
        };
        // As long as clients may take at most: a mail server may be slow to accept what it was sent.
        let background = timeout(FINISH_REQUESTS + FINISH_SOCKETS, self.background.wait());
        if tokio::join!(clients, background).1.is_err() {
            tracing::warn!(tasks = self.background.len(), "work is cut off that did not end in time");
        }
        self.work.cancel();
        let (closed, ()) = tokio::join!(timeout(CLOSE_STORE, self.database.close()), observed);
        if closed.is_err() {
            tracing::warn!("the database did not close in time; nothing that was acknowledged is lost");
        }
    }
}

/// The signals that tell the process to end.
struct Orders {
    terminate: Signal,
    interrupt: Signal,
}

impl Orders {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The name of the first one that comes later than [`SAME_ORDER`] from now.
    async fn again(&mut self) -> &'static str {
        let same_until = Instant::now() + SAME_ORDER;
        loop {
            let order = self.next().await;
            if Instant::now() >= same_until {
                return order;
            }
        }
    }
}
