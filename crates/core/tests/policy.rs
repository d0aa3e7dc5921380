//! Who may do what: every role against every proof that the policy gives out.

use std::sync::Arc;

use rollcall_core::class::{Class, ClassName};
use rollcall_core::policy::{ClassAccess, Member, Participant, class_access};
use rollcall_core::user::{Account, Email, PasswordHash, PersonName, Role};
use rollcall_core::{ClassId, Error, Timestamp, UserId};

const ME: UserId = UserId::from_bytes([1; 12]);
const OTHER: UserId = UserId::from_bytes([2; 12]);

fn account(role: Role) -> Account {
    Account {
        id: ME,
        name: PersonName::stored("Me"),
        email: Email::stored("me@example.org"),
        role,
        password_hash: PasswordHash::stored(""),
        token_version: 3,
        disabled: false,
        email_confirmed: false,
        absence_notices: true,
        created_at: Timestamp::from_millis(0),
    }
}

fn member(role: Role) -> Member {
    Member::admit(Arc::new(account(role)), 3).expect("an enabled account's token of the right version")
}

fn class_of(teacher_id: UserId) -> Arc<Class> {
    let (id, name) = (ClassId::from_bytes([3; 12]), ClassName::stored("Algebra"));
    let created_at = Timestamp::from_millis(0);
    Arc::new(Class { id, name, teacher_id, archived: false, absence_notices: false, created_at })
}

/// The decision in a word; every other error is a mistake of the policy.
fn word<T>(decision: Result<T, Error>) -> &'static str {
    match decision {
        Ok(_) => "yes",
        Err(Error::TeacherRequired) => "teachers only",
        Err(Error::StudentRequired) => "students only",
        Err(Error::NotClassTeacher) => "not the class's teacher",
        Err(Error::Unauthenticated) => "not signed in",
        Err(error) => panic!("unexpected: {error:?}"),
    }
}

#[test]
fn a_token_is_good_for_an_enabled_account_of_its_version() {
    for (disabled, token, decision) in [
        (false, 3, "yes"),
        (false, 2, "not signed in"),
        (false, 4, "not signed in"),
        (true, 3, "not signed in"),
        (true, 2, "not signed in"),
    ] {
        for role in [Role::Teacher, Role::Student, Role::Admin] {
            let account = Account { disabled, ..account(role) };
            assert_eq!(word(Member::admit(Arc::new(account), token)), decision, "{role}, {disabled}, {token}");
        }
    }
}

#[test]
fn roles_get_their_own_proofs_and_no_others() {
    for (role, teacher, student, participant) in [
        (Role::Teacher, "yes", "students only", "yes"),
        (Role::Student, "teachers only", "yes", "yes"),
        (Role::Admin, "teachers only", "students only", "teachers only"),
    ] {
        let member = member(role);
        assert_eq!(member.id(), ME);
        assert_eq!(word(member.teacher()), teacher, "{role} as a teacher");
        assert_eq!(word(member.student()), student, "{role} as a student");
        assert_eq!(word(member.participant()), participant, "{role} in classes");
    }
    assert_eq!(member(Role::Teacher).teacher().unwrap().id(), ME);
    assert_eq!(member(Role::Student).student().unwrap().id(), ME);
}

#[test]
fn classes_are_their_teachers_own() {
    let teacher = member(Role::Teacher).teacher().unwrap();
    assert_eq!(teacher.own(class_of(ME)).unwrap().id(), class_of(ME).id);
    assert_eq!(word(teacher.own(class_of(OTHER))), "not the class's teacher");
}

#[test]
fn classes_are_seen_by_their_teacher_and_their_students() {
    for (role, owner, enrolled, decision) in [
        (Role::Teacher, ME, false, "yes"),
        (Role::Teacher, OTHER, false, "not the class's teacher"),
        // An enrolment from before somebody's role changed opens nothing.
        (Role::Teacher, OTHER, true, "not the class's teacher"),
        (Role::Student, OTHER, true, "yes"),
        (Role::Student, OTHER, false, "not the class's teacher"),
        // Nor does a class that somebody owned as a teacher.
        (Role::Student, ME, false, "not the class's teacher"),
    ] {
        let participant = member(role).participant().unwrap();
        let access = class_access(participant, class_of(owner), enrolled);
        match (&access, participant) {
            (Ok(ClassAccess::Owner(class)), Participant::Teacher(_)) => assert_eq!(class.class().teacher_id, ME),
            (Ok(ClassAccess::Enrolled(student, _)), Participant::Student(_)) => assert_eq!(student.id(), ME),
            (Ok(_), _) => panic!("{role} sees the class as somebody else"),
            (Err(_), _) => {}
        }
        assert_eq!(word(access), decision, "{role}, owner {owner}, enrolled {enrolled}");
    }
}
