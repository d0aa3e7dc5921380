//! Mails from the outbox of the embedded store to a real mail server, which misbehaves in all the ways that matter.
#![expect(clippy::unwrap_used, reason = "a step that fails where none may fails the test, as it should")]

mod school;

use std::collections::HashSet;
use std::time::Duration;

use rollcall_core::mail::Reason;
use rollcall_testkit::smtp::{MailServer, PASSWORD, USER, header};

use self::school::{Mailing, Way};

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_mail_arrives_once_and_well_formed() {
    for way in [Way::StartTls, Way::Implicit] {
        let mut mailing = Mailing::open(way).await;
        let reader = mailing.school.reader("ada@school.example", "Ada \"<b>\" Lovelace, née Çelik 日本").await;
        let id = mailing.school.queue(reader, Reason::ResetPassword).await;
        let running = mailing.run();

        let mail = mailing.server.mail().await.unwrap();
        assert_eq!((&mail["tls"], mail["user"].as_str()), (&true.into(), Some(USER)), "{way:?}");
        assert_eq!(mail["envelope_from"], "rollcall@school.example");
        assert_eq!(mail["envelope_to"], serde_json::json!(["ada@school.example"]));
        assert_eq!(
            (mail["defects"].as_array().unwrap().len(), mail["type"].as_str()),
            (0, Some("multipart/alternative"))
        );
        for (name, expected) in [
            ("Message-ID", format!("<{id}@school.example>").as_str()),
            ("From", "Rollcall <rollcall@school.example>"),
            ("To", "ada@school.example"),
            ("Subject", "Choose a new password"),
            ("Auto-Submitted", "auto-generated"),
            ("Date", "Tue, 14 Nov 2023 22:13:2"),
        ] {
            let given = header(&mail, name).unwrap();
            assert!(given.starts_with(expected), "{name}: {given}");
        }
        let link = format!("https://school.example/password/reset#token-of-{id}");
        for part in ["text", "html"] {
            assert!(mail[part].as_str().unwrap().contains("14 November 2023, 23:13 UTC"), "{}", mail[part]);
        }
        assert!(mail["text"].as_str().unwrap().contains(&link), "{}", mail["text"]);
        assert!(mail["html"].as_str().unwrap().replace("&#x2f;", "/").contains(&format!("href=\"{link}\"")));

        running.finish().await;
        assert_eq!(mailing.school.waiting().await, 0);
        assert_eq!(mailing.mails().await, Vec::<String>::new(), "it comes once");
    }
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn names_come_out_right() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    let name = "Ada \"<b>\" Lovelace, née Çelik 日本";
    let class = "Maths & <script>alert(\"1\")</script> für 日本's Übungsgruppe, which has a name that is rather long";
    let reader = mailing.school.reader("ada@schüle.example", name).await;
    mailing.school.absences(class, &[reader]).await;
    let running = mailing.run();

    let mail = mailing.server.mail().await.unwrap();
    running.finish().await;
    assert_eq!(mail["envelope_to"], serde_json::json!(["ada@xn--schle-mva.example"]));
    assert_eq!(header(&mail, "To").unwrap(), format!("\"{}\" <ada@xn--schle-mva.example>", name.replace('"', "\\\"")));
    assert_eq!(header(&mail, "Subject").unwrap(), format!("You were marked absent in “{class}”"));
    let unsubscribe = format!("https://school.example/unsubscribe/unsubscribe-{reader}");
    assert_eq!(header(&mail, "List-Unsubscribe").unwrap(), format!("<{unsubscribe}>"));
    assert_eq!(header(&mail, "List-Unsubscribe-Post").unwrap(), "List-Unsubscribe=One-Click");
    let (text, html) = (mail["text"].as_str().unwrap(), mail["html"].as_str().unwrap());
    assert!(text.contains(&format!("Hello {name},")) && text.contains(class) && text.contains(&unsubscribe), "{text}");
    assert!(html.contains("Hello Ada &quot;&lt;b&gt;&quot; Lovelace,") && !html.contains("<script>"), "{html}");
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn strangers_are_sent_no_words_of_whoever_gave_their_address() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    let name = "Won 1000 € at evil.example";
    for reason in [Reason::ConfirmEmail, Reason::ResetPassword] {
        let reader = mailing.school.stranger(&format!("{}@school.example", reason.kind().as_str()), name).await;
        mailing.school.queue(reader, reason).await;
    }
    let running = mailing.run();
    for _ in 0..2 {
        // With all that it says of the mail: headers and bodies, as they came and decoded.
        let mail = mailing.server.mail().await.unwrap().to_string();
        for word in ["Won ", "€", "evil"] {
            assert!(!mail.contains(word), "{mail}");
        }
    }
    running.finish().await;
    assert_eq!(mailing.school.waiting().await, 0);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn addresses_with_quotes_are_written_to() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    let emails = [r#""vic>tim"@school.example"#, r#""a,b"@school.example"#];
    for email in emails {
        let reader = mailing.school.reader(email, "Ada").await;
        mailing.school.queue(reader, Reason::ResetPassword).await;
    }
    let running = mailing.run();
    assert_eq!(mailing.next_tos(2).await, HashSet::from(emails.map(str::to_owned)));
    running.finish().await;
    assert_eq!(mailing.school.waiting().await, 0);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn addresses_that_are_not_ascii_need_a_server_that_takes_them() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    let reader = mailing.school.reader("jürgen@school.example", "Jürgen").await;
    mailing.school.queue(reader, Reason::ResetPassword).await;
    let running = mailing.run();
    let mail = mailing.server.mail().await.unwrap();
    running.finish().await;
    assert_eq!(mail["envelope_to"], serde_json::json!(["jürgen@school.example"]));
    assert_eq!(header(&mail, "To").unwrap(), "jürgen@school.example");

    mailing.server = MailServer::ascii_only(&mailing.security()).await.unwrap();
    mailing.school.queue(reader, Reason::ResetPassword).await;
    let other = mailing.school.reader("ada@school.example", "Ada").await;
    mailing.school.queue(other, Reason::ResetPassword).await;
    let running = mailing.run();
    assert_eq!(mailing.next_to().await, "ada@school.example");
    running.finish().await;
    assert_eq!(mailing.school.waiting().await, 0, "the first is given up");
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn nothing_is_told_to_a_server_that_is_not_trusted() {
    for (way, expected) in [
        (Way::Plain, "offers no STARTTLS"),
        (Way::OfSomebodyElse, "invalid peer certificate"),
        (Way::UnderAnotherName, "certificate not valid for name"),
    ] {
        let mut mailing = Mailing::open(way).await;
        let reader = mailing.school.reader("ada@school.example", "Ada").await;
        mailing.school.queue(reader, Reason::ResetPassword).await;
        let error = mailing.sender().check().await.expect_err("such a server").to_string();
        assert!(error.contains(expected) && !error.contains(PASSWORD), "{error}");

        let running = mailing.run();
        mailing.server.event("connection").await.unwrap();
        running.finish().await;
        for event in mailing.server.so_far().await.unwrap() {
            assert_eq!(event["event"], "connection", "{event}");
        }
        assert_eq!(mailing.school.waiting().await, 1);
    }
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_refused_password_holds_mails_up_and_loses_none() {
    let mut mailing = Mailing::open(Way::Implicit).await;
    mailing.school.readers(5).await;
    mailing.server.misbehave("refuse-password", None, None).await.unwrap();
    let error = mailing.sender().check().await.expect_err("a refused password").to_string();
    assert!(error.contains("535") && !error.contains(PASSWORD), "{error}");

    mailing.server.misbehave("refuse-password", None, Some(2)).await.unwrap();
    let running = mailing.run();
    let tos = mailing.next_tos(5).await;
    running.finish().await;
    assert_eq!(tos.len(), 5);
    assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (0, 0));
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn what_is_refused_for_good_is_given_up_and_holds_nobody_up() {
    for what in ["refuse-recipient", "refuse-message"] {
        let mut mailing = Mailing::open(Way::StartTls).await;
        mailing.school.readers(3).await;
        mailing.server.misbehave(what, Some("reader1@school.example"), None).await.unwrap();
        let running = mailing.run();
        let tos = mailing.next_tos(2).await;
        running.finish().await;
        assert!(!tos.contains("reader1@school.example"), "{what}: {tos:?}");
        assert_eq!(mailing.school.waiting().await, 0, "{what}");
    }
}

/// Anybody can sign up with addresses that the mail server is in trouble with.
#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn addresses_that_are_refused_for_now_hold_nobody_up() {
    for what in ["defer-recipient", "shut-out-recipient", "refuse-for-now"] {
        let mut mailing = Mailing::open(Way::StartTls).await;
        // Longer than this test has patience: nobody may wait for what befell another.
        mailing.limits.first_retry = Duration::from_mins(5);
        mailing.limits.longest_retry = Duration::from_mins(5);
        for number in 0..20 {
            let reader = mailing.school.reader(&format!("reader{number}@foreign.example"), "Reader").await;
            mailing.school.queue(reader, Reason::ResetPassword).await;
        }
        mailing.school.readers(1).await;
        mailing.server.misbehave(what, Some("@foreign.example"), None).await.unwrap();
        let running = mailing.run();
        assert_eq!(mailing.next_to().await, "reader0@school.example", "{what}");
        mailing.until("rollcall_mails_total{outcome=\"later\"}", 20).await;
        assert_eq!(mailing.figure("rollcall_mail_server_up"), 1, "{what}");
        running.finish().await;
        mailing.school.clock.advance(Duration::from_mins(5));
        assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (20, 0), "{what}");
    }
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn what_fails_for_now_is_tried_again_and_arrives_once() {
    for what in ["refuse-for-now", "refuse-sender", "hang-at-greeting", "drop-in-message", "hang-after-message"] {
        let mut mailing = Mailing::open(Way::StartTls).await;
        mailing.school.readers(3).await;
        mailing.server.misbehave(what, None, Some(2)).await.unwrap();
        let running = mailing.run();
        assert_eq!(mailing.next_tos(3).await.len(), 3, "{what}");
        running.finish().await;
        assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (0, 0), "{what}");
    }
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn one_mail_that_hangs_holds_nobody_up() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    mailing.limits.acceptance = Duration::from_mins(10);
    mailing.limits.end = Duration::from_millis(200);
    mailing.school.readers(20).await;
    mailing.server.misbehave("hang-after-message", Some("reader0@school.example"), None).await.unwrap();
    let running = mailing.run();
    let tos = mailing.next_tos(19).await;
    assert!(!tos.contains("reader0@school.example"), "{tos:?}");
    // Neither is the end.
    running.finish().await;
    assert_eq!(mailing.school.waiting().await, 1);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_mail_that_hangs_when_the_server_is_back_holds_nobody_up() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    mailing.limits.acceptance = Duration::from_mins(10);
    mailing.limits.end = Duration::from_millis(200);
    // Time enough to tell the server, before a mail finds it again.
    mailing.limits.first_retry = Duration::from_secs(4);
    mailing.limits.longest_retry = Duration::from_secs(4);
    mailing.school.readers(20).await;
    mailing.server.stop();
    let running = mailing.run();
    mailing.until("rollcall_mails_total{outcome=\"later\"}", 1).await;
    mailing.server.start_again().await.unwrap();
    mailing.server.misbehave("hang-after-message", None, Some(1)).await.unwrap();
    mailing.server.event("misbehaved").await.unwrap();
    assert_eq!(mailing.next_tos(19).await.len(), 19);
    running.finish().await;
    assert_eq!(mailing.school.waiting().await, 1);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_clock_that_is_put_forward_has_no_mail_sent_twice() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    mailing.limits.acceptance = Duration::from_mins(10);
    mailing.limits.end = Duration::from_secs(8);
    mailing.school.readers(1).await;
    mailing.server.misbehave("dawdle-after-message", None, Some(1)).await.unwrap();
    let running = mailing.run();
    mailing.server.event("misbehaved").await.unwrap();
    mailing.school.clock.advance(Duration::from_secs(61));
    // Both are due now, and so taken together.
    let late = mailing.school.reader("late@school.example", "Late").await;
    mailing.school.queue(late, Reason::ResetPassword).await;
    assert_eq!(mailing.next_tos(2).await.len(), 2);
    mailing.until("rollcall_mails_total{outcome=\"sent\"}", 2).await;
    running.finish().await;
    // It is known that it was sent, though it was taken again since.
    assert_eq!((mailing.school.waiting().await, mailing.mails().await), (0, Vec::new()));
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_mail_whose_acceptance_was_not_heard_comes_again_as_the_same_message() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    mailing.school.readers(1).await;
    mailing.server.misbehave("drop-after-acceptance", None, Some(1)).await.unwrap();
    let running = mailing.run();
    let (first, second) = (mailing.server.mail().await.unwrap(), mailing.server.mail().await.unwrap());
    running.finish().await;
    assert_eq!(first["raw"], second["raw"]);
    assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (0, 0));
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_sender_that_is_killed_loses_nothing() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    mailing.school.readers(1).await;
    mailing.server.misbehave("hang-after-acceptance", None, Some(1)).await.unwrap();
    let running = mailing.run();
    let first = mailing.server.mail().await.unwrap();
    running.kill().await;
    // Nobody takes it before the lease ends.
    let running = mailing.run();
    mailing.server.event("password").await.unwrap();
    mailing.school.clock.advance(Duration::from_secs(61));
    let second = mailing.server.mail().await.unwrap();
    running.finish().await;
    assert_eq!(first["raw"], second["raw"]);
    assert_eq!(mailing.school.waiting().await, 0);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn a_server_that_was_away_is_found_again() {
    let mut mailing = Mailing::open(Way::Implicit).await;
    mailing.school.readers(20).await;
    mailing.server.stop();
    let running = mailing.run();
    // While it is away, and it is known that it is.
    mailing.until("rollcall_mails_total{outcome=\"later\"}", 2).await;
    assert_eq!(mailing.figure("rollcall_mail_server_up"), 0);
    mailing.server.start_again().await.unwrap();
    assert_eq!(mailing.next_tos(20).await.len(), 20);
    // Also where connections were kept; and once it is known that all were accepted, so that none comes twice.
    mailing.until("rollcall_mails_total{outcome=\"sent\"}", 20).await;
    mailing.server.start_again().await.unwrap();
    let late = mailing.school.reader("late@school.example", "Late").await;
    mailing.school.queue(late, Reason::ResetPassword).await;
    assert_eq!(mailing.next_to().await, "late@school.example");
    running.finish().await;
    assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (0, 0));
    assert_eq!(mailing.figure("rollcall_mail_server_up"), 1);
    assert_eq!(mailing.figure("rollcall_mails_total{outcome=\"sent\"}"), 21);
    assert_eq!(mailing.figure("rollcall_mail_seconds_count"), 21);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn all_who_were_absent_are_told_once_over_few_connections() {
    let mut mailing = Mailing::open(Way::Implicit).await;
    let mut readers = Vec::new();
    for number in 0..300 {
        readers.push(mailing.school.reader(&format!("reader{number}@school.example"), "Reader").await);
    }
    let running = mailing.run();
    mailing.school.absences("Algebra", &readers).await;
    let mut connections = HashSet::new();
    let mut tos = HashSet::new();
    for _ in 0..300 {
        let mail = mailing.server.mail().await.unwrap();
        connections.insert(mail["connection"].to_string());
        tos.insert(mail["envelope_to"].to_string());
    }
    running.finish().await;
    assert_eq!((tos.len(), mailing.mails().await.len()), (300, 0));
    assert!(connections.len() <= 5, "{connections:?}");
    assert_eq!(mailing.school.waiting().await, 0);
}

#[tokio::test]
#[ignore = "needs aiosmtpd: cargo xtask test"]
async fn what_nobody_is_to_be_told_any_more_is_not_sent() {
    let mut mailing = Mailing::open(Way::StartTls).await;
    let disabled = mailing.school.reader("gone@school.example", "Gone").await;
    mailing.school.disable(disabled).await;
    mailing.school.queue(disabled, Reason::ResetPassword).await;
    let late = mailing.school.reader("late@school.example", "Late").await;
    mailing.school.queue(late, Reason::ResetPassword).await;
    mailing.school.clock.advance(Duration::from_hours(2));
    let present = mailing.school.reader("ada@school.example", "Ada").await;
    mailing.school.queue(present, Reason::ResetPassword).await;
    let again = mailing.school.reader("gone2@school.example", "Gone").await;
    mailing.school.disable(again).await;
    mailing.school.queue(again, Reason::ResetPassword).await;
    let running = mailing.run();
    assert_eq!(mailing.next_to().await, "ada@school.example");
    running.finish().await;
    assert_eq!((mailing.school.waiting().await, mailing.mails().await.len()), (0, 0));
    for (outcome, mails) in [("sent", 1), ("dropped", 1), ("expired", 2), ("later", 0), ("refused", 0)] {
        assert_eq!(mailing.figure(&format!("rollcall_mails_total{{outcome=\"{outcome}\"}}")), mails, "{outcome}");
    }
}
