//! Classes: making, filling, showing, listing, renaming and archiving them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{NO_IDS, NOBODY, NOT_UTF8, Room, assert_id, assert_members, column, list, server};

const NO_TOKEN: &str = "Unauthorized, token missing or invalid";
const NO_TEACHER: &str = "Forbidden, teacher access required";
const NOT_OWN: &str = "Forbidden, not class teacher";

#[tokio::test]
async fn a_teacher_makes_a_class() {
    let server = server().await;
    let teacher = server.client().teacher("T").await;
    let made = teacher.post("/class", &json!({"className": "  Algebra I "})).await.data(201);
    assert_members(&made, &["_id", "className", "teacherId", "studentIds"]);
    assert_id(&made["_id"]);
    assert_eq!(made["className"], "Algebra I");
    assert_eq!(made["teacherId"], json!(teacher.id));
    assert_eq!(made["studentIds"], json!([]));
    // Names need not be unique.
    let again = teacher.post("/class", &json!({"className": "Algebra I"})).await.data(201);
    assert_ne!(again["_id"], made["_id"]);
}

#[tokio::test]
async fn making_a_class_is_checked_in_order() {
    let server = server().await;
    let client = server.client();
    let (teacher, student) = (client.teacher("T").await, client.student("S").await);
    let wrong = json!({"className": ""});
    client.post("/class", &wrong).await.refused(401, NO_TOKEN);
    student.post("/class", &wrong).await.refused(403, NO_TEACHER);
    let long = "x".repeat(101);
    for body in [
        json!({}),
        json!({"className": ""}),
        json!({"className": " \t "}),
        json!({"className": 7}),
        json!({"className": null}),
        json!({"className": "a\u{7}b"}),
        json!({"className": long}),
        json!({"classname": "Algebra"}),
        json!(["Algebra"]),
    ] {
        teacher.post("/class", &body).await.refused(400, "Invalid request schema");
    }
    let refused = teacher.post("/class", &wrong).await.refused(400, "Invalid request schema");
    assert_eq!(refused.fields, ["className"]);
    assert_eq!(list(&teacher.get("/classes").await.ok()), Vec::<Value>::new(), "none of them made a class");
}

#[tokio::test]
async fn students_are_added_in_order_and_twice_changes_nothing() {
    let room = Room::closed(0).await;
    let (client, teacher, class) = (&room.client, &room.teacher, &room.class);
    let mut ids = Vec::new();
    for name in ["Zoe", "Abe", "Mia"] {
        let student = client.student(name).await;
        let answer = teacher.enrol(class, &student).await;
        ids.push(student.id.clone());
        assert_members(&answer, &["_id", "className", "teacherId", "studentIds"]);
        assert_eq!(answer["_id"], json!(class.id));
        assert_eq!(answer["teacherId"], json!(teacher.id));
        assert_eq!(answer["studentIds"], json!(ids), "in the order of enrolment");
        assert_eq!(teacher.enrol(class, &student).await, answer, "adding twice changes nothing");
    }
    let upper = json!({"studentId": ids[0].to_uppercase()});
    let again = teacher.post(&class.path("/add-student"), &upper).await.ok();
    assert_eq!(again["studentIds"], json!(ids), "an id is the same in either case");
}

#[tokio::test]
async fn adding_a_student_is_checked_in_order() {
    let room = Room::closed(1).await;
    let (client, teacher, student) = (&room.client, &room.teacher, &room.students[0]);
    let other = client.teacher("Other").await;
    let path = room.class.path("/add-student");
    let nowhere = format!("/class/{NOBODY}/add-student");
    let good = json!({"studentId": student.id});
    let nobody = json!({"studentId": NOBODY});

    client.post(&nowhere, &json!({})).await.refused(401, NO_TOKEN);
    student.post(&nowhere, &json!({})).await.refused(403, NO_TEACHER);
    other.post(&nowhere, &json!({})).await.refused(400, "Invalid request schema");
    other.post(&nowhere, &nobody).await.refused(404, "Class not found");
    other.post(&path, &nobody).await.refused(403, NOT_OWN);
    other.post(&path, &good).await.refused(403, NOT_OWN);
    teacher.post(&path, &nobody).await.refused(404, "Student not found");
    for id in ["", "1", "gggggggggggggggggggggggg", "\u{0}", "Student 1"] {
        teacher.post(&path, &json!({"studentId": id})).await.refused(404, "Student not found");
    }
    teacher.post(&path, &json!({"studentId": other.id})).await.refused(400, "User is not a student");
    teacher.post(&path, &json!({"studentId": teacher.id})).await.refused(400, "User is not a student");
    for body in [json!({}), json!({"studentId": 5}), json!({"studentId": null}), json!({"studentId": [student.id]})] {
        teacher.post(&path, &body).await.refused(400, "Invalid request schema");
    }
    for id in NO_IDS {
        teacher.post(&format!("/class/{id}/add-student"), &good).await.refused(404, "Class not found");
    }
}

#[tokio::test]
async fn a_class_is_shown_to_its_people_alone() {
    let room = Room::closed(2).await;
    let client = &room.client;
    let outsider = client.student("Outsider").await;
    let other = client.teacher("Other").await;
    let path = room.class.path("");
    let seen = room.teacher.get(&path).await.ok();
    assert_members(&seen, &["_id", "className", "teacherId", "students"]);
    assert_eq!(seen["className"], "Algebra I");
    assert_eq!(seen["teacherId"], json!(room.teacher.id));
    let expected: Vec<_> = room
        .students
        .iter()
        .map(|student| json!({"_id": student.id, "name": student.name, "email": student.email}))
        .collect();
    assert_eq!(seen["students"], json!(expected));
    assert_eq!(room.students[1].get(&path).await.ok(), seen, "its students see the same");

    client.get(&path).await.refused(401, NO_TOKEN);
    other.get(&path).await.refused(403, NOT_OWN);
    outsider.get(&path).await.refused(403, NOT_OWN);
    for id in NO_IDS {
        let path = format!("/class/{id}");
        client.get(&path).await.refused(401, NO_TOKEN);
        for person in [&room.teacher, &room.students[0]] {
            person.get(&path).await.refused(404, "Class not found");
        }
    }
}

#[tokio::test]
async fn everybody_lists_the_own_classes() {
    let room = Room::closed(2).await;
    let (teacher, student) = (&room.teacher, &room.students[0]);
    let second = teacher.class("Biology", &[student]).await;
    let other = room.client.teacher("Other").await;
    let third = other.class("Chemistry", &[student]).await;

    let own = teacher.get("/classes").await.ok();
    assert_eq!(column(&own, "_id"), [&room.class.id, &second.id]);
    assert_eq!(column(&own, "className"), ["Algebra I", "Biology"]);
    assert_eq!(own[0]["studentIds"], json!([student.id, room.students[1].id]));
    let mine = student.get("/classes").await.ok();
    assert_eq!(column(&mine, "_id"), [&room.class.id, &second.id, &third.id]);
    assert_eq!(column(&mine, "teacherId"), [&teacher.id, &teacher.id, &other.id]);
    assert!(!mine.to_string().contains(&room.students[1].id), "a student's list does not tell who else is there");
    room.client.get("/classes").await.refused(401, NO_TOKEN);
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let server = server().await;
    let client = server.client();
    let teacher = client.teacher("T").await;
    let student = client.student("S").await;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(teacher.class(&format!("Class {n}"), &[&student]).await.id);
    }
    for person in [&teacher, &student] {
        let mut seen = Vec::new();
        let mut path = "/classes?limit=3".to_owned();
        let mut sizes = Vec::new();
        loop {
            let page = person.get(&path).await.envelope(200);
            sizes.push(page["data"].as_array().unwrap().len());
            seen.extend(column(&page["data"], "_id").into_iter().map(str::to_owned));
            match page["nextCursor"].as_str() {
                Some(cursor) => path = format!("/classes?limit=3&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(seen, ids);
        assert_eq!(sizes, [3, 3, 1]);
        let whole = person.get("/classes").await.envelope(200);
        assert!(whole.get("nextCursor").is_none(), "the published shape");
        assert_eq!(column(&whole["data"], "_id"), ids);
        for wrong in
            ["limit=0", "limit=-1", "limit=x", "limit=99999999999", "limit=1001", "cursor=x", "limit=3&cursor="]
        {
            person.get(&format!("/classes?{wrong}")).await.refused(400, "Invalid request schema");
        }
        assert_eq!(column(&person.get("/classes?unknown=1").await.ok(), "_id"), ids);
    }
}

#[tokio::test]
async fn a_class_is_renamed_by_its_teacher() {
    let room = Room::closed(1).await;
    let other = room.client.teacher("Other").await;
    let path = room.class.path("");
    let began = std::time::Instant::now();
    let renamed = room.teacher.patch(&path, &json!({"className": " Algebra II ", "teacherId": other.id})).await.ok();
    assert_members(&renamed, &["_id", "className", "teacherId", "studentIds"]);
    assert_eq!(renamed["className"], "Algebra II");
    assert_eq!(renamed["teacherId"], json!(room.teacher.id), "only the name is taken");
    assert_eq!(renamed["studentIds"], json!([room.students[0].id]));
    // Another replica hears of it a moment later.
    while room.students[0].get(&path).await.ok()["className"] != "Algebra II" {
        assert!(began.elapsed() < rollcall_testkit::server::PATIENCE);
    }

    let (good, bad) = (json!({"className": "X"}), json!({"className": ""}));
    let nowhere = format!("/class/{NOBODY}");
    room.client.call(Method::PATCH, &nowhere).json(&bad).send().await.refused(401, NO_TOKEN);
    room.students[0].patch(&nowhere, &bad).await.refused(403, NO_TEACHER);
    other.patch(&nowhere, &bad).await.refused(400, "Invalid request schema");
    other.patch(&nowhere, &good).await.refused(404, "Class not found");
    other.patch(&path, &good).await.refused(403, NOT_OWN);
    for id in NO_IDS {
        room.teacher.patch(&format!("/class/{id}"), &good).await.refused(404, "Class not found");
    }
    assert_eq!(room.teacher.get(&path).await.ok()["className"], "Algebra II");
}

#[tokio::test]
async fn an_archived_class_takes_nothing_and_its_history_stays() {
    let room = Room::open(2).await;
    let (teacher, student) = (&room.teacher, &room.students[0]);
    let (mut at_teacher, mut at_student) = (teacher.socket().await, student.socket().await);
    at_teacher.mark(&student.id, "present").await;
    at_teacher.expect_mark(&student.id, "present").await;
    at_student.expect_mark(&student.id, "present").await;

    let other = room.client.teacher("Other").await;
    let path = room.class.path("");
    room.client.call(Method::DELETE, &path).send().await.refused(401, NO_TOKEN);
    student.delete(&path).await.refused(403, NO_TEACHER);
    other.delete(&path).await.refused(403, NOT_OWN);
    for id in NO_IDS {
        teacher.delete(&format!("/class/{id}")).await.refused(404, "Class not found");
    }
    teacher.delete(&path).await.ok();
    // The open session ends as DONE would.
    for socket in [&mut at_teacher, &mut at_student] {
        let done = socket.expect("DONE").await;
        assert_eq!((&done["present"], &done["absent"], &done["total"]), (&json!(1), &json!(1), &json!(2)));
    }

    teacher.get(&path).await.refused(404, "Class not found");
    student.get(&path).await.refused(404, "Class not found");
    teacher.delete(&path).await.refused(404, "Class not found");
    teacher.patch(&path, &json!({"className": "X"})).await.refused(404, "Class not found");
    let add = json!({"studentId": student.id});
    teacher.post(&room.class.path("/add-student"), &add).await.refused(404, "Class not found");
    teacher.post("/attendance/start", &json!({"classId": room.class.id})).await.refused(404, "Class not found");
    assert_eq!(list(&teacher.get("/classes").await.ok()), Vec::<Value>::new());
    assert_eq!(list(&student.get("/classes").await.ok()), Vec::<Value>::new());

    assert_eq!(student.get(&room.class.path("/my-attendance")).await.ok()["status"], "present");
    let newest = room.newest().await;
    assert_eq!(newest["state"], "finished");
    assert_eq!(newest["records"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_student_is_taken_out_of_a_class() {
    let room = Room::closed(2).await;
    let (teacher, student, stays) = (&room.teacher, &room.students[0], &room.students[1]);
    let other = room.client.teacher("Other").await;
    let path = room.class.path(&format!("/students/{}", student.id));
    let nowhere = format!("/class/{NOBODY}/students/{}", student.id);
    room.client.call(Method::DELETE, &path).send().await.refused(401, NO_TOKEN);
    student.delete(&path).await.refused(403, NO_TEACHER);
    other.delete(&nowhere).await.refused(404, "Class not found");
    other.delete(&path).await.refused(403, NOT_OWN);
    for id in NO_IDS.iter().filter(|id| **id != NOT_UTF8) {
        teacher.delete(&room.class.path(&format!("/students/{id}"))).await.refused(404, "Student not found");
    }
    assert_eq!(teacher.delete(&room.class.path(&format!("/students/{NOT_UTF8}"))).await.status, 404);
    teacher.delete(&room.class.path(&format!("/students/{}", other.id))).await.refused(404, "Student not found");

    let left = teacher.delete(&path).await.ok();
    assert_members(&left, &["_id", "className", "teacherId", "studentIds"]);
    assert_eq!(left["studentIds"], json!([stays.id]));
    teacher.delete(&path).await.refused(404, "Student not found");
    student.get(&room.class.path("")).await.refused(403, NOT_OWN);
    student.get(&room.class.path("/my-attendance")).await.refused(403, "Forbidden, not enrolled in class");
    assert_eq!(teacher.enrol(&room.class, student).await["studentIds"], json!([stays.id, student.id]));
}
