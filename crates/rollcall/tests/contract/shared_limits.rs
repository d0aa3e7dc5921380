//! Limits that replicas share in Redis, and what becomes of them without it.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use rollcall_testkit::redis::Redis;
use rollcall_testkit::server::{Answer, Authority, PATIENCE, Server};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::builder;
use crate::limits::{assert_limited, first_limited};

/// Two servers with limits, each with a database of its own: what they share, they share in Redis.
async fn two(redis: Option<&str>) -> [Server; 2] {
    let server = async || {
        let builder = builder().without("RATE_LIMIT").env("TRUSTED_PROXIES", "127.0.0.0/8");
        match redis {
            Some(url) => builder.env("REDIS_URL", url),
            None => builder,
        }
        .start()
        .await
        .unwrap()
    };
    [server().await, server().await]
}

async fn attempt(server: &Server, email: &str, from: &str) -> Answer {
    let body = json!({"email": email, "password": "wrong"});
    server.client().call(Method::POST, "/login").header("x-forwarded-for", from).json(&body).send().await
}

async fn sign_up(server: &Server, n: usize, from: &str) -> Answer {
    let body = json!({"name": "S", "email": format!("s{n}@example.org"), "password": "123456", "role": "student"});
    server.client().call(Method::POST, "/signup").header("x-forwarded-for", from).json(&body).send().await
}

/// A figure without labels.
async fn figure(server: &Server, name: &str) -> Option<f64> {
    // The peer counts, and no proxy: the client has none here.
    let text = server.client().get("/metrics").await.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Waits until a figure is as it should be.
async fn until(what: &str, server: &Server, name: &str, is: impl Fn(f64) -> bool) {
    let wait = async {
        while !figure(server, name).await.is_some_and(&is) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: never"));
}

/// Waits until the server says whether limits are shared.
async fn until_shared(server: &Server, shared: bool) {
    until("shared limits", server, "rollcall_limits_shared", |figure| (figure > 0.5) == shared).await;
}

/// What `scenario` gives when Redis counted each of its steps. On a machine that was too slow for one of them it is
/// tried again, with another number.
async fn counted<T>(servers: &[Server; 2], scenario: impl AsyncFn(usize) -> T) -> T {
    let missed = async || {
        let mut missed = 0.0;
        for server in servers {
            until_shared(server, true).await;
            missed += figure(server, "rollcall_limits_redis_errors_total").await.unwrap();
        }
        missed
    };
    for round in 0..20 {
        let before = missed().await;
        let outcome = scenario(round).await;
        if missed().await <= before {
            return outcome;
        }
    }
    panic!("Redis was never there all the time");
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn failed_logins_are_counted_per_account_over_all_replicas() {
    let redis = Redis::start_with("hunter2").await.unwrap();
    let servers = two(Some(&redis.url())).await;
    let (tried, limited) = counted(&servers, async |round| {
        let email = format!("nobody{round}@example.org");
        let mut tried = Vec::new();
        for n in 0..10 {
            let email = if n % 3 == 0 { email.to_uppercase() } else { email.clone() };
            tried.push(attempt(&servers[n % 2], &email, "192.0.2.1").await.status);
        }
        (tried, [attempt(&servers[0], &email, "192.0.2.1").await, attempt(&servers[1], &email, "192.0.2.2").await])
    })
    .await;
    assert_eq!(tried, [400; 10]);
    limited.iter().for_each(assert_limited);

    // Successes are free, on every replica, and nobody else is concerned.
    for server in &servers {
        let student = server.client().student("S").await;
        for _ in 0..15 {
            let body = json!({"email": student.email, "password": student.password});
            server.client().post("/login", &body).await.json(200);
        }
    }

    // Whoever can read Redis reads nothing of it.
    let mut redis = redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    assert!(keys.len() >= 2, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("rollcall:limit:") && !key.contains("nobody") && !key.contains("192"), "{key}");
    }
    for server in &servers {
        assert!(server.output().contains("limits    on, shared in redis://127.0.0.1:"), "{}", server.output());
        assert!(!format!("{}{}", server.output(), server.logs()).contains("hunter2"));
    }
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn logins_and_sign_ups_are_counted_per_address_over_all_replicas() {
    let redis = Redis::start().await.unwrap();
    let servers = two(Some(&redis.url())).await;
    // Each replica alone would allow all of it.
    let (logins, sign_ups) = counted(&servers, async |round| {
        let from = format!("192.0.2.{round}");
        for n in 0..300 {
            let email = format!("nobody{round}-{n}@example.org");
            attempt(&servers[n % 2], &email, &from).await.refused(400, "Invalid email or password");
            sign_up(&servers[n % 2], 1_000 * round + n, &from).await.data(201);
        }
        let login = async |n: usize| attempt(&servers[n % 2], &format!("nobody{round}-{n}@example.org"), &from).await;
        let sign_up = async |n: usize| sign_up(&servers[n % 2], 1_000 * round + n, &from).await;
        (first_limited(300, login).await, first_limited(300, sign_up).await)
    })
    .await;
    assert_limited(&logins);
    assert_limited(&sign_ups);
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn without_redis_requests_go_on_under_the_limits_of_each_replica_until_it_is_back() {
    let mut redis = Redis::start().await.unwrap();
    let servers = two(Some(&redis.url())).await;
    let [one, other] = &servers;
    let victim = "victim@example.org";
    for _ in 0..3 {
        attempt(one, victim, "192.0.2.1").await.refused(400, "Invalid email or password");
    }
    redis.kill().unwrap();
    for server in &servers {
        until_shared(server, false).await;
    }
    // What was tried before counts on.
    for (server, left) in [(one, 7), (other, 10)] {
        for _ in 0..left {
            attempt(server, victim, "192.0.2.1").await.refused(400, "Invalid email or password");
        }
        assert_limited(&attempt(server, victim, "192.0.2.1").await);
        assert!(figure(server, "rollcall_limits_redis_errors_total").await.unwrap() >= 1.0);
    }
    sign_up(one, 1, "192.0.2.1").await.data(201);

    redis.restart().await.unwrap();
    for server in &servers {
        server.logged("Redis is back").await;
    }
    let tried = counted(&servers, async |round| {
        let mut tried = Vec::new();
        for n in 0..11 {
            tried.push(attempt(&servers[n % 2], &format!("nobody{round}@example.org"), "192.0.2.1").await.status);
        }
        tried
    })
    .await;
    assert_eq!((&tried[..10], tried[10]), (&[400; 10][..], 429));
    // It came back without a memory, and the replicas have theirs.
    assert_limited(&attempt(one, victim, "192.0.2.1").await);
}

#[tokio::test]
#[ignore = "needs Redis: cargo xtask test"]
async fn a_server_starts_while_redis_is_away_and_shares_its_limits_later() {
    let mut redis = Redis::start_with("hunter2").await.unwrap();
    redis.kill().unwrap();
    let away = redis.url();
    let server = builder().without("RATE_LIMIT").env("REDIS_URL", &away).start().await.unwrap();
    assert!(server.output().contains("limits    on, of each replica alone: redis://127.0.0.1:"), "{}", server.output());
    assert_eq!(figure(&server, "rollcall_limits_shared").await, Some(0.0));
    let doctor = async || String::from_utf8(server.run(&["doctor"]).await.unwrap().stdout).unwrap();
    let found = doctor().await;
    assert!(found.contains("warn  limits") && found.contains("does not count"), "{found}");
    // However often it is tried, it is told once.
    until("several attempts", &server, "rollcall_limits_redis_errors_total", |errors| errors >= 3.0).await;
    assert_eq!(server.logs().matches("Redis is away").count(), 1, "{}", server.logs());
    redis.restart().await.unwrap();
    until_shared(&server, true).await;
    server.logged("Redis is back").await;
    let found = doctor().await;
    assert!(found.contains("ok    limits") && found.contains("counts for all replicas"), "{found}");

    let wrong = away.replace("hunter2", "hunter3");
    let stranger = builder().without("RATE_LIMIT").env("REDIS_URL", wrong).start().await.unwrap();
    stranger.logged("Redis is away").await;
    let told = format!("{}{}{found}", stranger.output(), stranger.logs());
    assert!(told.contains("Password") && !told.contains("hunter"), "{told}");
}

#[tokio::test]
async fn without_an_address_each_replica_counts_alone() {
    for server in two(None).await {
        for _ in 0..10 {
            let answer = attempt(&server, "nobody@example.org", "192.0.2.1").await;
            answer.refused(400, "Invalid email or password");
        }
        assert_limited(&attempt(&server, "nobody@example.org", "192.0.2.1").await);
        assert_eq!(figure(&server, "rollcall_limits_shared").await, None);
    }
}

#[tokio::test]
async fn without_limits_nobody_asks_for_redis() {
    let server = builder().env("REDIS_URL", "redis://:hunter2@127.0.0.1:1").start().await.unwrap();
    assert!(server.output().contains("limits    off"), "{}", server.output());
    assert!(!server.logs().contains("Redis"), "{}", server.logs());
    assert_eq!(figure(&server, "rollcall_limits_shared").await, None);
}

#[tokio::test]
async fn over_tls_nobody_is_trusted_whom_browsers_do_not_trust() {
    let pair = Authority::new().unwrap().issue(&["localhost"]).unwrap();
    let folder = Arc::new(TempDir::new().unwrap());
    for (name, content) in [("tls.crt", &pair.certificate), ("tls.key", &pair.key)] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let builder = builder().env("TLS_CERT", "tls.crt").env("TLS_KEY", "tls.key").folder(folder);
    let tls = builder.start().await.unwrap();
    let url = format!("rediss://:hunter2@localhost:{}", tls.address().port());
    let server = crate::builder().without("RATE_LIMIT").env("REDIS_URL", url).start().await.unwrap();
    assert!(server.logs().contains("certificate") && !server.logs().contains("hunter2"), "{}", server.logs());
}
