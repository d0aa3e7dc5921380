//! Who hears what, and in which order.

use std::io::Read;
use std::time::{Duration, Instant};

use rollcall_realtime::{Frame, HubConfig, Message, SocketConfig, Tier, TooManyConnections, close};
use tokio::task::JoinSet;
use tokio_tungstenite::MaybeTlsStream;

use crate::support::{LONG, Server, key, soon};

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_a_topic_hear_it_in_order_and_nobody_else_does() {
    let server = Server::new().await;
    let mut teacher = server.connect(1, "1f").await;
    let mut student = server.connect(2, "1r,2r").await;
    let mut stranger = server.connect(3, "2r").await;
    server.publish(1, 1, "a");
    server.publish(1, 2, "b");
    server.publish(2, 7, "other");
    // Told twice, and told late.
    server.publish(1, 2, "b");
    server.publish(1, 1, "a");
    server.hub().publish(key(1), 3, None);
    server.hub().announce(key(1), Frame::from("by the way").into());
    server.publish(1, 4, "c");
    teacher.expect(&["a", "b", "by the way", "c"]).await;
    let mut heard = Vec::new();
    for _ in 0..5 {
        heard.push(student.text().await);
    }
    heard.retain(|text| text != "other");
    assert_eq!(heard, ["a", "b", "by the way", "c"]);
    stranger.expect(&["other"]).await;
    stranger.send("echo nothing else").await;
    stranger.expect(&["nothing else"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_remembered_while_nobody_listens() {
    let server = Server::new().await;
    server.publish(1, 5, "nobody hears this");
    let mut client = server.connect(1, "1r").await;
    server.publish(1, 5, "again");
    server.publish(1, 6, "six");
    client.expect(&["six"]).await;
    drop(client);
    soon(server.hub().drained()).await;
    let mut client = server.connect(1, "1r").await;
    server.publish(1, 6, "again");
    server.publish(1, 7, "seven");
    client.expect(&["seven"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_gets_a_variant() {
    let server = Server::new().await;
    let mut sender = server.connect(1, "1f").await;
    let mut other = server.connect(2, "1f").await;
    let mut student = server.connect(3, "1r").await;
    let id = server.connection(1).id();
    let items = (1..=600_u64).map(|version| {
        let variant = (version % 3 == 0).then(|| (id, Frame::from(format!("{version} to you"))));
        (key(1), version, Some(Message { frame: Frame::from(version.to_string()), variant }))
    });
    server.hub().publish_batch(items);
    for version in 1..=600 {
        let own = if version % 3 == 0 { format!("{version} to you") } else { version.to_string() };
        assert_eq!(sender.text().await, own);
        assert_eq!(other.text().await, version.to_string());
        assert_eq!(student.text().await, version.to_string());
    }
}

/// Who has the student's frame may rely on it that the teacher's was written before: no waiting is needed to read it.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_tier_is_written_before_the_rest() {
    let patient = HubConfig { first_tier_wait: LONG, ..HubConfig::default() };
    let server = Server::with(patient, SocketConfig::default()).await;
    let mut students = Vec::new();
    for user in 2..8 {
        students.push(server.connect(user, "1r").await);
    }
    let teacher = server.connect(1, "1f").await;
    let MaybeTlsStream::Plain(teacher) = teacher.socket.into_inner() else { unreachable!() };
    let mut teacher = teacher.into_std().unwrap();
    for version in 1..=300_u64 {
        server.publish(1, version, "mark");
        for student in &mut students {
            assert_eq!(student.text().await, "mark");
        }
        let mut frame = [0; 64];
        assert_eq!(teacher.read(&mut frame).expect("the teacher's frame is there"), 6, "round {version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_who_does_not_read_delays_nobody_for_long() {
    let server = Server::new().await;
    let mut teacher = server.connect(1, "1f").await;
    let mut student = server.connect(2, "1r").await;
    let text = "x".repeat(200_000);
    for version in 1..=200 {
        server.publish(1, version, &text);
        assert_eq!(student.text().await.len(), text.len());
    }
    assert_eq!(teacher.closed().await, close::TOO_SLOW.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_frames_follow_what_was_missed() {
    let server = Server::new().await;
    let mut client = server.connect(1, "1rh,2r").await;
    for version in 1..=5 {
        server.publish(1, version, &version.to_string());
    }
    server.hub().announce(key(1), Frame::from("news").into());
    server.publish(2, 1, "another topic");
    client.expect(&["another topic"]).await;
    client.send("reached 1 5").await;
    let connection = server.connection(1);
    connection.send(Frame::from("all up to 3"));
    connection.release(key(1), 3);
    client.expect(&["all up to 3", "4", "5", "news", "reached 5"]).await;
    server.publish(1, 6, "6");
    client.expect(&["6"]).await;

    // What it was sent may be newer than what was published.
    let mut client = server.connect(2, "1rh").await;
    let connection = server.connection(2);
    connection.send(Frame::from("all up to 8"));
    connection.release(key(1), 8);
    for version in 7..=10 {
        server.publish(1, version, &version.to_string());
    }
    client.expect(&["all up to 8", "9", "10"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holding_is_bounded() {
    let small = HubConfig { outbox_frames: 10, ..HubConfig::default() };
    let server = Server::with(small, SocketConfig::default()).await;
    let mut client = server.connect(1, "1rh").await;
    for version in 1..=11 {
        server.publish(1, version, "held");
    }
    assert_eq!(client.closed().await, close::TOO_SLOW.code);
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_and_leaves_have_their_place_in_the_order() {
    let server = Server::new().await;
    let mut client = server.connect(1, "").await;
    let mut member = server.connect(2, "1r").await;
    let hub = server.hub();
    let mut version = 0;
    for round in 0..200 {
        let tier = if round % 2 == 0 { Tier::First } else { Tier::Rest };
        server.publish(1, version + 1, "before");
        hub.join_user(key(1), key(1), tier);
        server.publish(1, version + 2, "a");
        server.publish(1, version + 3, "b");
        hub.leave_user(key(1), key(1));
        server.publish(1, version + 4, "after");
        version += 4;
    }
    for _ in 0..200 {
        client.expect(&["a", "b"]).await;
        member.expect(&["before", "a", "b", "after"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memberships_that_changed_while_they_were_loaded_are_loaded_again() {
    let server = Server::new().await;
    let hub = server.hub();
    let registration = hub.register(key(1), 0).unwrap();
    let loaded = registration.generation();
    hub.join_user(key(1), key(5), Tier::Rest);
    assert!(!registration.join_all(loaded, [(key(4), Tier::Rest, false)]));
    let loaded = registration.generation();
    hub.leave_user(key(1), key(5));
    assert!(!registration.join_all(loaded, [(key(5), Tier::Rest, false)]));
    hub.join_user(key(2), key(5), Tier::Rest);
    let loaded = registration.generation();
    assert!(registration.join_all(loaded, [(key(4), Tier::Rest, false)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stay_hears_an_unbroken_run() {
    let server = Server::new().await;
    let mut stays = JoinSet::new();
    for user in 1..=8_u8 {
        let url = format!("1{}", if user < 3 { 'f' } else { 'r' });
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(server.connect(user, &url).await);
        }
        stays.spawn(async move {
            for (length, mut client) in (1..).zip(clients) {
                let first: u64 = client.text().await.parse().unwrap();
                for next in first + 1..=first + length * 150 {
                    assert_eq!(client.text().await, next.to_string());
                }
            }
        });
    }
    let mut version = 0;
    while !stays.is_empty() {
        for _ in 0..20 {
            version += 1;
            server.publish(1, version, &version.to_string());
        }
        tokio::select! {
            Some(stay) = stays.join_next() => stay.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    soon(server.hub().drained()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_follows_the_frames_that_it_saw() {
    let server = Server::new().await;
    let mut teacher = server.connect(1, "1f").await;
    let mut student = server.connect(2, "1r").await;
    let mut stranger = server.connect(3, "").await;
    for version in 1..=200_u64 {
        for client in [&mut teacher, &mut student, &mut stranger] {
            client.send(&format!("reached 1 {version}")).await;
        }
        server.publish(1, version, "frame");
        let answer = format!("reached {version}");
        teacher.expect(&["frame", &answer]).await;
        student.expect(&["frame", &answer]).await;
        stranger.expect(&[&answer]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_from_before_the_start_is_waited_for_once() {
    let server = Server::new().await;
    let mut client = server.connect(1, "1r").await;
    let connection = server.connection(1);
    let start = Instant::now();
    soon(server.hub().reached(&connection, key(1), 10)).await;
    assert!(start.elapsed() >= Duration::from_millis(290));
    let start = Instant::now();
    for version in 0..=10 {
        soon(server.hub().reached(&connection, key(1), version)).await;
    }
    assert!(start.elapsed() < Duration::from_millis(290));
    // It may come all the same.
    server.publish(1, 10, "ten");
    client.expect(&["ten"]).await;

    // The same for a topic without members, and it is not forgotten.
    soon(server.hub().reached(&connection, key(9), 3)).await;
    let start = Instant::now();
    soon(server.hub().reached(&connection, key(9), 3)).await;
    assert!(start.elapsed() < Duration::from_millis(290));
    server.publish(9, 4, "four");
    soon(server.hub().reached(&connection, key(9), 4)).await;
    assert!(start.elapsed() < Duration::from_millis(290));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_limited_number_of_connections() {
    let two = HubConfig { max_per_user: 2, ..HubConfig::default() };
    let server = Server::with(two, SocketConfig::default()).await;
    let hub = server.hub();
    let first = hub.register(key(1), 0).unwrap();
    let _second = hub.register(key(1), 0).unwrap();
    assert_eq!(hub.register(key(1), 0).err(), Some(TooManyConnections));
    let _other = hub.register(key(2), 0).unwrap();
    assert_eq!(hub.count(), 3);
    assert_eq!(hub.connections(key(1)).len(), 2);
    let mut users = hub.connected_users();
    users.sort_unstable();
    assert_eq!(users, [key(1), key(2)]);
    drop(first);
    assert_eq!(hub.count(), 2);
    hub.register(key(1), 0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_is_closed_and_what_is_in_flight_is_answered() {
    let server = Server::new().await;
    let mut clients = Vec::new();
    for user in 1..=20 {
        clients.push(server.connect(user, "1r").await);
    }
    clients[0].send("gate answer").await;
    clients[1].send("block blocked").await;
    while server.shared.waiting.load(std::sync::atomic::Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    server.publish(1, 1, "last frame");
    server.hub().close_all(close::RESTART, Duration::from_millis(50));
    for client in &mut clients[2..] {
        assert_eq!(client.closed().await, close::RESTART.code);
    }
    server.publish(1, 2, "one more");
    clients[0].expect(&["last frame", "one more"]).await;
    clients[1].expect(&["last frame", "one more"]).await;
    server.shared.gate.add_permits(2);
    clients[0].expect(&["answer"]).await;
    clients[1].expect(&["blocked"]).await;
    assert_eq!(clients[0].closed().await, close::RESTART.code);
    assert_eq!(clients[1].closed().await, close::RESTART.code);
    soon(server.hub().drained()).await;

    let mut late = server.connect(30, "1r").await;
    assert_eq!(late.closed().await, close::RESTART.code);
    soon(server.hub().drained()).await;
}
