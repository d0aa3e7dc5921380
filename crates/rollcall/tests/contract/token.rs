//! Which tokens are taken, and which are not.

use reqwest::Method;
use rollcall_testkit::server::{Algorithm, SECRET, claims, signed, unsigned};
use serde_json::{Value, json};

use crate::{NOBODY, server};

const REFUSED: &str = "Unauthorized, token missing or invalid";

#[tokio::test]
async fn the_header_carries_a_token_behind_bearer_or_bare() {
    let server = server().await;
    let client = server.client();
    let token = client.teacher("T").await.token;
    for good in [format!("Bearer {token}"), format!("bearer {token}"), format!("BEARER  {token}"), token.clone()] {
        client.call(Method::GET, "/me").header("authorization", &good).send().await.ok();
    }
    client.get("/me").await.refused(401, REFUSED);
    let bad = [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Basic {token}"),
        format!("Bearer {token} x"),
        format!("Bearer x {token}"),
        format!("Bearer{token}"),
        format!("\"{token}\""),
        "null".to_owned(),
        "undefined".to_owned(),
        "Bearer a.b.c".to_owned(),
        "Bearer ..".to_owned(),
    ];
    for value in bad {
        client.call(Method::GET, "/me").header("authorization", &value).send().await.refused(401, REFUSED);
    }
    let latin1 = client.call(Method::GET, "/me").header("authorization", b"Bearer \xff\xfe").send().await;
    latin1.refused(401, REFUSED);
    // The token's place is the header, not the address.
    client.get(&format!("/me?token={token}")).await.refused(401, REFUSED);
}

/// Tokens that must not be taken, with what is wrong with each.
fn forgeries(good: &str) -> Vec<(&'static str, String)> {
    let claims = claims(good);
    let now = claims["iat"].as_i64().unwrap();
    let sign = |claims: &Value| signed(claims, SECRET, Algorithm::HS256);
    let with = |member: &str, value: Value| {
        let mut changed = claims.clone();
        changed[member] = value;
        sign(&changed)
    };
    let without = |member: &str| {
        let mut changed = claims.clone();
        changed.as_object_mut().unwrap().remove(member);
        sign(&changed)
    };
    let (head, tail) = good.split_at(good.len() - 6);
    let last_changed = format!("{head}{}", if tail == "AAAAAA" { "BBBBBB" } else { "AAAAAA" });
    let mut parts = good.split('.');
    let (header, payload, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let other = signed(&json!({"id": NOBODY}), SECRET, Algorithm::HS256);
    let other_payload = other.split('.').nth(1).unwrap();
    vec![
        ("alg none", unsigned(good)),
        ("alg none with a signature", format!("{}{signature}", unsigned(good))),
        ("HS384 by the same key", signed(&claims, SECRET, Algorithm::HS384)),
        ("HS512 by the same key", signed(&claims, SECRET, Algorithm::HS512)),
        ("another key", signed(&claims, "another secret of thirty-two bytes", Algorithm::HS256)),
        ("an empty key", signed(&claims, "", Algorithm::HS256)),
        ("a changed signature", last_changed),
        ("no signature", format!("{header}.{payload}.")),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{good}.{signature}")),
        ("another payload", format!("{header}.{other_payload}.{signature}")),
        ("no id", without("id")),
        ("no email", without("email")),
        ("no role", without("role")),
        ("no iat", without("iat")),
        ("no exp", without("exp")),
        ("no jti", without("jti")),
        ("no ver", without("ver")),
        ("id of nobody", with("id", json!(NOBODY))),
        ("id that is none", with("id", json!("1"))),
        ("id of another type", with("id", json!(1))),
        ("exp as text", with("exp", json!("9999999999"))),
        ("exp in the past", with("exp", json!(now - 70))),
        ("exp long ago", with("exp", json!(0))),
        ("exp below zero", with("exp", json!(i64::MIN))),
        ("iat in the future", with("iat", json!(now + 120))),
        ("iat far in the future", with("iat", json!(i64::MAX))),
        ("an older version", with("ver", json!(-1))),
        ("a later version", with("ver", json!(claims["ver"].as_u64().unwrap() + 1))),
        ("a version that is no number", with("ver", json!("0"))),
        ("no object", sign(&json!([1, 2, 3]))),
        ("nothing claimed", sign(&json!({}))),
    ]
}

#[tokio::test]
async fn forged_tokens_are_refused_by_both_doors() {
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("T").await;
    for (what, token) in forgeries(&teacher.token) {
        let answer = client.call(Method::GET, "/me").bearer(&token).send().await;
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        answer.refused(401, REFUSED);
        let mut socket = client.dial(&token).open().await;
        socket.expect_error("Unauthorized or invalid token").await;
        let ended = socket.expect_end().await;
        assert_eq!(ended.code, Some(1008), "{what}");
    }
    teacher.get("/me").await.ok();
}

#[tokio::test]
async fn clocks_may_be_a_minute_apart() {
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("T").await;
    let claims = claims(&teacher.token);
    let now = claims["iat"].as_i64().unwrap();
    for (member, value) in [("iat", now + 40), ("exp", now - 20)] {
        let mut changed = claims.clone();
        changed[member] = json!(value);
        let token = signed(&changed, SECRET, Algorithm::HS256);
        client.call(Method::GET, "/me").bearer(&token).send().await.ok();
    }
}

#[tokio::test]
async fn the_account_decides_the_role_and_not_the_token() {
    let server = server().await;
    let client = server.client();
    let student = client.student("S").await;
    let mut claims = claims(&student.token);
    claims["role"] = json!("teacher");
    let token = signed(&claims, SECRET, Algorithm::HS256);
    let answer = client.call(Method::POST, "/class").bearer(&token).json(&json!({"className": "Mine"})).send().await;
    assert!(matches!(answer.status, 401 | 403), "{answer:?}");
}

#[tokio::test]
async fn tokens_live_as_long_as_configured() {
    let server = crate::builder().env("TOKEN_TTL", "90m").start().await.unwrap();
    let claims = claims(&server.client().student("S").await.token);
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 90 * 60);
}
