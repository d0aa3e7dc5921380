//! What is there after an end, orderly or not.
//!
//! A killed process needs a process: a test binary that runs itself again. The child calls [`mark_until_killed`]; the
//! parent reads its output, kills it, and calls [`Acknowledged::check`] on the data that it left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use rollcall_core::session::{Command, Event, Revision, Status};
use rollcall_core::store::{Outcome, Store, Target};
use rollcall_core::{ClassId, SessionId, UserId};

use super::world::{Stores, World, changed, done, mark, notices};

/// Closed and opened again, everything is where it was: the open session, its marks, and what had been done already.
pub async fn what_was_open_goes_on_after_a_restart<S: Stores>(mut world: World<S>) {
    let (teacher, class, students) = world.course(3).await;
    let session = world.start(class, teacher).await;
    let named = world.named(teacher, "before");
    let first = done(world.order(Target::Class(class), mark(students[0], Status::Late), named.clone()).await);
    world.mark(class, teacher, students[1], Status::Present).await;
    let open = world.store.open_session(class).await.unwrap();
    world.restart().await;
    assert_eq!(world.store.open_session(class).await.unwrap(), open);
    assert_eq!(world.store.open_sessions().await.unwrap(), open.into_iter().collect::<Vec<_>>());
    let again = world.order(Target::Class(class), mark(students[0], Status::Late), named).await;
    assert_eq!(again, Outcome::Repeated(first));
    let next = world.mark(class, teacher, students[2], Status::Excused).await;
    assert_eq!(next.entry.revision, Revision(4));
    world.finish(class, teacher).await;
    world.restart().await;
    let records = world.store.records(session.id, None).await.unwrap();
    let statuses: Vec<_> = records.iter().map(|record| record.status).collect();
    assert_eq!(statuses, [Status::Late, Status::Present, Status::Excused]);
    assert_eq!(world.start(class, teacher).await.first_revision, Revision(6));
}

/// Marks students of several classes at once for as long as it lives, and writes a line for every mark that was
/// acknowledged. Sessions are finished and started again meanwhile.
pub async fn mark_until_killed<S: Stores + 'static>(world: World<S>) {
    let world = Arc::new(world);
    let mut teachers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (teacher, class, students) = world.course(5).await;
        changed(world.store.change_class(class, notices(true)).await.unwrap());
        let world = Arc::clone(&world);
        teachers.spawn(async move {
            for round in 0_usize.. {
                let session = world.start(class, teacher).await.id;
                say(class, session, Revision(0), "started");
                for number in 0..40 {
                    let student = students[number % students.len()];
                    let change = world.mark(class, teacher, student, Status::ALL[(round + number) % 4]).await;
                    say(class, session, change.entry.revision, &format!("{student}"));
                }
                let finish = world.finish(class, teacher).await;
                say(class, session, finish.entry.revision, "finished");
            }
        });
    }
    teachers.join_all().await;
}

/// One line, whole, before anything else is done.
fn say(class: ClassId, session: SessionId, revision: Revision, what: &str) {
    let line = format!("{MARKER} {class} {session} {revision} {what}\n");
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the parent reads until it kills");
}

/// Tells the child's lines from those of the test harness around it.
const MARKER: &str = "acknowledged";

/// What the child said before it was killed.
#[derive(Default)]
pub struct Acknowledged {
    sessions: BTreeMap<SessionId, (ClassId, Vec<(Revision, String)>)>,
    count: usize,
}

impl Acknowledged {
    /// Takes a line of the child's output; a line that was cut short by the kill, or is not the child's, says nothing.
    pub fn hear(&mut self, line: &str) {
        let mut words = line.strip_suffix('\n').unwrap_or_default().split(' ');
        if words.find(|word| word.ends_with(MARKER)).is_none() {
            return;
        }
        let (Some(class), Some(session), Some(revision), Some(what)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return;
        };
        let revision = Revision(revision.parse().expect("the child writes numbers"));
        let session = self.sessions.entry(SessionId::named(session)).or_insert((ClassId::named(class), Vec::new()));
        session.1.push((revision, what.to_owned()));
        self.count += 1;
    }

    /// How many lines were heard.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Everything that was acknowledged is in the store, nothing stands after DONE, and no revision is missing; and
    /// the class goes on.
    pub async fn check(&self, store: &dyn Store) {
        let noted = store.absences(1_000_000).await.unwrap();
        let noted: BTreeSet<_> = noted.iter().map(|noted| (noted.session_id, noted.class_id)).collect();
        for (id, (class, said)) in &self.sessions {
            let info = store.session(*class, *id).await.unwrap().expect("a session that was started");
            let log = store.log(*id, None, super::world::all()).await.unwrap();
            let wanted: Vec<_> = (info.first_revision.0..=info.revision.0).map(Revision).collect();
            assert_eq!(log.iter().map(|entry| entry.revision).collect::<Vec<_>>(), wanted, "revisions without a gap");
            for (revision, what) in said {
                let found = log.iter().find(|entry| entry.revision == *revision);
                match (what.as_str(), found.map(|entry| &entry.event)) {
                    ("started", _) | ("finished", Some(Event::Finished(_))) => {}
                    (student, Some(Event::Marked { student_id, .. })) => {
                        assert_eq!(UserId::named(student), *student_id);
                    }
                    _ => panic!("{what} at {revision} was acknowledged and is not there"),
                }
            }
            let done = log.iter().position(|entry| matches!(entry.event, Event::Finished(_)));
            assert!(done.is_none_or(|place| place + 1 == log.len()), "nothing after DONE");
            let open = store.open_session(*class).await.unwrap().filter(|open| open.info().id == *id);
            assert_eq!(open.is_some(), done.is_none());
            assert_eq!(noted.contains(&(*id, *class)), done.is_some(), "noted in the same step as the end");
            let mut last = BTreeMap::new();
            for entry in &log {
                if let Event::Marked { student_id, new, .. } = entry.event {
                    last.insert(student_id, new);
                }
            }
            if let Some(open) = open {
                let marks: BTreeMap<_, _> = open.marks().iter().map(|(id, mark)| (*id, mark.status)).collect();
                assert_eq!(marks, last);
                let origin = log[0].origin.clone();
                let receipt = store.submit(Target::Class(*class), Command::Summarise, origin).await.unwrap();
                let Outcome::Done(change) = receipt.await.unwrap() else { panic!("the class goes on") };
                assert_eq!(change.entry.revision, info.revision.next());
            } else {
                let records = store.records(*id, None).await.unwrap();
                let stands: BTreeMap<_, _> = records.iter().map(|record| (record.student_id, record.status)).collect();
                assert_eq!(stands, last, "every student was marked, and stands so");
            }
        }
    }
}
