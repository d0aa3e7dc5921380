//! Mails that wait to be sent, and the tokens in them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use futures_util::future::{join, join_all};
use rollcall_core::id::MailId;
use rollcall_core::mail::{ASK_AGAIN, Fate, Kind, Mail, NewMail, Reason, TokenHash};
use rollcall_core::session::{Command, Refusal, Status};
use rollcall_core::store::{Absences, Change, Inserted, Target};
use rollcall_core::user::{Account, AccountChange, Email, PasswordHash, Role};
use rollcall_core::{ClassId, Clock, SessionId, Timestamp, UserId};

use super::world::{Stores, World, all, changed, done, notices, refused};

/// For how long a mail is taken.
const LEASE: Duration = Duration::from_mins(5);
const MOMENT: Duration = Duration::from_millis(1);

fn token(number: u8) -> TokenHash {
    TokenHash::from_bytes([number; 32])
}

fn absence(class_id: ClassId, session_id: SessionId) -> Reason {
    Reason::Absence { class_id, session_id }
}

impl<S: Stores> World<S> {
    /// A mail without a token, as somebody asks for it now.
    fn mail(&self, to: UserId, reason: Reason) -> NewMail {
        let now = self.clock.now();
        let id = MailId(self.id());
        NewMail { id, to, reason, token: None, queued_at: now, replaces_before: now.before(ASK_AGAIN) }
    }

    /// A mail with a token.
    fn mail_with(&self, to: UserId, reason: Reason, number: u8) -> NewMail {
        NewMail { token: Some(token(number)), ..self.mail(to, reason) }
    }

    async fn queue(&self, mail: NewMail) {
        self.store.queue_mails(vec![mail]).await.unwrap();
    }

    async fn take(&self, limit: u32) -> Vec<Mail> {
        let now = self.clock.now();
        self.store.take_mails(now, now.after(LEASE), limit).await.unwrap()
    }

    async fn settle(&self, mail: &Mail, fate: Fate) {
        self.store.settle_mail(mail, fate).await.unwrap();
    }

    async fn owner(&self, number: u8, kind: Kind) -> Option<UserId> {
        self.store.token_owner(token(number), kind, self.clock.now()).await.unwrap()
    }

    async fn use_token(&self, number: u8, kind: Kind, change: AccountChange) -> Option<Account> {
        self.store.use_token(token(number), kind, self.clock.now(), change).await.unwrap()
    }

    async fn noted(&self) -> BTreeSet<(SessionId, ClassId)> {
        let noted = self.store.absences(1_000).await.unwrap();
        let set: BTreeSet<_> = noted.iter().map(|noted| (noted.session_id, noted.class_id)).collect();
        assert_eq!(set.len(), noted.len());
        set
    }
}

/// The mail as it is given to whoever sends it.
fn given(mail: &NewMail, attempt: u32) -> Mail {
    Mail { id: mail.id, to: mail.to, reason: mail.reason, queued_at: mail.queued_at, attempt }
}

fn reset(hash: &str) -> AccountChange {
    AccountChange::ResetPassword(PasswordHash::stored(hash))
}

/// A mail is given to one at a time, those first that have waited longest, until it is over.
pub async fn mails_are_taken_when_they_are_due<S: Stores>(world: World<S>) {
    let before = world.clock.now().before(MOMENT);
    let mut queued = Vec::new();
    for reason in [Reason::ConfirmEmail, Reason::ResetPassword, Reason::ConfirmEmail] {
        queued.push(world.mail(UserId(world.id()), reason));
        world.clock.advance(MOMENT);
    }
    // Not in the order in which they are due.
    world.store.queue_mails(vec![queued[1].clone(), queued[2].clone(), queued[0].clone()]).await.unwrap();
    assert_eq!(world.store.take_mails(before, before.after(LEASE), 10).await.unwrap(), [], "none is due so early");
    assert_eq!(world.take(0).await, []);
    let first = world.take(2).await;
    assert_eq!(first, [given(&queued[0], 1), given(&queued[1], 1)]);
    let rest = world.take(2).await;
    assert_eq!(rest, [given(&queued[2], 1)]);
    assert_eq!(world.take(2).await, []);

    // One was accepted, one is tried again soon, of the third nothing is heard any more.
    world.settle(&first[0], Fate::Over).await;
    world.settle(&first[1], Fate::Due(world.clock.now().after(Duration::from_mins(1)))).await;
    world.clock.advance(Duration::from_mins(1).saturating_sub(MOMENT));
    assert_eq!(world.take(10).await, []);
    world.clock.advance(MOMENT);
    let second = world.take(10).await;
    assert_eq!(second, [given(&queued[1], 2)]);
    world.settle(&second[0], Fate::Due(world.clock.now().after(LEASE))).await;
    world.clock.advance(LEASE);
    let third = world.take(10).await;
    assert_eq!(third, [given(&queued[2], 2), given(&queued[1], 3)], "whoever is not heard of loses it");

    // Who lost it has no say any more, and what is over stays so.
    world.settle(&rest[0], Fate::Due(world.clock.now())).await;
    world.settle(&second[0], Fate::Due(world.clock.now())).await;
    assert_eq!(world.take(10).await, []);
    world.settle(&third[1], Fate::Over).await;
    world.settle(&third[1], Fate::Due(world.clock.now())).await;
    world.settle(&first[0], Fate::Due(world.clock.now())).await;
    world.clock.advance(LEASE);
    assert_eq!(world.take(10).await, [given(&queued[2], 3)]);
    // But what was accepted was, whoever took it since.
    world.settle(&rest[0], Fate::Over).await;
    world.clock.advance(LEASE);
    assert_eq!(world.take(10).await, []);
}

/// Of one person and one reason there is one mail, and a newer one's token is the only one.
pub async fn a_newer_mail_takes_the_place_of_an_older<S: Stores>(world: World<S>) {
    let (student, other) = (world.student().await, world.student().await);
    let old = world.mail_with(student, Reason::ResetPassword, 1);
    world.queue(old.clone()).await;
    world.queue(world.mail_with(student, Reason::ConfirmEmail, 2)).await;
    world.queue(world.mail_with(other, Reason::ResetPassword, 3)).await;
    let taken = world.take(10).await;
    assert_eq!(taken.len(), 3, "another reason and another person are another mail");

    world.clock.advance(ASK_AGAIN);
    world.queue(world.mail_with(student, Reason::ResetPassword, 4)).await;
    assert_eq!(world.owner(4, Kind::ResetPassword).await, None, "somebody asked again too soon");
    assert_eq!(world.owner(1, Kind::ResetPassword).await, Some(student));
    assert_eq!(world.take(10).await, []);
    world.clock.advance(MOMENT);
    let new = world.mail_with(student, Reason::ResetPassword, 5);
    world.queue(new.clone()).await;
    world.queue(new.clone()).await;
    assert_eq!(world.owner(1, Kind::ResetPassword).await, None);
    assert_eq!(world.use_token(1, Kind::ResetPassword, reset("x")).await, None);
    assert_eq!(world.owner(5, Kind::ResetPassword).await, Some(student));
    assert_eq!(world.owner(2, Kind::ConfirmEmail).await, Some(student));
    assert_eq!(world.owner(3, Kind::ResetPassword).await, Some(other));

    // Whoever still sends the old one does not settle the new one.
    let old = taken.into_iter().find(|mail| mail.id == old.id).unwrap();
    assert_eq!(world.take(10).await, [given(&new, 1)]);
    world.settle(&old, Fate::Due(world.clock.now())).await;
    assert_eq!(world.take(10).await, []);
    world.settle(&given(&new, 1), Fate::Over).await;
    world.queue(new.clone()).await;
    assert_eq!(world.take(10).await, [], "the same once more sends nothing again");
}

/// A thousand at once, by two who do not know of each other, over some that are there: each is there once.
pub async fn many_mails_are_queued_at_once<S: Stores>(world: World<S>) {
    let (class, session) = (ClassId(world.id()), SessionId(world.id()));
    let people: Vec<_> = (0..1_000).map(|_| UserId(world.id())).collect();
    let mails = || {
        let never = Timestamp::from_millis(i64::MIN);
        let one = |to: &UserId| NewMail { replaces_before: never, ..world.mail(*to, absence(class, session)) };
        people.iter().map(one).collect::<Vec<_>>()
    };
    world.store.queue_mails(Vec::new()).await.unwrap();
    let early: Vec<_> = mails().into_iter().step_by(10).collect();
    world.store.queue_mails(early.clone()).await.unwrap();
    world.clock.advance(MOMENT);
    assert_eq!(world.take(1_000).await.len(), early.len());
    let other = S::beside(&world.data).await;
    let (one, two) = join(world.store.queue_mails(mails()), other.queue_mails(mails())).await;
    one.and(two).unwrap();
    let again: Vec<_> = world.take(10_000).await;
    assert_eq!(again.len(), people.len() - early.len());
    let mut reached: Vec<_> = early.iter().map(|mail| mail.to).chain(again.iter().map(|mail| mail.to)).collect();
    reached.sort_unstable();
    assert_eq!(reached, people);
}

/// Several who take at once are given different mails, and all of them.
pub async fn takers_do_not_share_a_mail<S: Stores>(world: World<S>) {
    const MAILS: usize = 120;
    let other = S::beside(&world.data).await;
    for round in 1..=3 {
        let mails: Vec<_> = (0..MAILS).map(|_| world.mail(UserId(world.id()), Reason::ConfirmEmail)).collect();
        if round == 1 {
            world.store.queue_mails(mails).await.unwrap();
        }
        let now = world.clock.now();
        let takers = (0..6).map(|number| {
            let store = if number % 2 == 0 { &world.store } else { &other };
            async move {
                let mut taken = Vec::new();
                loop {
                    let some = store.take_mails(now, now.after(LEASE), 7).await.unwrap();
                    assert!(some.len() <= 7);
                    if some.is_empty() {
                        return taken;
                    }
                    taken.extend(some);
                }
            }
        });
        let taken: Vec<_> = join_all(takers).await.into_iter().flatten().collect();
        assert!(taken.iter().all(|mail| mail.attempt == round), "each was taken once in each round");
        let ids: HashSet<_> = taken.iter().map(|mail| mail.id.0).collect();
        assert_eq!((ids.len(), taken.len()), (MAILS, MAILS));
        world.clock.advance(LEASE);
    }
}

/// With an account its welcome is queued, and without an account none.
pub async fn an_account_comes_with_its_welcome<S: Stores>(world: World<S>) {
    let mut listener = world.follow(None).await;
    let account = world.account(Role::Student);
    let welcome = world.mail_with(account.id, Reason::ConfirmEmail, 1);
    let inserted = world.store.insert_user(account.clone(), Some(welcome.clone())).await.unwrap();
    assert_eq!(inserted, Inserted::Created);
    assert_eq!(world.take(10).await, [given(&welcome, 1)]);
    assert_eq!(world.owner(1, Kind::ConfirmEmail).await, Some(account.id));
    assert_eq!(world.store.user(account.id).await.unwrap(), Some(account.clone()));

    let late = Account { email: account.email.clone(), ..world.account(Role::Student) };
    let welcome = world.mail_with(late.id, Reason::ConfirmEmail, 2);
    let inserted = world.store.insert_user(late.clone(), Some(welcome)).await.unwrap();
    assert_eq!(inserted, Inserted::EmailExists);
    assert_eq!(world.take(10).await, []);
    assert_eq!(world.owner(2, Kind::ConfirmEmail).await, None);
    let last = world.student().await;
    assert_eq!(listener.changes(2).await, [account.id, last].map(Change::Account));
}

/// Of many who want one address at once one gets it, and a mail.
pub async fn who_loses_an_address_gets_no_mail<S: Stores>(world: World<S>) {
    let other = S::beside(&world.data).await;
    for round in 0..5 {
        let address = Email::stored(format!("wanted{round}@example.org"));
        let wanted: Vec<_> =
            (0..8).map(|_| Account { email: address.clone(), ..world.account(Role::Student) }).collect();
        let inserting = wanted.iter().enumerate().map(|(number, account)| {
            let store = if number % 2 == 0 { &world.store } else { &other };
            // Accounts that the operator makes get none.
            let welcome = (number != 7).then(|| world.mail(account.id, Reason::ConfirmEmail));
            store.insert_user(account.clone(), welcome)
        });
        let inserted = join_all(inserting).await;
        let created: Vec<_> =
            inserted.iter().map(|inserted| *inserted.as_ref().unwrap() == Inserted::Created).collect();
        assert_eq!(created.iter().filter(|created| **created).count(), 1, "one address, one account");
        let winner = created.iter().position(|created| *created).unwrap();
        let found = world.store.user_by_email(&address.key()).await.unwrap().unwrap();
        assert_eq!(found, wanted[winner]);
        let mails = world.take(100).await;
        let to: Vec<_> = mails.iter().map(|mail| mail.to).collect();
        assert_eq!(to, if winner == 7 { vec![] } else { vec![found.id] });
    }
    assert_eq!(world.store.users(all()).await.unwrap().len(), 5, "nothing is left of those who came too late");
}

/// What somebody waits for is sent before notices, however many those are and however long they wait.
pub async fn notices_wait_for_what_somebody_waits_for<S: Stores>(world: World<S>) {
    let reader = UserId(world.id());
    for _ in 0..3 {
        world.queue(world.mail(reader, absence(ClassId(world.id()), SessionId(world.id())))).await;
        world.clock.advance(MOMENT);
    }
    let reset = world.mail(reader, Reason::ResetPassword);
    world.queue(reset.clone()).await;
    assert_eq!(world.take(1).await, [given(&reset, 1)]);
    assert_eq!(world.take(2).await.len(), 2);
    let confirm = world.mail(reader, Reason::ConfirmEmail);
    world.queue(confirm.clone()).await;
    let last = world.take(10).await;
    assert_eq!((&last[0], last.len()), (&given(&confirm, 1), 2));

    let since = |kind, since| world.store.mails_since(reader, kind, since);
    let now = world.clock.now();
    assert_eq!(since(Kind::Absence, now.before(MOMENT)).await.unwrap(), 1);
    assert_eq!(since(Kind::Absence, now.before(3 * MOMENT)).await.unwrap(), 3);
    assert_eq!(since(Kind::ResetPassword, now).await.unwrap(), 1);
    assert_eq!(world.store.mails_since(UserId(world.id()), Kind::Absence, now.before(LEASE)).await.unwrap(), 0);
}

/// A clock that was set back keeps nobody from a mail for as long as it was ahead.
pub async fn a_mail_from_the_future_stands_in_nobodys_way<S: Stores>(world: World<S>) {
    let student = world.student().await;
    let ahead = world.clock.now().after(30 * LEASE);
    let first = world.mail_with(student, Reason::ResetPassword, 1);
    world.queue(NewMail { queued_at: ahead, replaces_before: ahead, ..first }).await;
    let second = world.mail_with(student, Reason::ResetPassword, 2);
    world.queue(second.clone()).await;
    assert_eq!(world.take(10).await, [given(&second, 1)]);
    assert_eq!(world.owner(1, Kind::ResetPassword).await, None);
}

/// Whoever ends an account's tokens ends the link to a new password too, or what was sent would open it again.
pub async fn what_ends_tokens_ends_the_link_to_reset_the_password<S: Stores>(world: World<S>) {
    let changes = [
        AccountChange::SetPassword(PasswordHash::stored("$2b$10$chosen")),
        AccountChange::Disable,
        AccountChange::ResetPassword(PasswordHash::stored("$2b$10$chosen")),
    ];
    for (number, change) in (1..).zip(changes) {
        let student = world.student().await;
        world.queue(world.mail_with(student, Reason::ResetPassword, 2 * number)).await;
        world.queue(world.mail_with(student, Reason::ConfirmEmail, 2 * number + 1)).await;
        world.store.change_user(student, AccountChange::AbsenceNotices(false)).await.unwrap();
        assert_eq!(world.owner(2 * number, Kind::ResetPassword).await, Some(student));
        world.store.change_user(student, change).await.unwrap();
        world.store.change_user(student, AccountChange::Enable).await.unwrap();
        assert_eq!(world.owner(2 * number, Kind::ResetPassword).await, None);
        assert_eq!(world.owner(2 * number + 1, Kind::ConfirmEmail).await, Some(student));
    }
}

/// Whoever uses a token at the same moment, it is used once.
pub async fn a_token_is_used_once<S: Stores>(world: World<S>) {
    let other = S::beside(&world.data).await;
    for number in 0..10 {
        let student = world.student().await;
        world.queue(world.mail_with(student, Reason::ResetPassword, number)).await;
        let hashes: Vec<_> = (0..12).map(|place| format!("$2b$10$chosen-{place}")).collect();
        let now = world.clock.now();
        let mut listener = world.follow(None).await;
        let using = hashes.iter().enumerate().map(|(place, hash)| {
            let store = if place % 2 == 0 { &world.store } else { &other };
            store.use_token(token(number), Kind::ResetPassword, now, reset(hash))
        });
        let used: Vec<_> = join_all(using).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<_> =
            hashes.iter().zip(&used).filter_map(|(hash, used)| Some((hash, used.as_ref()?))).collect();
        let [(hash, account)] = winners[..] else { panic!("one wins: {winners:?}") };
        assert_eq!(account.password_hash.expose(), hash);
        assert_eq!((account.id, account.token_version, account.email_confirmed), (student, 4, true));
        assert_eq!(world.store.user(student).await.unwrap().as_ref(), Some(account));
        assert_eq!(world.owner(number, Kind::ResetPassword).await, None);
        assert_eq!(world.take(10).await, [], "nobody needs the mail any more");
        let last = world.student().await;
        assert_eq!(listener.changes(2).await, [student, last].map(Change::Account), "told once");
    }
}

/// What is no token, or not any more, or of somebody who must not, changes nothing.
pub async fn a_token_that_is_not_good_changes_nothing<S: Stores>(world: World<S>) {
    let student = world.student().await;
    let before = world.store.user(student).await.unwrap().unwrap();
    assert_eq!(world.owner(1, Kind::ConfirmEmail).await, None);
    assert_eq!(world.use_token(1, Kind::ConfirmEmail, AccountChange::ConfirmEmail).await, None);
    world.queue(world.mail_with(student, Reason::ConfirmEmail, 1)).await;
    world.queue(world.mail_with(UserId(world.id()), Reason::ResetPassword, 2)).await;
    assert_eq!(world.owner(1, Kind::ResetPassword).await, None, "a token of another kind");
    assert_eq!(world.use_token(1, Kind::ResetPassword, reset("x")).await, None);
    assert_eq!(world.use_token(2, Kind::ResetPassword, reset("x")).await, None, "a token of nobody's");

    // A mail with no token is found by none.
    world.queue(world.mail(student, Reason::ResetPassword)).await;
    assert_eq!(world.owner(0, Kind::ResetPassword).await, None);

    let disabled = world.store.change_user(student, AccountChange::Disable).await.unwrap();
    assert_eq!(world.use_token(1, Kind::ConfirmEmail, AccountChange::ConfirmEmail).await, None);
    assert_eq!(world.store.user(student).await.unwrap(), disabled);
    let enabled = world.store.change_user(student, AccountChange::Enable).await.unwrap().unwrap();
    assert_eq!((enabled.email_confirmed, &enabled.password_hash), (false, &before.password_hash));
    assert_eq!(world.owner(1, Kind::ConfirmEmail).await, Some(student), "it was not used up");

    let end = Kind::ConfirmEmail.expires_at(world.clock.now());
    let at_end = world.store.use_token(token(1), Kind::ConfirmEmail, end, AccountChange::ConfirmEmail).await.unwrap();
    assert_eq!(at_end, None);
    assert_eq!(world.store.token_owner(token(1), Kind::ConfirmEmail, end).await.unwrap(), None);
    let last = end.before(MOMENT);
    assert_eq!(world.store.token_owner(token(1), Kind::ConfirmEmail, last).await.unwrap(), Some(student));
    let confirm = world.store.use_token(token(1), Kind::ConfirmEmail, last, AccountChange::ConfirmEmail);
    let confirmed = confirm.await.unwrap().unwrap();
    assert_eq!((confirmed.email_confirmed, confirmed.token_version), (true, enabled.token_version));

    // Nor does an attempt that was under way bring the mail back.
    world.clock.advance(ASK_AGAIN + MOMENT);
    world.queue(world.mail_with(student, Reason::ConfirmEmail, 4)).await;
    let taken = world.take(10).await.into_iter().find(|mail| mail.reason == Reason::ConfirmEmail).unwrap();
    world.use_token(4, Kind::ConfirmEmail, AccountChange::ConfirmEmail).await.unwrap();
    world.settle(&taken, Fate::Due(world.clock.now())).await;
    assert!(world.take(10).await.iter().all(|mail| mail.id != taken.id));

    // One that changes nothing is used up all the same.
    world.clock.advance(ASK_AGAIN + MOMENT);
    world.queue(world.mail_with(student, Reason::ConfirmEmail, 3)).await;
    let unchanged = world.use_token(3, Kind::ConfirmEmail, AccountChange::ConfirmEmail).await;
    assert_eq!(unchanged, Some(confirmed));
    assert_eq!(world.owner(3, Kind::ConfirmEmail).await, None);
}

/// What is expired is not sent, and is forgotten; it is said how much of it never was.
pub async fn expired_mails_are_forgotten<S: Stores>(world: World<S>) {
    let student = world.student().await;
    let queued = world.clock.now();
    world.queue(world.mail_with(student, Reason::ResetPassword, 1)).await;
    world.queue(world.mail(world.student().await, Reason::ResetPassword)).await;
    let sent = world.take(1).await;
    world.settle(&sent[0], Fate::Over).await;
    let long = world.mail_with(student, Reason::ConfirmEmail, 2);
    world.queue(long.clone()).await;
    let end = Kind::ResetPassword.expires_at(queued);
    assert_eq!(world.store.forget_mails(end.before(MOMENT)).await.unwrap(), 0);
    let taken = world.store.take_mails(end, end.after(LEASE), 10).await.unwrap();
    assert_eq!(taken, [given(&long, 1)]);
    assert_eq!(world.store.forget_mails(end).await.unwrap(), 1, "the other one was sent");
    assert_eq!(world.store.forget_mails(end).await.unwrap(), 0);
    assert_eq!(world.owner(1, Kind::ResetPassword).await, None);
    assert_eq!(world.owner(2, Kind::ConfirmEmail).await, Some(student));
    // What is being sent meanwhile is gone, which is well.
    world.settle(&sent[0], Fate::Due(end)).await;
    world.queue(world.mail_with(student, Reason::ResetPassword, 1)).await;
    assert_eq!(world.owner(1, Kind::ResetPassword).await, Some(student), "there is room again");
}

/// Where a class sends notices its finished sessions are noted, however they end, in the same step.
pub async fn finished_sessions_are_noted_for_their_absent<S: Stores>(world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    let (_, quiet, _) = world.course(1).await;
    let set = async |class, wanted| changed(world.store.change_class(class, notices(wanted)).await.unwrap());
    assert!(set(class, true).await.class.absence_notices);
    let mut wanted = BTreeSet::new();
    let session = world.start(class, teacher).await;
    world.mark(class, teacher, students[0], Status::Present).await;
    world.start(quiet, teacher).await;
    assert_eq!(world.noted().await, wanted, "not before the end");
    world.finish(quiet, teacher).await;
    assert_eq!(world.noted().await, wanted);
    world.finish(class, teacher).await;
    wanted.insert((session.id, class));
    assert_eq!(world.noted().await, wanted);

    // Once is enough.
    let again = world.order(Target::Session(session.id), Command::Finish, world.origin(teacher)).await;
    assert_eq!(refused(again).0, Refusal::NoSession);
    assert_eq!(world.noted().await, wanted);
    world.store.absences_queued(session.id).await.unwrap();
    world.store.absences_queued(session.id).await.unwrap();
    let again = world.order(Target::Class(class), Command::Finish, world.origin(teacher)).await;
    assert_eq!(refused(again).0, Refusal::NoSession);
    wanted.clear();
    assert_eq!(world.noted().await, wanted);

    // What counts is what holds at the end.
    let session = world.start(class, teacher).await;
    set(class, false).await;
    done(world.order(Target::Session(session.id), Command::Finish, world.origin(teacher)).await);
    assert_eq!(world.noted().await, wanted);
    let session = world.start(class, teacher).await;
    set(class, true).await;
    done(world.order(Target::OpenedBy(teacher), Command::Finish, world.origin(teacher)).await);
    wanted.insert((session.id, class));
    assert_eq!(world.noted().await, wanted);

    let session = world.start(class, teacher).await;
    changed(world.store.archive_class(class, world.origin(teacher)).await.unwrap());
    wanted.insert((session.id, class));
    assert_eq!(world.noted().await, wanted);
    world.start(quiet, teacher).await;
    changed(world.store.archive_class(quiet, world.origin(teacher)).await.unwrap());
    assert_eq!(world.noted().await, wanted);
    assert_eq!(world.store.absences(1).await.unwrap().len(), 1);
    assert_eq!(world.store.absences(0).await.unwrap(), []);
    let found: BTreeMap<_, _> = world
        .store
        .absences(2)
        .await
        .unwrap()
        .iter()
        .map(|Absences { session_id, class_id }| (*session_id, *class_id))
        .collect();
    assert_eq!(found, wanted.into_iter().collect());
}

/// Many who finish a session at once note it once; whatever becomes of the flag meanwhile.
pub async fn finishing_at_once_notes_once<S: Stores>(world: World<S>) {
    let other = S::beside(&world.data).await;
    for _ in 0..5 {
        let (teacher, class, _) = world.course(1).await;
        changed(world.store.change_class(class, notices(true)).await.unwrap());
        let session = world.start(class, teacher).await;
        let finishing = (0..6).map(|number| {
            let store = if number % 2 == 0 { &world.store } else { &other };
            let origin = world.origin(teacher);
            async move {
                let receipt = store.submit(Target::Session(session.id), Command::Finish, origin).await.unwrap();
                receipt.await.unwrap();
            }
        });
        join_all(finishing).await;
        assert_eq!(world.noted().await, BTreeSet::from([(session.id, class)]));
        world.store.absences_queued(session.id).await.unwrap();
    }
}

/// Closed and opened again, mails, their tokens, and who takes them are where they were.
pub async fn what_waits_is_sent_after_a_restart<S: Stores>(mut world: World<S>) {
    let (teacher, class, students) = world.course(2).await;
    changed(world.store.change_class(class, notices(true)).await.unwrap());
    let session = world.start(class, teacher).await;
    world.finish(class, teacher).await;
    let first = world.mail_with(students[0], Reason::ResetPassword, 1);
    world.queue(first.clone()).await;
    let taken = world.take(10).await;
    world.clock.advance(MOMENT);
    let second = world.mail(students[1], absence(class, session.id));
    world.queue(second.clone()).await;
    world.restart().await;
    assert_eq!(world.noted().await, BTreeSet::from([(session.id, class)]));
    assert_eq!(world.take(10).await, [given(&second, 1)], "the other one is being sent");
    assert_eq!(world.owner(1, Kind::ResetPassword).await, Some(students[0]));
    world.settle(&taken[0], Fate::Due(world.clock.now())).await;
    world.restart().await;
    assert_eq!(world.take(10).await, [given(&first, 2)]);
}
