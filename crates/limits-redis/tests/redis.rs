//! The adapter with a real Redis: the script against the rule, and what happens when Redis is away.

#![expect(clippy::unwrap_used, reason = "a test that finds something else than expected fails")]

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rollcall_core::limit::{Limit, SharedLimits, Step, Usage};
use rollcall_limits_redis::{Address, RedisLimits};
use rollcall_testkit::redis::Redis;
use rollcall_testkit::server::PATIENCE;
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_hours(1);

async fn limits(redis: &Redis) -> Arc<RedisLimits> {
    RedisLimits::start(Address::parse(&redis.url()).unwrap(), b"the secret of all replicas").await
}

/// Waits until limits are shared.
async fn there(limits: &RedisLimits) {
    let began = Instant::now();
    while !limits.is_shared() {
        assert!(began.elapsed() < PATIENCE, "Redis is away");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Take),
        1 => Just(Step::Check),
        2 => Just(Step::Charge),
        2 => Just(Step::GiveBack),
    ]
}

#[test]
#[ignore = "needs Redis: cargo xtask test"]
fn the_script_answers_as_the_rule_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let redis = runtime.block_on(Redis::start()).unwrap();
    let limits = runtime.block_on(limits(&redis));
    runtime.spawn(Arc::clone(&limits).keep(CancellationToken::new()));
    let cases = Cell::new(0);
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let steps = (1..6_u32, 1..4_u32, proptest::collection::vec(step(), 1..40));
    TestRunner::new(config)
        .run(&steps, |(burst, count, steps)| {
            cases.set(cases.get() + 1);
            let (limit, key) = (Limit::new(burst, count, HOUR), format!("case {}", cases.get()));
            runtime.block_on(there(&limits));
            let (mut usage, began) = (Usage::default(), Instant::now());
            for step in steps {
                // What is kept in Redis begins with its clock, and what is kept here with this one.
                let expected = usage.count(step, limit, HOUR + began.elapsed());
                let answer = runtime.block_on(limits.count(step, limit, "tests", &key));
                let answer = answer.ok_or_else(|| TestCaseError::reject("this machine was too slow for it"))?;
                let wait = |answer: Result<(), Duration>| answer.err().unwrap_or_default();
                let apart = wait(expected).abs_diff(wait(answer));
                prop_assert!(
                    answer.is_ok() == expected.is_ok() && apart <= began.elapsed() + Duration::from_millis(5),
                    "{step:?}: {answer:?}, and not {expected:?}"
                );
            }
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn after_the_time_that_was_told_there_is_one_more() {
    let redis = Redis::start().await.unwrap();
    let limits = limits(&redis).await;
    let limit = Limit::new(2, 1, Duration::from_secs(1));
    let take = async || limits.count(Step::Take, limit, "tests", "a").await.expect("an answer");
    take().await.unwrap();
    take().await.unwrap();
    let wait = take().await.unwrap_err();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    tokio::time::sleep(wait).await;
    take().await.unwrap();
    take().await.unwrap_err();
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn many_at_once_on_several_replicas_get_as_many_as_there_are() {
    let redis = Redis::start().await.unwrap();
    let replicas = [limits(&redis).await, limits(&redis).await, limits(&redis).await];
    let limit = Limit::new(10, 1, HOUR);
    let takes = (0..60).map(|n| replicas[n % 3].count(Step::Take, limit, "tests", "a"));
    let answers = join_all(takes).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Some(Ok(())))).count(), 10, "{answers:?}");
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn nothing_is_kept_that_is_not_used() {
    let redis = Redis::start().await.unwrap();
    let limits = limits(&redis).await;
    let mut plain = redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut ask = async |command: &str| -> Vec<String> {
        let keys = redis::cmd("KEYS").arg(command).query_async(&mut plain).await;
        keys.unwrap()
    };
    for (step, limit) in [
        (Step::Take, Limit::new(3, 1, HOUR)),
        (Step::GiveBack, Limit::new(3, 1, HOUR)),
        (Step::GiveBack, Limit::new(3, 1, HOUR)),
        (Step::Check, Limit::new(3, 1, HOUR)),
    ] {
        limits.count(step, limit, "tests", "a").await.expect("an answer").unwrap();
        assert_eq!(ask("rollcall:limit:tests:*").await.len(), usize::from(step == Step::Take), "{step:?}");
    }
    // What is used goes by itself: two of which each takes an hour are gone after two.
    for _ in 0..2 {
        limits.count(Step::Charge, Limit::new(1, 1, HOUR), "tests", "a").await.expect("an answer").unwrap();
    }
    let name = ask("rollcall:limit:tests:*").await.remove(0);
    let left: u64 = redis::cmd("PTTL").arg(&name).query_async(&mut plain).await.unwrap();
    let left = Duration::from_millis(left);
    assert!(left <= 2 * HOUR && left + PATIENCE > 2 * HOUR, "{left:?}");
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn while_redis_is_away_nobody_waits_and_then_it_is_back() {
    let mut redis = Redis::start().await.unwrap();
    let limits = limits(&redis).await;
    let work = CancellationToken::new();
    let keep = tokio::spawn(Arc::clone(&limits).keep(work.clone()));
    let limit = Limit::new(2, 1, HOUR);
    let take = async |key| limits.count(Step::Take, limit, "tests", key).await;

    redis.pause().unwrap();
    // It stands still soon after, not at once.
    while take("a").await.is_some() {}
    for _ in 0..1_000 {
        assert_eq!(take("a").now_or_never(), Some(None), "nobody waits for what is not there");
    }
    redis.resume().unwrap();
    there(&limits).await;

    redis.kill().unwrap();
    while take("b").await.is_some() {}
    redis.restart().await.unwrap();
    there(&limits).await;
    work.cancel();
    keep.await.unwrap();
    // It forgot the script with all else.
    assert_eq!([take("c").await, take("c").await], [Some(Ok(())); 2]);
    assert!(take("c").await.expect("an answer").is_err());
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn an_account_needs_no_more_than_is_documented() {
    const RIGHTS: &str = "~rollcall:limit:* +evalsha +script|load +time +get +set +del";
    assert!(include_str!("../../../docs/operate.md").contains(&format!("ACL SETUSER rollcall on >password {RIGHTS}`")));
    let redis = Redis::start().await.unwrap();
    let mut plain = redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let rights: Vec<_> = RIGHTS.split(' ').collect();
    let account = ["SETUSER", "rollcall", "on", ">pass#word"];
    redis::cmd("ACL").arg(&account).arg(&rights).exec_async(&mut plain).await.unwrap();
    let at = |user: &str| Address::parse(&redis.url().replace("redis://", &format!("redis://{user}@"))).unwrap();
    RedisLimits::examine(at("rollcall:pass%23word")).await.unwrap();
    let error = RedisLimits::examine(at("rollcall:hunter2")).await.unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn one_that_cannot_be_written_to_is_away() {
    let redis = Redis::start().await.unwrap();
    let address = Address::parse(&redis.url()).unwrap();
    RedisLimits::examine(address.clone()).await.unwrap();
    let mut plain = redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let set = ["SET", "min-replicas-to-write", "1"];
    redis::cmd("CONFIG").arg(&set).exec_async(&mut plain).await.unwrap();
    let error = RedisLimits::examine(address).await.unwrap_err().to_string();
    assert!(error.contains("NOREPLICAS"), "{error}");
    assert!(!limits(&redis).await.is_shared());
}
