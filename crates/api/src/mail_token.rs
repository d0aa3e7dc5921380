//! The tokens in e-mails: made of the server's secret, so that a store keeps no more than their hashes.

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rollcall_core::mail::{MailTokens, TokenHash};
use rollcall_core::{MailId, UserId};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// Makes the tokens in mails from the secret that logins are signed with.
pub struct MailKey(hmac::Key);

impl MailKey {
    /// A key of its own, made of `secret`.
    pub fn new(secret: &SecretSlice<u8>) -> Self {
        // Nothing that is signed for a login may be a token in a mail, nor the other way round.
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret());
        let own = hmac::sign(&secret, b"rollcall: tokens in mails");
        Self(hmac::Key::new(hmac::HMAC_SHA256, own.as_ref()))
    }

    fn sign(&self, purpose: &[u8], id: [u8; 12]) -> hmac::Tag {
        hmac::sign(&self.0, &[purpose, &id].concat())
    }
}

const MAIL: &[u8] = b"mail:";
const UNSUBSCRIBE: &[u8] = b"unsubscribe:";

impl MailTokens for MailKey {
    fn of_mail(&self, mail: MailId) -> SecretString {
        URL_SAFE_NO_PAD.encode(self.sign(MAIL, mail.bytes())).into()
    }

    fn hash(&self, token: &str) -> TokenHash {
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(hash.as_ref());
        TokenHash::from_bytes(bytes)
    }

    fn of_unsubscriber(&self, user: UserId) -> SecretString {
        let tag = self.sign(UNSUBSCRIBE, user.bytes());
        URL_SAFE_NO_PAD.encode([&user.bytes()[..], tag.as_ref()].concat()).into()
    }

    fn unsubscriber(&self, token: &str) -> Option<UserId> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (id, tag) = bytes.split_first_chunk::<12>()?;
        hmac::verify(&self.0, &[UNSUBSCRIBE, id].concat(), tag).ok()?;
        Some(UserId::from_bytes(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &[u8]) -> MailKey {
        MailKey::new(&secret.to_vec().into())
    }

    #[test]
    fn tokens_are_the_same_each_time_and_others_for_others() {
        let (one, other) = (key(b"0123456789abcdef0123456789abcdef"), key(b"another secret of thirty-two byte"));
        let (mail, second) = (MailId::from_bytes([1; 12]), MailId::from_bytes([2; 12]));
        let token = |key: &MailKey, mail| key.of_mail(mail).expose_secret().to_owned();
        assert_eq!(token(&one, mail), token(&one, mail));
        assert_ne!(token(&one, mail), token(&one, second));
        assert_ne!(token(&one, mail), token(&other, mail));
        assert_eq!(one.hash("x"), other.hash("x"), "what a store keeps outlives a change of the secret");
        assert_ne!(one.hash("x"), one.hash("X"));
    }

    #[test]
    fn nobody_else_is_unsubscribed() {
        let (one, other) = (key(b"0123456789abcdef0123456789abcdef"), key(b"another secret of thirty-two byte"));
        let user = UserId::from_bytes([7; 12]);
        let token = one.of_unsubscriber(user).expose_secret().to_owned();
        assert_eq!(one.unsubscriber(&token), Some(user));
        assert_eq!(other.unsubscriber(&token), None);
        let mut forged = URL_SAFE_NO_PAD.decode(&token).unwrap();
        forged[0] ^= 1;
        let mail = one.of_mail(MailId::from_bytes([7; 12]));
        for bad in ["", "x", "é", &token[1..], &format!("{token}A"), &URL_SAFE_NO_PAD.encode(forged)] {
            assert_eq!(one.unsubscriber(bad), None, "{bad}");
        }
        assert_eq!(one.unsubscriber(mail.expose_secret()), None, "a token of another kind");
    }
}
