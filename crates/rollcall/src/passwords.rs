//! Password hashing on threads of its own.
//!
//! bcrypt is meant to be slow. A fixed pool of low-priority threads, one a core, does it in the order in which it was
//! asked for, so that a storm of logins neither starves marks and reads nor grows without bound: work that would wait
//! longer than [`PATIENCE`] is refused at once, and work whose caller went away is skipped.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use rollcall_core::password::{HashError, PasswordHasher};
use rollcall_core::user::{NewPassword, PasswordHash};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;

use crate::system;

/// The costs that a hash may have. Beyond, a single login would hold a core for more than some seconds.
pub(crate) const COSTS: RangeInclusive<u32> = 4..=16;

/// How long work may wait before more is refused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The cost at which the pace is measured at the start: some milliseconds.
const TRIAL_COST: u32 = 6;

/// A random salt and sum, valid in form, which belong to no known password.
const NOBODY: &str = "nZ4fU7Vxk2bTq1mWc9yLSuKp0hQe3rJdXo5gAiNw6sYtEvHlBzRCO";

/// Hashes and checks passwords with bcrypt. Dropping it ends its threads when their work at hand is done.
pub(crate) struct BcryptPool {
    shared: Arc<Shared>,
    cost: u32,
    threads: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Told of new jobs and of the end.
    changed: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// The sum of the waiting jobs' work.
    waiting: u64,
    /// Seconds that one unit of work takes, as lately measured.
    pace: f64,
    closed: bool,
}

struct Job {
    work: u64,
    task: Task,
}

enum Task {
    Hash { password: NewPassword, cost: u32, reply: Reply<PasswordHash> },
    Verify { password: SecretString, hash: Arc<str>, counts: bool, reply: Reply<bool> },
}

type Reply<T> = oneshot::Sender<Result<T, HashError>>;

impl Task {
    fn abandoned(&self) -> bool {
        match self {
            Self::Hash { reply, .. } => reply.is_closed(),
            Self::Verify { reply, .. } => reply.is_closed(),
        }
    }

    /// Does the work. A caller that went away meanwhile misses nothing.
    fn run(self) {
        match self {
            Self::Hash { password, cost, reply } => drop(reply.send(guarded(|| hash(&password, cost)))),
            Self::Verify { password, hash, counts, reply } => {
                drop(reply.send(guarded(|| Ok(verify(&password, &hash) && counts))));
            }
        }
    }
}

/// A panic inside a library must not take a thread out of the pool.
fn guarded<T>(work: impl FnOnce() -> Result<T, HashError>) -> Result<T, HashError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(HashError::Failed("panicked".to_owned())))
}

fn hash(password: &NewPassword, cost: u32) -> Result<PasswordHash, HashError> {
    // The library cuts after 72 bytes, and its variant that refuses already refuses 72. A `NewPassword` has no more.
    match bcrypt::hash(password.secret().expose_secret(), cost) {
        Ok(hash) => Ok(PasswordHash::stored(hash)),
        Err(error) => Err(HashError::Failed(error.to_string())),
    }
}

/// Whether the password is the one behind the hash. What is beyond 72 bytes does not count, as it did not when such a
/// hash was made.
fn verify(password: &SecretString, hash: &str) -> bool {
    let outcome = match cost_of(hash) {
        Some(_) => bcrypt::verify(password.expose_secret(), hash).map_err(|error| error.to_string()),
        None => Err("not a bcrypt hash of version 2a, 2b or 2y with a cost from 4 to 16".to_owned()),
    };
    outcome.unwrap_or_else(|why| {
        tracing::warn!(why, "a stored password hash cannot be read, so its account cannot log in; reset its password");
        false
    })
}

/// The cost of a hash that may be checked. Version 2x marks hashes of a defective implementation, and is none.
fn cost_of(hash: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2y$"].into_iter().find_map(|version| hash.strip_prefix(version))?;
    let (cost, _) = rest.split_once('$')?;
    let digits = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
    cost.parse().ok().filter(|cost| digits && COSTS.contains(cost))
}

/// Seconds that one unit of work, which is 2^cost, takes here. The fastest of a few trials: what else the machine has to
/// do as the server starts says nothing of later.
fn first_pace() -> f64 {
    let trial = || {
        let started = Instant::now();
        drop(bcrypt::hash("a trial", TRIAL_COST));
        started.elapsed().as_secs_f64() / f64::from(1_u32 << TRIAL_COST)
    };
    (0..3).map(|_| trial()).fold(f64::INFINITY, f64::min)
}

impl BcryptPool {
    /// A pool with a thread a core, which makes new hashes of this cost.
    pub(crate) fn start(cost: u32) -> std::io::Result<Self> {
        Self::with_threads(cost, std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn with_threads(cost: u32, threads: usize) -> std::io::Result<Self> {
        let queue = Queue { jobs: VecDeque::new(), waiting: 0, pace: first_pace(), closed: false };
        let pool = Self {
            shared: Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() }),
            cost: cost.clamp(*COSTS.start(), *COSTS.end()),
            threads,
        };
        for number in 0..threads {
            let shared = Arc::clone(&pool.shared);
            std::thread::Builder::new().name(format!("password-{number}")).spawn(move || shared.work(threads))?;
        }
        Ok(pool)
    }

    fn submit(&self, cost: u32, task: Task) -> Result<(), HashError> {
        let work = 1 << cost;
        let mut queue = self.shared.queue.lock();
        let mut wait = queue.wait(self.threads);
        if wait > PATIENCE {
            queue.forget_abandoned();
            wait = queue.wait(self.threads);
        }
        if wait > PATIENCE {
            metrics::counter!("rollcall_hash_refused_total").increment(1);
            return Err(HashError::Busy { retry_after: wait });
        }
        queue.jobs.push_back(Job { work, task });
        queue.waiting += work;
        queue.report();
        drop(queue);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Queue {
    /// How long a job that comes now waits until a thread takes it.
    fn wait(&self, threads: usize) -> Duration {
        Duration::try_from_secs_f64(self.waiting as f64 * self.pace / threads as f64).unwrap_or(Duration::MAX)
    }

    /// Takes in what a unit of work took just now.
    fn learn(&mut self, measured: f64, threads: usize) {
        // Each thread contributes as much whether there are two or sixty-four.
        let weight = 0.2 / (threads as f64).sqrt();
        // One that lost its core for a second says little of the others; if they are slow too, a few tell so.
        let believed = measured.min(2.0 * self.pace);
        self.pace += (believed - self.pace) * weight;
    }

    fn forget_abandoned(&mut self) {
        self.jobs.retain(|job| !job.task.abandoned());
        self.waiting = self.jobs.iter().map(|job| job.work).sum();
        self.report();
    }

    fn take(&mut self) -> Option<Job> {
        let job = self.jobs.pop_front()?;
        self.waiting -= job.work;
        self.report();
        Some(job)
    }

    fn report(&self) {
        metrics::gauge!("rollcall_hash_queue_depth").set(self.jobs.len() as f64);
    }
}

impl Shared {
    fn work(&self, threads: usize) {
        system::yield_to_others();
        loop {
            let mut queue = self.queue.lock();
            let job = loop {
                match queue.take() {
                    Some(job) => break job,
                    None if queue.closed => return,
                    None => self.changed.wait(&mut queue),
                }
            };
            drop(queue);
            if job.task.abandoned() {
                continue;
            }
            let started = Instant::now();
            job.task.run();
            let took = started.elapsed().as_secs_f64();
            metrics::histogram!("rollcall_hash_seconds").record(took);
            let measured = took / job.work as f64;
            self.queue.lock().learn(measured, threads);
        }
    }
}

impl Drop for BcryptPool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

#[async_trait]
impl PasswordHasher for BcryptPool {
    async fn hash(&self, password: NewPassword) -> Result<PasswordHash, HashError> {
        let (reply, answer) = oneshot::channel();
        self.submit(self.cost, Task::Hash { password, cost: self.cost, reply })?;
        answer.await.map_err(gone)?
    }

    async fn verify(&self, password: SecretString, hash: Option<PasswordHash>) -> Result<bool, HashError> {
        let (reply, answer) = oneshot::channel();
        let counts = hash.is_some();
        let hash: Arc<str> = match hash {
            Some(hash) => hash.expose().into(),
            None => format!("$2b${:02}${NOBODY}", self.cost).into(),
        };
        let cost = cost_of(&hash).unwrap_or(*COSTS.start());
        self.submit(cost, Task::Verify { password, hash, counts, reply })?;
        answer.await.map_err(gone)?
    }
}

fn gone(_: oneshot::error::RecvError) -> HashError {
    HashError::Failed("the pool is gone".to_owned())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn pool(cost: u32, threads: usize) -> BcryptPool {
        BcryptPool::with_threads(cost, threads).unwrap()
    }

    async fn right(pool: &BcryptPool, password: &str, hash: &str) -> bool {
        pool.verify(password.into(), Some(PasswordHash::stored(hash))).await.unwrap()
    }

    #[tokio::test]
    async fn hashes_verify() {
        let pool = pool(4, 2);
        for password in ["secret", &"é".repeat(36), "with spaces and ümlauts"] {
            let hash = pool.hash(NewPassword::parse(password).unwrap()).await.unwrap();
            assert!(hash.expose().starts_with("$2b$04$"), "{}", hash.expose());
            assert!(right(&pool, password, hash.expose()).await);
            assert!(!right(&pool, "another", hash.expose()).await);
            assert!(!right(&pool, "", hash.expose()).await);
        }
    }

    /// Vectors of OpenBSD's and Openwall's own tests.
    #[tokio::test]
    async fn all_versions_verify() {
        let pool = pool(4, 2);
        let vectors = [
            ("U*U", "05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
            ("U*U*", "05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
            ("", "05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
        ];
        for (password, rest) in vectors {
            for version in ["2a", "2b", "2y"] {
                assert!(right(&pool, password, &format!("${version}${rest}")).await, "{version} {password:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_beyond_72_bytes_does_not_count_at_a_login() {
        let pool = pool(4, 1);
        let hash = pool.hash(NewPassword::parse(&"x".repeat(72)).unwrap()).await.unwrap();
        assert!(right(&pool, &"x".repeat(72), hash.expose()).await);
        assert!(right(&pool, &"x".repeat(5000), hash.expose()).await);
        assert!(!right(&pool, &"x".repeat(71), hash.expose()).await);
    }

    #[tokio::test]
    async fn what_is_no_hash_is_never_right_and_never_a_panic() {
        let pool = pool(4, 1);
        let good = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy";
        assert!(right(&pool, "", good).await);
        for bad in [
            "",
            "$2b$",
            "secret",
            "$2b$05$tooshort",
            &good.replace("2b", "2x"),
            &good.replace("$05$", "$31$"),
            &good.replace("$05$", "$00$"),
            &good.replace("$05$", "$-5$"),
            &good.replace("$05$", "$+5$"),
            &good.replace('7', "é"),
            &good.replace('7', "\0"),
            &good.replace("7uG", "7!G"),
            &format!("{good}x"),
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG",
        ] {
            assert!(!right(&pool, "", bad).await, "{bad}");
        }
    }

    #[tokio::test]
    async fn an_unknown_account_costs_the_same_work() {
        let pool = pool(6, 1);
        assert_eq!(cost_of(&format!("$2b$06${NOBODY}")), Some(6));
        assert!(bcrypt::verify("x", &format!("$2b$06${NOBODY}")).is_ok(), "it is valid in form");
        assert!(!pool.verify("x".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn more_than_ten_seconds_of_work_is_refused_and_abandoned_work_skipped() {
        // Without a thread, what waits stays.
        let mut pool = pool(10, 0);
        pool.threads = 1;
        pool.shared.queue.lock().pace = 1.0 / 1024.0;
        let mut waiting = Vec::new();
        for _ in 0..11 {
            let mut caller = pool.verify("x".into(), None);
            assert!((&mut caller).now_or_never().is_none());
            waiting.push(caller);
        }
        let busy = pool.verify("x".into(), None).await;
        assert!(
            matches!(busy, Err(HashError::Busy { retry_after }) if retry_after == Duration::from_secs(11)),
            "{busy:?}"
        );
        drop(waiting);
        assert!(pool.verify("x".into(), None).now_or_never().is_none(), "those who left make room");
        assert_eq!(pool.shared.queue.lock().jobs.len(), 1);
    }

    #[test]
    fn one_slow_hash_does_not_change_the_pace_much_and_many_do() {
        let mut queue = Queue { jobs: VecDeque::new(), waiting: 0, pace: 0.001, closed: false };
        queue.learn(1.0, 2);
        assert!(queue.pace < 0.0012, "{}", queue.pace);
        for _ in 0..50 {
            queue.learn(1.0, 2);
        }
        assert!(queue.pace > 0.1, "{}", queue.pace);
        for _ in 0..50 {
            queue.learn(0.001, 2);
        }
        assert!(queue.pace < 0.0015, "{}", queue.pace);
    }

    #[tokio::test]
    async fn the_pool_ends_with_its_owner() {
        let pool = pool(4, 2);
        assert!(!pool.verify("x".into(), None).await.unwrap());
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        tokio::time::timeout(Duration::from_secs(20), async {
            while shared.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the threads end");
    }
}
