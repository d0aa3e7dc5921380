//! Asks a running server whether it is ready, for containers that have neither a shell nor curl.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::tls;

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Succeeds if the server that listens on `address` is ready.
pub(crate) fn run(address: SocketAddr, tls: bool) -> anyhow::Result<()> {
    ensure!(address.port() != 0, "LISTEN_ADDR has port 0, so nobody knows where the server listens; give it a port");
    let address = reachable(address);
    match status(address, tls)? {
        Some(200) => Ok(()),
        Some(status) => bail!("the server on {address} is not ready (status {status})"),
        None => bail!("what answers on {address} does not speak HTTP"),
    }
}

/// Where this machine reaches what listens on `address`: an unspecified address is all of its own.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The status of `GET /health/ready`, if the answer is HTTP, or HTTPS where it should be.
pub(crate) fn status(address: SocketAddr, tls: bool) -> anyhow::Result<Option<u16>> {
    let connect = TcpStream::connect_timeout(&address, PATIENCE);
    let stream = connect.with_context(|| format!("nothing answers on {address}"))?;
    let line = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(
            |()| if tls { first_line(tls::to_myself(address, stream)?, address) } else { first_line(stream, address) },
        )
        .with_context(|| format!("the server on {address} does not answer"))?;
    let mut words = line.split(|byte| *byte == b' ');
    let http = words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
    let code = words.next().and_then(|code| std::str::from_utf8(code).ok()?.trim().parse().ok());
    Ok(code.filter(|_| http))
}

/// Asks, and reads the first line of the answer, which is enough, and short.
fn first_line(mut stream: impl Read + Write, address: SocketAddr) -> std::io::Result<Vec<u8>> {
    write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 && stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer(bytes: &'static [u8]) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let server = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                request.extend(byte);
            }
            assert!(request.starts_with(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(bytes)
        });
        let outcome = run(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), false);
        server.join().unwrap()?;
        outcome
    }

    #[test]
    fn only_200_is_ready() {
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_ok());
        for (bytes, text) in [
            (&b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..], "status 503"),
            (b"SSH-2.0-OpenSSH_9.9\r\n", "does not speak HTTP"),
            (b"", "does not speak HTTP"),
            (&[b'x'; 100], "does not speak HTTP"),
        ] {
            let error = answer(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn says_where_nothing_answers() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(run(address, false).unwrap_err().to_string().contains("nothing answers"));
        assert!(run("0.0.0.0:0".parse().unwrap(), false).unwrap_err().to_string().contains("port 0"));
        assert_eq!(reachable("[::]:80".parse().unwrap()), "[::1]:80".parse().unwrap());
    }
}
