//! TLS: what the server shows of itself to clients, and the handshake.
//!
//! [`certificate`] reads and checks, [`files`] follows the operator's own, [`acme`] gets one from an ACME server,
//! [`myself`] is the client that asks the own server for its health.

#[cfg(feature = "acme")]
pub(crate) mod acme;
mod certificate;
pub(crate) mod files;
mod myself;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use parking_lot::RwLock;
use rollcall_core::Clock;
use rustls::ServerConfig;
use rustls::server::{Acceptor as ReadHello, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub(crate) use self::certificate::{Certificate, Standing};
use self::files::{Follower, Pair};
pub(crate) use self::myself::to_myself;

/// How long a client may take from its connection to the end of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes are worked on at a time, each a few tenths of a millisecond of one core: with all of them come
/// at once, as when a school reconnects, no other work waits for longer than moments. Who comes then waits its turn.
const HANDSHAKES: usize = 512;
/// How often it is looked whether the certificate ends soon.
const LOOK_EVERY: Duration = Duration::from_hours(6);
const EXPIRY: &str = "rollcall_tls_certificate_expiry_timestamp_seconds";
const HANDSHAKES_TOTAL: &str = "rollcall_tls_handshakes_total";
const RELOADS_TOTAL: &str = "rollcall_tls_reloads_total";
/// The one protocol that is spoken inside.
const HTTP_1_1: &[u8] = b"http/1.1";
/// What an ACME server offers, instead, when it looks whether this server is who it says (RFC 8737).
const ACME: &[u8] = b"acme-tls/1";

/// The certificate that is served now.
#[derive(Default)]
pub(crate) struct Current(RwLock<Option<Arc<Certificate>>>);

impl Current {
    /// Serves this one from the next handshake on; what is open goes on as it is.
    pub(crate) fn set(&self, certificate: Certificate, clock: &dyn Clock) {
        let (names, until) = (certificate.names(), certificate.not_after());
        tracing::info!(names, %until, "a certificate is served");
        if !certificate.in_order() {
            tracing::warn!(
                "a certificate of the chain is not followed by its issuer's: some clients will not accept it"
            );
        }
        gauge!(EXPIRY).set(until.millis() as f64 / 1000.0);
        look(&certificate, clock);
        *self.0.write() = Some(Arc::new(certificate));
    }

    /// The one that is served, if there is one yet.
    pub(crate) fn get(&self) -> Option<Arc<Certificate>> {
        self.0.read().clone()
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Current").field(&self.get().map(|certificate| certificate.names())).finish()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get().map(|certificate| Arc::clone(certificate.key()))
    }
}

/// Says in the log when the certificate is at its end.
fn look(certificate: &Certificate, clock: &dyn Clock) {
    let (names, until, now) = (certificate.names(), certificate.not_after(), clock.now());
    match certificate.standing(now) {
        Standing::Good => {}
        Standing::EndsSoon => {
            tracing::warn!(names, %until, days = certificate.days_left(now), "the certificate ends soon: renew it");
        }
        Standing::Ended => tracing::error!(names, %until, "the certificate has ended: no client accepts it"),
        Standing::NotYet => {
            tracing::error!(names, %now, "the certificate does not count yet. Is the clock right?");
        }
    }
}

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The operator's files.
    Files(Pair),
    /// An ACME server.
    #[cfg(feature = "acme")]
    Acme(acme::Order),
}

impl Source {
    /// A name under which clients accept the server, which serves `current`.
    pub(crate) fn host(&self, current: Option<&Current>) -> Option<String> {
        match self {
            Self::Files(_) => current?.get()?.host(),
            #[cfg(feature = "acme")]
            Self::Acme(order) => order.domains.first().cloned(),
        }
    }
}

/// TLS from the start of the server to its end.
pub(crate) struct Tls {
    current: Arc<Current>,
    acceptor: Arc<Acceptor>,
    keeper: Keeper,
}

/// Who keeps the certificate up to date.
enum Keeper {
    Files(Follower),
    #[cfg(feature = "acme")]
    Acme(Box<acme::Keeper>),
}

impl Tls {
    /// Has a certificate ready to be served, if it can be had now. An error says why none can be, ever.
    pub(crate) fn start(source: &Source, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        describe();
        let current = Arc::new(Current::default());
        let (keeper, challenges) = match source {
            Source::Files(pair) => (Keeper::Files(files::start(pair, &current, &**clock)?), None),
            #[cfg(feature = "acme")]
            Source::Acme(order) => {
                let keeper = acme::Keeper::start(order, Arc::clone(&current), Arc::clone(clock))?;
                let challenges = config(keeper.challenges(), ACME)?;
                (Keeper::Acme(Box::new(keeper)), Some(challenges))
            }
        };
        let config = config(Arc::clone(&current) as _, HTTP_1_1)?;
        let acceptor = Arc::new(Acceptor { config, challenges, room: Semaphore::new(HANDSHAKES) });
        Ok(Self { current, acceptor, keeper })
    }

    /// What the listener takes connections with.
    pub(crate) fn acceptor(&self) -> Arc<Acceptor> {
        Arc::clone(&self.acceptor)
    }

    /// The certificate that is served.
    pub(crate) fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current)
    }

    /// Keeps the certificate up to date until `stop`.
    pub(crate) fn keep(self, clock: Arc<dyn Clock>, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { current, keeper, .. } = self;
        tokio::spawn(watch(Arc::clone(&current), Arc::clone(&clock), stop.clone()));
        match keeper {
            Keeper::Files(files) => {
                let hangup = signal(SignalKind::hangup()).context("signals cannot be heard")?;
                tokio::spawn(files.follow(current, clock, hangup, stop));
            }
            #[cfg(feature = "acme")]
            Keeper::Acme(acme) => drop(tokio::spawn(acme.keep(stop))),
        }
        Ok(())
    }
}

/// Says what the figures are, and shows from the start those that may not change for long.
fn describe() {
    describe_gauge!(EXPIRY, Unit::Seconds, "When the certificate ends, in seconds since 1970.");
    describe_counter!(HANDSHAKES_TOTAL, Unit::Count, "TLS handshakes, by how they ended; plain: HTTP came instead.");
    describe_counter!(RELOADS_TOTAL, Unit::Count, "Changed certificates that were taken, or not.");
    for outcome in ["done", "failed", "slow", "plain", "challenge"] {
        counter!(HANDSHAKES_TOTAL, "outcome" => outcome).increment(0);
    }
    for outcome in ["done", "failed"] {
        counter!(RELOADS_TOTAL, "outcome" => outcome).increment(0);
    }
}

/// Looks again and again whether the certificate ends soon.
async fn watch(current: Arc<Current>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let watch = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Some(certificate) = current.get() {
                look(&certificate, &*clock);
            }
        }
    };
    stop.run_until_cancelled(watch).await;
}

/// Makes connections TLS.
pub(crate) struct Acceptor {
    /// Serves whatever certificate is the current one.
    config: Arc<ServerConfig>,
    /// Serves what an ACME server asks for, to who offers its protocol and no other (RFC 8737, section 4).
    challenges: Option<Arc<ServerConfig>>,
    room: Semaphore,
}

/// What a connection turned out to be.
pub(crate) enum Accepted {
    /// TLS, with the handshake done.
    Tls(Box<TlsStream<TcpStream>>),
    /// Plain HTTP, of which nothing is read yet.
    PlainHttp(TcpStream),
    /// An ACME server, which has seen what it wanted.
    Challenge,
}

impl Acceptor {
    /// Does the handshake. `None` is a client that left, was too slow, or could not be agreed with.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<Accepted> {
        let outcome = tokio::time::timeout(HANDSHAKE, self.handshake(stream)).await;
        let (outcome, accepted) = match outcome {
            Ok(Ok(Accepted::Tls(stream))) => ("done", Some(Accepted::Tls(stream))),
            Ok(Ok(Accepted::PlainHttp(stream))) => ("plain", Some(Accepted::PlainHttp(stream))),
            Ok(Ok(Accepted::Challenge)) => ("challenge", None),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                ("failed", None)
            }
            Err(_) => ("slow", None),
        };
        counter!(HANDSHAKES_TOTAL, "outcome" => outcome).increment(1);
        accepted
    }

    async fn handshake(&self, stream: TcpStream) -> std::io::Result<Accepted> {
        // No TLS record begins with a letter, and every HTTP request does.
        let mut first = [0];
        stream.peek(&mut first).await?;
        if first[0].is_ascii_alphabetic() {
            return Ok(Accepted::PlainHttp(stream));
        }
        // Who has said nothing yet is in nobody's way.
        let hello = LazyConfigAcceptor::new(ReadHello::default(), stream).await?;
        let _turn = self.room.acquire().await.map_err(std::io::Error::other)?;
        if let Some(challenges) = &self.challenges
            && hello.client_hello().alpn().is_some_and(|offers| offers.eq([ACME]))
        {
            hello.into_stream(Arc::clone(challenges)).await?.shutdown().await?;
            return Ok(Accepted::Challenge);
        }
        let stream = hello.into_stream(Arc::clone(&self.config)).await?;
        Ok(Accepted::Tls(Box::new(stream)))
    }
}

/// A configuration that speaks this protocol inside.
fn config(resolver: Arc<dyn ResolvesServerCert>, protocol: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .context("TLS cannot be configured")?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![protocol.to_vec()];
    // Clients that come back keep what is needed for a short handshake: a whole school costs no memory here.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().context("no session tickets")?;
    Ok(Arc::new(config))
}
