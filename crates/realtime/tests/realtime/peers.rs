//! Peers that are slow, gone, or trouble.

use std::time::Duration;

use futures_util::SinkExt;
use rollcall_realtime::{HubConfig, SocketConfig, close};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Server, key, soon};

fn stream(client: Client) -> tokio::net::TcpStream {
    let MaybeTlsStream::Plain(stream) = client.socket.into_inner() else { unreachable!() };
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_peer_is_closed_and_delays_nobody() {
    let server = Server::new().await;
    let mut slow = server.connect(1, "1r").await;
    let mut other = server.connect(2, "1r").await;
    let text = "x".repeat(50_000);
    let mut version = 0;
    for _ in 0..400 {
        version += 1;
        server.publish(1, version, &format!("{version} {text}"));
        assert!(other.text().await.starts_with(&format!("{version} ")));
    }
    assert_eq!(slow.closed().await, close::TOO_SLOW.code);
    other.send("echo here").await;
    other.expect(&["here"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_for_too_long_is_gone() {
    let config = SocketConfig { write_timeout: Duration::from_millis(200), ..SocketConfig::default() };
    let hub = HubConfig { outbox_bytes: 100_000_000, ..HubConfig::default() };
    let server = Server::with(hub, config).await;
    let _client = server.connect(1, "1r").await;
    for version in 1..=30 {
        server.publish(1, version, &"x".repeat(1_000_000));
    }
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_written_to_can_be_closed() {
    let hub = HubConfig { outbox_bytes: 100_000_000, ..HubConfig::default() };
    let server = Server::with(hub, SocketConfig::default()).await;
    let mut client = server.connect(1, "1r").await;
    let text = "x".repeat(1_000_000);
    for version in 1..=30 {
        server.publish(1, version, &text);
    }
    server.publish(1, 31, "last");
    soon(server.hub().reached(&server.connection(1), key(1), 31)).await;
    server.connection(1).close(close::ACCOUNT_CHANGED);
    server.publish(1, 32, "never sent");
    for _ in 1..=30 {
        assert_eq!(client.text().await.len(), text.len());
    }
    client.expect(&["last"]).await;
    assert_eq!(client.closed().await, close::ACCOUNT_CHANGED.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_peers_are_pinged_and_stay_if_they_answer() {
    let config = SocketConfig {
        ping_every: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(500),
        ..SocketConfig::default()
    };
    let server = Server::with(HubConfig::default(), config).await;
    let mut client = server.connect(1, "").await;
    let deaf = server.connect(2, "").await;
    // Far longer than the time after which who does not answer is gone.
    for _ in 0..50 {
        assert_eq!(client.next().await, Message::Ping(Vec::new().into()));
    }
    client.send("echo here").await;
    client.expect(&["here"]).await;
    assert!(server.hub().connections(key(2)).is_empty(), "who never answers is gone");
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_read_from_is_pinged_and_not_given_up() {
    let config = SocketConfig {
        ping_every: Duration::from_millis(20),
        idle_timeout: Duration::from_millis(100),
        ..SocketConfig::default()
    };
    let server = Server::with(HubConfig::default(), config).await;
    let mut client = server.connect(1, "").await;
    client.send("block answer").await;
    for _ in 0..20 {
        assert_eq!(client.next().await, Message::Ping(Vec::new().into()));
    }
    server.shared.gate.add_permits(1);
    client.expect(&["answer"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_is_found() {
    let server = Server::new().await;
    drop(server.connect(1, "1r").await);
    soon(server.hub().drained()).await;
    // Only its sending half.
    let mut half = stream(server.connect(1, "1r").await);
    half.shutdown().await.unwrap();
    soon(server.hub().drained()).await;
    // In the middle of a frame.
    let mut torn = stream(server.connect(1, "1r").await);
    torn.write_all(b"\x81\x85").await.unwrap();
    drop(torn);
    soon(server.hub().drained()).await;
    // With something on its way that it never reads: a reset.
    let reset = server.connect(1, "1r").await;
    server.publish(1, 1, "unread");
    soon(server.hub().reached(&server.connection(1), key(1), 1)).await;
    drop(reset);
    soon(server.hub().drained()).await;
    // Before it is told that it may come.
    let mut early = tokio::net::TcpStream::connect(server.address).await.unwrap();
    early
        .write_all(b"GET /ws?user=1&topics=1r HTTP/1.1\r\nHost: r\r\nConnection: upgrade\r\nUpgrade: websocket\r\n")
        .await
        .unwrap();
    early.write_all(b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n").await.unwrap();
    drop(early);
    server.connect(2, "").await.send("echo").await;
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_within_reason() {
    let server = Server::new().await;
    let mut client = server.connect(1, "").await;
    for number in 0..20_u8 {
        client.message(Message::Ping(vec![number].into())).await;
        assert_eq!(client.next().await, Message::Pong(vec![number].into()));
    }
    for _ in 0..10_000 {
        // Refused from some point on.
        if client.socket.feed(Message::Ping(vec![0; 125].into())).await.is_err() {
            break;
        }
    }
    let _ = client.socket.flush().await;
    assert_eq!(client.closed().await, close::FLOODING.code);
}

/// A peer that sends and never reads is not read from, and its answers do not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_only_sends_is_bounded() {
    let config = SocketConfig { write_timeout: Duration::from_millis(500), ..SocketConfig::default() };
    let server = Server::with(HubConfig::default(), config).await;
    let mut client = server.connect(1, "").await;
    let command = format!("echo {}", "x".repeat(16_000));
    let sending = async {
        loop {
            if client.socket.send(Message::text(command.as_str())).await.is_err() {
                break;
            }
        }
    };
    soon(sending).await;
    soon(server.hub().drained()).await;
}
