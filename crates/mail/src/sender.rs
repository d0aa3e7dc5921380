//! When what is sent, and what becomes of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use parking_lot::Mutex;
use rollcall_core::id::MailId;
use rollcall_core::mail::Mail;
use rollcall_core::service::Mails;
use rollcall_core::{Clock, Error};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Limits};
use crate::letter::Letters;
use crate::metric::{self, Outcome};
use crate::smtp::{Connection, Failure, Refusal, Server};
use crate::tls;

/// How often the outbox is looked into.
const TICK: Duration = Duration::from_secs(1);
/// How often what is too old is forgotten, in ticks.
const FORGET_EVERY: u32 = 60;
/// For how long a mail is this sender's alone, and how often that is said again. A crash delays mails by the lease.
const LEASE: Duration = Duration::from_mins(1);
const KEEP_EVERY: Duration = Duration::from_secs(20);
/// How many mails are sent at once: mail servers allow an account a few connections.
const AT_ONCE: usize = 4;
/// How long a connection is kept for the next mail.
const IDLE: Duration = Duration::from_secs(10);
/// How long it is tried to say that a mail was sent: else it is sent again.
const SETTLE_TRIES: u32 = 30;
/// How often at most the same trouble is told.
const TELL_EVERY: Duration = Duration::from_mins(5);

/// Sends mails.
pub struct Sender {
    server: Server,
    letters: Letters,
    clock: Arc<dyn Clock>,
    jitter: Jitter,
}

impl Sender {
    /// Reads what `config` names, and tries the templates. `seed` is random: it spreads the retries of several servers.
    pub fn new(config: Config, clock: Arc<dyn Clock>, seed: u64) -> anyhow::Result<Self> {
        let Config { server: url, ca, from, public_url, templates, limits } = config;
        let hello = public_url.mail_host();
        Ok(Self {
            server: Server { url, tls: tls::client(ca.as_deref())?, hello, limits },
            letters: Letters::new(from, public_url, templates.as_deref())?,
            clock,
            jitter: Jitter(AtomicU64::new(seed)),
        })
    }

    /// Whether the mail server can be reached, is who it should be and takes the password. Sends nothing.
    pub async fn check(&self) -> anyhow::Result<()> {
        let connection = self.server.connect().await.map_err(|failure| anyhow!("{failure}"))?;
        connection.quit().await;
        Ok(())
    }

    /// Sends what `mails` holds until `stop`, and then finishes what is under way, if it is soon done. What is not is
    /// sent by whoever runs next.
    pub async fn run(self, mails: Arc<Mails>, stop: CancellationToken) {
        metric::describe();
        let worker = Arc::new(Worker {
            sender: self,
            mails,
            state: Mutex::default(),
            store_fails: Seldom::default(),
            sender_refused: Seldom::default(),
            mail_fails: Seldom::default(),
        });
        tokio::join!(worker.send(&stop), worker.tidy(&stop));
    }
}

struct Worker {
    sender: Sender,
    mails: Arc<Mails>,
    state: Mutex<State>,
    store_fails: Seldom,
    sender_refused: Seldom,
    mail_fails: Seldom,
}

/// What is known of the mail server.
#[derive(Default)]
struct State {
    /// Failures since it last did its work.
    failures: u32,
    /// Until when nothing is begun.
    paused_until: Option<Instant>,
    /// The mail that is finding out whether it works again.
    probe: Option<MailId>,
    /// The mails that are being sent, and the number of the attempt by which each was taken last.
    under_way: HashMap<MailId, u32>,
    /// Connections for the next mails.
    idle: Vec<Connection>,
}

/// Held as long as a mail is being sent.
struct UnderWay {
    worker: Arc<Worker>,
    id: MailId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.worker.state.lock();
        state.under_way.remove(&self.id);
        state.probe.take_if(|probe| *probe == self.id);
    }
}

/// What is done with a mail after an attempt.
enum Verdict {
    Over(Outcome),
    Later(Duration),
    /// Nothing: when the lease ends, it is tried again.
    Leave,
}

impl Worker {
    /// Sends what is due.
    async fn send(self: &Arc<Self>, stop: &CancellationToken) {
        let mut attempts = JoinSet::new();
        // An operator who mistyped the password learns of it now, not from the first reader.
        attempts.spawn(Arc::clone(self).try_server());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = attempts.join_next() => tell_panic(ended),
                _ = tick.tick() => self.close_idle(&mut attempts),
            }
            let room = self.room(attempts.len());
            if room > 0 {
                let taken = self.mails.take(LEASE, room).await;
                for mail in self.heard(taken).unwrap_or_default() {
                    if let Some(under_way) = self.begin(&mail) {
                        attempts.spawn(Arc::clone(self).attempt(mail, under_way));
                    }
                }
            }
        }
        let finish = async {
            while let Some(ended) = attempts.join_next().await {
                tell_panic(ended);
            }
            let idle = std::mem::take(&mut self.state.lock().idle);
            let mut farewells: JoinSet<()> = idle.into_iter().map(Connection::quit).collect();
            while farewells.join_next().await.is_some() {}
        };
        if timeout(self.limits().end, finish).await.is_err() {
            tracing::info!("mails that were being sent are left to the next start");
        }
    }

    /// Queues notices of absences, and forgets what is too old.
    async fn tidy(&self, stop: &CancellationToken) {
        let tidy = async {
            let mut tick = interval(TICK);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for turn in 0_u32.. {
                tick.tick().await;
                let queued = self.mails.queue_absences().await;
                self.heard(queued);
                if turn % FORGET_EVERY == 0 {
                    let forgotten = self.mails.forget_expired().await;
                    if let Some(mails) = self.heard(forgotten).filter(|mails| *mails > 0) {
                        tracing::warn!(mails, "mails became too old before they could be sent");
                        metric::mails(Outcome::Expired).increment(mails);
                    }
                }
            }
        };
        stop.run_until_cancelled(tidy).await;
    }

    fn limits(&self) -> Limits {
        self.sender.server.limits
    }

    /// How many mails may be begun beside so many.
    fn room(&self, under_way: usize) -> u32 {
        let state = self.state.lock();
        if state.paused_until.is_some_and(|end| Instant::now() < end) {
            return 0;
        }
        if state.failures > 0 {
            // One finds out whether the mail server is back, whatever others still wait for.
            return u32::from(state.probe.is_none());
        }
        u32::try_from(AT_ONCE.saturating_sub(under_way)).unwrap_or_default()
    }

    /// Notes that a mail is being sent, and that it finds out whether the mail server is back, if that is to be found out.
    /// `None`: it is being sent already. Its lease ended too soon, as when the clock was put forward.
    fn begin(self: &Arc<Self>, mail: &Mail) -> Option<UnderWay> {
        let mut state = self.state.lock();
        if state.under_way.insert(mail.id, mail.attempt).is_some() {
            return None;
        }
        if state.failures > 0 {
            state.probe = Some(mail.id);
        }
        Some(UnderWay { worker: Arc::clone(self), id: mail.id })
    }

    /// The mail as it was taken last: stores hear of no attempt but that.
    fn as_taken(&self, mail: &Mail) -> Mail {
        let attempt = self.state.lock().under_way.get(&mail.id).copied();
        Mail { attempt: attempt.unwrap_or(mail.attempt), ..mail.clone() }
    }

    /// What the store answered, or nothing after that was told.
    fn heard<T>(&self, outcome: Result<T, Error>) -> Option<T> {
        outcome
            .inspect_err(|error| {
                if self.store_fails.now() {
                    tracing::warn!(%error, "the outbox cannot be used; mails wait");
                }
            })
            .ok()
    }

    /// Says goodbye where no mail came for a while.
    fn close_idle(&self, attempts: &mut JoinSet<()>) {
        let old = |connection: &mut Connection| connection.since.elapsed() > IDLE;
        for connection in self.state.lock().idle.extract_if(.., old) {
            attempts.spawn(connection.quit());
        }
    }

    async fn try_server(self: Arc<Self>) {
        if let Ok(connection) = self.connect().await {
            self.state.lock().idle.push(connection);
        }
    }

    /// A new connection; or how long nobody tries again.
    async fn connect(&self) -> Result<Connection, Duration> {
        match self.sender.server.connect().await {
            Ok(connection) => {
                metric::server_up().set(1.0);
                Ok(connection)
            }
            Err(failure) => Err(self.pause(&failure)),
        }
    }

    /// Has all mails wait, and answers for how long.
    fn pause(&self, failure: &Failure) -> Duration {
        metric::server_up().set(0.0);
        let mut state = self.state.lock();
        // Those that were under way together fail together: that is one failure.
        if let Some(left) = state.paused_until.and_then(|end| end.checked_duration_since(Instant::now())) {
            return left;
        }
        let wait = self.back_off(state.failures);
        state.failures = state.failures.saturating_add(1);
        state.paused_until = Some(Instant::now() + wait);
        if matches!(failure, Failure::Setup(_)) {
            tracing::error!(why = %failure, again_after = ?wait, "the mail server takes no mail; they wait");
        } else {
            tracing::warn!(why = %failure, again_after = ?wait, "the mail server does not work; mails wait");
        }
        wait
    }

    /// The mail server did what a mail server does.
    fn works(&self) {
        metric::server_up().set(1.0);
        let mut state = self.state.lock();
        if std::mem::take(&mut state.failures) > 0 {
            tracing::info!("the mail server works again");
        }
        state.paused_until = None;
        // That is found out. Should it fail again, this mail, which may take long, is not waited for.
        state.probe = None;
    }

    /// How long to wait after so many failures before.
    fn back_off(&self, failures: u32) -> Duration {
        let Limits { first_retry, longest_retry, .. } = self.limits();
        let longest = first_retry.saturating_mul(2_u32.saturating_pow(failures)).min(longest_retry);
        longest.mul_f64(1.0 - self.sender.jitter.next() / 4.0)
    }

    /// Tries to send the mail, and says in the outbox what came of it.
    async fn attempt(self: Arc<Self>, mail: Mail, _under_way: UnderWay) {
        let verdict = tokio::select! {
            verdict = self.deliver(&mail) => verdict,
            () = self.keep(&mail) => return,
        };
        match verdict {
            Verdict::Over(outcome) => {
                metric::mails(outcome).increment(1);
                self.settle(&mail, None).await;
            }
            Verdict::Later(wait) => {
                metric::mails(Outcome::Later).increment(1);
                self.settle(&mail, Some(wait)).await;
            }
            Verdict::Leave => {}
        }
    }

    /// Keeps the mail from being taken by others while it is being sent.
    async fn keep(&self, mail: &Mail) {
        let mut tick = interval_at(Instant::now() + KEEP_EVERY, KEEP_EVERY);
        loop {
            tick.tick().await;
            let kept = self.mails.keep(&self.as_taken(mail), LEASE).await;
            self.heard(kept);
        }
    }

    /// `None`: it is over.
    async fn settle(&self, mail: &Mail, later: Option<Duration>) {
        let mut tick = interval(TICK);
        for _ in 0..SETTLE_TRIES {
            tick.tick().await;
            let mail = self.as_taken(mail);
            let settled = match later {
                None => self.mails.over(&mail).await,
                Some(wait) => self.mails.later(&mail, wait).await,
            };
            if self.heard(settled).is_some() {
                return;
            }
        }
        tracing::error!(mail = %mail.id, "what became of a mail cannot be noted: it may be sent again");
    }

    async fn deliver(&self, mail: &Mail) -> Verdict {
        let (id, kind) = (mail.id, mail.reason.kind().as_str());
        let letter = self.mails.letter(mail).await;
        let letter = match self.heard(letter) {
            None => return Verdict::Leave,
            Some(None) => return Verdict::Over(Outcome::Dropped),
            Some(Some(letter)) => letter,
        };
        let message = match self.sender.letters.write(id, mail.queued_at, &letter) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(mail = %id, kind, error = format!("{error:#}"), "a mail cannot be written; it is given up");
                return Verdict::Over(Outcome::Refused);
            }
        };
        let idle = self.state.lock().idle.pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(wait) => return Verdict::Later(wait),
            },
        };
        let waited = connection.used || connection.since.elapsed() > TICK;
        // Others need not wait until this mail is accepted, which may take minutes.
        let mut outcome = connection.send(&message, || self.works()).await;
        if waited && !connection.under_way && matches!(outcome, Err(Failure::Away(_))) {
            // The server had tired of it, which says nothing about the next one.
            connection = match self.connect().await {
                Ok(connection) => connection,
                Err(wait) => return Verdict::Later(wait),
            };
            outcome = connection.send(&message, || self.works()).await;
        }
        let own_wait = || self.back_off(mail.attempt.saturating_sub(1));
        match outcome {
            Ok(()) => {
                self.done_with(connection);
                let now = self.sender.clock.now();
                let millis = u32::try_from(now.millis().saturating_sub(mail.queued_at.millis())).unwrap_or_default();
                metric::mail_seconds().record(f64::from(millis) / 1000.0);
                tracing::debug!(mail = %id, kind, "a mail was sent");
                Verdict::Over(Outcome::Sent)
            }
            Err(Failure::Refused(Refusal { at, code, permanent })) => {
                self.done_with(connection);
                // That is about the sender, and so the operator's to set right.
                if at == "MAIL" && permanent {
                    if self.sender_refused.now() {
                        tracing::error!(code, "the mail server refuses the address that mails are from; they wait");
                    }
                } else if permanent {
                    tracing::warn!(mail = %id, kind, code, at, "the mail server refuses a mail; it is given up");
                    return Verdict::Over(Outcome::Refused);
                }
                let wait = own_wait();
                tracing::debug!(mail = %id, kind, code, at, again_after = ?wait, "a mail is not taken now");
                Verdict::Later(wait)
            }
            Err(failure) => {
                // A server that took the MAIL may stumble over this mail alone, and whoever chose its address must not hold
                // up the others. If it is gone, they learn of it when they connect.
                let wait = if connection.under_way { own_wait() } else { self.pause(&failure).max(own_wait()) };
                if connection.under_way && self.mail_fails.now() {
                    tracing::warn!(why = %failure, "the mail server took a mail's beginning and then failed; that mail waits");
                }
                tracing::debug!(mail = %id, kind, why = %failure, again_after = ?wait, "a mail was not sent");
                Verdict::Later(wait)
            }
        }
    }

    fn done_with(&self, connection: Connection) {
        self.works();
        self.state.lock().idle.push(connection);
    }
}

fn tell_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an attempt to send a mail panicked");
    }
}

/// What is to be told once in a while.
#[derive(Default)]
struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is time.
    fn now(&self) -> bool {
        let mut last = self.0.lock();
        let is_time = last.is_none_or(|last| last.elapsed() >= TELL_EVERY);
        if is_time {
            *last = Some(Instant::now());
        }
        is_time
    }
}

/// Numbers that spread retries (Steele and others, 2014: `SplitMix`).
struct Jitter(AtomicU64);

impl Jitter {
    /// From 0 to below 1.
    fn next(&self) -> f64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // 32 bits are plenty, and fit.
        f64::from((mixed >> 32) as u32) / 2_f64.powi(32)
    }
}
