//! Sessions, their marks, logs and records.

use std::net::IpAddr;
use std::time::Duration;

use rollcall_core::record::Record;
use rollcall_core::session::{
    Actor, Command, Counts, Door, Event, LogEntry, MAX_LOG_ENTRIES, Mark, OperationId, Origin, Reason, Refusal,
    Revision, SessionInfo, SessionState, Status,
};
use rollcall_core::store::{Outcome, OwnMark, Page, Started, Target};
use rollcall_core::{SessionId, UserId};

use super::world::{Stores, World, changed, done, mark, refused};

/// Start, marks, a correction, an announcement, DONE; and what stands after it.
pub async fn a_session_lives_from_start_to_done<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(3).await;
    let [first, second, third] = students[..] else { unreachable!("three were asked for") };
    let session = world.start(class, teacher).await;
    let opened = SessionInfo {
        id: session.id,
        class_id: class,
        teacher_id: teacher,
        started_at: session.started_at,
        first_revision: Revision(1),
        revision: Revision(1),
        state: SessionState::Open,
    };
    assert_eq!(session, opened);
    assert_eq!(world.store.session(class, session.id).await.unwrap(), Some(opened));
    assert_eq!(world.store.count_open_sessions().await.unwrap(), 1);

    let summarise = || async {
        let origin = world.origin(teacher);
        done(world.order(Target::Class(class), Command::Summarise, origin).await).entry.event.clone()
    };
    assert_eq!(summarise().await, Event::Summarised(Counts::default()));
    world.clock.advance(Duration::from_secs(5));
    let change = world.mark(class, teacher, first, Status::Present).await;
    assert_eq!((change.session_id, change.class_id, change.entry.revision), (session.id, class, Revision(3)));
    let marked = |student_id, old, new| Event::Marked { student_id, old, new, reason: None };
    assert_eq!(change.entry.event, marked(first, None, Status::Present));
    world.mark(class, teacher, second, Status::Excused).await;
    world.clock.advance(Duration::from_secs(5));
    let corrected = world.mark(class, teacher, first, Status::Late).await;
    assert_eq!(corrected.entry.event, marked(first, Some(Status::Present), Status::Late));
    let counts = Counts { late: 1, excused: 1, ..Counts::default() };
    assert_eq!(summarise().await, Event::Summarised(counts));

    let late = Mark { status: Status::Late, at: corrected.entry.origin.at, revision: corrected.entry.revision };
    let open = world.store.open_session(class).await.unwrap().unwrap();
    assert_eq!((open.info().revision, open.counts(), open.roster().len()), (Revision(6), counts, 3));
    assert_eq!(open.marks().get(&first), Some(&late));
    let marks = world.store.marks(session.id, None).await.unwrap();
    assert_eq!(
        marks.iter().map(|(id, mark)| (*id, mark.status)).collect::<Vec<_>>(),
        [(first, Status::Late), (second, Status::Excused)]
    );
    assert_eq!(world.store.marks(session.id, Some(first)).await.unwrap(), [(first, late)]);
    assert!(world.store.marks(session.id, Some(third)).await.unwrap().is_empty());
    assert!(world.store.records(session.id, None).await.unwrap().is_empty(), "nothing stands before DONE");
    assert_eq!(world.store.last_record(class, first).await.unwrap(), None);

    let finish = world.finish(class, teacher).await;
    let counts = Counts { late: 1, excused: 1, absent: 1, ..Counts::default() };
    assert_eq!((finish.entry.revision, &finish.entry.event), (Revision(7), &Event::Finished(counts)));
    assert_eq!(world.store.open_session(class).await.unwrap(), None);
    assert!(world.store.marks(session.id, None).await.unwrap().is_empty(), "marks have become records");
    let finished = world.store.session(class, session.id).await.unwrap().unwrap();
    let state = SessionState::Finished { at: finish.entry.origin.at, by: Actor::User(teacher), counts };
    assert_eq!((finished.revision, &finished.state), (Revision(7), &state));
    let record = |student_id, status, marked_at| Record {
        session_id: session.id,
        class_id: class,
        student_id,
        status,
        marked_at,
    };
    let records = [
        record(first, Status::Late, Some(late.at)),
        record(second, Status::Excused, Some(marks[1].1.at)),
        record(third, Status::Absent, None),
    ];
    assert_eq!(world.store.records(session.id, None).await.unwrap(), records);
    assert_eq!(world.store.records(session.id, Some(third)).await.unwrap(), records[2..]);
    assert_eq!(world.store.last_record(class, second).await.unwrap().as_ref(), Some(&records[1]));
    let log = world.log(session.id).await;
    assert!(log.iter().zip(1..).all(|(entry, revision)| entry.revision == Revision(revision)), "no gap");
    assert_eq!(log.len(), 7);
    assert_eq!(log[4], corrected.entry);
    assert_eq!(log[6], finish.entry);
}

/// Reasons, doors, addresses, operations and actors come back as they were said.
pub async fn an_entry_keeps_everything_that_was_said<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    let addresses: [Option<IpAddr>; 3] =
        [None, Some("192.0.2.7".parse().unwrap()), Some("2001:db8::ff00:42:8329".parse().unwrap())];
    let reasons = [None, Reason::parse("Zug verspätet – 电车 🚋 'quoted' \"too\" %_").unwrap(), None];
    let doors = [Door::Http, Door::WebSocket, Door::System];
    let actors = [Actor::User(teacher), Actor::System, Actor::User(students[0])];
    let operations = [
        OperationId::from_client(&"é".repeat(32)).unwrap(),
        OperationId::Door("x".into()),
        OperationId::from_client("1").unwrap(),
    ];
    let mut said = Vec::new();
    for number in 0..3 {
        let origin = Origin {
            by: actors[number],
            at: world.origin(teacher).at,
            door: doors[number],
            address: addresses[number],
            operation: operations[number].clone(),
        };
        let command =
            Command::Mark { student_id: students[0], status: Status::ALL[number], reason: reasons[number].clone() };
        let change = done(world.order(Target::Session(session.id), command, origin.clone()).await);
        assert_eq!(change.entry.origin, origin);
        said.push(change.entry.clone());
    }
    assert_eq!(world.log(session.id).await[1..], said);
    let Event::Marked { reason, .. } = &said[1].event else { panic!("a mark was given") };
    assert_eq!(*reason, reasons[1]);
    let origin = Origin { by: Actor::System, door: Door::System, ..world.origin(teacher) };
    done(world.order(Target::Session(session.id), Command::Finish, origin).await);
    let finished = world.store.session(class, session.id).await.unwrap().unwrap();
    assert!(matches!(finished.state, SessionState::Finished { by: Actor::System, .. }));
}

/// Starting again while a session is open changes nothing.
pub async fn a_session_that_is_open_is_resumed<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    world.mark(class, teacher, students[0], Status::Present).await;
    let again = world.store.start(SessionId(world.id()), class, teacher, world.origin(teacher)).await.unwrap();
    let now = SessionInfo { revision: Revision(2), ..session.clone() };
    assert_eq!(again, Started::Resumed(now));
    assert_eq!(world.log(session.id).await.len(), 2);
    assert_eq!(world.store.count_open_sessions().await.unwrap(), 1);
}

/// A class's revisions go on where its last session ended, and each session keeps its own part.
pub async fn revisions_count_on_over_sessions<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let mut next = 1;
    for round in 0..5 {
        let session = world.start(class, teacher).await;
        assert_eq!(session.first_revision, Revision(next));
        for _ in 0..round {
            world.mark(class, teacher, students[0], Status::ALL[round % 4]).await;
        }
        let finish = world.finish(class, teacher).await;
        let log = world.log(session.id).await;
        let revisions: Vec<_> = log.iter().map(|entry| entry.revision.0).collect();
        assert_eq!(revisions, (next..=finish.entry.revision.0).collect::<Vec<_>>());
        next = finish.entry.revision.0 + 1;
        let stands = world.store.last_record(class, students[0]).await.unwrap().unwrap();
        let status = if round == 0 { Status::Absent } else { Status::ALL[round % 4] };
        assert_eq!((stands.session_id, stands.status), (session.id, status), "the last finished session counts");
    }
    let (_, other, _) = world.course(0).await;
    assert_eq!(world.start(other, teacher).await.first_revision, Revision(1), "each class counts for itself");
}

/// A refusal names the class and its revision wherever a class is known.
pub async fn refusals_say_what_was_seen<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let stranger = world.student().await;
    let give = |target, command| world.order(target, command, world.origin(teacher));
    let no_session = |revision| (Refusal::NoSession, Some((class, Revision(revision))));
    let present = || mark(students[0], Status::Present);

    assert_eq!(refused(give(Target::Class(class), present()).await), no_session(0));
    assert_eq!(refused(give(Target::OpenedBy(teacher), present()).await), (Refusal::NoSession, None));
    let unknown = Target::Session(SessionId(world.id()));
    assert_eq!(refused(give(unknown, present()).await), (Refusal::NoSession, None));

    let session = world.start(class, teacher).await;
    let not_enrolled = (Refusal::NotEnrolled, Some((class, Revision(1))));
    for target in [Target::Class(class), Target::OpenedBy(teacher), Target::Session(session.id)] {
        assert_eq!(refused(give(target, mark(stranger, Status::Present)).await), not_enrolled);
    }
    world.mark(class, teacher, students[0], Status::Present).await;
    world.finish(class, teacher).await;
    for command in [present(), Command::Summarise, Command::Finish] {
        assert_eq!(refused(give(Target::Class(class), command.clone()).await), no_session(3));
        assert_eq!(refused(give(Target::Session(session.id), command.clone()).await), no_session(3));
        assert_eq!(refused(give(Target::OpenedBy(teacher), command).await), (Refusal::NoSession, None));
    }
    world.start(class, teacher).await;
    assert_eq!(refused(give(Target::Session(session.id), present()).await), no_session(4), "one that ended stays so");
    assert_eq!(world.store.open_session(class).await.unwrap().unwrap().info().revision, Revision(4));
}

/// Without a class a command concerns the session that its teacher opened last and that is still open.
pub async fn a_command_without_a_class_finds_its_session<S: Stores>(world: World<S>) {
    let (teacher, student) = (world.teacher().await, world.student().await);
    let mut classes = Vec::new();
    for _ in 0..3 {
        let class = world.class(teacher).await;
        world.enrol(class, student).await;
        classes.push(class);
    }
    // Opened in another order than made, all in one millisecond.
    for class in [1, 2, 0] {
        world.start(classes[class], teacher).await;
    }
    let (other, foreign, _) = world.course(0).await;
    world.start(foreign, other).await;
    for class in [0, 2, 1] {
        let present = mark(student, Status::Present);
        let change = done(world.order(Target::OpenedBy(teacher), present, world.origin(teacher)).await);
        assert_eq!(change.class_id, classes[class]);
        let seen = world.store.own_mark(student, None).await.unwrap();
        assert!(
            matches!(seen, OwnMark::Marked { seen, status: Some(Status::Present) } if seen.class_id == classes[class])
        );
        let change = done(world.order(Target::OpenedBy(teacher), Command::Finish, world.origin(teacher)).await);
        assert_eq!(change.class_id, classes[class]);
    }
    let nothing = world.order(Target::OpenedBy(teacher), Command::Summarise, world.origin(teacher)).await;
    assert_eq!(refused(nothing), (Refusal::NoSession, None));
    assert_eq!(world.store.own_mark(student, None).await.unwrap(), OwnMark::NoSession { seen: None });
}

/// The own mark, with the revision up to which that holds.
pub async fn a_student_is_told_the_own_mark<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let stranger = world.student().await;
    let own = |student, class| {
        let store = &world.store;
        async move { store.own_mark(student, class).await.unwrap() }
    };
    let seen = |revision| rollcall_core::error::Seen { class_id: class, revision: Revision(revision) };
    assert_eq!(own(students[0], Some(class)).await, OwnMark::NoSession { seen: Some(seen(0)) });
    assert_eq!(own(students[0], None).await, OwnMark::NoSession { seen: None });
    world.start(class, teacher).await;
    assert_eq!(own(students[0], Some(class)).await, OwnMark::Marked { seen: seen(1), status: None });
    world.mark(class, teacher, students[0], Status::Late).await;
    for asked in [Some(class), None] {
        let marked = OwnMark::Marked { seen: seen(2), status: Some(Status::Late) };
        assert_eq!(own(students[0], asked).await, marked);
        assert_eq!(own(students[1], asked).await, OwnMark::Marked { seen: seen(2), status: None });
    }
    assert_eq!(own(stranger, Some(class)).await, OwnMark::NotEnrolled { seen: seen(2) });
    assert_eq!(own(stranger, None).await, OwnMark::NoSession { seen: None });
    world.finish(class, teacher).await;
    assert_eq!(own(students[0], Some(class)).await, OwnMark::NoSession { seen: Some(seen(3)) });
    assert_eq!(own(stranger, Some(class)).await, OwnMark::NoSession { seen: Some(seen(3)) }, "no session comes first");
}

/// Who leaves the class cannot be marked any more, but what was recorded stands.
pub async fn who_leaves_keeps_the_mark<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(3).await;
    let [marked, unmarked, back] = students[..] else { unreachable!("three were asked for") };
    let session = world.start(class, teacher).await;
    world.mark(class, teacher, marked, Status::Present).await;
    world.mark(class, teacher, back, Status::Late).await;
    for student in [marked, unmarked, back] {
        changed(world.store.remove_student(class, student, world.origin(teacher)).await.unwrap());
    }
    let again = world.order(Target::Class(class), mark(marked, Status::Absent), world.origin(teacher)).await;
    assert_eq!(refused(again), (Refusal::NotEnrolled, Some((class, Revision(6)))));
    world.enrol(class, back).await;
    let newcomer = world.student().await;
    world.enrol(class, newcomer).await;
    let correction = world.mark(class, teacher, back, Status::Excused).await;
    assert!(matches!(correction.entry.event, Event::Marked { old: Some(Status::Late), .. }));
    let events: Vec<_> = world.log(session.id).await.into_iter().map(|entry| entry.event).collect();
    assert_eq!(events[3], Event::Removed { student_id: marked });
    assert_eq!(events[7], Event::Enrolled { student_id: newcomer });
    world.finish(class, teacher).await;
    let records = world.store.records(session.id, None).await.unwrap();
    let stands: Vec<_> = records.iter().map(|record| (record.student_id, record.status)).collect();
    assert_eq!(stands, [(marked, Status::Present), (back, Status::Excused), (newcomer, Status::Absent)]);
}

/// Sessions newest first, logs by revision, a student's part alone: in pages without gaps or doubles.
pub async fn history_is_paged<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let mut sessions = Vec::new();
    for _ in 0..7 {
        sessions.push(world.start(class, teacher).await.id);
        for round in 0..5 {
            world.mark(class, teacher, students[round % 2], Status::ALL[round % 4]).await;
        }
        world.finish(class, teacher).await;
    }
    world.start(class, teacher).await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = world.store.sessions(class, Page { after, limit: 3 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.first_revision);
        found.extend(page);
    }
    let newest: Vec<_> = found.iter().skip(1).map(|info| info.id).rev().collect();
    assert_eq!(newest, sessions);
    assert_eq!(found[0].state, SessionState::Open, "the open one is the newest");

    let session = sessions[3];
    let whole = world.log(session).await;
    for student in [None, Some(students[0])] {
        let mine = |entry: &LogEntry| match entry.event {
            Event::Marked { student_id, .. } => student.is_none_or(|student| student == student_id),
            _ => student.is_none(),
        };
        let wanted: Vec<_> = whole.iter().filter(|entry| mine(entry)).cloned().collect();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = world.store.log(session, student, Page { after, limit: 2 }).await.unwrap();
            assert!(page.len() <= 2);
            let Some(last) = page.last() else { break };
            after = Some(last.revision);
            found.extend(page);
        }
        assert_eq!(found, wanted);
    }
    let other = world.class(teacher).await;
    assert_eq!(world.store.session(other, session).await.unwrap(), None, "a session is found in its own class alone");
}

/// Sessions that are open for longer than a time, by the store's clock.
pub async fn sessions_grow_old<S: Stores>(world: World<S>) {
    let day = Duration::from_hours(24);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        let (teacher, class, _) = world.course(1).await;
        sessions.push((class, teacher, world.start(class, teacher).await.id));
        world.clock.advance(Duration::from_hours(1));
    }
    assert!(world.store.sessions_older_than(day).await.unwrap().is_empty());
    world.clock.advance(Duration::from_mins(22 * 60 + 30));
    let old = world.store.sessions_older_than(day).await.unwrap();
    assert_eq!(old, [sessions[0].2, sessions[1].2]);
    let origin = Origin { by: Actor::System, door: Door::System, ..world.origin(UserId::NOTHING) };
    done(world.order(Target::Session(old[0]), Command::Finish, origin).await);
    assert_eq!(world.store.sessions_older_than(day).await.unwrap(), [sessions[1].2]);
    assert_eq!(world.store.count_open_sessions().await.unwrap(), 2);
    let open = world.store.open_sessions().await.unwrap();
    let mut open: Vec<_> = open.iter().map(|session| session.info().id).collect();
    open.sort_unstable();
    assert_eq!(open, [sessions[1].2, sessions[2].2]);
}

/// A log holds so many entries and no more; DONE and the roster always fit.
pub async fn a_full_log_takes_only_done<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    let mut receipts = Vec::new();
    for _ in 0..MAX_LOG_ENTRIES {
        receipts.push(world.submit(Target::Class(class), Command::Summarise, world.origin(teacher)).await);
    }
    let mut last = Revision(1);
    for receipt in receipts {
        match receipt.await.unwrap() {
            Outcome::Done(change) => last = change.entry.revision,
            refusal => assert_eq!(refused(refusal), (Refusal::LogFull, Some((class, last)))),
        }
    }
    assert_eq!(last, Revision(MAX_LOG_ENTRIES - 1));
    let present = world.order(Target::Class(class), mark(students[0], Status::Present), world.origin(teacher)).await;
    assert_eq!(refused(present), (Refusal::LogFull, Some((class, last))));
    let newcomer = world.student().await;
    world.enrol(class, newcomer).await;
    world.finish(class, teacher).await;
    assert_eq!(world.store.records(session.id, None).await.unwrap().len(), 2);
    let tail = Page { after: Some(last), limit: 10 };
    assert_eq!(world.store.log(session.id, None, tail).await.unwrap().len(), 2);
}
