//! Accounts.

use futures_util::future::join_all;
use rollcall_core::UserId;
use rollcall_core::store::{Change, Inserted, Page};
use rollcall_core::user::{Account, AccountChange, Email, EmailKey, PasswordHash, Role};

use super::world::{Stores, World, all};

/// What was put in comes out, by id and by address in any case.
pub async fn accounts_are_found_by_id_and_address<S: Stores>(world: World<S>) {
    for role in [Role::Teacher, Role::Student, Role::Admin] {
        let account = world.account(role);
        assert_eq!(world.store.insert_user(account.clone(), None).await.unwrap(), Inserted::Created);
        assert_eq!(world.store.user(account.id).await.unwrap(), Some(account.clone()));
        for address in [account.email.as_str().to_uppercase(), format!("  {} ", account.email.as_str())] {
            assert_eq!(world.store.user_by_email(&EmailKey::of(&address)).await.unwrap(), Some(account.clone()));
        }
    }
    assert_eq!(world.store.user(UserId(world.id())).await.unwrap(), None);
    for address in ["", "nobody@example.org", "a\u{0}b", "%", &"x".repeat(100_000)] {
        assert_eq!(world.store.user_by_email(&EmailKey::of(address)).await.unwrap(), None);
    }
}

/// Of many who want one address at once one gets it.
pub async fn an_address_belongs_to_one_account<S: Stores>(world: World<S>) {
    for round in 0..10 {
        let accounts: Vec<_> = (0..8)
            .map(|number| {
                let text = format!("Jürgen{round}@Example.org");
                let text = if number % 2 == 0 { text.to_uppercase() } else { text };
                Account { email: Email::stored(text), ..world.account(Role::Student) }
            })
            .collect();
        let inserted = join_all(accounts.iter().map(|account| world.store.insert_user(account.clone(), None))).await;
        let created: Vec<_> = accounts
            .iter()
            .zip(inserted)
            .filter(|(_, inserted)| *inserted.as_ref().unwrap() == Inserted::Created)
            .map(|(account, _)| account)
            .collect();
        assert_eq!(created.len(), 1, "one address, one account");
        assert_eq!(world.store.user_by_email(&created[0].email.key()).await.unwrap().as_ref(), Some(created[0]));
    }
    assert_eq!(world.store.users(all()).await.unwrap().len(), 10, "nothing is left of those who came too late");
}

/// Disabling, enabling and a new password raise the token version; what changes nothing says nothing.
pub async fn changes_to_an_account_end_its_tokens<S: Stores>(world: World<S>) {
    let account = world.account(Role::Student);
    world.store.insert_user(account.clone(), None).await.unwrap();
    let mut listener = world.follow(None).await;
    let hash = PasswordHash::stored("$2b$10$another");
    let steps = [
        (AccountChange::Enable, 3, false, &account.password_hash),
        (AccountChange::Disable, 4, true, &account.password_hash),
        (AccountChange::Disable, 4, true, &account.password_hash),
        (AccountChange::SetPassword(hash.clone()), 5, true, &hash),
        (AccountChange::Enable, 6, false, &hash),
    ];
    for (change, version, disabled, hash) in steps {
        let now = world.store.change_user(account.id, change).await.unwrap().unwrap();
        assert_eq!((now.token_version, now.disabled, &now.password_hash), (version, disabled, hash));
        assert_eq!(world.store.user(account.id).await.unwrap(), Some(now));
        let listed = world.store.students(all()).await.unwrap().iter().any(|person| person.id == account.id);
        assert_eq!(listed, !disabled, "students who cannot log in are not offered for enrolment");
    }
    assert!(world.store.change_user(UserId(world.id()), AccountChange::Disable).await.unwrap().is_none());
    let last = world.student().await;
    let told = listener.changes(4).await;
    assert_eq!(told[..3], [const { UserId::NOTHING }; 3].map(|_| Change::Account(account.id)));
    assert_eq!(told[3], Change::Account(last), "nothing was told of what changed nothing");
}

/// What somebody does who reads the own mails. Only a new password ends logins; what changes nothing says nothing.
pub async fn what_mails_change_in_an_account<S: Stores>(world: World<S>) {
    let mut account = world.account(Role::Student);
    world.store.insert_user(account.clone(), None).await.unwrap();
    let quiet = Account { email_confirmed: true, absence_notices: false, ..world.account(Role::Teacher) };
    world.store.insert_user(quiet.clone(), None).await.unwrap();
    assert_eq!(world.store.user(quiet.id).await.unwrap(), Some(quiet));
    let mut listener = world.follow(None).await;
    let reset = |hash| AccountChange::ResetPassword(PasswordHash::stored(hash));
    let steps = [
        (AccountChange::AbsenceNotices(true), false),
        (AccountChange::AbsenceNotices(false), true),
        (AccountChange::AbsenceNotices(false), false),
        (AccountChange::ConfirmEmail, true),
        (AccountChange::ConfirmEmail, false),
        (AccountChange::AbsenceNotices(true), true),
        (reset("$2b$10$another"), true),
    ];
    for (change, changes) in steps {
        let next = account.clone().changed(change.clone());
        assert_eq!(next != account, changes);
        account = next;
        assert_eq!(world.store.change_user(account.id, change).await.unwrap().as_ref(), Some(&account));
        assert_eq!(world.store.user(account.id).await.unwrap().as_ref(), Some(&account));
    }
    assert_eq!((account.token_version, account.email_confirmed, account.absence_notices), (4, true, true));
    let other = world.student().await;
    let reset = world.store.change_user(other, reset("$2b$10$mailed")).await.unwrap().unwrap();
    assert_eq!((reset.token_version, reset.email_confirmed), (4, true), "it was sent to the address");
    let told = listener.changes(6).await;
    let wanted = [account.id, account.id, account.id, account.id, other, other];
    assert_eq!(told, wanted.map(Change::Account));
}

/// Pages of accounts and of students, by id, without gaps or doubles.
pub async fn lists_of_accounts_are_paged<S: Stores>(world: World<S>) {
    let mut everybody = Vec::new();
    for number in 0..25 {
        everybody
            .push((world.user(if number % 3 == 0 { Role::Teacher } else { Role::Student }).await, number % 3 != 0));
    }
    everybody.sort_unstable();
    let (mut users, mut students) = (Vec::new(), Vec::new());
    let mut after = None;
    loop {
        let page = world.store.users(Page { after, limit: 7 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        users.extend(page.iter().map(|account| account.id));
    }
    assert_eq!(users, everybody.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    after = None;
    loop {
        let page = world.store.students(Page { after, limit: 4 }).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        students.extend(page.iter().map(|person| person.id));
    }
    assert_eq!(students, everybody.iter().filter(|(_, student)| *student).map(|(id, _)| *id).collect::<Vec<_>>());
    assert!(world.store.users(Page { after: None, limit: 0 }).await.unwrap().is_empty());
}
