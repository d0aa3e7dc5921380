//! Tokens as a server issues them, and as nobody should accept them.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::Value;

/// What a token claims. Nothing is verified.
pub fn claims(token: &str) -> Value {
    match jsonwebtoken::dangerous::insecure_decode_claims(token) {
        Ok(claims) => claims,
        Err(error) => panic!("{token:?} is no token: {error}"),
    }
}

/// A token with these claims, signed by `secret`.
pub fn signed(claims: &Value, secret: &str, algorithm: Algorithm) -> String {
    match jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())) {
        Ok(token) => token,
        Err(error) => panic!("cannot sign by {algorithm:?}: {error}"),
    }
}

/// The token with its header replaced by one that says `none`, and without a signature.
pub fn unsigned(token: &str) -> String {
    // {"alg":"none","typ":"JWT"}
    let header = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    format!("{header}.{}.", token.split('.').nth(1).unwrap_or_default())
}
