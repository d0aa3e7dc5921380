//! Sign-up, login and `me`, in both published forms.

use rollcall_testkit::server::claims;
use serde_json::{Value, json};

use crate::{assert_id, assert_members, builder, server};

fn ada() -> Value {
    json!({"name": "Ada Lovelace", "email": "ada@example.org", "password": "correct horse", "role": "teacher"})
}

fn with(member: &str, value: impl Into<Value>) -> Value {
    let mut body = ada();
    body[member] = value.into();
    body
}

#[tokio::test]
async fn sign_up_login_and_me_in_both_forms() {
    let server = server().await;
    let client = server.client();
    for (prefix, email) in [("", "ada@example.org"), ("/auth", "ada2@example.org")] {
        let made = client.post(&format!("{prefix}/signup"), &with("email", email)).await.data(201);
        assert_id(&made["_id"]);
        assert_eq!(made["name"], "Ada Lovelace");
        assert_eq!(made["email"], email);
        assert_eq!(made["role"], "teacher");
        assert!(!made.to_string().to_lowercase().contains("password"), "{made}");

        let login =
            client.post(&format!("{prefix}/login"), &json!({"email": email, "password": "correct horse"})).await;
        let token = if prefix.is_empty() {
            let body = login.json(200);
            assert!(body.get("success").is_none() && body.get("data").is_none(), "without the envelope: {body}");
            body
        } else {
            login.ok()
        };
        assert_eq!(token["type"], "bearer");
        let token = token["token"].as_str().unwrap();
        let claims = claims(token);
        assert_members(&claims, &["id", "email", "role", "iat", "exp", "jti", "ver"]);
        assert_eq!(
            (&claims["id"], &claims["email"], &claims["role"]),
            (&made["_id"], &json!(email), &json!("teacher"))
        );

        let me = client.call(reqwest::Method::GET, &format!("{prefix}/me")).bearer(token).send().await.ok();
        assert_eq!(me, made);
    }
}

#[tokio::test]
async fn two_logins_give_two_tokens_and_both_work() {
    let server = server().await;
    let client = server.client();
    let first = client.student("Sam").await;
    let second = client.log_in(&first.email, &first.password).await;
    assert_ne!(claims(&first.token)["jti"], claims(&second.token)["jti"]);
    first.get("/me").await.ok();
    second.get("/me").await.ok();
}

#[tokio::test]
async fn what_sign_up_refuses() {
    let server = server().await;
    let client = server.client();
    let long_name = "n".repeat(101);
    let long_password = "p".repeat(73);
    let long_email = format!("{}@example.org", "e".repeat(250));
    let cases: Vec<(&str, Value)> = vec![
        ("name", json!("")),
        ("name", json!("   ")),
        ("name", json!(long_name)),
        ("name", json!("a\u{0}b")),
        ("name", json!("a\nb")),
        ("name", json!(5)),
        ("name", json!(null)),
        ("name", json!(["Ada"])),
        ("email", json!("")),
        ("email", json!("ada")),
        ("email", json!("ada@")),
        ("email", json!("@example.org")),
        ("email", json!("ada@localhost")),
        ("email", json!("a da@example.org")),
        ("email", json!("ada@example.org\u{0}")),
        ("email", json!(long_email)),
        ("email", json!({})),
        ("password", json!("")),
        ("password", json!("12345")),
        ("password", json!("ééééé")),
        ("password", json!(long_password)),
        ("password", json!("é".repeat(37))),
        ("password", json!("abc\u{0}defgh")),
        ("password", json!(123_456)),
        ("role", json!("")),
        ("role", json!("admin")),
        ("role", json!("Teacher")),
        ("role", json!("parent")),
        ("role", json!({"teacher": null})),
        ("role", json!(["teacher"])),
        ("role", json!(null)),
        ("role", json!(true)),
    ];
    for (field, value) in cases {
        let answer = client.post("/signup", &with(field, value.clone())).await;
        let refused = answer.refused(400, "Invalid request schema");
        assert_eq!(refused.fields, [field], "{value}: {answer:?}");
        assert!(!answer.text().contains("correct horse"), "a password came back: {answer:?}");
    }
    for missing in ["name", "email", "password", "role"] {
        let mut body = ada();
        body.as_object_mut().unwrap().remove(missing);
        client.post("/auth/signup", &body).await.refused(400, "Invalid request schema");
    }
    // All that is wrong is named at once.
    let body = json!({"name": "", "email": "x", "password": "1", "role": "student"});
    let refused = client.post("/signup", &body).await.refused(400, "Invalid request schema");
    assert_eq!(refused.fields, ["name", "email", "password"]);
    // None of them made an account.
    client.post("/signup", &ada()).await.data(201);
}

#[tokio::test]
async fn what_sign_up_takes_at_the_edges() {
    let server = server().await;
    let client = server.client();
    let edges = [
        json!({"name": "  Zoë\t", "email": " Zoe.O'Neil+x@Sub.Example.ORG ", "password": "123456", "role": "student"}),
        json!({"name": "ß".repeat(100), "email": "long@example.org", "password": "é".repeat(36), "role": "student"}),
        json!({"name": "X", "email": "x@example.org", "password": "      ", "role": "teacher", "admin": true, "_id": 1}),
    ];
    for body in &edges {
        let made = client.post("/signup", body).await.data(201);
        assert_eq!(made["name"], body["name"].as_str().unwrap().trim());
        assert_eq!(made["email"], body["email"].as_str().unwrap().trim());
        let login = json!({"email": body["email"], "password": body["password"]});
        client.post("/login", &login).await.json(200);
    }
}

#[tokio::test]
async fn an_address_is_one_account_without_regard_to_case() {
    let server = server().await;
    let client = server.client();
    client.post("/signup", &ada()).await.data(201);
    for same in ["ada@example.org", "ADA@EXAMPLE.ORG", " Ada@Example.org "] {
        client.post("/signup", &with("email", same)).await.refused(400, "Email already exists");
        let login = json!({"email": same, "password": "correct horse"});
        client.post("/login", &login).await.json(200);
    }
    // What is wrong with the body comes before what it names.
    let mut body = ada();
    body["name"] = json!("");
    client.post("/signup", &body).await.refused(400, "Invalid request schema");
}

#[tokio::test]
async fn of_many_who_sign_up_at_once_with_one_address_one_gets_it() {
    let server = server().await;
    let client = server.client();
    let all = (0..20).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let email = if n % 2 == 0 { "same@example.org" } else { "SAME@example.org" };
            client.post("/signup", &with("email", email)).await
        })
    });
    let mut made = 0;
    for answer in all.collect::<Vec<_>>() {
        let answer = answer.await.unwrap();
        if answer.status == 201 {
            made += 1;
        } else {
            answer.refused(400, "Email already exists");
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn what_login_refuses() {
    let server = server().await;
    let client = server.client();
    client.post("/signup", &ada()).await.data(201);
    // An unknown address and a wrong password look the same; no length is checked.
    let long = "x".repeat(1000);
    let wrong = [
        json!({"email": "ada@example.org", "password": "wrong horse"}),
        json!({"email": "ada@example.org", "password": ""}),
        json!({"email": "ada@example.org", "password": "correct horse\u{0}"}),
        json!({"email": "ada@example.org", "password": "Correct horse"}),
        json!({"email": "ada@example.org", "password": long}),
        json!({"email": "eve@example.org", "password": "correct horse"}),
        json!({"email": "", "password": "correct horse"}),
        json!({"email": "no address", "password": "x"}),
        json!({"email": long, "password": "x"}),
    ];
    for body in &wrong {
        for path in ["/login", "/auth/login"] {
            client.post(path, body).await.refused(400, "Invalid email or password");
        }
    }
    let malformed = [
        json!({}),
        json!({"email": "ada@example.org"}),
        json!({"password": "correct horse"}),
        json!({"email": 1, "password": "correct horse"}),
        json!({"email": "ada@example.org", "password": ["correct horse"]}),
        json!({"email": {"$ne": null}, "password": {"$ne": null}}),
        json!([]),
        json!("ada@example.org"),
        json!(null),
    ];
    for body in &malformed {
        client.post("/login", body).await.refused(400, "Invalid request schema");
    }
}

#[tokio::test]
async fn a_password_counts_to_its_72nd_byte() {
    let server = server().await;
    let client = server.client();
    let password = "p".repeat(72);
    client.post("/signup", &with("password", password.clone())).await.data(201);
    client.post("/login", &json!({"email": "ada@example.org", "password": password})).await.json(200);
    for other in [&password[..71], &format!("{}q", &password[..71])] {
        let body = json!({"email": "ada@example.org", "password": other});
        client.post("/login", &body).await.refused(400, "Invalid email or password");
    }
}

#[tokio::test]
async fn teachers_can_be_kept_out() {
    let closed = builder().env("TEACHER_SIGNUP", "closed").start().await.unwrap();
    let client = closed.client();
    client.post("/signup", &ada()).await.refused(403, "Forbidden, teacher sign-up is closed");
    client.post("/signup", &with("name", "")).await.refused(400, "Invalid request schema");
    client.post("/signup", &with("role", "student")).await.data(201);

    let coded = builder().env("TEACHER_SIGNUP", "code:open sesame").start().await.unwrap();
    let client = coded.client();
    for wrong in [json!(null), json!(""), json!("open"), json!("code:open sesame")] {
        client.post("/signup", &with("signupCode", wrong)).await.refused(403, "Forbidden, teacher sign-up is closed");
    }
    client.post("/signup", &ada()).await.refused(403, "Forbidden, teacher sign-up is closed");
    client.post("/signup", &with("signupCode", "open sesame")).await.data(201);
    let mut student = with("role", "student");
    student["email"] = json!("student@example.org");
    client.post("/signup", &student).await.data(201);
}
