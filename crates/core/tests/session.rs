//! The session's lifecycle against a model that is too simple to be wrong: plain maps and a list of what happened.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing there fails, as it should")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use rollcall_core::record::Record;
use rollcall_core::session::{
    Actor, Command, Counts, Door, Event, FinishedSession, LogEntry, MAX_LOG_ENTRIES, Mark, OpenSession, OperationId,
    Origin, Reason, Refusal, Revision, SessionInfo, SessionState, Status,
};
use rollcall_core::store::{REPEAT_WINDOW, SessionChange, Target};
use rollcall_core::{ClassId, SessionId, Timestamp, UserId};

const CLASS: ClassId = ClassId::from_bytes([1; 12]);
const TEACHER: UserId = UserId::from_bytes([2; 12]);

fn student(number: u8) -> UserId {
    UserId::from_bytes([100 + number; 12])
}

fn session_id(number: u8) -> SessionId {
    SessionId::from_bytes([number; 12])
}

fn origin(at: u32) -> Origin {
    Origin {
        by: Actor::User(TEACHER),
        at: Timestamp::from_millis(i64::from(at)),
        door: Door::Http,
        address: None,
        operation: OperationId::Door(at.to_string().into()),
    }
}

/// What may come next in the life of a class.
#[derive(Clone, Debug)]
enum Step {
    Start,
    Enrol(UserId),
    Remove(UserId),
    Mark(UserId, Status, Option<Reason>),
    Summarise,
    Finish,
    /// The process is killed: what goes on is what the store kept.
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = || (0_u8..6).prop_map(student);
    let status = select(&Status::ALL[..]);
    let reason = option::weighted(0.2, select(&["late bus", "ill"][..]).prop_map(Reason::stored));
    let step = prop_oneof![
        2 => Just(Step::Start),
        4 => id().prop_map(Step::Enrol),
        3 => id().prop_map(Step::Remove),
        12 => (id(), status, reason).prop_map(|(id, status, reason)| Step::Mark(id, status, reason)),
        3 => Just(Step::Summarise),
        1 => Just(Step::Finish),
        2 => Just(Step::Reload),
    ];
    vec(step, 0..150)
}

/// The model: who is in the class, and while a session is open who is marked what, and all that happened.
#[derive(Default)]
struct Model {
    enrolled: BTreeSet<UserId>,
    open: Option<ModelSession>,
    /// The revision of the last event of all.
    revision: u64,
}

#[derive(Default)]
struct ModelSession {
    id: u8,
    first_revision: u64,
    started_at: u32,
    marks: BTreeMap<UserId, (Status, Timestamp, u64)>,
    log: Vec<Event>,
}

fn tally(statuses: impl Iterator<Item = Status>) -> Counts {
    let mut tally = Counts::default();
    for status in statuses {
        match status {
            Status::Present => tally.present += 1,
            Status::Absent => tally.absent += 1,
            Status::Late => tally.late += 1,
            Status::Excused => tally.excused += 1,
        }
    }
    tally
}

/// What the marks of a log add up to, read from the log alone.
fn fold(log: &[Event]) -> Counts {
    let mut last = BTreeMap::new();
    for event in log {
        if let Event::Marked { student_id, old, new, .. } = event {
            assert_eq!(last.insert(*student_id, *new), *old, "a mark says what it replaced");
        }
    }
    tally(last.into_values())
}

/// The class under test beside its model.
#[derive(Default)]
struct Class {
    model: Model,
    real: Option<OpenSession>,
    sessions: u8,
    time: u32,
}

impl Class {
    fn take(&mut self, step: Step) {
        self.time += 1;
        let origin = origin(self.time);
        match (step, self.real.is_some()) {
            (Step::Start, false) => self.start(origin),
            (Step::Enrol(id), false) => drop(self.model.enrolled.insert(id)),
            (Step::Remove(id), false) => drop(self.model.enrolled.remove(&id)),
            (Step::Finish, true) => self.finish(origin),
            (Step::Reload, true) => self.real = Some(self.load()),
            (step, true) => self.go_on(step, origin),
            (_, false) => {}
        }
        let kept = self.model.open.as_ref().map(|_| self.load());
        assert_eq!(self.real, kept, "nothing is lost, nothing made up, and a refusal changes nothing");
        if let (Some(real), Some(model)) = (&self.real, &self.model.open) {
            assert_eq!(real.counts(), tally(model.marks.values().map(|(status, ..)| *status)));
            assert_eq!(real.counts(), fold(&model.log));
        }
    }

    fn start(&mut self, origin: Origin) {
        self.sessions += 1;
        let id = session_id(self.sessions);
        let last = Revision(self.model.revision);
        let roster = self.model.enrolled.iter().copied();
        let (session, entry) = OpenSession::start(id, CLASS, TEACHER, roster, last, origin.clone());
        self.model.open = Some(ModelSession {
            id: self.sessions,
            first_revision: self.model.revision + 1,
            started_at: self.time,
            ..ModelSession::default()
        });
        self.real = Some(session);
        self.happened(&entry, Event::Started, origin);
    }

    /// One event of the open session, or its refusal.
    fn go_on(&mut self, step: Step, origin: Origin) {
        let real = self.real.as_mut().unwrap();
        let model = self.model.open.as_mut().unwrap();
        let full = self.model.revision - model.first_revision + 2 >= MAX_LOG_ENTRIES;
        let (answer, expected) = match step {
            Step::Enrol(student_id) => {
                let new = self.model.enrolled.insert(student_id);
                (Ok(real.enrol(student_id, origin.clone())), Ok(new.then_some(Event::Enrolled { student_id })))
            }
            Step::Remove(student_id) => {
                let gone = self.model.enrolled.remove(&student_id);
                (Ok(real.remove(student_id, origin.clone())), Ok(gone.then_some(Event::Removed { student_id })))
            }
            Step::Mark(student_id, new, reason) => {
                let expected = if !self.model.enrolled.contains(&student_id) {
                    Err(Refusal::NotEnrolled)
                } else if full {
                    Err(Refusal::LogFull)
                } else {
                    let mark = (new, origin.at, self.model.revision + 1);
                    let old = model.marks.insert(student_id, mark).map(|(status, ..)| status);
                    Ok(Some(Event::Marked { student_id, old, new, reason: reason.clone() }))
                };
                (real.mark(student_id, new, reason, origin.clone()).map(Some), expected)
            }
            Step::Summarise => {
                let expected = if full { Err(Refusal::LogFull) } else { Ok(Some(Event::Summarised(fold(&model.log)))) };
                (real.summarise(origin.clone()).map(Some), expected)
            }
            Step::Start | Step::Finish | Step::Reload => return,
        };
        match (answer, expected) {
            (Ok(Some(entry)), Ok(Some(event))) => self.happened(&entry, event, origin),
            (answer, expected) => assert_eq!(answer.map(|entry| entry.map(|entry| entry.event)), expected),
        }
    }

    fn finish(&mut self, origin: Origin) {
        let FinishedSession { info, entry, records } = self.real.take().unwrap().finish(origin.clone());
        let model = self.model.open.as_ref().unwrap();
        let (id, class_id) = (session_id(model.id), CLASS);
        let concerned: BTreeSet<_> = self.model.enrolled.iter().chain(model.marks.keys()).copied().collect();
        let expected: Vec<_> = concerned
            .into_iter()
            .map(|student_id| {
                let mark = model.marks.get(&student_id);
                let status = mark.map_or(Status::Absent, |(status, ..)| *status);
                Record { session_id: id, class_id, student_id, status, marked_at: mark.map(|(_, at, _)| *at) }
            })
            .collect();
        assert_eq!(records, expected, "one record for each who is enrolled or was marked");

        let counts = tally(expected.iter().map(|record| record.status));
        assert_eq!(counts.total() as usize, records.len());
        assert_eq!(counts.present, fold(&model.log).present, "DONE makes nobody present");
        let expected = SessionInfo {
            id,
            class_id,
            teacher_id: TEACHER,
            started_at: Timestamp::from_millis(i64::from(model.started_at)),
            first_revision: Revision(model.first_revision),
            revision: Revision(self.model.revision + 1),
            state: SessionState::Finished { at: origin.at, by: origin.by, counts },
        };
        assert_eq!(info, expected);
        self.happened(&entry, Event::Finished(counts), origin);
        self.model.open = None;
    }

    /// Loads the session from what a store keeps of it.
    fn load(&self) -> OpenSession {
        let model = self.model.open.as_ref().unwrap();
        let info = SessionInfo {
            id: session_id(model.id),
            class_id: CLASS,
            teacher_id: TEACHER,
            started_at: Timestamp::from_millis(i64::from(model.started_at)),
            first_revision: Revision(model.first_revision),
            revision: Revision(self.model.revision),
            state: SessionState::Open,
        };
        let marks = model.marks.iter().map(|(id, (status, at, revision))| {
            (*id, Mark { status: *status, at: *at, revision: Revision(*revision) })
        });
        OpenSession::load(info, self.model.enrolled.iter().copied(), marks)
    }

    fn happened(&mut self, entry: &LogEntry, event: Event, origin: Origin) {
        self.model.revision += 1;
        let revision = Revision(self.model.revision);
        assert_eq!(*entry, LogEntry { revision, event: event.clone(), origin }, "revisions have no gap");
        self.model.open.as_mut().unwrap().log.push(event);
    }
}

proptest! {
    #[test]
    fn lives_as_the_model_does(steps in steps()) {
        let mut class = Class::default();
        for step in steps {
            class.take(step);
        }
    }

    /// The same near the end of the log, where marks are refused and DONE still fits.
    #[test]
    fn lives_as_the_model_does_when_the_log_fills(left in 0_u64..40, steps in steps()) {
        let mut class = Class::default();
        (0..6).map(student).for_each(|id| class.take(Step::Enrol(id)));
        class.take(Step::Start);
        // As if as many summaries had been announced as bring the session there.
        class.model.revision = MAX_LOG_ENTRIES - left;
        class.real = Some(class.load());
        for step in steps {
            class.take(step);
        }
    }
}

#[test]
fn a_full_log_has_one_place_left_and_it_is_dones() {
    let (mut session, _) = OpenSession::start(session_id(1), CLASS, TEACHER, [student(0)], Revision(77), origin(0));
    let mut entries = 1;
    let refusal = loop {
        match session.mark(student(0), Status::Late, None, origin(1)) {
            Ok(_) => entries += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!((refusal, entries), (Refusal::LogFull, MAX_LOG_ENTRIES - 1));
    let before = session.clone();
    assert_eq!(session.summarise(origin(2)), Err(Refusal::LogFull));
    assert_eq!(session.mark(student(9), Status::Late, None, origin(2)), Err(Refusal::NotEnrolled));
    assert_eq!(session, before, "a refusal changes nothing");

    let done = session.clone().finish(origin(3));
    assert_eq!(done.info.revision, Revision(77 + MAX_LOG_ENTRIES), "DONE takes the last place");
    // Who is in a class is not the session's to refuse.
    assert!(session.enrol(student(1), origin(4)).is_some());
    assert!(session.remove(student(0), origin(5)).is_some());
    assert_eq!(session.finish(origin(6)).records.len(), 2);
}

/// The rule for commands that are sent again, with one thing changed at a time.
#[test]
fn a_command_is_a_repetition_only_when_all_of_it_is_the_same() {
    let by = |operation: OperationId, at: i64| Origin { at: Timestamp::from_millis(at), operation, ..origin(0) };
    let client = |id: &str| OperationId::from_client(id).unwrap();
    let mark = |status, reason: Option<&str>| Command::Mark {
        student_id: student(0),
        status,
        reason: reason.map(Reason::stored),
    };
    let change = |event| SessionChange {
        session_id: session_id(1),
        class_id: CLASS,
        entry: LogEntry { revision: Revision(5), event, origin: by(client("7"), 1_000_000) },
    };
    let marked = change(Event::Marked {
        student_id: student(0),
        old: Some(Status::Late),
        new: Status::Present,
        reason: Some(Reason::stored("bus")),
    });
    let again = mark(Status::Present, Some("bus"));
    let window = i64::try_from(REPEAT_WINDOW.as_millis()).unwrap();
    let class = Target::Class(CLASS);

    for target in [class, Target::Session(session_id(1)), Target::OpenedBy(TEACHER)] {
        assert!(marked.is_repeated_by(target, &again, &by(client("7"), 1_000_500)), "{target:?}");
    }
    for target in [Target::Class(ClassId::from_bytes([9; 12])), Target::Session(session_id(2))] {
        assert!(!marked.is_repeated_by(target, &again, &by(client("7"), 1_000_500)), "{target:?}");
    }
    for (at, repeated) in [(window - 1, true), (window, false), (1 - window, true), (-window, false)] {
        assert_eq!(marked.is_repeated_by(class, &again, &by(client("7"), 1_000_000 + at)), repeated, "{at} ms later");
    }
    for other in [
        mark(Status::Late, Some("bus")),
        mark(Status::Present, None),
        Command::Mark { student_id: student(1), status: Status::Present, reason: Some(Reason::stored("bus")) },
        Command::Summarise,
        Command::Finish,
    ] {
        assert!(!marked.is_repeated_by(class, &other, &by(client("7"), 1_000_000)), "{other:?}");
    }
    for operation in [client("8"), OperationId::Door("7".into())] {
        assert!(!marked.is_repeated_by(class, &again, &by(operation.clone(), 1_000_000)), "{operation:?}");
    }
    for actor in [Actor::System, Actor::User(student(0))] {
        let origin = Origin { by: actor, ..by(client("7"), 1_000_000) };
        assert!(!marked.is_repeated_by(class, &again, &origin), "{actor:?}");
    }
    for event in [Event::Summarised(Counts::default()), Event::Finished(Counts::default()), Event::Started] {
        for command in [Command::Summarise, Command::Finish] {
            let same = matches!(
                (&event, &command),
                (Event::Summarised(_), Command::Summarise) | (Event::Finished(_), Command::Finish)
            );
            let repeated = change(event.clone()).is_repeated_by(class, &command, &by(client("7"), 1_000_000));
            assert_eq!(repeated, same, "{command:?} after {event:?}");
        }
    }
}

#[test]
fn operation_ids_and_reasons_are_bounded() {
    for good in ["1", "é", &"x".repeat(64), "a b"] {
        assert!(OperationId::from_client(good).is_some(), "{good:?}");
    }
    for bad in ["", &"x".repeat(65), &"é".repeat(33), "a\u{0}", "a\n"] {
        assert_eq!(OperationId::from_client(bad), None, "{bad:?}");
    }
    assert_eq!(Reason::parse("  late bus "), Ok(Some(Reason::stored("late bus"))));
    assert_eq!(Reason::parse(" \n "), Ok(None), "an empty reason is none");
    assert!(Reason::parse(&"é".repeat(200)).is_ok());
    assert!(Reason::parse(&"é".repeat(201)).is_err());
    assert!(Reason::parse("a\u{7}b").is_err());
}

#[test]
fn names_are_read_as_they_are_written() {
    for status in Status::ALL {
        assert_eq!(status.to_string().parse(), Ok(status));
    }
    for door in [Door::Http, Door::WebSocket, Door::System] {
        assert_eq!(door.as_str().parse(), Ok(door));
    }
    for bad in ["", "Present", " present", "present\0", "unknown"] {
        assert!(bad.parse::<Status>().is_err(), "{bad:?}");
    }
}
