//! E-mails: from the call to a real mail server, and back by the links in them.

use std::sync::Arc;

use reqwest::Method;
use rollcall_testkit::server::{Authority, Builder, Client, Server};
use rollcall_testkit::smtp::{Event, MailServer, PASSWORD, Security, header};
use serde_json::json;
use tempfile::TempDir;

use crate::{assert_members, builder, server};

const PUBLIC_URL: &str = "https://school.example/rollcall";

/// A mail server, and how servers are started that send by it.
struct Post {
    server: MailServer,
    folder: Arc<TempDir>,
}

impl Post {
    async fn open() -> Self {
        let authority = Authority::new().unwrap();
        let folder = Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let pair = authority.issue(&["localhost"]).unwrap();
        Self { server: MailServer::start(&Security::StartTls(pair)).await.unwrap(), folder }
    }

    fn builder(&self) -> Builder {
        builder()
            .folder(Arc::clone(&self.folder))
            .env("SMTP_URL", self.server.url())
            .env("SMTP_CA", "ca.pem")
            .env("PUBLIC_URL", PUBLIC_URL)
    }

    /// The next mail to this address.
    async fn mail(&mut self, to: &str) -> Event {
        loop {
            let mail = self.server.mail().await.unwrap();
            if mail["envelope_to"] == json!([to]) {
                return mail;
            }
        }
    }

    /// What stands behind the link in the next mail to this address.
    async fn token(&mut self, to: &str, link: &str) -> String {
        let mail = self.mail(to).await;
        let text = mail["text"].as_str().unwrap();
        let begins = format!("{PUBLIC_URL}{link}");
        let (_, rest) = text.split_once(&begins).unwrap_or_else(|| panic!("no {begins} in {text}"));
        rest.split_whitespace().next().unwrap().to_owned()
    }
}

async fn sign_up(client: &Client, email: &str) -> String {
    let body = json!({"name": "Sam Student", "email": email, "password": "battery staple", "role": "student"});
    let made = client.post("/signup", &body).await.data(201);
    assert_eq!(made["emailConfirmed"], false);
    client.log_in(email, "battery staple").await.token
}

async fn confirmed(client: &Client, token: &str) -> bool {
    client.call(Method::GET, "/me").bearer(token).send().await.ok()["emailConfirmed"].as_bool().unwrap()
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn who_signs_up_confirms_the_address_by_a_mail() {
    let mut post = Post::open().await;
    let server = post.builder().env("LOG_LEVEL", "trace").start().await.unwrap();
    let client = server.client();
    let session = sign_up(&client, "sam@example.org").await;
    assert!(!confirmed(&client, &session).await, "and can log in all the same");
    let token = post.token("sam@example.org", "/email/confirm#").await;

    let page = client.get("/email/confirm").await;
    assert!(page.status == 200 && page.header("content-type").starts_with("text/html"), "{page:?}");
    assert!(page.header("content-security-policy").contains("script-src 'self';"), "{page:?}");
    for file in ["/mail/page.js", "/mail/page.css"] {
        assert_eq!(client.get(file).await.status, 200, "{file}");
    }
    assert!(!confirmed(&client, &session).await, "looking at the page does nothing");

    for wrong in ["", "x", &token[1..], &format!("{token}x"), "\u{0}", &"é".repeat(1_000)] {
        client.post("/email/confirm", &json!({"token": wrong})).await.refused(400, "Invalid or expired link");
    }
    client.post("/email/confirm", &json!({})).await.refused(400, "Invalid request schema");
    let reset = json!({"token": token, "password": "another one"});
    client.post("/password/reset", &reset).await.refused(400, "Invalid or expired link");
    let done = client.post("/email/confirm", &json!({"token": token})).await.data(200);
    assert_eq!(done, json!({"email": "sam@example.org"}));
    assert!(confirmed(&client, &session).await);
    client.post("/email/confirm", &json!({"token": token})).await.refused(400, "Invalid or expired link");

    let again = client.call(Method::POST, "/me/confirm-email").bearer(&session).send().await;
    assert_eq!(again.data(202), json!({"emailConfirmed": true}));
    let nobody = client.call(Method::POST, "/me/confirm-email").send().await;
    nobody.refused(401, "Unauthorized, token missing or invalid");
    assert!(!server.logs().contains(&token), "a token is in the log");
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn who_forgot_the_password_chooses_another_by_a_mail() {
    let mut post = Post::open().await;
    let server = post.builder().env("RATE_LIMIT", "on").start().await.unwrap();
    let client = server.client();
    sign_up(&client, "sam@example.org").await;
    post.mail("sam@example.org").await;
    let sam = client.log_in("sam@example.org", "battery staple").await;
    let mut socket = sam.socket().await;

    let ask = async |email: &str| client.post("/password/forgotten", &json!({"email": email})).await;
    assert_eq!(ask("nobody@example.org").await.data(202), json!({}));
    assert_eq!(ask(" Sam@Example.org ").await.data(202), json!({}));
    let token = post.token("sam@example.org", "/password/reset#").await;

    let short = json!({"token": token, "password": "short"});
    let refused = client.post("/password/reset", &short).await.refused(400, "Invalid request schema");
    assert_eq!(refused.fields, ["password"]);
    let good = json!({"token": token, "password": "correct horse"});
    let both = tokio::join!(client.post("/password/reset", &good), client.post("/password/reset", &good));
    let mut statuses = [both.0.status, both.1.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 400], "the token is good once");

    socket.expect_close(4003).await;
    sam.get("/me").await.refused(401, "Unauthorized, token missing or invalid");
    let old = json!({"email": "sam@example.org", "password": "battery staple"});
    client.post("/login", &old).await.refused(400, "Invalid email or password");
    let sam = client.log_in("sam@example.org", "correct horse").await;
    assert!(confirmed(&client, &sam.token).await, "who reads the mails has the address");

    // Nobody fills a stranger's mailbox.
    for _ in 0..4 {
        ask("victim@example.org").await.data(202);
    }
    ask("victim@example.org").await.data(202);
    ask("VICTIM@example.org").await.refused(429, "Too many requests");
    ask("nobody@example.org").await.data(202);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn absent_students_are_told_until_they_stop_it() {
    let mut post = Post::open().await;
    let server = post.builder().start().await.unwrap();
    let client = server.client();
    let teacher = client.teacher("Thea Teacher").await;
    let (sam, kim, new) = (client.student("Sam").await, client.student("Kim").await, client.student("New").await);
    for student in [&sam, &kim] {
        let done = server.run(&["user", "confirm-email", &student.email]).await.unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let class = teacher.class("Algebra I", &[&sam, &kim, &new]).await;
    let hold = async |absent: &str| {
        teacher.start(&class).await;
        let mut socket = teacher.socket().await;
        for student in [&sam, &kim].into_iter().filter(|student| student.id != absent) {
            socket.mark(&student.id, "late").await;
            socket.expect_mark(&student.id, "late").await;
        }
        socket.send("DONE", &json!({"classId": class.id})).await;
        socket.expect("DONE").await;
        socket.close().await;
    };
    hold(&sam.id).await;
    teacher.patch(&class.path(""), &json!({})).await.refused(400, "Invalid request schema");
    teacher.patch(&class.path(""), &json!({"absenceNotices": "yes"})).await.refused(400, "Invalid request schema");
    let changed = teacher.patch(&class.path(""), &json!({"absenceNotices": true})).await.ok();
    assert_eq!((&changed["absenceNotices"], &changed["className"]), (&json!(true), &json!("Algebra I")));
    hold(&sam.id).await;
    let mail = post.mail_about(&sam.email, "Algebra I").await;
    let unsubscribe = header(&mail, "List-Unsubscribe").unwrap();
    let link = unsubscribe.strip_prefix(&format!("<{PUBLIC_URL}")).unwrap().strip_suffix('>').unwrap();
    assert_eq!(header(&mail, "List-Unsubscribe-Post").unwrap(), "List-Unsubscribe=One-Click");

    // As a mail program does it.
    assert_eq!(client.get(link).await.status, 200);
    let form = client.call(Method::POST, link).header("content-type", "application/x-www-form-urlencoded");
    let stopped = form.body("List-Unsubscribe=One-Click").send().await.ok();
    assert_eq!(stopped, json!({"absenceNotices": false}));
    client.post(&link[..link.len() - 1], &json!({})).await.refused(400, "Invalid or expired link");
    hold(&sam.id).await;
    hold(&kim.id).await;
    // Kim's comes after all that was to be sent to Sam, who is told no more, and whoever is new never was.
    post.mail_about(&kim.email, "Algebra I").await;
    client.call(Method::DELETE, link).send().await.ok();
    hold(&sam.id).await;
    post.mail_about(&sam.email, "Algebra I").await;
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_mailbox_is_not_filled_by_sign_ups() {
    let mut post = Post::open().await;
    let server = post.builder().env("RATE_LIMIT", "on").start().await.unwrap();
    let client = server.client();
    for n in 0..8 {
        sign_up(&client, &format!("victim+{n}@example.org")).await;
    }
    sign_up(&client, "other@example.org").await;
    let mut sent = std::collections::BTreeSet::new();
    while !sent.contains("other@example.org") {
        sent.insert(post.server.mail().await.unwrap()["envelope_to"][0].as_str().unwrap().to_owned());
    }
    assert!((2..=7).contains(&sent.len()), "some of the eight accounts, which are one mailbox: {sent:?}");
}

impl Post {
    /// The next mail to this address whose subject has this word, before which nobody else gets one like it.
    async fn mail_about(&mut self, to: &str, word: &str) -> Event {
        loop {
            let mail = self.server.mail().await.unwrap();
            if header(&mail, "Subject").unwrap().contains(word) {
                assert_eq!(mail["envelope_to"], json!([to]), "somebody else is told: {mail}");
                return mail;
            }
        }
    }
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_mail_outlives_a_crash_and_a_mail_server_that_is_away() {
    let mut post = Post::open().await;
    let mut server = post.builder().start().await.unwrap();
    post.server.stop();
    sign_up(&server.client(), "sam@example.org").await;
    server.kill();
    post.server.start_again().await.unwrap();
    server.restart().await.unwrap();
    let token = post.token("sam@example.org", "/email/confirm#").await;
    server.client().post("/email/confirm", &json!({"token": token})).await.data(200);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn doctor_tries_the_mail_server() {
    let mut post = Post::open().await;
    let server = post.builder().start().await.unwrap();
    let says = async |server: &Server| {
        let output = server.run(&["doctor"]).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(PASSWORD) && !text.contains("p%40ss"), "{text}");
        text.lines().find(|line| line.contains("mail")).unwrap().to_owned()
    };
    assert!(says(&server).await.contains("takes mails"));
    post.server.misbehave("refuse-password", None, None).await.unwrap();
    let refused = says(&server).await;
    assert!(refused.contains("535") && refused.contains("SMTP_URL"), "{refused}");
}

#[tokio::test]
async fn without_a_mail_server_it_says_so() {
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("Thea Teacher").await;
    let class = teacher.class("Algebra I", &[]).await;
    let made = teacher.get(&class.path("")).await.ok();
    assert_members(&made, &["_id", "className", "teacherId", "students"]);
    for answer in [
        client.post("/password/forgotten", &json!({"email": "sam@example.org"})).await,
        client.post("/password/reset", &json!({"token": "x", "password": "correct horse"})).await,
        client.post("/email/confirm", &json!({"token": "x"})).await,
        client.post("/unsubscribe/x", &json!({})).await,
        teacher.post("/me/confirm-email", &json!({})).await,
        teacher.patch(&class.path(""), &json!({"absenceNotices": true})).await,
    ] {
        answer.refused(501, "E-mail is not set up");
    }
    let off = teacher.patch(&class.path(""), &json!({"absenceNotices": false, "className": "Algebra II"})).await.ok();
    assert_eq!((&off["absenceNotices"], &off["className"]), (&json!(false), &json!("Algebra II")));
}

#[tokio::test]
async fn a_start_is_refused_with_what_would_be_right() {
    let refused = async |values: &[(&str, &str)]| {
        let mut builder = builder();
        for (name, value) in values {
            builder = builder.env(name, *value);
        }
        builder.start().await.unwrap_err().to_string()
    };
    let url = ("SMTP_URL", "smtp://rollcall:hunter2@mail.example.org");
    let said = refused(&[url]).await;
    assert!(said.contains("PUBLIC_URL is not set") && !said.contains("hunter2"), "{said}");
    let said = refused(&[("SMTP_URL", "smtp://rollcall:hunter2@mail.example.org?tls=none")]).await;
    assert!(said.contains("STARTTLS") && !said.contains("hunter2"), "{said}");
    let said = refused(&[("MAIL_FROM", "office@school.example")]).await;
    assert!(said.contains("MAIL_FROM") && said.contains("together with SMTP_URL"), "{said}");
    let said = refused(&[url, ("PUBLIC_URL", "https://school.example"), ("MAIL_TEMPLATES", "not-there")]).await;
    assert!(said.contains("not-there"), "{said}");
}
