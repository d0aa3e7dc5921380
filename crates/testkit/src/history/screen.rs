//! Frames: true, in their order, and in the end what the store holds.

use std::collections::BTreeMap;

use rollcall_core::session::Status;

use super::witness::Log;
use super::{Class, Event, Frame, History, Id, Rule, Said, Socket, Violation, show};

pub(super) fn check(history: &History) -> Vec<Violation> {
    let logs: BTreeMap<_, _> = history.classes.iter().map(|class| (&class.id, Log::new(class))).collect();
    let mut found = Vec::new();
    for (index, socket) in history.sockets.iter().enumerate() {
        for frame in &socket.frames {
            let hears = history.clients[socket.client].hears.contains(&frame.class);
            if !hears || !logs.get(&frame.class).is_some_and(|log| log.says(frame.revision, &frame.said)) {
                let why = if hears { "the log says something else" } else { "that is none of the client's classes" };
                let story = format!("{why}:\n    {}", line(history, index, frame));
                found.push(Violation { rule: Rule::TrueFrames, story });
            }
        }
        found.extend(check_order(history, index, socket));
    }
    for class in &history.classes {
        for client in 0..history.clients.len() {
            if history.clients[client].hears.contains(&class.id) {
                found.extend(check_end(history, class, client));
            }
        }
    }
    found
}

fn check_order(history: &History, index: usize, socket: &Socket) -> Vec<Violation> {
    let mut found = Vec::new();
    // What the client knows: nothing of it may be told to everybody again.
    let mut known = socket.since.clone();
    for frame in &socket.frames {
        let last = known.entry(frame.class.clone()).or_default();
        let again = frame.answers.is_some_and(|operation| history.operations[operation].resent.is_some());
        // An answer to a question, or to a command that had been done before, may be about what is over.
        if frame.revision <= *last && frame.said != Said::Own && !again {
            let story = format!("{last} was known on this socket, and then came\n    {}", line(history, index, frame));
            found.push(Violation { rule: Rule::FrameOrder, story });
        }
        // An answer follows every frame up to what it saw.
        *last = frame.revision.max(*last);
    }
    found
}

/// What the client was told last of each student in the class's newest session, against the log.
fn check_end(history: &History, class: &Class, client: usize) -> Option<Violation> {
    let name = &history.clients[client].name;
    let broken = |why: String| {
        let story = format!("{name} in {}: {why}", history.name(&class.id));
        Some(Violation { rule: Rule::Convergence, story })
    };
    let sockets: Vec<_> = history.sockets.iter().filter(|socket| socket.client == client).collect();
    if !sockets.iter().any(|socket| socket.ended.is_none()) {
        return broken("not connected at the end".to_owned());
    }
    let newest = class.sessions.last()?;
    let first = newest.log.first()?.revision;
    let mut screen: BTreeMap<&Id, (u64, Status)> = BTreeMap::new();
    let mut done = false;
    for frame in sockets.iter().flat_map(|socket| &socket.frames) {
        if frame.class != class.id || frame.revision < first {
            continue;
        }
        match &frame.said {
            Said::Marked { student, status } => {
                let shown = screen.entry(student).or_insert((frame.revision, *status));
                // A command that was sent again may be answered with what is over.
                if frame.answers.is_none() || frame.revision >= shown.0 {
                    *shown = (frame.revision, *status);
                }
            }
            Said::Done(_) => done = true,
            Said::Summary(_) | Said::Own => {}
        }
    }
    let mut stands: BTreeMap<&Id, (u64, Status)> = BTreeMap::new();
    for entry in &newest.log {
        if let Event::Marked { student, new, .. } = &entry.event {
            stands.insert(student, (entry.revision, *new));
        }
    }
    for student in &class.students {
        let (shown, stands) = (screen.get(student), stands.get(student));
        if shown != stands {
            let say = |mark: Option<&(u64, Status)>| match mark {
                Some((revision, status)) => format!("{status} at {revision}"),
                None => show(None).to_owned(),
            };
            return broken(format!(
                "was told last that {} is {}, and the store holds {}",
                history.name(student),
                say(shown),
                say(stands)
            ));
        }
    }
    if !newest.open && !done { broken("never heard of the end of the last session".to_owned()) } else { None }
}

fn line(history: &History, socket: usize, frame: &Frame) -> String {
    let said = match &frame.said {
        Said::Marked { student, status } => format!("{} is {status}", history.name(student)),
        Said::Summary(counts) => format!("TODAY_SUMMARY, {} in all", counts.total()),
        Said::Done(counts) => format!("DONE, {} in all", counts.total()),
        Said::Own => "MY_ATTENDANCE".to_owned(),
    };
    let name = &history.clients[history.sockets[socket].client].name;
    let class = history.name(&frame.class);
    format!("{}  {name} (connection {socket}) heard of {class} at {}: {said}", frame.at, frame.revision)
}
