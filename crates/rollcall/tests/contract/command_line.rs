//! The binary's other commands, beside a running server.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::{Room, builder, server};

#[tokio::test]
async fn bad_values_stop_the_start_with_their_names() {
    let cases = [
        ("LISTEN_ADDR", "nowhere", "nowhere"),
        ("LISTEN_ADDR", "127.0.0.1:99999", "99999"),
        ("DB_URL", "mysql://x", "mysql"),
        ("TOKEN_TTL", "soon", "soon"),
        ("TOKEN_TTL", "0s", "0s"),
        ("DRAIN_DELAY", "11m", "11m"),
        ("BACKUP_EVERY", "6h", "BACKUP_DIR"),
        ("BACKUP_KEEP", "all", "7 daily"),
        ("BCRYPT_COST", "3", "3"),
        ("BCRYPT_COST", "ten", "ten"),
        ("TEACHER_SIGNUP", "maybe", "TEACHER_SIGNUP"),
        ("ALLOWED_ORIGINS", "school example", "school example"),
        ("TRUSTED_PROXIES", "10.0.0.0/99", "10.0.0.0/99"),
        ("RATE_LIMIT", "sometimes", "sometimes"),
        ("METRICS_ADDR", "x", "METRICS_ADDR"),
        ("SESSION_MAX_AGE", "-1h", "-1h"),
        ("LOG_FORMAT", "xml", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "http://localhost:4318"),
    ];
    for (name, value, shown) in cases {
        let error = builder().env(name, value).start().await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(shown), "{name}={value}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
    let error = builder().env("JWT_SECRET", "hunter2-hunter2").start().await.unwrap_err().to_string();
    assert!(error.contains("JWT_SECRET") && error.contains("32") && !error.contains("hunter2-hunter2"), "{error}");
}

#[tokio::test]
async fn without_a_secret_one_is_made_and_kept() {
    let mut server = builder().without("JWT_SECRET").start().await.unwrap();
    let student = server.client().student("S").await;
    assert!(server.terminate().await.unwrap().success());
    server.restart().await.unwrap();
    student.at(&server.client()).get("/me").await.ok();
    let mut found = 0;
    for entry in std::fs::read_dir(server.folder().join("data")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().contains("secret") {
            found += 1;
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "others can read it");
        }
    }
    assert_eq!(found, 1);
}

#[tokio::test]
async fn accounts_are_made_and_listed_beside_the_server() {
    let server = builder().env("TEACHER_SIGNUP", "closed").start().await.unwrap();
    let client = server.client();
    let password_of = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    for (email, role) in [("ada@school.example", "teacher"), ("root@school.example", "admin")] {
        let arguments = ["user", "create", email, "--name", "Ada", "--role", role, "--generate"];
        let output = server.run(&arguments).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = password_of(&output);
        let mut person = None;
        for word in said.split_whitespace() {
            let body = json!({"email": email, "password": word});
            if client.post("/login", &body).await.status == 200 {
                person = Some(client.log_in(email, word).await);
            }
        }
        let person = person.unwrap_or_else(|| panic!("no word of {said:?} is the password"));
        assert_eq!(person.get("/me").await.ok()["role"], role);
        let answer = person.post("/class", &json!({"className": "X"})).await;
        if role == "admin" {
            answer.refused(403, "Forbidden, teacher access required");
            person.get("/students").await.refused(403, "Forbidden, teacher access required");
            let path = "/class/1/my-attendance";
            person.get(path).await.refused(403, "Forbidden, student access required");
            let mut socket = person.socket().await;
            socket.send("DONE", &json!({})).await;
            socket.expect_error("Forbidden, teacher event only").await;
            socket.send("MY_ATTENDANCE", &json!({})).await;
            socket.expect_error("Forbidden, student event only").await;
        } else {
            answer.data(201);
        }
        let again = server.run(&arguments).await.unwrap();
        assert!(!again.status.success(), "twice: {again:?}");
    }
    let list = server.run(&["user", "list"]).await.unwrap();
    let said = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(said.contains("ada@school.example") && said.contains("root@school.example"), "{said}");
    assert!(!said.contains("$2b$"), "{said}");
    let nobody = server.run(&["user", "disable", "nobody@school.example"]).await.unwrap();
    assert!(!nobody.status.success());
}

#[tokio::test]
async fn a_backup_of_a_running_server_is_a_whole_database() {
    let room = Room::open(2).await;
    let mut teacher = room.teacher.socket().await;
    teacher.mark(&room.students[0].id, "late").await;
    teacher.expect_mark(&room.students[0].id, "late").await;
    let output = room.server.run(&["backup", "copy.db"]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let again = room.server.run(&["backup", "copy.db"]).await.unwrap();
    assert!(!again.status.success(), "a backup never overwrites");
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;

    let copy = room.server.folder().join("copy.db");
    let other = builder().env("DB_URL", format!("sqlite://{}", copy.display())).start().await.unwrap();
    let (teacher, student) = (room.teacher.at(&other.client()), room.students[0].at(&other.client()));
    let mut at_student = student.socket().await;
    at_student.send("MY_ATTENDANCE", &json!({})).await;
    assert_eq!(at_student.expect("MY_ATTENDANCE").await["status"], "late", "as it was at that moment");
    let mut at_teacher = teacher.socket().await;
    at_teacher.send("DONE", &json!({})).await;
    assert_eq!(at_teacher.expect("DONE").await["total"], 2);
}

#[tokio::test]
async fn doctor_healthcheck_and_openapi() {
    let mut server = server().await;
    let doctor = server.run(&["doctor"]).await.unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
    let health = server.run(&["healthcheck"]).await.unwrap();
    assert!(health.status.success(), "{health:?}");
    let openapi = server.run(&["openapi"]).await.unwrap();
    let printed: serde_json::Value = serde_json::from_slice(&openapi.stdout).unwrap();
    assert_eq!(printed, server.client().get("/openapi.json").await.json(200));
    let help = server.run(&["--help"]).await.unwrap();
    let said = String::from_utf8_lossy(&help.stdout).into_owned();
    for name in ["DB_URL", "LISTEN_ADDR", "JWT_SECRET", "TEACHER_SIGNUP", "doctor", "backup", "healthcheck"] {
        assert!(said.contains(name), "{name} is not in the help:\n{said}");
    }
    server.kill();
    let health = server.run(&["healthcheck"]).await.unwrap();
    assert!(!health.status.success(), "nobody is there: {health:?}");
}
