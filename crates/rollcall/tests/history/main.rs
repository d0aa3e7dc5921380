//! Histories: people take attendance at once while replicas are killed and stand still, everything that was asked,
//! answered and heard is written down, and the checker of the testkit finds no promise broken.
//!
//! `ROLLCALL_HISTORY_SEEDS` says how many runs (3), `ROLLCALL_HISTORY_SECONDS` how long each is (20), and
//! `ROLLCALL_HISTORY_SEED` repeats one.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than expected fails")]
#![expect(clippy::print_stdout, reason = "a run says its seed and what it found")]

mod altered;
mod liar;

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
#[cfg(feature = "mongodb")]
use std::sync::Arc;
use std::time::Duration;

use rollcall_testkit::cluster::{Cluster, Script, StepDown};
use rollcall_testkit::history::random::Random;
use rollcall_testkit::history::workload::{self, Scale};
use rollcall_testkit::history::{History, Rule, Sum};
#[cfg(feature = "mongodb")]
use rollcall_testkit::mongo::ReplicaSet;
use rollcall_testkit::server::{Builder, Server};

use crate::liar::Lie;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// The seeds of this run.
fn seeds() -> Vec<u64> {
    if let Some(seed) = from_env("ROLLCALL_HISTORY_SEED") {
        return vec![seed];
    }
    let chance = RandomState::new();
    (0..from_env("ROLLCALL_HISTORY_SEEDS").unwrap_or(3)).map(|n| chance.hash_one(n)).collect()
}

/// The history's sum, or the whole story of what is wrong with it.
fn checked(history: &History, context: &str) -> Sum {
    history.check().unwrap_or_else(|violations| {
        let shown: Vec<_> = violations.iter().take(10).map(ToString::to_string).collect();
        panic!("{} promises are broken.\n{}\n{context}", violations.len(), shown.join("\n"))
    })
}

/// Works on so many replicas while `script` happens to them.
async fn one_run(settings: &Builder, replicas: usize, seed: u64, step_down: Option<&StepDown>) {
    let length = Duration::from_secs(from_env("ROLLCALL_HISTORY_SECONDS").unwrap_or(20));
    let random = Random::new(seed);
    let script = Script::draw(&mut random.part(1), replicas, length, step_down.is_some());
    let context = format!("ROLLCALL_HISTORY_SEED={seed} repeats what happened:\n{script}");
    let mut cluster = Cluster::start(settings, replicas).await.unwrap();
    let clients = cluster.clients();
    let faults = async {
        if let Err(error) = cluster.suffer(&script, step_down).await {
            panic!("{error:#}\n{context}");
        }
    };
    let history = workload::run(&clients, Scale::default(), &random.part(2), faults).await;
    let sum = checked(&history, &context);
    println!("seed {seed}: {sum}");
    // A run in which nothing happens proves nothing.
    assert!(sum.acknowledged > 100 && sum.read > 100 && sum.finished > 0, "{sum}\n{context}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_keeps_its_promises_whatever_happens_to_it() {
    for seed in seeds() {
        one_run(&Server::builder(env!("CARGO_BIN_EXE_rollcall")), 1, seed, None).await;
    }
}

#[cfg(feature = "mongodb")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn three_replicas_keep_their_promises_whatever_happens_to_them_and_to_mongodb() {
    let set = Arc::new(ReplicaSet::start(3).await.unwrap());
    let step_down: Box<StepDown> = {
        let set = Arc::clone(&set);
        Box::new(move || {
            let set = Arc::clone(&set);
            Box::pin(async move { set.step_down().await.map(drop) })
        })
    };
    for seed in seeds() {
        let settings = Server::builder(env!("CARGO_BIN_EXE_rollcall")).env("DB_URL", set.url(&format!("seed-{seed}")));
        one_run(&settings, 3, seed, Some(&*step_down)).await;
    }
}

/// A short run on a server in this process whose store lies so, or does not.
async fn on_a_store_that(lie: Lie, seed: u64) -> History {
    let server = liar::Server::start(lie).await;
    let scale = Scale { pause: Duration::from_millis(10), ..Scale::default() };
    let clients = [server.client.clone()];
    workload::run(&clients, scale, &Random::new(seed), tokio::time::sleep(Duration::from_secs(3))).await
}

/// The rules that the history breaks, after a look at what it says.
fn broken(history: &History) -> BTreeSet<Rule> {
    let violations = history.check().err().unwrap_or_default();
    let mut rules = BTreeSet::new();
    for violation in violations {
        if rules.insert(violation.rule) {
            println!("{violation}");
        }
    }
    rules
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_acknowledges_before_it_commits_is_found_out() {
    let seed = seeds()[0];
    println!("ROLLCALL_HISTORY_SEED={seed}");
    let rules = broken(&on_a_store_that(Lie::EarlyAnswer, seed).await);
    assert!(rules.is_superset(&[Rule::Linearizable, Rule::RealTime].into()), "{rules:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_that_nothing_keeps_true_is_found_out() {
    let seed = seeds()[0];
    println!("ROLLCALL_HISTORY_SEED={seed}");
    let rules = broken(&on_a_store_that(Lie::OldMemory, seed).await);
    assert!(rules.is_superset(&[Rule::Linearizable, Rule::RealTime].into()), "{rules:?}");
}

/// The same server on the same store without a lie keeps every promise, and each alteration of its history breaks
/// the one that it should.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_history_that_is_altered_is_found_out() {
    let first = seeds()[0];
    let mut left: Vec<_> = altered::ALTERATIONS.iter().collect();
    // What there is to alter is chance, and on a busy machine little happens: then another history is looked at.
    for seed in (0..5).map(|more| first.wrapping_add(more)) {
        println!("ROLLCALL_HISTORY_SEED={seed}");
        let real = on_a_store_that(Lie::None, seed).await;
        checked(&real, "and nobody lied");
        left.retain(|(what, rule, alter)| {
            let mut history = real.clone();
            if alter(&mut history).is_none() {
                return true;
            }
            let rules = broken(&history);
            assert!(rules.contains(rule), "{what} breaks {rules:?}");
            false
        });
        if left.is_empty() {
            return;
        }
    }
    let left: Vec<_> = left.iter().map(|(what, ..)| what).collect();
    panic!("nothing to alter: {left:?}");
}
