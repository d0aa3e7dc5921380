//! Opening a database: one of an earlier backend, one that will not do, one that several replicas open at once.
#![expect(clippy::unwrap_used, reason = "a test without its store fails, as it should")]

use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use rollcall_core::session::{Actor, Command, Door, OperationId, Origin, Status};
use rollcall_core::store::{ClassChanged, Classes, Inserted, Outcome, Page, Records, Started, Store, Target, Users};
use rollcall_core::user::{AccountChange, EmailKey, Role};
use rollcall_core::{ClassId, Clock, SessionId, UserId};
use rollcall_store_mongo::{MongoStore, OpenError};
use rollcall_testkit::conformance::SetClock;
use rollcall_testkit::mongo::mongodb::bson::oid::ObjectId;
use rollcall_testkit::mongo::mongodb::bson::spec::BinarySubtype;
use rollcall_testkit::mongo::mongodb::bson::{Binary, Bson, Document, doc};
use rollcall_testkit::mongo::mongodb::{Collection, Database};
use rollcall_testkit::mongo::{ReplicaSet, shared, standalone};

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

/// The number's id, made in the second of the same number after 2020 began.
fn oid(number: u8) -> ObjectId {
    let seconds = (1_577_836_800 + u32::from(number)).to_be_bytes();
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&seconds);
    bytes[11] = number;
    ObjectId::from_bytes(bytes)
}

fn user_id(number: u8) -> UserId {
    UserId::from_bytes(oid(number).bytes())
}

fn class_id(number: u8) -> ClassId {
    ClassId::from_bytes(oid(number).bytes())
}

fn all<K>() -> Page<K> {
    Page { after: None, limit: 1_000 }
}

async fn connect(url: &str) -> Result<Arc<MongoStore>, OpenError> {
    MongoStore::connect(&url.into(), SetClock::new()).await
}

async fn everything(database: &Database, name: &str) -> Vec<Document> {
    let collection: Collection<Document> = database.collection(name);
    collection.find(doc! {}).sort(doc! { "_id": 1 }).await.unwrap().try_collect().await.unwrap()
}

fn user(number: u8, email: &str, role: &str, password: impl Into<Bson>) -> Document {
    doc! { "_id": oid(number), "name": format!("Nr. {number}"), "email": email, "password": password, "role": role }
}

fn record(number: u8, class: u8, student: u8, status: &str) -> Document {
    doc! { "_id": oid(number), "classId": oid(class), "studentId": oid(student), "status": status }
}

/// A database as an earlier backend filled it, with all that can be wrong in one.
async fn fill(database: &Database) {
    let binary = Binary { subtype: BinarySubtype::Generic, bytes: HASH.as_bytes().to_vec() };
    let users = [
        user(1, "Teacher@Example.org", "teacher", HASH),
        user(2, "ada@example.org", "student", binary),
        user(3, "grace@example.org", "student", HASH),
        // The same address as an older account's, in other letters.
        user(4, "ADA@example.org ", "student", HASH),
        doc! { "_id": oid(5), "name": "No role", "email": "norole@example.org", "password": HASH },
        doc! { "_id": oid(6), "name": "No address", "password": HASH, "role": "student" },
        user(7, "number@example.org", "student", 17),
        user(8, "king@example.org", "king", HASH),
        doc! { "_id": "a text", "name": "Text", "email": "text@example.org", "password": HASH, "role": "student" },
        user(9, "last@example.org", "student", HASH),
    ];
    database.collection("users").insert_many(users).await.unwrap();
    let classes = [
        doc! { "_id": oid(20), "className": "Chemistry", "teacherId": oid(1), "studentIds": [oid(2), oid(3)] },
        doc! {
            "_id": oid(21), "className": "Dangling", "teacherId": oid(1),
            "studentIds": [oid(99), oid(2), "no id", oid(2), oid(1)],
        },
        doc! { "_id": oid(22), "teacherId": oid(1), "studentIds": [] },
        doc! { "_id": oid(23), "className": "No list", "teacherId": oid(1) },
        doc! { "_id": oid(24), "className": "Whose?", "teacherId": oid(98), "studentIds": [] },
        doc! { "_id": oid(25), "className": "Healthy", "teacherId": oid(1), "studentIds": [oid(9)] },
    ];
    database.collection("classes").insert_many(classes).await.unwrap();
    let records = [
        record(40, 20, 2, "absent"),
        record(42, 20, 2, "present"),
        record(41, 20, 2, "absent"),
        record(43, 20, 2, "asleep"),
        record(44, 25, 9, "present"),
        record(46, 97, 2, "present"),
        doc! { "_id": oid(47), "status": "present" },
    ];
    database.collection("attendance_records").insert_many(records).await.unwrap();
    let others = [record(45, 25, 9, "absent"), record(39, 20, 2, "absent")];
    database.collection("attendance").insert_many(others).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn a_database_of_an_earlier_backend_opens_as_it_is() {
    let set = shared().await;
    let url = set.url("earlier");
    let database = set.client().await.unwrap().database("earlier");
    fill(&database).await;
    let mut before = Vec::new();
    for name in ["users", "classes", "attendance_records", "attendance"] {
        before.push((name, everything(&database, name).await));
    }
    let found = MongoStore::survey(&url.as_str().into()).await.unwrap();
    let stores = join_all((0..4).map(|_| connect(&url))).await;
    let store = stores.into_iter().map(Result::unwrap).next().unwrap();

    for (name, before) in before {
        let mut after = everything(&database, name).await;
        for document in &mut after {
            if let Some(key) = document.remove("emailKey") {
                let email = document.get_str("email").unwrap();
                assert_eq!((name, key), ("users", EmailKey::of(email).as_str().into()));
            }
        }
        assert_eq!(after, before, "nothing but that was added");
    }
    let found_again = MongoStore::survey(&url.as_str().into()).await.unwrap();
    assert_eq!(found_again, found);

    // Accounts, by both kinds of hash; of two with one address the older.
    for (address, id) in [("teacher@example.org", 1), ("ADA@example.org", 2), ("grace@example.org", 3)] {
        let account = store.user_by_email(&EmailKey::of(address)).await.unwrap().unwrap();
        assert_eq!((account.id, account.password_hash.expose()), (user_id(id), HASH));
        assert_eq!((account.token_version, account.disabled), (0, false));
        assert_eq!((account.email_confirmed, account.absence_notices), (false, true));
        assert_eq!(account.created_at, account.id.0.made_at());
    }
    for address in ["norole@example.org", "number@example.org", "king@example.org", "text@example.org"] {
        assert_eq!(store.user_by_email(&EmailKey::of(address)).await.unwrap(), None, "{address}");
    }
    let accounts = store.users(Page { after: None, limit: 2 }).await.unwrap();
    let accounts = [accounts, store.users(Page { after: Some(user_id(2)), limit: 100 }).await.unwrap()].concat();
    let ids: Vec<_> = accounts.iter().map(|account| account.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 9].map(user_id), "the broken ones hide no others");
    let page = store.users(Page { after: Some(user_id(4)), limit: 1 }).await.unwrap();
    assert_eq!(page.len(), 1, "nor do they end a list");
    let taken = rollcall_core::user::Account { id: user_id(60), ..accounts[1].clone() };
    assert_eq!(store.insert_user(taken, None).await.unwrap(), Inserted::EmailExists);
    let disabled = store.change_user(user_id(2), AccountChange::Disable).await.unwrap().unwrap();
    assert_eq!((disabled.token_version, disabled.disabled, disabled.role), (1, true, Role::Student));
    store.change_user(user_id(2), AccountChange::Enable).await.unwrap();

    // Classes.
    let classes = store.classes_of_teacher(user_id(1), false, all()).await.unwrap();
    let listed: Vec<_> = classes.iter().map(|class| (class.class.id, class.student_ids.clone())).collect();
    let wanted = [
        (class_id(20), vec![user_id(2), user_id(3)]),
        (class_id(21), vec![user_id(99), user_id(2), user_id(1)]),
        (class_id(23), vec![]),
        (class_id(25), vec![user_id(9)]),
    ];
    assert_eq!(listed, wanted);
    assert_eq!(store.class(class_id(22)).await.unwrap(), None);
    let people = store.class_students(class_id(21)).await.unwrap();
    assert_eq!(people.iter().map(|person| person.id).collect::<Vec<_>>(), [2, 1].map(user_id));

    // History: the newest by its id, in either collection, until a session was finished.
    let status = async |class, student| {
        let record = store.last_record(class_id(class), user_id(student)).await.unwrap();
        record.map(|record| (record.status, record.marked_at))
    };
    let dated = |number: u8| Some(user_id(number).0.made_at());
    assert_eq!(status(20, 2).await, Some((Status::Present, dated(42))));
    assert_eq!(status(25, 9).await, Some((Status::Absent, dated(45))));
    assert_eq!(status(20, 3).await, None);
    for class in [20, 21, 23] {
        live(&*store, class_id(class)).await;
    }
    assert_eq!(status(20, 2).await.map(|(status, _)| status), Some(Status::Late));

    let named: Vec<_> = found.findings.iter().map(|finding| (finding.collection, finding.id.clone())).collect();
    let wanted = [
        ("users", "a text".to_owned()),
        ("users", oid(4).to_hex()),
        ("users", oid(5).to_hex()),
        ("users", oid(6).to_hex()),
        ("users", oid(7).to_hex()),
        ("users", oid(8).to_hex()),
        ("classes", oid(21).to_hex()),
        ("classes", oid(21).to_hex()),
        ("classes", oid(21).to_hex()),
        ("classes", oid(21).to_hex()),
        ("classes", oid(22).to_hex()),
        ("classes", oid(23).to_hex()),
        ("classes", oid(24).to_hex()),
        ("attendance_records", oid(43).to_hex()),
        ("attendance_records", oid(46).to_hex()),
        ("attendance_records", oid(47).to_hex()),
    ];
    let named: Vec<_> = named.into_iter().map(|(name, id)| (name, id.trim_matches('"').to_owned())).collect();
    assert_eq!(named, wanted, "{:#?}", found.findings);
    assert_eq!((found.users, found.classes, found.records, found.earlier_records), (10, 6, 0, 9));
}

/// A session of the class from start to DONE, in which somebody joins and is marked late.
async fn live(store: &dyn Store, class: ClassId) {
    let clock = SetClock::new();
    let origin = || Origin {
        by: Actor::User(user_id(1)),
        at: clock.now(),
        door: Door::Http,
        address: None,
        operation: OperationId::Door("x".into()),
    };
    let id = SessionId::from_bytes(ObjectId::new().bytes());
    let started = store.start(id, class, user_id(1), origin()).await.unwrap();
    assert!(matches!(started, Started::New(_)));
    let ClassChanged::Now(now) = store.enrol(class, user_id(2), origin()).await.unwrap() else { panic!("it is there") };
    assert!(now.student_ids.contains(&user_id(2)));
    let mark = Command::Mark { student_id: user_id(2), status: Status::Late, reason: None };
    for command in [mark, Command::Finish] {
        let receipt = store.submit(Target::Class(class), command, origin()).await.unwrap();
        assert!(matches!(receipt.await.unwrap(), Outcome::Done(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn a_single_server_is_refused() {
    let server = standalone().await.unwrap();
    let error = connect(&server.member_url(0)).await.err().unwrap();
    assert!(matches!(error, OpenError::Standalone), "{error:?}");
    assert!(error.to_string().contains("rs.initiate()"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn without_a_name_the_usual_database_is_taken_unless_an_earlier_one_is_there() {
    let set = ReplicaSet::start(1).await.unwrap();
    let store = connect(&set.url("")).await.unwrap();
    store.ping().await.unwrap();
    let client = set.client().await.unwrap();
    assert!(client.list_database_names().await.unwrap().contains(&"rollcall".to_owned()));
    client.database("attendence_db").collection("users").insert_one(doc! {}).await.unwrap();
    let error = connect(&set.url("")).await.err().unwrap();
    assert!(matches!(error, OpenError::WhichDatabase { .. }), "{error:?}");
    assert!(error.to_string().contains("/attendence_db`") && error.to_string().contains("/rollcall`"), "{error}");
    connect(&set.url("rollcall")).await.unwrap();
    connect(&set.url("attendence_db")).await.unwrap();
}

#[tokio::test]
async fn an_address_that_cannot_be_used_is_told_without_its_secrets() {
    for url in [
        "",
        "mongodb://",
        "mongodb://user:s3cret@",
        "mongodb://user:s3cret@host:port/",
        "mongodb://us:er:s3cret@host/x",
        "mongodb://user:s3cret%zz@host/x",
        "postgres://user:s3cret@host/x",
    ] {
        let error = connect(url).await.err().unwrap();
        assert!(matches!(error, OpenError::Address(_)), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{url}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_soon() {
    let asked = std::time::Instant::now();
    let error = connect("mongodb://user:s3cret@127.0.0.1:1/x?replicaSet=rs0").await.err().unwrap();
    assert!(matches!(error, OpenError::Database(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
    assert!(asked.elapsed() < std::time::Duration::from_secs(10));
}

/// While the members elect a primary a store that is opened waits for it: a replica may start at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs MongoDB: cargo xtask test"]
async fn opening_waits_for_a_primary() {
    let set = ReplicaSet::start(3).await.unwrap();
    let primary = set.primary().await.unwrap();
    let (other, left) = ((primary + 1) % 3, (primary + 2) % 3);
    set.pause(primary).unwrap();
    set.pause(other).unwrap();
    let url = set.url("election");
    let opening = connect(&url);
    let mut opening = std::pin::pin!(opening);
    // Longer than the driver looks for a primary.
    let early = tokio::time::timeout(std::time::Duration::from_secs(5), &mut opening).await;
    assert!(early.is_err(), "member {left} alone is enough: {:?}", early.map(|opened| opened.map(drop)));
    set.resume(other).unwrap();
    set.resume(primary).unwrap();
    opening.await.unwrap();
}
