//! Classes and who is in them.

use rollcall_core::class::{Class, ClassChange, ClassName};
use rollcall_core::session::{Counts, Event, Status};
use rollcall_core::store::{Change, ClassChanged, Page, Started};
use rollcall_core::{ClassId, SessionId, UserId};

use super::world::{Stores, World, all, changed, named, notices};

/// The order of enrolment is kept; enrolling twice and removing who is not there change nothing.
pub async fn students_stand_in_the_order_of_enrolment<S: Stores>(world: World<S>) {
    let teacher = world.teacher().await;
    let class = world.class(teacher).await;
    let mut wanted = world.students(5).await;
    wanted.reverse();
    for (number, student) in wanted.iter().enumerate() {
        let now = world.enrol(class, *student).await;
        assert_eq!(now.student_ids, wanted[..=number], "the answer is the class as it is then");
        assert_eq!(now.class.teacher_id, teacher);
    }
    let mut listener = world.follow(None).await;
    assert_eq!(world.enrol(class, wanted[1]).await.student_ids, wanted);
    let remove = |student| world.store.remove_student(class, student, world.origin(teacher));
    assert_eq!(changed(remove(wanted[0]).await.unwrap()).student_ids, wanted[1..]);
    assert_eq!(changed(remove(wanted[0]).await.unwrap()).student_ids, wanted[1..], "removing twice changes nothing");
    let first = wanted.remove(0);
    world.enrol(class, first).await;
    wanted.push(first);
    assert_eq!(world.store.student_ids(class).await.unwrap(), wanted, "who comes back stands last");
    let people = world.store.class_students(class).await.unwrap();
    assert_eq!(people.iter().map(|person| person.id).collect::<Vec<_>>(), wanted);
    let account = world.store.user(first).await.unwrap().unwrap();
    assert_eq!(people.last(), Some(&account.person()));
    assert!(world.store.is_enrolled(class, first).await.unwrap());
    assert!(!world.store.is_enrolled(class, teacher).await.unwrap());
    let enrolment = |enrolled| Change::Enrolment { class_id: class, student_id: first, enrolled };
    assert_eq!(listener.changes(2).await, [enrolment(false), enrolment(true)]);
}

/// The lists of a teacher and of a student, in pages, archived classes apart.
pub async fn classes_are_listed_by_teacher_and_student<S: Stores>(world: World<S>) {
    let (teacher, other) = (world.teacher().await, world.teacher().await);
    let student = world.student().await;
    let mut classes = Vec::new();
    for number in 0..9 {
        let class = world.class(if number == 4 { other } else { teacher }).await;
        world.enrol(class, student).await;
        classes.push(class);
    }
    classes.sort_unstable();
    let archived = classes.iter().copied().find(|class| *class == classes[7]).unwrap();
    changed(world.store.archive_class(archived, world.origin(teacher)).await.unwrap());
    let foreign = world.store.classes_of_teacher(other, false, all()).await.unwrap();
    let foreign = foreign[0].class.id;

    let mut of_teacher = Vec::new();
    let mut after = None;
    loop {
        let page = world.store.classes_of_teacher(teacher, false, Page { after, limit: 2 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.class.id);
        assert!(page.iter().all(|class| class.student_ids == [student]));
        of_teacher.extend(page.iter().map(|class| class.class.id));
    }
    let own: Vec<_> = classes.iter().copied().filter(|id| *id != archived && *id != foreign).collect();
    assert_eq!(of_teacher, own);
    let old = world.store.classes_of_teacher(teacher, true, all()).await.unwrap();
    assert_eq!(old.iter().map(|class| (class.class.id, class.class.archived)).collect::<Vec<_>>(), [(archived, true)]);

    let mut of_student = Vec::new();
    after = None;
    loop {
        let page = world.store.classes_of_student(student, Page { after, limit: 3 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        of_student.extend(page.iter().map(|class| class.id));
    }
    let active: Vec<_> = classes.iter().copied().filter(|id| *id != archived).collect();
    assert_eq!(of_student, active);

    let sorted = |mut ids: Vec<ClassId>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(world.store.class_ids_of(student).await.unwrap()), active);
    assert_eq!(sorted(world.store.class_ids_of(teacher).await.unwrap()), own);
    assert_eq!(world.store.class_ids_of(other).await.unwrap(), [foreign]);
}

/// What a change does not name stays; what changes nothing says nothing.
pub async fn a_class_is_changed_in_parts<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let mut wanted = world.store.class(class).await.unwrap().unwrap();
    assert!(!wanted.absence_notices);
    let mut listener = world.follow(None).await;
    let both = |name, wanted| ClassChange { name: Some(ClassName::stored(name)), absence_notices: Some(wanted) };
    let steps = [
        (named("Physics"), true),
        (named("Physics"), false),
        (notices(false), false),
        (notices(true), true),
        (notices(true), false),
        (ClassChange::default(), false),
        (both("Physics", true), false),
        (both("Physics", false), true),
        (both("Chemistry", false), true),
        (both("Physics", true), true),
    ];
    let mut told = Vec::new();
    for (change, changes) in steps {
        let next = wanted.clone().changed(change.clone());
        assert_eq!(next != wanted, changes);
        wanted = next;
        let now = changed(world.store.change_class(class, change).await.unwrap());
        assert_eq!((&now.class, &now.student_ids), (&wanted, &students));
        assert_eq!(world.store.class(class).await.unwrap().as_ref(), Some(&wanted));
        told.extend(changes.then_some(Change::Class { class_id: class, teacher_id: teacher }));
    }
    assert_eq!(world.store.classes_of_teacher(teacher, false, all()).await.unwrap()[0].class, wanted);
    assert_eq!(world.store.classes_of_student(students[0], all()).await.unwrap(), std::slice::from_ref(&wanted));
    let made = Class { id: ClassId(world.id()), ..wanted };
    world.store.insert_class(made.clone()).await.unwrap();
    assert_eq!(world.store.class(made.id).await.unwrap().as_ref(), Some(&made));
    told.push(Change::Class { class_id: made.id, teacher_id: teacher });
    assert_eq!(listener.changes(told.len()).await, told);
}

/// An archived class is kept and read, and takes nothing.
pub async fn an_archived_class_takes_no_changes<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let newcomer = world.student().await;
    let name = ClassName::stored("Physics");
    assert_eq!(changed(world.store.change_class(class, named("Physics")).await.unwrap()).class.name, name);
    let archived = changed(world.store.archive_class(class, world.origin(teacher)).await.unwrap());
    assert!(archived.class.archived);
    assert_eq!(archived.student_ids, students);
    let mut listener = world.follow(None).await;

    let origin = || world.origin(teacher);
    let answers = [
        world.store.change_class(class, named("Chemistry")).await.unwrap(),
        world.store.enrol(class, newcomer, origin()).await.unwrap(),
        world.store.remove_student(class, students[0], origin()).await.unwrap(),
        world.store.archive_class(class, origin()).await.unwrap(),
    ];
    assert!(answers.iter().all(|answer| *answer == ClassChanged::NoClass), "{answers:?}");
    let started = world.store.start(SessionId(world.id()), class, teacher, origin()).await.unwrap();
    assert_eq!(started, Started::NoClass);
    assert_eq!(world.store.class(class).await.unwrap(), Some(archived.class));
    assert_eq!(world.store.student_ids(class).await.unwrap(), students);
    let last = world.student().await;
    assert_eq!(listener.change().await, Change::Account(last), "what was refused is not told");
}

/// Archiving does what DONE would, in the same step.
pub async fn archiving_finishes_the_open_session<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let session = world.start(class, teacher).await;
    world.mark(class, teacher, students[0], Status::Late).await;
    let mut listener = world.follow(None).await;
    changed(world.store.archive_class(class, world.origin(teacher)).await.unwrap());
    assert_eq!(world.store.open_session(class).await.unwrap(), None);
    assert_eq!(world.store.count_open_sessions().await.unwrap(), 0);
    let records = world.store.records(session.id, None).await.unwrap();
    assert_eq!(records.iter().map(|record| record.status).collect::<Vec<_>>(), [Status::Late, Status::Absent]);
    let counts = Counts { late: 1, absent: 1, ..Counts::default() };
    let told = listener.changes(2).await;
    assert!(matches!(&told[0], Change::Session(change) if change.entry.event == Event::Finished(counts)));
    assert_eq!(told[1], Change::Class { class_id: class, teacher_id: teacher });
}

/// Ids that name nothing are answered, not failed on.
pub async fn what_is_not_there_is_not_found<S: Stores>(world: World<S>) {
    let nothing = ClassId(world.id());
    let (teacher, student) = (world.teacher().await, world.student().await);
    assert_eq!(world.store.class(nothing).await.unwrap(), None);
    assert_eq!(world.store.class(ClassId::NOTHING).await.unwrap(), None);
    assert!(world.store.student_ids(nothing).await.unwrap().is_empty());
    assert!(world.store.class_students(nothing).await.unwrap().is_empty());
    assert!(!world.store.is_enrolled(nothing, student).await.unwrap());
    assert!(world.store.class_ids_of(UserId(world.id())).await.unwrap().is_empty());
    assert_eq!(world.store.open_session(nothing).await.unwrap(), None);
    assert!(world.store.sessions(nothing, all()).await.unwrap().is_empty());
    assert_eq!(world.store.session(nothing, SessionId(world.id())).await.unwrap(), None);
    assert!(world.log(SessionId(world.id())).await.is_empty());
    assert!(world.store.marks(SessionId(world.id()), None).await.unwrap().is_empty());
    assert!(world.store.records(SessionId(world.id()), None).await.unwrap().is_empty());
    assert_eq!(world.store.last_record(nothing, student).await.unwrap(), None);
    let origin = || world.origin(teacher);
    let answers = [
        world.store.change_class(nothing, named("Chemistry")).await.unwrap(),
        world.store.enrol(nothing, student, origin()).await.unwrap(),
        world.store.remove_student(nothing, student, origin()).await.unwrap(),
        world.store.archive_class(nothing, origin()).await.unwrap(),
    ];
    assert!(answers.iter().all(|answer| *answer == ClassChanged::NoClass), "{answers:?}");
    let started = world.store.start(SessionId(world.id()), nothing, teacher, origin()).await.unwrap();
    assert_eq!(started, Started::NoClass);
}
