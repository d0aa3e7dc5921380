//! The list of all students.

use serde_json::json;

use crate::{column, server};

#[tokio::test]
async fn teachers_list_all_students() {
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("T").await;
    assert_eq!(teacher.get("/students").await.envelope(200), json!({"success": true, "data": []}));

    let mut expected = Vec::new();
    for name in ["Zoe", "Abe", "Quote \" and \\ and ünïcode 🙂"] {
        let student = client.student(name).await;
        expected.push(json!({"_id": student.id, "name": name, "email": student.email}));
    }
    client.teacher("Another teacher").await;
    // By id, which replicas make without asking each other.
    expected.sort_by_key(|student| student["_id"].to_string());
    assert_eq!(teacher.get("/students").await.envelope(200), json!({"success": true, "data": expected}));

    client.get("/students").await.refused(401, "Unauthorized, token missing or invalid");
    client.student("S").await.get("/students").await.refused(403, "Forbidden, teacher access required");
}

#[tokio::test]
async fn a_whole_school_is_streamed_and_paged() {
    const STUDENTS: usize = 1_234;
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("T").await;
    let sign_up = |n: usize| {
        let client = client.clone();
        let email = format!("s{n}@school.example");
        let body = json!({"name": format!("Student {n}"), "email": email, "password": "123456", "role": "student"});
        async move { client.post("/signup", &body).await.data(201) }
    };
    let mut ids = Vec::new();
    for chunk in (0..STUDENTS).collect::<Vec<_>>().chunks(50) {
        let made = futures_util::future::join_all(chunk.iter().map(|n| sign_up(*n))).await;
        ids.extend(made.into_iter().map(|account| account["_id"].as_str().unwrap().to_owned()));
    }
    ids.sort_unstable();

    let whole = teacher.get("/students").await;
    assert_eq!(column(&whole.envelope(200)["data"], "_id"), ids, "all of them, by id");
    assert!(whole.envelope(200).get("nextCursor").is_none());

    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = teacher.get(&format!("/students?limit=500{cursor}")).await.envelope(200);
        seen.extend(column(&page["data"], "_id").into_iter().map(str::to_owned));
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    for wrong in ["limit=0", "limit=abc", "limit=5000", "cursor=zzz"] {
        teacher.get(&format!("/students?{wrong}")).await.refused(400, "Invalid request schema");
    }
}
