//! Where Redis is.

use std::fmt;

use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};

/// The address of a Redis, which may hold a password. Shown without it.
#[derive(Clone)]
pub struct Address {
    url: SecretString,
    /// As it may be shown.
    shown: String,
}

impl Address {
    /// Reads `redis://` or `rediss://`, which is TLS. The error is what would be right.
    pub fn parse(url: &str) -> Result<Self, String> {
        const WANTED: &str = "redis:// or, for TLS, rediss://, and an address such as redis://redis.example:6379 or \
                              rediss://user:password@redis.example:6380/0, without options; #, / and ? in a password \
                              are written %23, %2F and %3F";
        let wanted = || WANTED.to_owned();
        let (scheme, rest) = url.split_once("://").ok_or_else(wanted)?;
        // Options are of other programs, or turn off the check of certificates.
        if !matches!(scheme, "redis" | "rediss") || rest.contains(['?', '#']) {
            return Err(wanted());
        }
        let info: ConnectionInfo = url.into_connection_info().map_err(|_| wanted())?;
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }
                if !host.is_empty() && !host.contains(',') =>
            {
                (host, port)
            }
            _ => return Err(wanted()),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Ok(Self { url: url.into(), shown: format!("{scheme}://{host}:{port}/{}", info.redis_settings().db()) })
    }

    pub(crate) fn client(&self) -> Result<Client, RedisError> {
        Client::open(self.url.expose_secret())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_their_secrets() {
        for (url, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379/0"),
            ("redis://:hunter2@redis.example:7000/3", "redis://redis.example:7000/3"),
            ("rediss://ada:hunter%232@[::1]:6380/", "rediss://[::1]:6380/0"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(format!("{address} {address:?}"), format!("{shown} {shown}"));
            assert!(address.client().is_ok());
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_right() {
        for url in [
            "",
            "127.0.0.1:6379",
            "http://127.0.0.1",
            "unix:///run/redis.sock",
            "redis+sentinel://a/mymaster",
            "redis://",
            "redis://:6379",
            "redis://:hunter#2@redis.example",
            "redis://redis.example/school",
            "redis://redis.example:port",
            "rediss://redis.example/#insecure",
            "redis://a,b,c",
            "redis://redis.example:6379/0?protocol=resp3",
        ] {
            let wanted = Address::parse(url).unwrap_err();
            assert!(wanted.starts_with("redis:// or") && !wanted.contains("hunter2"), "{url}: {wanted}");
        }
    }
}
