//! Bearer tokens: JWT (RFC 7519) signed with HS256.

use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use rollcall_core::user::Account;
use rollcall_core::{Error, Ids, Timestamp, UserId};
use secrecy::{ExposeSecret, SecretSlice};
use serde::{Deserialize, Serialize};

/// How far the clocks of two servers may be apart, in seconds.
const LEEWAY_SECONDS: i64 = 60;

/// How many tokens are remembered; some 400 bytes each.
const REMEMBERED: usize = 16_384;

/// What a token says. All members must be there.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    id: String,
    email: String,
    role: String,
    iat: i64,
    exp: i64,
    jti: String,
    ver: u32,
}

/// What a good token proves: that this account was logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    /// The account.
    pub user_id: UserId,
    /// The account's token version at that time.
    pub version: u32,
    /// When the token ends.
    pub expires_at: Timestamp,
}

/// Issues and checks tokens.
pub(crate) struct Tokens {
    header: Header,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    ttl: Duration,
    /// What lately seen tokens say, of those that this server or another with its key signed. Checking a signature and
    /// reading the claims costs more than all else that is done for a small call.
    good: Cache<Box<str>, Good>,
}

/// What a token says whose signature is right.
#[derive(Clone, Copy)]
struct Good {
    user_id: UserId,
    version: u32,
    /// In seconds, as `exp`.
    iat: i64,
    exp: i64,
}

impl Tokens {
    /// Tokens signed with `secret` that live for `ttl`.
    pub(crate) fn new(secret: &SecretSlice<u8>, ttl: Duration) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // Times are checked below, by the clock that everything else goes by.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self {
            header: Header::new(Algorithm::HS256),
            encoding: EncodingKey::from_secret(secret.expose_secret()),
            decoding: DecodingKey::from_secret(secret.expose_secret()),
            validation,
            ttl,
            good: Cache::new(REMEMBERED),
        }
    }

    /// A token for an account that has just logged in.
    pub(crate) fn issue(&self, account: &Account, now: Timestamp, ids: &Ids) -> Result<String, Error> {
        let iat = now.millis().div_euclid(1000);
        let claims = Claims {
            id: account.id.to_string(),
            email: account.email.as_str().to_owned(),
            role: account.role.to_string(),
            iat,
            exp: iat.saturating_add(i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX)),
            jti: ids.next(now).to_string(),
            ver: account.token_version,
        };
        jsonwebtoken::encode(&self.header, &claims, &self.encoding)
            .map_err(|error| Error::Internal(format!("signing a token: {error}")))
    }

    /// Checks signature, algorithm, claims and times. Whether the account still stands is not known here.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<Bearer, Error> {
        let good = if let Some(good) = self.good.get(token) {
            good
        } else {
            let good = self.read(token)?;
            self.good.insert(token.into(), good);
            good
        };
        // Never remembered: this changes with the time.
        let seconds = now.millis().div_euclid(1000);
        if good.iat > seconds.saturating_add(LEEWAY_SECONDS) || good.exp <= seconds.saturating_sub(LEEWAY_SECONDS) {
            return Err(Error::Unauthenticated);
        }
        let expires_at = Timestamp::from_millis(good.exp.saturating_mul(1000));
        Ok(Bearer { user_id: good.user_id, version: good.version, expires_at })
    }

    /// Checks what stays as it is as long as the token is the same: signature, algorithm, claims.
    fn read(&self, token: &str) -> Result<Good, Error> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|_| Error::Unauthenticated)?
            .claims;
        let user_id = UserId::parse(&claims.id).ok_or(Error::Unauthenticated)?;
        Ok(Good { user_id, version: claims.ver, iat: claims.iat, exp: claims.exp })
    }
}

#[cfg(test)]
mod tests {
    use rollcall_core::user::{Email, PasswordHash, PersonName, Role};
    use serde_json::{Value, json};

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_500);

    fn tokens() -> Tokens {
        Tokens::new(&SECRET.to_vec().into(), Duration::from_hours(24))
    }

    fn sign(algorithm: Algorithm, secret: &[u8], claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn claims() -> Value {
        json!({"id": "6553f1000102030405060708", "email": "a@b.co", "role": "teacher",
               "iat": 1_700_000_000, "exp": 1_700_086_400, "jti": "x", "ver": 3})
    }

    #[test]
    fn what_is_issued_is_accepted() {
        let account = Account {
            id: UserId::named("6553f1000102030405060708"),
            name: PersonName::stored("A"),
            email: Email::stored("a@b.co"),
            role: Role::Teacher,
            password_hash: PasswordHash::stored(""),
            token_version: 7,
            disabled: false,
            email_confirmed: false,
            absence_notices: true,
            created_at: NOW,
        };
        let token = tokens().issue(&account, NOW, &Ids::new([0; 5], 0)).unwrap();
        let bearer = tokens().verify(&token, NOW).unwrap();
        assert_eq!((bearer.user_id, bearer.version), (account.id, 7));
        assert_eq!(bearer.expires_at.millis(), 1_700_086_400_000);
    }

    #[test]
    fn a_remembered_token_ends_in_time_and_lends_nothing_to_others() {
        let tokens = tokens();
        let token = sign(Algorithm::HS256, SECRET, &claims());
        let end = Timestamp::from_millis(1_700_086_460_000);
        for _ in 0..2 {
            assert!(tokens.verify(&token, NOW).is_ok());
        }
        assert!(tokens.verify(&token, end.before(Duration::from_millis(1))).is_ok());
        assert!(tokens.verify(&token, end).is_err(), "expired");
        assert!(tokens.verify(&token, NOW.before(Duration::from_mins(2))).is_err(), "from the future");
        assert!(tokens.verify(&token, NOW).is_ok(), "good again by a clock that was set back");
        let forged = sign(Algorithm::HS256, b"another secret of thirty-two byte", &claims());
        for _ in 0..2 {
            assert!(tokens.verify(&forged, NOW).is_err(), "the same claims under another key");
        }
    }

    #[test]
    fn every_other_token_is_refused() {
        let verify = |token: &str| tokens().verify(token, NOW);
        assert!(verify(&sign(Algorithm::HS256, SECRET, &claims())).is_ok());
        assert!(verify(&sign(Algorithm::HS384, SECRET, &claims())).is_err(), "another algorithm");
        assert!(verify(&sign(Algorithm::HS256, b"another secret of thirty-two byte", &claims())).is_err(), "wrong key");
        for missing in ["id", "email", "role", "iat", "exp", "jti", "ver"] {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(missing);
            assert!(verify(&sign(Algorithm::HS256, SECRET, &claims)).is_err(), "without {missing}");
        }
        for (name, value) in [
            ("iat", json!(1_700_000_061)),
            ("exp", json!(1_699_999_940)),
            ("id", json!("nobody")),
            ("ver", json!(-1)),
            ("exp", json!("1700086400")),
            ("exp", json!(1e300)),
        ] {
            let mut claims = claims();
            claims[name] = value;
            assert!(verify(&sign(Algorithm::HS256, SECRET, &claims)).is_err(), "{name}: {}", claims[name]);
        }
        for (name, value) in [("iat", json!(1_700_000_060)), ("exp", json!(1_699_999_941))] {
            let mut claims = claims();
            claims[name] = value;
            assert!(verify(&sign(Algorithm::HS256, SECRET, &claims)).is_ok(), "{name} within the leeway");
        }
        // {"alg":"none"} with and without a signature; cut and padded tokens; no token at all.
        let good = sign(Algorithm::HS256, SECRET, &claims());
        let payload = good.split('.').nth(1).unwrap();
        for bad in [
            format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}."),
            format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.c2ln"),
            good[..good.len() - 1].to_owned(),
            format!("{good}A"),
            format!("{good}.x"),
            String::new(),
            "..".to_owned(),
        ] {
            assert!(verify(&bad).is_err(), "{bad}");
        }
    }
}
