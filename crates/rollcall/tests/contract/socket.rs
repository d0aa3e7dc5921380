//! The socket itself: who gets one, what goes over it, and how it ends.

use reqwest::Method;
use rollcall_testkit::server::Socket;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

use crate::{Room, builder, server};

const REFUSED: &str = "Unauthorized or invalid token";
const KIB_16: usize = 16 * 1024;

/// A frame as RFC 6455 has it, masked with zeros. `first` is FIN, the reserved bits and the opcode.
fn raw_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u16::try_from(payload.len()).unwrap() {
        length @ 0..126 => bytes.push(0x80 | u8::try_from(length).unwrap()),
        length => {
            bytes.push(0x80 | 0x7e);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}

const TEXT: u8 = 0x81;
const TEXT_BEGINS: u8 = 0x01;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;

async fn send_raw(socket: &mut Socket, bytes: &[u8]) {
    socket.connection().write_all(bytes).await.unwrap();
}

#[tokio::test]
async fn who_asks_for_nothing_is_sent_nothing() {
    let room = Room::open(1).await;
    for person in [&room.teacher, &room.students[0]] {
        let mut socket = person.socket().await;
        assert_eq!(socket.protocol, None);
        socket.expect_silence().await;
    }
}

#[tokio::test]
async fn tokens_come_in_the_address_or_as_a_subprotocol() {
    let room = Room::open(1).await;
    let mut by_protocol = room.teacher.dial().by_protocol().open().await;
    assert_eq!(by_protocol.protocol.as_deref(), Some("bearer"), "the token itself is not echoed");
    by_protocol.mark(&room.students[0].id, "present").await;
    by_protocol.expect_mark(&room.students[0].id, "present").await;
    let mut since = room.teacher.dial().by_protocol().since(&room.class, 1).open().await;
    since.expect_mark(&room.students[0].id, "present").await;

    let mut bad = room.client.dial("x.y.z").by_protocol().open().await;
    assert_eq!(bad.protocol.as_deref(), Some("bearer"), "else browsers would not show the error");
    bad.expect_error(REFUSED).await;
    bad.expect_close(1008).await;
}

#[tokio::test]
async fn without_a_good_token_there_is_one_error_and_a_close() {
    let room = Room::open(0).await;
    for query in ["", "?", "?token", "?token=", "?token=x", "?token=%00%ff", "?token=null", "?TOKEN=x", "?since=x:1"] {
        let mut socket = room.client.dial("").query(query).open().await;
        socket.expect_error(REFUSED).await;
        let ended = socket.expect_end().await;
        assert_eq!(ended.code, Some(1008), "{query:?}");
    }
    // A header is not how a socket is opened; browsers cannot send it.
    let dial = room.client.dial("").query("").header("sec-websocket-protocol", "chat");
    match dial.attempt().await {
        Ok(mut socket) => {
            socket.expect_error(REFUSED).await;
            socket.expect_close(1008).await;
        }
        // The client gives up because its protocol was not chosen.
        Err(error) => assert!(error.to_string().to_lowercase().contains("subprotocol"), "{error}"),
    }
}

#[tokio::test]
async fn pages_of_other_hosts_get_no_socket() {
    let room = Room::open(1).await;
    let own = room.server.base();
    let mut socket = room.teacher.dial().origin(&own).open().await;
    socket.expect_silence().await;
    let subdomain = format!("http://evil.{}", room.server.address());
    let suffix = format!("{own}.evil.example");
    for origin in ["http://evil.example", "https://evil.example:8000", "null", &subdomain, &suffix, "file://", "x"] {
        let mut socket = room.teacher.dial().origin(origin).open().await;
        let (frames, ended) = socket.drain().await;
        assert_eq!(ended.code, Some(1008), "{origin}");
        assert!(frames.iter().all(|frame| frame.event == "ERROR"), "{origin}: {frames:?}");
    }

    let server =
        builder().env("ALLOWED_ORIGINS", "https://school.example,http://localhost:5173").start().await.unwrap();
    let person = server.client().student("S").await;
    for origin in ["https://school.example", "http://localhost:5173"] {
        person.dial().origin(origin).open().await.expect_silence().await;
    }
    for origin in ["http://school.example", "https://school.example.evil.example", "https://school.example:8443"] {
        let mut socket = person.dial().origin(origin).open().await;
        assert_eq!(socket.drain().await.1.code, Some(1008), "{origin}");
    }
}

#[tokio::test]
async fn frames_up_to_16_kib_are_taken() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    let frame = json!({"event": "TODAY_SUMMARY", "data": {}}).to_string();
    socket.send_text(format!("{frame:<KIB_16$}")).await;
    socket.expect("TODAY_SUMMARY").await;
    socket.send_text(format!("{frame:<width$}", width = KIB_16 + 1)).await;
    socket.expect_close(1009).await;

    let mut socket = room.teacher.socket().await;
    socket.send_message(Message::binary(vec![0; KIB_16 + 1])).await;
    socket.expect_close(1009).await;

    // Many fragments are no way around it.
    let mut socket = room.teacher.socket().await;
    send_raw(&mut socket, &raw_frame(TEXT_BEGINS, &[b' '; 10_000])).await;
    send_raw(&mut socket, &raw_frame(GOES_ON, &[b' '; 10_000])).await;
    socket.expect_close(1009).await;

    // Nor is the mere announcement of a huge frame.
    let mut socket = room.teacher.socket().await;
    let mut head = vec![TEXT, 0x80 | 0x7f];
    head.extend(u64::MAX.to_be_bytes().map(|byte| byte & 0x7f));
    head.extend([0; 4]);
    send_raw(&mut socket, &head).await;
    let code = socket.expect_end().await.code;
    assert!(matches!(code, Some(1009 | 1002)), "{code:?}");
}

#[tokio::test]
async fn binary_frames_are_no_commands() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    let text = json!({"event": "TODAY_SUMMARY", "data": {}}).to_string();
    for bytes in [Vec::new(), text.into_bytes(), vec![0xff; 100]] {
        socket.send_message(Message::binary(bytes)).await;
        socket.expect_error("Invalid message format").await;
    }
    socket.expect_silence().await;
}

#[tokio::test]
async fn fragments_make_one_command() {
    let room = Room::open(1).await;
    let mut socket = room.teacher.socket().await;
    let text = json!({"event": "TODAY_SUMMARY", "data": {"requestId": "ünï"}}).to_string();
    let bytes = text.as_bytes();
    // Byte by byte, through the middle of characters, with a ping in between.
    send_raw(&mut socket, &raw_frame(TEXT_BEGINS, &bytes[..1])).await;
    for byte in &bytes[1..] {
        send_raw(&mut socket, &raw_frame(GOES_ON, &[*byte])).await;
    }
    send_raw(&mut socket, &raw_frame(0x89, b"ping")).await;
    send_raw(&mut socket, &raw_frame(ENDS, &[])).await;
    assert_eq!(socket.expect("TODAY_SUMMARY").await["requestId"], "ünï");
    // One command, split over many packets, and many in one packet.
    let frame = raw_frame(TEXT, bytes);
    for part in frame.chunks(3) {
        send_raw(&mut socket, part).await;
    }
    socket.expect("TODAY_SUMMARY").await;
    send_raw(&mut socket, &frame.repeat(10)).await;
    for _ in 0..10 {
        // The same request again: the same answer again.
        assert_eq!(socket.expect("TODAY_SUMMARY").await["requestId"], "ünï");
    }
}

#[tokio::test]
async fn broken_frames_end_the_socket_cleanly() {
    let room = Room::open(1).await;
    let cases: [(&str, Vec<u8>, u16); 10] = [
        ("invalid UTF-8", raw_frame(TEXT, b"{\"event\":\"\xff\xfe\"}"), 1007),
        ("a lone surrogate", raw_frame(TEXT, b"\xed\xa0\x80"), 1007),
        ("an overlong form", raw_frame(TEXT, b"\xc0\xaf"), 1007),
        ("a reserved opcode", raw_frame(0x83, b"x"), 1002),
        ("a reserved control opcode", raw_frame(0x8f, b""), 1002),
        ("a reserved bit", raw_frame(TEXT | 0x40, b"x"), 1002),
        ("an unmasked frame", vec![TEXT, 1, b'x'], 1002),
        ("a continuation of nothing", raw_frame(ENDS, b"x"), 1002),
        ("a fragmented ping", raw_frame(0x09, b"x"), 1002),
        ("a ping that is too long", raw_frame(0x89, &[0; 126]), 1002),
    ];
    for (what, bytes, code) in cases {
        let mut socket = room.students[0].socket().await;
        send_raw(&mut socket, &bytes).await;
        let ended = socket.expect_end().await;
        assert_eq!(ended.code, Some(code), "{what}");
    }
    // Nothing of that troubled anybody else.
    let mut teacher = room.teacher.socket().await;
    teacher.mark(&room.students[0].id, "present").await;
    teacher.expect_mark(&room.students[0].id, "present").await;
}

#[tokio::test]
async fn a_goodbye_is_answered_and_what_was_sent_before_it_is_done() {
    let room = Room::open(1).await;
    let mut listener = room.students[0].socket().await;
    let mut teacher = room.teacher.socket().await;
    for status in ["present", "late", "excused"] {
        let data = json!({"studentId": room.students[0].id, "status": status});
        teacher.queue("ATTENDANCE_MARKED", &data).await;
    }
    teacher.flush().await;
    teacher.send_message(Message::Close(None)).await;
    for status in ["present", "late", "excused"] {
        listener.expect_mark(&room.students[0].id, status).await;
    }
    let (_, ended) = teacher.drain().await;
    assert!(!matches!(ended.code, Some(1002 | 1011)), "{ended}");
}

#[tokio::test]
async fn ws_without_an_upgrade_is_the_clients_mistake() {
    let room = Room::open(0).await;
    let token = &room.teacher.token;
    let path = format!("/ws?token={token}");
    let plain = room.client.get(&path).await;
    assert!((400..500).contains(&plain.status), "{plain:?}");
    assert_eq!(plain.json(plain.status)["success"], false);
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let answer = room.client.call(method, &path).send().await;
        answer.refused(405, "Method not allowed");
    }
    let host = room.server.address();
    for (headers, what) in [
        ("Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", "no key"),
        (
            "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "no version",
        ),
        (
            "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 8\r\n",
            "an old version",
        ),
        (
            "Connection: close\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
            "no upgrade",
        ),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
        let answer = room.client.raw().await.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
        assert!(answer.contains(r#""success":false"#), "{what}: {answer}");
    }
}

#[tokio::test]
async fn who_reads_nothing_delays_nobody() {
    const MARKS: usize = 3_000;
    let room = Room::open(2).await;
    let [silent, quick] = &room.students[..] else { unreachable!() };
    let _at_silent = silent.dial().small_buffers().open().await;
    let mut at_quick = quick.socket().await;
    let mut teacher = room.teacher.socket().await;
    let status = |n: usize| ["present", "absent"][n % 2];
    for n in 0..MARKS {
        teacher.queue("ATTENDANCE_MARKED", &json!({"studentId": silent.id, "status": status(n)})).await;
        if n % 500 == 499 {
            teacher.flush().await;
            for n in n - 499..=n {
                teacher.expect_mark(&silent.id, status(n)).await;
                at_quick.expect_mark(&silent.id, status(n)).await;
            }
        }
    }
}

#[tokio::test]
async fn sockets_that_vanish_leave_nothing_behind() {
    let server = server().await;
    let room = Room::on(server, 1).await;
    room.teacher.start(&room.class).await;
    for _ in 0..50 {
        drop(room.students[0].socket().await);
    }
    // One more than what is allowed at once, which they would be if they were still counted.
    let open = async {
        loop {
            let metrics = room.client.get("/metrics").await.text();
            let line =
                metrics.lines().find(|line| line.starts_with("rollcall_sockets ")).unwrap_or_default().to_owned();
            if line == "rollcall_sockets 0" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(rollcall_testkit::server::PATIENCE, open).await.expect("all sockets are gone");
}
