//! HTTPS and WSS with the operator's own certificate.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rollcall_testkit::server::{Authority, Builder, Client, Pair, Server, Trust};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Room, builder};

/// What the certificates here are for.
const NAMES: [&str; 3] = ["school.example", "127.0.0.1", "localhost"];

/// A folder with a certificate of an authority of its own.
pub(crate) struct Secured {
    authority: Authority,
    folder: Arc<TempDir>,
}

impl Secured {
    pub(crate) fn new() -> Self {
        let secured = Self { authority: Authority::new().unwrap(), folder: Arc::new(tempfile::tempdir().unwrap()) };
        secured.put(&secured.authority.issue(&NAMES).unwrap());
        secured
    }

    pub(crate) fn trust(&self) -> Trust {
        self.authority.trust().unwrap()
    }

    /// How a server with the certificate is to be started.
    pub(crate) fn builder(&self) -> Builder {
        let builder = builder().folder(Arc::clone(&self.folder)).trusting(self.trust());
        builder.env("TLS_CERT", "tls/tls.crt").env("TLS_KEY", "tls/tls.key").env("DB_URL", "sqlite://own/rollcall.db")
    }

    /// Puts another certificate in its place, as Kubernetes does: the folder is a link that is swapped.
    fn put(&self, pair: &Pair) {
        let root = self.folder.path();
        let fresh = tempfile::Builder::new().prefix("version-").tempdir_in(root).unwrap().keep();
        std::fs::write(fresh.join("tls.crt"), &pair.certificate).unwrap();
        std::fs::write(fresh.join("tls.key"), &pair.key).unwrap();
        symlink(fresh.file_name().unwrap(), root.join("next")).unwrap();
        std::fs::rename(root.join("next"), root.join("tls")).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The address that the server's output names behind this.
pub(crate) fn address_after(server: &Server, text: &str) -> String {
    let output = server.output();
    let (_, rest) = output.split_once(text).unwrap_or_else(|| panic!("no {text:?} in {output}"));
    rest.split(['/', ' ', '\n']).next().unwrap().to_owned()
}

#[tokio::test]
async fn attendance_is_taken_over_wss() {
    let secured = Secured::new();
    let room = Room::on(secured.builder().start().await.unwrap(), 2).await;
    let said = room.server.output();
    assert!(said.contains(&format!("listens on https://{}", room.server.address())), "{said}");
    assert!(said.contains(&format!("Try: https://school.example:{}/docs", room.server.address().port())), "{said}");

    room.teacher.start(&room.class).await;
    let mut teacher = room.teacher.socket().await;
    let mut student = room.students[0].socket().await;
    for (n, status) in [(0, "present"), (1, "late"), (0, "excused")] {
        teacher.mark(&room.students[n].id, status).await;
        teacher.expect_mark(&room.students[n].id, status).await;
        student.expect_mark(&room.students[n].id, status).await;
    }
    // More at once than one record, or one write, holds.
    for _ in 0..2_000 {
        teacher.queue("ATTENDANCE_MARKED", &json!({"studentId": room.students[1].id, "status": "present"})).await;
    }
    teacher.flush().await;
    for _ in 0..2_000 {
        student.expect_mark(&room.students[1].id, "present").await;
    }
    for _ in 0..2_000 {
        teacher.expect_mark(&room.students[1].id, "present").await;
    }
    teacher.send("DONE", &json!({})).await;
    assert_eq!(student.expect("DONE").await["present"], 1);
    teacher.close().await;
    student.close().await;
    let answer = room.students[1].get(&room.class.path("/my-attendance")).await.ok();
    assert_eq!(answer["status"], "present");

    let healthy = room.server.run(&["healthcheck"]).await.unwrap();
    assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stderr));
    let doctor = room.server.run(&["doctor"]).await.unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success() && said.contains("is ready"), "{said}");
    assert!(said.contains("ok    certificate    for school.example, 127.0.0.1, localhost, until 4096-01-01"), "{said}");
    let metrics = room.client.get("/metrics").await.text();
    assert!(metrics.contains("rollcall_tls_certificate_expiry_timestamp_seconds 67"), "{metrics}");
    assert!(metrics.contains(r#"rollcall_tls_handshakes_total{outcome="done"}"#), "{metrics}");
}

#[tokio::test]
async fn only_tls_1_2_and_1_3_are_spoken_and_only_http_1_1_inside() {
    let secured = Secured::new();
    let server = secured.builder().start().await.unwrap();
    let pem = secured.authority.pem();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = Client::trusting(&server.base(), &Trust::over(&pem, &[version]).unwrap());
        client.get("/health/ready").await.ok();
        let mut socket = client.student("Sam").await.socket().await;
        socket.expect_silence().await;
    }
    // A stranger's certificate is noticed by clients, and troubles the server not at all.
    let stranger = Client::trusting(&server.base(), &Authority::new().unwrap().trust().unwrap());
    stranger.call(reqwest::Method::GET, "/health/ready").attempt().await.unwrap_err();

    let alert = async |hello: Vec<u8>| {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        // A record of a fatal alert: its last byte says which.
        match answer[..] {
            [21, _, _, 0, 2, 2, alert] => alert,
            _ => panic!("{answer:?} after {hello:?}"),
        }
    };
    assert_eq!(alert(hello([3, 2])).await, 70, "TLS 1.1: protocol_version");
    assert_eq!(alert(hello([3, 1])).await, 70, "TLS 1.0: protocol_version");
    let mut junk = TcpStream::connect(server.address()).await.unwrap();
    junk.write_all(b"\x16\x03\x01\x00\x04junk").await.unwrap();
    junk.read_to_end(&mut Vec::new()).await.unwrap();

    let mut config = secured.trust().config();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let name = "school.example".try_into().unwrap();
    let error = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    server.client().get("/health/ready").await.ok();
}

/// A client's first message, of this version at most.
fn hello(version: [u8; 2]) -> Vec<u8> {
    // Signatures, by RSA with SHA-256 and by P-256; groups, P-256.
    let extensions = [0, 13, 0, 6, 0, 4, 4, 1, 4, 3, 0, 10, 0, 4, 0, 2, 0, 23];
    let mut body = version.to_vec();
    body.extend([7; 32]);
    // No session; one suite, TLS_RSA_WITH_AES_128_CBC_SHA; no compression.
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test]
async fn who_speaks_plain_http_is_told_so() {
    let secured = Secured::new();
    let server = secured.builder().start().await.unwrap();
    let plain = Client::new(&format!("http://{}", server.address()));
    for request in
        ["GET /me HTTP/1.1\r\nHost: x\r\n\r\n", "POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}"]
    {
        let answer = plain.raw().await.exchange(request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.ends_with(r#"{"success":false,"error":"HTTPS required"}"#),
            "{answer}"
        );
        assert!(answer.contains("\r\nx-content-type-options: nosniff\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn slow_handshakes_are_in_nobodys_way_and_end() {
    let secured = Secured::new();
    let server = secured.builder().start().await.unwrap();
    let half = &hello([3, 3])[..20];
    let mut slow = Vec::new();
    // More than are worked on at a time.
    for n in 0..600 {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        if n % 2 == 0 {
            stream.write_all(half).await.unwrap();
        }
        slow.push(stream);
    }
    let began = Instant::now();
    let mut room = Room::on(server, 1).await;
    room.teacher.start(&room.class).await;
    let mut socket = room.teacher.socket().await;
    socket.mark(&room.students[0].id, "late").await;
    socket.expect_mark(&room.students[0].id, "late").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    let ends = slow.iter_mut().map(async |stream| stream.read_to_end(&mut Vec::new()).await);
    let ended = tokio::time::timeout(Duration::from_secs(20), futures_util::future::join_all(ends)).await;
    assert!(ended.is_ok(), "a handshake may go on for ever");
    socket.mark(&room.students[0].id, "present").await;
    socket.expect_mark(&room.students[0].id, "present").await;
    assert!(room.server.terminate().await.unwrap().success());
}

#[tokio::test]
async fn a_new_certificate_is_served_and_sockets_stay() {
    let secured = Secured::new();
    let room = Room::on(secured.builder().start().await.unwrap(), 1).await;
    room.teacher.start(&room.class).await;
    let mut socket = room.teacher.socket().await;
    let student = &room.students[0].id;

    // Found by itself.
    let next = Authority::new().unwrap();
    secured.put(&next.issue(&NAMES).unwrap());
    let with_next = Client::trusting(&room.server.base(), &next.trust().unwrap());
    let served = async || with_next.call(reqwest::Method::GET, "/health/ready").attempt().await.is_ok();
    let began = Instant::now();
    while !served().await {
        assert!(began.elapsed() < Duration::from_secs(30), "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    socket.mark(student, "late").await;
    socket.expect_mark(student, "late").await;

    // What cannot be used is not.
    let broken = [
        (Pair { key: next.issue(&NAMES).unwrap().key, ..next.issue(&NAMES).unwrap() }, "the key does not belong"),
        (Pair { certificate: String::new(), ..next.issue(&NAMES).unwrap() }, "there is no certificate"),
        (next.issue_until(&NAMES, 2020).unwrap(), "has ended at 2020-01-01"),
    ];
    for (pair, told) in broken {
        secured.put(&pair);
        room.server.ask_to_reload().unwrap();
        room.server.logged(told).await;
        assert!(served().await);
    }
    std::fs::remove_file(secured.file("tls")).unwrap();
    room.server.ask_to_reload().unwrap();
    room.server.logged("TLS_CERT tls/tls.crt cannot be read").await;
    assert!(served().await);
    let logs = room.server.logs();
    assert!(logs.contains("the old one is served on"), "{logs}");

    // And all is well again when it can.
    let last = Authority::new().unwrap();
    secured.put(&last.issue(&["127.0.0.1", "new.example"]).unwrap());
    room.server.ask_to_reload().unwrap();
    room.server.logged("names=\"127.0.0.1, new.example\"").await;
    Client::trusting(&room.server.base(), &last.trust().unwrap()).get("/health/ready").await.ok();
    socket.mark(student, "present").await;
    socket.expect_mark(student, "present").await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_at_the_start() {
    let secured = Secured::new();
    let refused = async |told: &str| {
        let error = secured.builder().start().await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
        assert!(!secured.file("own").exists(), "nothing else was touched");
    };
    let other = secured.authority.issue(&NAMES).unwrap();
    secured.put(&Pair { key: other.key.clone(), ..secured.authority.issue(&NAMES).unwrap() });
    refused("TLS_CERT tls/tls.crt with TLS_KEY tls/tls.key cannot be used: the key does not belong to the certificate")
        .await;
    secured.put(&Pair { key: other.certificate.clone(), certificate: other.certificate });
    refused("there is no key").await;
    std::fs::remove_file(secured.file("tls/tls.key")).unwrap();
    refused("TLS_KEY tls/tls.key cannot be read: No such file").await;

    // One that has ended is served, since a server that does not start helps nobody; but not in silence.
    secured.put(&secured.authority.issue_until(&NAMES, 2020).unwrap());
    let server = secured.builder().start().await.unwrap();
    server.logged("the certificate has ended").await;
    let doctor = server.run(&["doctor"]).await.unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(!doctor.status.success() && said.contains("FAIL  certificate"), "{said}");
}

#[tokio::test]
async fn told_to_end_it_says_goodbye_over_tls_too() {
    let secured = Secured::new();
    let mut room = Room::on(secured.builder().start().await.unwrap(), 3).await;
    let mut sockets = Vec::new();
    for student in &room.students {
        sockets.push(student.socket().await);
    }
    let mut idle = room.client.raw().await;
    idle.send("GET /health/live HTTP/1.1\r\nHost: school.example\r\n\r\n").await.unwrap();
    let begun = TcpStream::connect(room.server.address()).await.unwrap();
    room.server.ask_to_end().unwrap();
    for socket in &mut sockets {
        socket.expect_close(1012).await;
    }
    assert!(idle.whole_rest().await.starts_with("HTTP/1.1 200 OK"));
    assert!(room.server.ended().await.success());
    drop(begun);
}
