//! The committed stream.

use std::collections::HashMap;
use std::time::Duration;

use rollcall_core::SessionId;
use rollcall_core::session::{Command, Event, LogEntry, Refusal, Status};
use rollcall_core::store::{Change, Cursor, Followed, StoreError, Target};
use rollcall_core::user::{AccountChange, Role};

use super::world::{Listener, PATIENCE, Stores, World, changed, done, mark, named, refused};

/// How soon what another process committed must be heard.
const SOON: Duration = Duration::from_secs(1);

/// Every follower hears all, in one order, which is that of each session's log.
pub async fn followers_hear_everything_in_order<S: Stores>(world: World<S>) {
    let (mut one, mut other) = (world.follow(None).await, world.follow(None).await);
    let (teacher, class, students) = world.course(4).await;
    let session = world.start(class, teacher).await;
    let mut receipts = Vec::new();
    for number in 0..200 {
        let command = mark(students[number % 4], Status::ALL[number % 3]);
        receipts.push(world.submit(Target::Class(class), command, world.origin(teacher)).await);
    }
    for receipt in receipts {
        done(receipt.await.unwrap());
    }
    world.finish(class, teacher).await;
    let log = world.log(session.id).await;
    let (mut heard, mut heard_by_other): (Vec<LogEntry>, Vec<_>) = (Vec::new(), Vec::new());
    for _ in &log {
        heard.push(one.session_change().await.entry.clone());
        heard_by_other.push(other.session_change().await.entry.clone());
    }
    assert_eq!(heard, log);
    assert_eq!(heard_by_other, log);
}

/// Accounts, classes, enrolments and sessions are told, in the order in which they were done.
pub async fn every_kind_of_change_is_told<S: Stores>(world: World<S>) {
    let mut listener = world.follow(None).await;
    let teacher = world.teacher().await;
    let student = world.user(Role::Student).await;
    let class_id = world.class(teacher).await;
    world.enrol(class_id, student).await;
    changed(world.store.change_class(class_id, named("Physics")).await.unwrap());
    let session = world.start(class_id, teacher).await;
    changed(world.store.remove_student(class_id, student, world.origin(teacher)).await.unwrap());
    world.enrol(class_id, student).await;
    world.store.change_user(student, AccountChange::Disable).await.unwrap();
    changed(world.store.archive_class(class_id, world.origin(teacher)).await.unwrap());
    let enrolment = |enrolled| Change::Enrolment { class_id, student_id: student, enrolled };
    let class = Change::Class { class_id, teacher_id: teacher };
    let told = listener.changes(13).await;
    let outside: Vec<_> = told.iter().filter(|change| !matches!(change, Change::Session(_))).cloned().collect();
    assert_eq!(
        outside,
        [
            Change::Account(teacher),
            Change::Account(student),
            class.clone(),
            enrolment(true),
            class.clone(),
            enrolment(false),
            enrolment(true),
            Change::Account(student),
            class,
        ]
    );
    let log = world.log(session.id).await;
    assert_eq!(log[1].event, Event::Removed { student_id: student });
    for (place, entry) in [(5, &log[0]), (7, &log[1]), (9, &log[2]), (11, &log[3])] {
        let Change::Session(change) = &told[place] else { panic!("{place}: {told:?}") };
        assert_eq!((&change.entry, change.session_id, change.class_id), (entry, session.id, class_id));
    }
}

/// From any place that was given, exactly what came after it is told.
pub async fn a_follower_resumes_at_its_place<S: Stores>(world: World<S>) {
    let mut whole = world.follow(None).await;
    let (teacher, class, students) = world.course(3).await;
    world.start(class, teacher).await;
    for number in 0..20 {
        world.mark(class, teacher, students[number % 3], Status::ALL[number % 4]).await;
        if number % 5 == 0 {
            world.student().await;
        }
    }
    world.finish(class, teacher).await;
    let count = 1 + 1 + 3 * 2 + 1 + 20 + 4 + 1;
    let mut committed = Vec::new();
    for _ in 0..count {
        committed.push(whole.committed().await);
    }
    for place in (0..count - 1).step_by(3) {
        // A place is that behind a whole batch.
        let cursor = &committed[place].1;
        let rest = committed.iter().rposition(|(_, other)| other == cursor).unwrap() + 1;
        let mut resumed = world.follow(Some(cursor.clone())).await;
        let wanted: Vec<_> = committed[rest..].iter().map(|(change, _)| change.clone()).collect();
        assert_eq!(resumed.changes(wanted.len()).await, wanted, "after change {rest}");
        let next = world.student().await;
        assert_eq!(resumed.change().await, Change::Account(next), "and then what is committed from now on");
        committed.push(whole.committed().await);
    }
}

/// A follower that is not read for long is given everything all the same, in order.
pub async fn a_slow_follower_misses_nothing<S: Stores>(world: World<S>) {
    const COMMITS: usize = 2_500;
    let mut slow = world.follow(None).await;
    let (teacher, class, _) = world.course(1).await;
    let session = world.start(class, teacher).await;
    for _ in 0..COMMITS {
        done(world.order(Target::Class(class), Command::Summarise, world.origin(teacher)).await);
    }
    let log = world.log(session.id).await;
    assert_eq!(log.len(), COMMITS + 1);
    for entry in &log {
        assert_eq!(slow.session_change().await.entry, *entry);
    }
    world.finish(class, teacher).await;
    assert!(matches!(slow.session_change().await.entry.event, Event::Finished(_)));
}

/// From a place that is not this stream's the follower is told so, and hears what comes after.
pub async fn an_unknown_place_is_lost<S: Stores>(world: World<S>) {
    world.teacher().await;
    for place in ["", "nonsense", "999999999999", "-1", "18446744073709551615", "99999999999999999999999"] {
        let mut listener = world.follow(Some(Cursor(place.into()))).await;
        assert_eq!(listener.item().await, Some(Followed::Lost), "{place:?}");
        let student = world.student().await;
        assert_eq!(listener.change().await, Change::Account(student));
    }
}

/// While nothing is committed the stream proves that it is alive, often enough to be believed.
pub async fn a_quiet_stream_is_alive<S: Stores>(world: World<S>) {
    let mut listener = world.follow(None).await;
    let alive = async {
        for _ in 0..20 {
            assert_eq!(listener.item().await, Some(Followed::Alive));
        }
    };
    // At least every 250 ms, with as much again for a loaded machine.
    tokio::time::timeout(20 * Duration::from_millis(500), alive).await.expect("20 signs of life");
}

/// So it does while something is committed all the time.
pub async fn a_busy_stream_is_alive<S: Stores>(world: World<S>) {
    let (teacher, class, _) = world.course(1).await;
    world.start(class, teacher).await;
    let mut listener = world.follow(None).await;
    let busy = async {
        loop {
            done(world.order(Target::Class(class), Command::Summarise, world.origin(teacher)).await);
        }
    };
    let alive = async {
        for _ in 0..10 {
            while listener.item().await.expect("the stream ended") != Followed::Alive {}
        }
    };
    tokio::select! {
        () = busy => {}
        alive = tokio::time::timeout(PATIENCE, alive) => alive.expect("10 signs of life"),
    }
}

/// What another process commits comes in its place, soon.
pub async fn what_another_process_commits_is_heard<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    let tool = S::beside(&world.data).await;
    let mut listener = world.follow(None).await;
    let account = world.account(Role::Teacher);
    tool.insert_user(account.clone(), None).await.unwrap();
    let heard = tokio::time::timeout(SOON, listener.change()).await.expect("heard within a second");
    assert_eq!(heard, Change::Account(account.id));

    let mut wanted = Vec::new();
    for number in 0..60 {
        let store = if number % 3 == 0 { &tool } else { &world.store };
        let command = mark(students[0], Status::ALL[number % 4]);
        let receipt = store.submit(Target::Session(session.id), command, world.origin(teacher)).await.unwrap();
        wanted.push(done(receipt.await.unwrap()));
    }
    let mut by_tool = Listener::new(tool.follow(None).await.unwrap());
    for change in &wanted {
        assert_eq!(listener.session_change().await, *change);
    }
    let last = world.finish(class, teacher).await;
    let heard = tokio::time::timeout(SOON, by_tool.session_change()).await.expect("heard within a second");
    assert_eq!(heard, last, "the other process hears too");
}

/// Whatever another process did before a command counts for the command.
pub async fn what_another_process_commits_counts_at_once<S: Stores>(world: World<S>) {
    let tool = S::beside(&world.data).await;
    for _ in 0..10 {
        let (teacher, class, students) = world.course(1).await;
        let session = world.start(class, teacher).await;
        world.mark(class, teacher, students[0], Status::Present).await;
        let newcomer = world.student().await;
        changed(tool.enrol(class, newcomer, world.origin(teacher)).await.unwrap());
        let marked = world.mark(class, teacher, newcomer, Status::Late).await;
        let finish = tool.submit(Target::Class(class), Command::Finish, world.origin(teacher)).await.unwrap();
        let finish = done(finish.await.unwrap());
        assert_eq!(finish.entry.revision, marked.entry.revision.next());
        let late = world.order(Target::Class(class), Command::Summarise, world.origin(teacher)).await;
        assert_eq!(refused(late), (Refusal::NoSession, Some((class, finish.entry.revision))));
        let mut revisions: HashMap<SessionId, Vec<u64>> = HashMap::new();
        for entry in world.log(session.id).await {
            revisions.entry(session.id).or_default().push(entry.revision.0);
        }
        assert_eq!(revisions[&session.id], [1, 2, 3, 4, 5]);
    }
}

/// After the end nothing hangs: streams end, and calls are refused.
pub async fn a_closed_store_answers_and_ends_its_streams<S: Stores>(world: World<S>) {
    world.store.ping().await.unwrap();
    let (teacher, class, students) = world.course(1).await;
    let session = world.start(class, teacher).await;
    let mut listener = world.follow(None).await;
    let receipt = world.submit(Target::Class(class), mark(students[0], Status::Late), world.origin(teacher)).await;
    S::close(&world.data).await;
    done(receipt.await.unwrap());
    let all = async {
        while listener.item().await.is_some() {}
        let refused = |error: StoreError| matches!(error, StoreError::Unavailable(_));
        assert!(refused(world.store.ping().await.unwrap_err()));
        assert!(refused(world.store.user(teacher).await.unwrap_err()));
        assert!(refused(world.store.insert_user(world.account(Role::Student), None).await.unwrap_err()));
        let command = world.store.submit(Target::Session(session.id), Command::Finish, world.origin(teacher)).await;
        assert!(refused(command.err().unwrap()));
        assert!(refused(world.store.follow(None).await.err().unwrap()));
    };
    tokio::time::timeout(PATIENCE, all).await.expect("nothing hangs");
}
