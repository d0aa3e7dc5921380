//! What happens when things happen at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use rollcall_core::session::{Command, Event, OperationId, Origin, Refusal, Revision, Status};
use rollcall_core::store::{Outcome, REPEAT_WINDOW, SessionChange, Started, Target};
use rollcall_core::{SessionId, UserId};

use super::world::{Stores, World, all, changed, done, mark, refused};

/// How often a race is run: each time it falls out as it likes.
const ROUNDS: usize = 25;

/// Of many starts at once one opens a session, and the others answer with it.
pub async fn starting_at_once_opens_one_session<S: Stores>(world: World<S>) {
    for _ in 0..ROUNDS {
        let (teacher, class, _) = world.course(1).await;
        let starts = (0..8).map(|_| world.store.start(SessionId(world.id()), class, teacher, world.origin(teacher)));
        let started = try_join_all(starts).await.unwrap();
        let new: Vec<_> =
            started.iter().filter_map(|one| if let Started::New(info) = one { Some(info) } else { None }).collect();
        assert_eq!(new.len(), 1);
        let same = |one: &Started| matches!(one, Started::New(info) | Started::Resumed(info) if info.id == new[0].id);
        assert!(started.iter().all(same), "{started:?}");
        assert_eq!(world.store.sessions(class, all()).await.unwrap().len(), 1);
    }
}

/// Of many DONEs at once one ends the session.
pub async fn finishing_at_once_finishes_once<S: Stores>(world: World<S>) {
    for _ in 0..ROUNDS {
        let (teacher, class, students) = world.course(2).await;
        let session = world.start(class, teacher).await;
        let attempts = (0..8).map(|number| {
            let target = [Target::Class(class), Target::OpenedBy(teacher), Target::Session(session.id)][number % 3];
            world.order(target, Command::Finish, world.origin(teacher))
        });
        let outcomes = join_all(attempts).await;
        let finished = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Done(_))).count();
        assert_eq!(finished, 1, "{outcomes:?}");
        let others = outcomes.into_iter().filter(|outcome| !matches!(outcome, Outcome::Done(_)));
        assert!(others.map(refused).all(|(refusal, _)| refusal == Refusal::NoSession));
        assert_eq!(world.store.records(session.id, None).await.unwrap().len(), students.len());
        assert_eq!(world.log(session.id).await.len(), 2);
    }
}

/// A mark that was acknowledged stands in the records; one that came after DONE was refused.
pub async fn no_mark_lands_after_done<S: Stores>(world: World<S>) {
    for round in 0..ROUNDS {
        let (teacher, class, students) = world.course(12).await;
        let session = world.start(class, teacher).await;
        let marks = students.iter().enumerate().map(|(number, student)| {
            let world = &world;
            async move {
                if number % 2 == 1 {
                    tokio::task::yield_now().await;
                }
                let command = mark(*student, Status::ALL[(round + number) % 4]);
                world.order(Target::Class(class), command, world.origin(teacher)).await
            }
        });
        let finish = async {
            for _ in 0..round % 4 {
                tokio::task::yield_now().await;
            }
            world.finish(class, teacher).await
        };
        let (outcomes, finish) = tokio::join!(join_all(marks), finish);
        let mut stands: BTreeMap<UserId, Status> = students.iter().map(|id| (*id, Status::Absent)).collect();
        for outcome in outcomes {
            match outcome {
                Outcome::Done(change) => {
                    assert!(change.entry.revision < finish.entry.revision, "a mark after DONE");
                    let Event::Marked { student_id, new, .. } = change.entry.event else { panic!("a mark was given") };
                    stands.insert(student_id, new);
                }
                refusal => assert_eq!(refused(refusal), (Refusal::NoSession, Some((class, finish.entry.revision)))),
            }
        }
        let records = world.store.records(session.id, None).await.unwrap();
        let recorded: BTreeMap<_, _> = records.iter().map(|record| (record.student_id, record.status)).collect();
        assert_eq!(recorded, stands);
    }
}

/// Whoever is enrolled while a session starts is on its roster, before its first entry or by one of its own.
pub async fn enrolment_meets_start<S: Stores>(world: World<S>) {
    for round in 0..ROUNDS {
        let (teacher, class, _) = world.course(1).await;
        let newcomer = world.student().await;
        let enrol = async {
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            world.enrol(class, newcomer).await
        };
        let (session, _) = tokio::join!(world.start(class, teacher), enrol);
        let open = world.store.open_session(class).await.unwrap().unwrap();
        assert!(open.roster().contains(&newcomer));
        let enrolled = world.log(session.id).await.len() - 1;
        assert!(enrolled <= 1);
        world.mark(class, teacher, newcomer, Status::Present).await;
        world.finish(class, teacher).await;
        assert_eq!(world.store.records(session.id, None).await.unwrap().len(), 2);
    }
}

/// Whoever is enrolled while a session ends has a record if the log says so, and none if not.
pub async fn enrolment_meets_done<S: Stores>(world: World<S>) {
    for round in 0..ROUNDS {
        let (teacher, class, students) = world.course(2).await;
        let newcomer = world.student().await;
        let session = world.start(class, teacher).await;
        let roster = async {
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            world.enrol(class, newcomer).await;
            changed(world.store.remove_student(class, students[0], world.origin(teacher)).await.unwrap());
        };
        tokio::join!(world.finish(class, teacher), roster);
        let log = world.log(session.id).await;
        assert!(matches!(log.last().unwrap().event, Event::Finished(_)), "nothing follows DONE");
        let happened = |event: &Event| log.iter().any(|entry| entry.event == *event);
        let records = world.store.records(session.id, None).await.unwrap();
        let has_record = |student| records.iter().any(|record| record.student_id == student);
        assert_eq!(has_record(newcomer), happened(&Event::Enrolled { student_id: newcomer }));
        assert_eq!(has_record(students[0]), !happened(&Event::Removed { student_id: students[0] }));
        assert_eq!(world.store.student_ids(class).await.unwrap(), [students[1], newcomer]);
    }
}

fn repeated(outcome: Outcome) -> Arc<SessionChange> {
    match outcome {
        Outcome::Repeated(change) => change,
        other => panic!("it had been done before: {other:?}"),
    }
}

/// A command that its client sends again under the same name is answered with what it did, and not done again.
pub async fn the_same_operation_is_done_once<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let session = world.start(class, teacher).await;
    let here = Target::Class(class);
    let present = || mark(students[0], Status::Present);
    let named = |name: &str| world.named(teacher, name);

    // Twice in the queue before either is committed.
    let first = world.submit(here, present(), named("a")).await;
    let second = world.submit(Target::OpenedBy(teacher), present(), named("a")).await;
    let change = done(first.await.unwrap());
    assert_eq!(repeated(second.await.unwrap()), change);

    // Not the same: another student, status, reason, kind, actor, or a name that a door made.
    let reason = rollcall_core::session::Reason::parse("ill").unwrap();
    let because = Command::Mark { student_id: students[0], status: Status::Present, reason };
    for command in [mark(students[1], Status::Present), mark(students[0], Status::Late), because, Command::Summarise] {
        let other = done(world.order(here, command.clone(), named("a")).await);
        assert_eq!(repeated(world.order(here, command, named("a")).await), other);
    }
    done(world.order(here, present(), world.named(students[0], "a")).await);
    let door = Origin { operation: OperationId::Door("a".into()), ..world.origin(teacher) };
    done(world.order(here, present(), door.clone()).await);
    done(world.order(here, present(), door).await);
    assert_eq!(repeated(world.order(here, present(), named("a")).await), change);
    done(world.order(here, mark(students[1], Status::Late), named("a")).await);

    // DONE again, after the session ended, in whatever way the session is named.
    let finish = done(world.order(Target::OpenedBy(teacher), Command::Finish, named("a")).await);
    for target in [here, Target::OpenedBy(teacher), Target::Session(session.id)] {
        assert_eq!(repeated(world.order(target, Command::Finish, named("a")).await), finish);
        assert_eq!(repeated(world.order(target, present(), named("a")).await), change);
    }
    assert_eq!(refused(world.order(here, Command::Finish, named("b")).await).0, Refusal::NoSession);

    // Another class numbers its requests for itself.
    let other = world.class(teacher).await;
    world.enrol(other, students[0]).await;
    let next = world.start(other, teacher).await;
    for target in [Target::Class(other), Target::Session(next.id)] {
        let command = mark(students[0], if target == Target::Class(other) { Status::Present } else { Status::Absent });
        let there = done(world.order(target, command.clone(), named("a")).await);
        assert_eq!(there.class_id, other);
        assert_eq!(repeated(world.order(target, command, named("a")).await), there);
    }
    // And DONE that went to the first class is not done to the second.
    assert_eq!(repeated(world.order(here, Command::Finish, named("a")).await), finish);
    assert!(world.store.open_session(other).await.unwrap().is_some());
}

/// Outside the window a name is free again, whether the clock went forward or was set back.
pub async fn an_operation_id_is_forgotten_after_a_while<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    world.start(class, teacher).await;
    let here = Target::Class(class);
    let give = |origin: Origin| world.order(here, mark(students[0], Status::Present), origin);
    let first = done(give(world.named(teacher, "1")).await);
    let moment = Duration::from_millis(1);
    world.clock.advance(REPEAT_WINDOW.saturating_sub(moment));
    assert_eq!(repeated(give(world.named(teacher, "1")).await), first);
    let set_back = Origin { at: first.entry.origin.at.before(REPEAT_WINDOW / 2), ..world.named(teacher, "1") };
    assert_eq!(repeated(give(set_back).await), first);
    world.clock.advance(moment);
    let second = done(give(world.named(teacher, "1")).await);
    assert_eq!(repeated(give(world.named(teacher, "1")).await), second);
    world.finish(class, teacher).await;
    world.clock.advance(REPEAT_WINDOW);
    assert_eq!(refused(give(world.named(teacher, "1")).await).0, Refusal::NoSession);
}

/// Commands take effect in the order in which they entered the queue, though nobody waited for any.
pub async fn commands_keep_their_order<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(3).await;
    let session = world.start(class, teacher).await;
    let mut receipts = Vec::new();
    let mut wanted = Vec::new();
    for number in 0..300 {
        let (student, status) = (students[number % 3], Status::ALL[number % 4]);
        wanted.push((student, status));
        let target = [Target::Class(class), Target::OpenedBy(teacher), Target::Session(session.id)][number % 3];
        receipts.push(world.submit(target, mark(student, status), world.origin(teacher)).await);
    }
    let finish = world.submit(Target::Class(class), Command::Finish, world.origin(teacher)).await;
    let late = world.submit(Target::Class(class), Command::Summarise, world.origin(teacher)).await;
    // Waited for from the last to the first: whoever waits does not decide the order.
    assert_eq!(refused(late.await.unwrap()), (Refusal::NoSession, Some((class, Revision(302)))));
    assert_eq!(done(finish.await.unwrap()).entry.revision, Revision(302));
    for (number, receipt) in receipts.into_iter().enumerate().rev() {
        let change = done(receipt.await.unwrap());
        assert_eq!(change.entry.revision, Revision(number as u64 + 2));
        let Event::Marked { student_id, new, .. } = change.entry.event else { panic!("a mark was given") };
        assert_eq!((student_id, new), wanted[number]);
    }
}

/// Many sessions at once, each with a teacher of its own: none hears or loses anything of another.
pub async fn many_sessions_do_not_mix<S: Stores>(world: World<S>) {
    const SESSIONS: usize = 24;
    let mut courses = Vec::new();
    for _ in 0..SESSIONS {
        courses.push(world.course(6).await);
    }
    let mut listener = world.follow(None).await;
    let lives = courses.iter().enumerate().map(|(number, (teacher, class, students))| {
        let world = &world;
        async move {
            let session = world.start(*class, *teacher).await;
            for (place, student) in students.iter().enumerate() {
                world.mark(*class, *teacher, *student, Status::ALL[(number + place) % 4]).await;
            }
            let target = Target::OpenedBy(*teacher);
            done(world.order(target, Command::Summarise, world.origin(*teacher)).await);
            done(world.order(target, Command::Finish, world.origin(*teacher)).await);
            session.id
        }
    });
    let sessions = join_all(lives).await;
    for (number, session) in sessions.iter().enumerate() {
        let log = world.log(*session).await;
        assert_eq!(log.len(), 9);
        assert!(log.iter().zip(1..).all(|(entry, revision)| entry.revision == Revision(revision)));
        let records = world.store.records(*session, None).await.unwrap();
        let statuses: Vec<_> = records.iter().map(|record| record.status).collect();
        assert_eq!(statuses, (0..6).map(|place| Status::ALL[(number + place) % 4]).collect::<Vec<_>>());
    }
    let mut last: HashMap<SessionId, Revision> = HashMap::new();
    for _ in 0..SESSIONS * 9 {
        let change = listener.session_change().await;
        let revision = last.entry(change.session_id).or_default();
        assert_eq!(change.entry.revision, revision.next(), "each session is told in its order");
        *revision = change.entry.revision;
    }
}
