//! What goes over one socket.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use rollcall_realtime::{HubConfig, SocketConfig, close};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame as RawFrame, Utf8Bytes};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{Client, Server, soon};

#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_the_order_of_commands_and_are_made_at_the_same_time() {
    let server = Server::new().await;
    let mut client = server.connect(1, "1r").await;
    for command in ["gate a", "echo b", "silent", "gate c", "echo d"] {
        client.send(command).await;
    }
    while server.shared.waiting.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    server.publish(1, 1, "frames do not wait for answers");
    client.expect(&["frames do not wait for answers"]).await;
    server.shared.gate.add_permits(2);
    client.expect(&["a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_stops_the_reading_alone() {
    let server = Server::new().await;
    let mut client = server.connect(1, "1r").await;
    for command in ["block a", "gate b", "gate c"] {
        client.send(command).await;
    }
    for version in 1..=50 {
        server.publish(1, version, "frame");
        client.expect(&["frame"]).await;
    }
    assert_eq!(server.shared.most_waiting.load(Ordering::SeqCst), 1);
    server.shared.gate.add_permits(3);
    client.expect(&["a", "b", "c"]).await;
    client.send("block forever").await;
    while server.shared.waiting.load(Ordering::SeqCst) < 1 {
        tokio::task::yield_now().await;
    }
    server.connection(1).close(close::ACCOUNT_CHANGED);
    assert_eq!(client.closed().await, close::ACCOUNT_CHANGED.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_in_flight_are_limited() {
    let config = SocketConfig { max_in_flight: 3, ..SocketConfig::default() };
    let server = Server::with(HubConfig::default(), config).await;
    let mut client = server.connect(1, "").await;
    for number in 0..30 {
        client.send(&format!("gate {number}")).await;
    }
    for number in 0..30 {
        server.shared.gate.add_permits(1);
        assert_eq!(client.text().await, number.to_string());
    }
    assert!(server.shared.most_waiting.load(Ordering::SeqCst) <= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_and_fragmented_messages() {
    let server = Server::new().await;
    let mut client = server.connect(1, "").await;
    client.message(Message::binary(vec![0, 255])).await;
    client.expect(&["binary"]).await;
    let parts: [(&[u8], OpCode, bool); 3] = [
        ("echo h".as_bytes(), OpCode::Data(Data::Text), false),
        // A character is cut in two.
        (&"é".as_bytes()[..1], OpCode::Data(Data::Continue), false),
        (&"é".as_bytes()[1..], OpCode::Data(Data::Continue), true),
    ];
    for (bytes, code, last) in parts {
        client.message(Message::Frame(RawFrame::message(bytes.to_vec(), code, last))).await;
        if !last {
            client.message(Message::Ping("between".into())).await;
            assert_eq!(client.next().await, Message::Pong("between".into()));
        }
    }
    client.expect(&["hé"]).await;
    let longest = format!("echo {}", "x".repeat(16 * 1024 - 5));
    client.send(&longest).await;
    client.expect(&[&longest[5..]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_long_are_refused_cleanly() {
    let server = Server::new().await;
    for length in [16 * 1024 + 1, 100_000, 3_000_000] {
        let mut client = server.connect(1, "").await;
        let (code, sent) = exchange_long(&mut client, length).await;
        assert_eq!(code, close::TOO_BIG.code, "{length} bytes, {sent:?}");
    }
    // In parts, each of which is short enough.
    let mut client = server.connect(1, "").await;
    let part = || vec![b'x'; 10_000];
    client.message(Message::Frame(RawFrame::message(part(), OpCode::Data(Data::Text), false))).await;
    client.message(Message::Frame(RawFrame::message(part(), OpCode::Data(Data::Continue), true))).await;
    assert_eq!(client.closed().await, close::TOO_BIG.code);
    soon(server.hub().drained()).await;
}

/// Sends a long message and reads at the same time; what was sent may not all be taken.
async fn exchange_long(client: &mut Client, length: usize) -> (u16, Result<(), Error>) {
    use futures_util::{SinkExt, StreamExt};
    let (mut sink, mut stream) = (&mut client.socket).split();
    let (sent, code) = soon(async {
        tokio::join!(sink.send(Message::text("x".repeat(length))), async {
            match stream.next().await.expect("a close comes first").expect("no reset before the close") {
                Message::Close(frame) => u16::from(frame.unwrap().code),
                other => panic!("{other:?}"),
            }
        })
    })
    .await;
    (code, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_is_refused() {
    let server = Server::new().await;
    let mut client = server.connect(1, "").await;
    client.message(Message::Frame(RawFrame::message(vec![b'a', 0xff], OpCode::Data(Data::Text), true))).await;
    assert_eq!(client.closed().await, close::NOT_UTF8.code);
}

/// A connection on which anything can be written.
async fn raw(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /ws?user=1&topics=1r HTTP/1.1\r\nHost: rollcall\r\nConnection: keep-alive, Upgrade\r\n\
        Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    stream
}

/// All that the server writes until it ends the stream, which it does in an orderly way.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.expect("an end, not a reset");
    bytes
}

fn close_frame(close: rollcall_realtime::Close) -> Vec<u8> {
    let mut bytes = vec![0x88, u8::try_from(close.reason.len()).unwrap() + 2];
    bytes.extend(close.code.to_be_bytes());
    bytes.extend(close.reason.as_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_are_answered_with_a_close() {
    let server = Server::new().await;
    let cases: [(&str, &[u8], rollcall_realtime::Close); 8] = [
        ("not masked", b"\x81\x01a", close::PROTOCOL),
        ("reserved bit", b"\xc1\x80\0\0\0\0", close::PROTOCOL),
        ("unknown opcode", b"\x83\x80\0\0\0\0", close::PROTOCOL),
        ("unknown control", b"\x8b\x80\0\0\0\0", close::PROTOCOL),
        ("continues nothing", b"\x80\x80\0\0\0\0", close::PROTOCOL),
        ("fragmented ping", b"\x09\x80\0\0\0\0", close::PROTOCOL),
        ("a second beginning", b"\x01\x80\0\0\0\0\x01\x80\0\0\0\0", close::PROTOCOL),
        ("8 EiB announced", b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", close::TOO_BIG),
    ];
    for (what, bytes, close) in cases {
        let mut stream = raw(&server).await;
        stream.write_all(bytes).await.unwrap();
        stream.write_all(&[0; 5_000]).await.unwrap();
        assert_eq!(rest(&mut stream).await, close_frame(close), "{what}");
    }
    soon(server.hub().drained()).await;
}

/// Frames with random headers and bodies, masked or not, whole or torn.
#[tokio::test(flavor = "multi_thread")]
async fn any_bytes_end_in_order() {
    let server = Server::new().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        u8::try_from(seed % below).unwrap()
    };
    for _ in 0..400 {
        let mut bytes = Vec::new();
        for _ in 0..=random(12) {
            let opcode = [0, 1, 2, 8, 9, 10, random(16)][usize::from(random(7))];
            let last = if random(3) == 0 { 0 } else { 0x80 };
            let reserved = if random(20) == 0 { random(8) << 4 } else { 0 };
            bytes.push(last | reserved | opcode);
            let length = if random(10) == 0 { random(128) } else { random(126) };
            let masked = if random(20) == 0 { 0 } else { 0x80 };
            bytes.push(masked | length);
            let long = match length {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            bytes.extend((0..long + 4 + length).map(|_| random(256)));
        }
        bytes.truncate(bytes.len() - usize::from(random(8)));
        let mut stream = raw(&server).await;
        // The server may have ended it before all was written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
    }
    soon(server.hub().drained()).await;
    assert_eq!(server.shared.panics.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_answered() {
    let server = Server::new().await;
    let mut stream = raw(&server).await;
    stream.write_all(b"\x88\x82\0\0\0\0\x03\xe8").await.unwrap();
    assert_eq!(rest(&mut stream).await, b"\x88\x02\x03\xe8");
    let mut stream = raw(&server).await;
    stream.write_all(b"\x88\x80\0\0\0\0").await.unwrap();
    assert_eq!(rest(&mut stream).await, b"\x88\x00");
    let mut client = server.connect(1, "").await;
    client.send("gate never answered").await;
    let bye = CloseFrame { code: 1000.into(), reason: Utf8Bytes::from_static("bye") };
    client.message(Message::Close(Some(bye.clone()))).await;
    assert_eq!(client.next().await, Message::Close(Some(bye)));
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_nobody_answers_is_waited_for_a_second() {
    let server = Server::new().await;
    let mut stream = raw(&server).await;
    server.connection(1).close(close::ACCOUNT_CHANGED);
    assert_eq!(rest(&mut stream).await, close_frame(close::ACCOUNT_CHANGED));
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_expires() {
    let config = SocketConfig { expires_in: Some(Duration::from_millis(50)), ..SocketConfig::default() };
    let server = Server::with(HubConfig::default(), config).await;
    let mut client = server.connect(1, "").await;
    assert_eq!(client.closed().await, close::EXPIRED.code);
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_closes() {
    let server = Server::new().await;
    let mut client = server.connect(1, "").await;
    client.send("echo one").await;
    client.send("close").await;
    client.expect(&["one"]).await;
    assert_eq!(client.closed().await, close::FLOODING.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_stay_is_told_why() {
    let server = Server::new().await;
    let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "bearer, secret".parse().unwrap());
    let (socket, response) = soon(connect_async(request)).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "bearer");
    let mut client = Client { socket };
    client.expect(&["who are you?"]).await;
    assert_eq!(client.closed().await, close::POLICY.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_no_upgrade_are_refused() {
    let server = Server::new().await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let cases = [
        String::new(),
        format!("{upgrade}{key}"),
        format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n"),
        format!("{upgrade}Sec-WebSocket-Version: 13\r\n"),
        format!("Connection: upgrade\r\n{key}Sec-WebSocket-Version: 13\r\n"),
        format!("Upgrade: websocket\r\n{key}Sec-WebSocket-Version: 13\r\n"),
    ];
    for headers in cases {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET /ws?user=1&topics= HTTP/1.1\r\nHost: rollcall\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        soon(stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status[9..], StatusCode::UPGRADE_REQUIRED.as_str().as_bytes(), "{headers}");
    }
    assert_eq!(server.hub().count(), 0);
}
