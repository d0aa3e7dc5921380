//! What databases are compared by.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails the test")]

use rollcall_core::class::{Class, ClassName, ClassWithStudents};
use rollcall_core::record::Record;
use rollcall_core::session::{
    Actor, Counts, Door, Event, LogEntry, Mark, OperationId, Origin, Reason, Revision, SessionInfo, SessionState,
    Status,
};
use rollcall_core::transfer::{Item, Kind, Part, WholeSession};
use rollcall_core::user::{Account, Email, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, SessionId, Timestamp, UserId};

fn rows(item: &Item) -> Vec<(Kind, Vec<u8>)> {
    let mut rows = Vec::new();
    item.rows(|kind, bytes| rows.push((kind, bytes.to_vec())));
    rows
}

/// Asserts that each change to a value changes what is compared.
fn all_count<T: Clone>(value: &T, item: fn(T) -> Item, changes: &[fn(&mut T)]) {
    let mut seen = vec![rows(&item(value.clone()))];
    for (number, change) in changes.iter().enumerate() {
        let mut other = value.clone();
        change(&mut other);
        let rows = rows(&item(other));
        assert!(!seen.contains(&rows), "change {number} does not show");
        seen.push(rows);
    }
}

#[test]
fn everything_in_an_account_counts() {
    let account = Account {
        id: UserId::from_bytes([1; 12]),
        name: PersonName::stored("ab"),
        email: Email::stored("c"),
        role: Role::Student,
        password_hash: PasswordHash::stored("h"),
        token_version: 1,
        disabled: false,
        email_confirmed: false,
        absence_notices: false,
        created_at: Timestamp::from_millis(1),
    };
    let changes: &[fn(&mut Account)] = &[
        |account| account.id = UserId::NOTHING,
        |account| account.name = PersonName::stored("abc"),
        |account| account.email = Email::stored("C"),
        |account| account.role = Role::Admin,
        |account| account.password_hash = PasswordHash::stored("H"),
        |account| account.token_version = 0,
        |account| account.disabled = true,
        |account| account.email_confirmed = true,
        |account| account.absence_notices = true,
        |account| account.created_at = Timestamp::from_millis(-1),
        // The same letters, cut otherwise.
        |account| (account.name, account.email) = (PersonName::stored("a"), Email::stored("bc")),
    ];
    all_count(&account, Item::Account, changes);
}

#[test]
fn everything_in_a_class_counts() {
    let class = Class {
        id: ClassId::from_bytes([1; 12]),
        name: ClassName::stored("a"),
        teacher_id: UserId::from_bytes([2; 12]),
        archived: false,
        absence_notices: false,
        created_at: Timestamp::from_millis(1),
    };
    let students = [3, 4].map(|n| UserId::from_bytes([n; 12])).to_vec();
    let changes: &[fn(&mut ClassWithStudents)] = &[
        |class| class.class.id = ClassId::NOTHING,
        |class| class.class.name = ClassName::stored(""),
        |class| class.class.teacher_id = UserId::NOTHING,
        |class| class.class.archived = true,
        |class| class.class.absence_notices = true,
        |class| class.class.created_at = Timestamp::from_millis(2),
        |class| class.student_ids.reverse(),
        |class| class.student_ids.truncate(1),
    ];
    all_count(&ClassWithStudents { class, student_ids: students }, Item::Class, changes);
}

fn session() -> WholeSession {
    let student = UserId::from_bytes([3; 12]);
    let origin = Origin {
        by: Actor::User(UserId::from_bytes([2; 12])),
        at: Timestamp::from_millis(5),
        door: Door::WebSocket,
        address: Some("192.0.2.1".parse().unwrap()),
        operation: OperationId::Client("1".into()),
    };
    let (old, new, reason) = (None, Status::Late, Reason::parse("bus").unwrap());
    let event = Event::Marked { student_id: student, old, new, reason };
    let info = SessionInfo {
        id: SessionId::from_bytes([1; 12]),
        class_id: ClassId::from_bytes([1; 12]),
        teacher_id: UserId::from_bytes([2; 12]),
        started_at: Timestamp::from_millis(4),
        first_revision: Revision(7),
        revision: Revision(8),
        state: SessionState::Open,
    };
    let record = Record {
        session_id: info.id,
        class_id: info.class_id,
        student_id: student,
        status: Status::Late,
        marked_at: Some(Timestamp::from_millis(5)),
    };
    WholeSession {
        log: vec![LogEntry { revision: Revision(8), event, origin }],
        marks: vec![(student, Mark { status: Status::Late, at: Timestamp::from_millis(5), revision: Revision(8) })],
        records: vec![record],
        info,
    }
}

#[test]
fn everything_in_a_session_counts() {
    let state = |at, by, absent| SessionState::Finished {
        at: Timestamp::from_millis(at),
        by,
        counts: Counts { absent, ..Counts::default() },
    };
    let teacher = Actor::User(UserId::from_bytes([2; 12]));
    let mut seen = Vec::new();
    for state in [
        SessionState::Open,
        state(1, teacher, 1),
        state(2, teacher, 1),
        state(1, Actor::System, 1),
        state(1, teacher, 2),
    ] {
        let mut session = session();
        session.info.state = state;
        let rows = rows(&Item::Session(session));
        assert!(!seen.contains(&rows));
        seen.push(rows);
    }
    let changes: &[fn(&mut WholeSession)] = &[
        |session| session.info.id = SessionId::NOTHING,
        |session| session.info.class_id = ClassId::NOTHING,
        |session| session.info.teacher_id = UserId::NOTHING,
        |session| session.info.started_at = Timestamp::from_millis(0),
        |session| session.info.first_revision = Revision(6),
        |session| session.info.revision = Revision(9),
        |session| session.log.clear(),
        |session| session.log[0].revision = Revision(9),
        |session| session.log[0].origin.by = Actor::System,
        |session| session.log[0].origin.at = Timestamp::from_millis(0),
        |session| session.log[0].origin.door = Door::Http,
        |session| session.log[0].origin.address = None,
        |session| session.log[0].origin.operation = OperationId::Door("1".into()),
        |session| session.log[0].origin.operation = OperationId::Client("2".into()),
        |session| session.marks[0].1.status = Status::Absent,
        |session| session.marks[0].1.at = Timestamp::from_millis(0),
        |session| session.marks[0].1.revision = Revision(7),
        |session| session.marks[0].0 = UserId::NOTHING,
        |session| session.records[0].status = Status::Absent,
        |session| session.records[0].marked_at = None,
        |session| session.records[0].student_id = UserId::NOTHING,
    ];
    all_count(&session(), Item::Session, changes);
}

#[test]
fn every_event_is_another() {
    let student_id = UserId::from_bytes([3; 12]);
    let marked =
        |old, new, reason: &str| Event::Marked { student_id, old, new, reason: Reason::parse(reason).unwrap() };
    let events = [
        Event::Started,
        Event::Enrolled { student_id },
        Event::Enrolled { student_id: UserId::NOTHING },
        Event::Removed { student_id },
        marked(None, Status::Late, ""),
        marked(None, Status::Late, "bus"),
        marked(None, Status::Absent, ""),
        marked(Some(Status::Late), Status::Absent, ""),
        Event::Summarised(Counts::default()),
        Event::Summarised(Counts { late: 1, ..Counts::default() }),
        Event::Finished(Counts::default()),
    ];
    let mut seen = Vec::new();
    for event in events {
        let mut session = session();
        session.log[0].event = event;
        let rows = rows(&Item::Session(session));
        assert!(!seen.contains(&rows));
        seen.push(rows);
    }
}

#[test]
fn parts_and_kinds_are_in_order() {
    assert!(Part::ALL.is_sorted());
    for part in Part::ALL {
        assert_eq!(part.as_str().parse(), Ok(part));
    }
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, place, "lists by kind go by this order");
    }
}
