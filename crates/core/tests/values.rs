//! Values out of any text at all: nothing panics, and what is accepted keeps its rule.

use std::time::Duration;

use proptest::prelude::*;
use rollcall_core::class::ClassName;
use rollcall_core::session::{OperationId, Reason};
use rollcall_core::user::{Email, EmailKey, NewPassword, PersonName};
use rollcall_core::{Ids, ObjectId, Timestamp, UserId};

/// Any text, and text that is nearly right.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,120}",
        "\\s{0,3}\\PC{0,210}\\s{0,3}",
        "[a-zA-Z0-9.+ß]{0,20}@[a-z.-]{0,20}",
        "[0-9a-fA-F]{22,26}",
    ]
}

proptest! {
    #[test]
    fn names_keep_their_rule(text in texts()) {
        for name in [
            PersonName::parse(&text).map(|name| name.as_str().to_owned()),
            ClassName::parse(&text).map(|name| name.as_str().to_owned()),
        ] {
            let trimmed = text.trim();
            let right = (1..=100).contains(&trimmed.chars().count()) && !trimmed.contains(char::is_control);
            prop_assert_eq!(name.ok(), right.then(|| trimmed.to_owned()));
        }
    }

    #[test]
    fn addresses_keep_their_rule(text in texts()) {
        if let Ok(email) = Email::parse(&text) {
            prop_assert_eq!(email.as_str(), text.trim());
            prop_assert!(!email.as_str().contains(|c: char| c.is_control() || c.is_whitespace()));
            prop_assert!(email.as_str().rsplit_once('@').is_some_and(|(_, domain)| domain.contains('.')));
            prop_assert_eq!(email.key(), EmailKey::of(&text));
        }
        let key = EmailKey::of(&text);
        prop_assert_eq!(&EmailKey::of(key.as_str()), &key, "a stored key is its own key");
        prop_assert_eq!(EmailKey::of(&text.to_ascii_uppercase()), key);
    }

    #[test]
    fn passwords_reasons_and_operations_keep_their_rules(text in texts()) {
        let right = text.chars().count() >= 6 && text.len() <= 72 && !text.contains('\0');
        prop_assert_eq!(NewPassword::parse(&text).is_ok(), right);

        let trimmed = text.trim();
        match Reason::parse(&text) {
            Ok(reason) => prop_assert_eq!(reason.as_ref().map_or("", Reason::as_str), trimmed),
            Err(_) => prop_assert!(trimmed.chars().count() > 200 || trimmed.contains(char::is_control)),
        }

        match OperationId::from_client(&text) {
            Some(operation) => prop_assert_eq!(operation.as_str(), text),
            None => prop_assert!(text.is_empty() || text.len() > 64 || text.contains(char::is_control)),
        }
    }

    #[test]
    fn ids_are_24_hex_digits_and_nothing_else(text in texts()) {
        let right = text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        prop_assert_eq!(ObjectId::parse(&text).map(|id| id.to_string()), right.then(|| text.to_ascii_lowercase()));
        prop_assert_eq!(UserId::named(&text) == UserId::NOTHING, !right || text == "0".repeat(24));
    }

    #[test]
    fn times_never_panic(millis: i64, age: Duration) {
        let time = Timestamp::from_millis(millis);
        prop_assert!(time.before(age) <= time);
        prop_assert!(!time.to_string().is_empty());
        let ids = Ids::new([7; 5], 1);
        prop_assert_ne!(ids.next(time), ids.next(time));
    }
}
