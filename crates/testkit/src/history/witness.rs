//! The log at the end as the order of all operations.
//!
//! The register's search asks whether some order exists; here the order is known, because every command that took
//! effect has a revision, and every answer says which revision it saw. So whole classes can be held against it, with
//! one look at each operation.

use std::collections::{BTreeMap, HashMap, HashSet};

use rollcall_core::session::{Counts, Status};

use super::{Answer, Call, Class, Entry, Event, History, Id, Moment, Operation, Rule, Said, Session, Violation, show};

/// A class's sessions as one log.
pub(super) struct Log<'a> {
    class: &'a Class,
    entries: BTreeMap<u64, (&'a Session, &'a Entry)>,
    /// Of each student every mark with its revision and session.
    marks: HashMap<&'a Id, Vec<(u64, &'a Id, Status)>>,
}

impl<'a> Log<'a> {
    pub(super) fn new(class: &'a Class) -> Self {
        let mut entries = BTreeMap::new();
        let mut marks: HashMap<_, Vec<_>> = HashMap::new();
        for session in &class.sessions {
            for entry in &session.log {
                entries.insert(entry.revision, (session, entry));
                if let Event::Marked { student, new, .. } = &entry.event {
                    marks.entry(student).or_default().push((entry.revision, &session.id, *new));
                }
            }
        }
        Self { class, entries, marks }
    }

    fn entry(&self, revision: u64) -> Option<&'a Entry> {
        self.entries.get(&revision).map(|(_, entry)| *entry)
    }

    /// The session that was open at this revision.
    fn open_at(&self, revision: u64) -> Option<&'a Session> {
        let (session, entry) = self.entries.get(&revision)?;
        (!matches!(entry.event, Event::Done(_))).then_some(session)
    }

    /// The student's mark in `session` at this revision.
    fn mark_at(&self, session: &Session, student: &Id, revision: u64) -> Option<Status> {
        let marks = self.marks.get(student)?;
        let upto = marks.partition_point(|(at, _, _)| *at <= revision);
        let (_, of, status) = marks[..upto].last()?;
        (**of == session.id).then_some(*status)
    }

    /// Whether a frame says what the log says.
    pub(super) fn says(&self, revision: u64, said: &Said) -> bool {
        let Some(entry) = self.entry(revision) else { return false };
        match (said, &entry.event) {
            (Said::Marked { student, status }, Event::Marked { student: marked, new, .. }) => {
                student == marked && status == new
            }
            (Said::Summary(said), Event::Summary(counts)) | (Said::Done(said), Event::Done(counts)) => said == counts,
            // What it shows is looked at with the answer.
            (Said::Own, _) => true,
            _ => false,
        }
    }
}

/// Everything that is held against the log, but frames.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for class in &history.classes {
        let mut whole = |story: String| {
            found.push(Violation { rule: Rule::WholeLog, story: format!("{}: {story}", history.name(&class.id)) });
        };
        check_log(class, &mut whole);
        let log = Log::new(class);
        check_answers(history, &log, &mut found);
        check_times(history, &log, &mut found);
    }
    found
}

fn check_log(class: &Class, wrong: &mut impl FnMut(String)) {
    let mut last = 0;
    let mut names = HashSet::new();
    for (index, session) in class.sessions.iter().enumerate() {
        let newest = index + 1 == class.sessions.len();
        let id = &session.id;
        if session.open && !newest {
            wrong(format!("session {id} is open beside a newer one"));
        }
        let mut marks: BTreeMap<&Id, Status> = BTreeMap::new();
        let counts = |marks: &BTreeMap<&Id, Status>| marks.values().copied().collect::<Counts>();
        for (place, entry) in session.log.iter().enumerate() {
            let Entry { revision, event, operation } = entry;
            if *revision != last + 1 {
                wrong(format!("revision {revision} of session {id} follows {last}"));
            }
            last = *revision;
            if !names.insert(operation) {
                wrong(format!("operation {operation} was done twice, the second time at {revision}"));
            }
            let (first, end) = (place == 0, place + 1 == session.log.len());
            if first != (*event == Event::Started) {
                wrong(format!("session {id} begins with, or has later, {event:?} at {revision}"));
            }
            let is_done = matches!(event, Event::Done(_));
            if is_done && (!end || session.open) {
                wrong(format!("session {id} goes on after DONE at {revision}"));
            }
            if end && !session.open && !is_done {
                wrong(format!("session {id} is finished without DONE, at {revision}"));
            }
            match event {
                Event::Started => {}
                Event::Marked { student, old, new } => {
                    let before = marks.insert(student, *new);
                    if before != *old {
                        let (old, before) = (show(*old), show(before));
                        wrong(format!("revision {revision} says that {student} was {old}, and it was {before}"));
                    }
                }
                Event::Summary(said) => {
                    if *said != counts(&marks) {
                        wrong(format!("the summary at {revision} says {said:?} of {marks:?}"));
                    }
                }
                Event::Done(said) => {
                    for student in &class.students {
                        marks.entry(student).or_insert(Status::Absent);
                    }
                    if *said != counts(&marks) {
                        wrong(format!("DONE at {revision} says {said:?} of {marks:?}"));
                    }
                }
            }
        }
        if session.log.is_empty() {
            wrong(format!("session {id} has no log"));
        }
        if !session.standing.iter().eq(marks.iter().map(|(student, status)| (*student, status))) {
            wrong(format!("session {id} holds {:?}, and its log adds up to {marks:?}", session.standing));
        }
    }
}

/// Whether the log entry is what the command asked for.
fn is_of(entry: &Entry, operation: &Operation) -> bool {
    let same = match (&operation.call, &entry.event) {
        (Call::Mark { student, status }, Event::Marked { student: marked, new, .. }) => {
            student == marked && status == new
        }
        (Call::Summary, Event::Summary(_)) | (Call::Done, Event::Done(_)) => true,
        _ => false,
    };
    same && operation.name.as_ref() == Some(&entry.operation)
}

fn check_answers(history: &History, log: &Log<'_>, found: &mut Vec<Violation>) {
    let mut broken = |rule, index: usize, why: String| {
        found.push(Violation { rule, story: format!("{why}:\n    {}", history.line(index)) });
    };
    let stands: HashMap<_, _> = log.entries.values().map(|(_, entry)| (&entry.operation, *entry)).collect();
    let mut asked = HashSet::new();
    for (index, operation) in of_class(history, log) {
        let entry = operation.name.as_ref().and_then(|name| stands.get(name));
        if let Some(entry) = entry.filter(|entry| is_of(entry, operation)) {
            asked.insert(entry.revision);
        }
        match &operation.answer {
            Answer::Marked { revision } => {
                if !log.entry(*revision).is_some_and(|entry| is_of(entry, operation)) {
                    broken(Rule::Acknowledged, index, format!("the log has something else at {revision}"));
                }
            }
            Answer::Counted { revision, counts } => {
                let said = match operation.call {
                    Call::Done => Said::Done(*counts),
                    _ => Said::Summary(*counts),
                };
                let entry = log.entry(*revision);
                if !entry.is_some_and(|entry| is_of(entry, operation)) || !log.says(*revision, &said) {
                    broken(Rule::Acknowledged, index, format!("the log has something else at {revision}"));
                }
            }
            Answer::NoSession | Answer::NotDone if operation.resent.is_none() => {
                if let Some(entry) = entry {
                    broken(Rule::Acknowledged, index, format!("it stands at {} all the same", entry.revision));
                }
            }
            Answer::Started { session, revision } => {
                if log.open_at(*revision).is_none_or(|open| open.id != *session) {
                    broken(Rule::Consistent, index, format!("that session was not open at {revision}"));
                }
            }
            Answer::Viewed { session, revision, marks } => {
                let open = log.open_at(*revision).filter(|open| open.id == *session);
                let same = open.is_some_and(|open| {
                    let same = |student| marks.get(student).copied() == log.mark_at(open, student, *revision);
                    log.class.students.iter().all(same) && marks.keys().all(|id| log.class.students.contains(id))
                });
                if !same {
                    broken(Rule::Consistent, index, format!("the class was not so at {revision}"));
                }
            }
            Answer::Own { revision, status } => {
                let Call::OwnMark { student } = &operation.call else { continue };
                if log.open_at(*revision).is_none_or(|open| log.mark_at(open, student, *revision) != *status) {
                    broken(Rule::Consistent, index, format!("the mark was not so at {revision}"));
                }
            }
            Answer::Recorded(Some((session, status))) => {
                let Call::LastRecord { student } = &operation.call else { continue };
                let session = log.class.sessions.iter().find(|of| of.id == *session && !of.open);
                if session.is_none_or(|session| session.standing.get(student) != Some(status)) {
                    broken(Rule::Consistent, index, "no such record stands".to_owned());
                }
            }
            Answer::Recorded(None) | Answer::NoSession | Answer::NotDone | Answer::Unknown => {}
        }
    }
    for (revision, (session, entry)) in &log.entries {
        if entry.event != Event::Started && !asked.contains(revision) {
            let story = format!("nobody asked for {:?} at {revision} of session {}", entry.event, session.id);
            found.push(Violation { rule: Rule::Acknowledged, story });
        }
    }
}

fn of_class<'a>(history: &'a History, log: &Log<'_>) -> impl Iterator<Item = (usize, &'a Operation)> {
    let class = log.class.id.clone();
    history.operations.iter().enumerate().filter(move |(_, operation)| operation.class == class)
}

/// What was known of the class's revision, and since when.
struct Known(Vec<(Moment, u64)>);

impl Known {
    fn of(history: &History, log: &Log<'_>) -> Self {
        let answers = of_class(history, log)
            .filter_map(|(_, operation)| Some((operation.answered?, operation.answer.revision()?)));
        let frames = history.sockets.iter().flat_map(|socket| &socket.frames);
        let frames = frames.filter(|frame| frame.class == log.class.id).map(|frame| (frame.at, frame.revision));
        let mut known: Vec<_> = answers.chain(frames).collect();
        known.sort_unstable();
        let mut highest = 0;
        for (_, revision) in &mut known {
            highest = highest.max(*revision);
            *revision = highest;
        }
        Self(known)
    }

    /// The highest revision that anybody had seen before this moment.
    fn before(&self, moment: Moment) -> u64 {
        let upto = self.0.partition_point(|(at, _)| *at < moment);
        self.0[..upto].last().map_or(0, |(_, revision)| *revision)
    }
}

fn check_times(history: &History, log: &Log<'_>, found: &mut Vec<Violation>) {
    let known = Known::of(history, log);
    let stands: HashMap<_, _> = log.entries.values().map(|(_, entry)| (&entry.operation, entry.revision)).collect();
    // By socket, in the order of sending.
    let mut order: HashMap<usize, (u64, usize)> = HashMap::new();
    for (index, operation) in of_class(history, log) {
        let bound = known.before(operation.invoked);
        let mut late = |why: String| {
            let story = format!("{why}, and {bound} had been seen before:\n    {}", history.line(index));
            found.push(Violation { rule: Rule::RealTime, story });
        };
        match (&operation.answer, &operation.call) {
            // A start may find a session open, and then only shows it.
            (Answer::Started { revision, .. } | Answer::Viewed { revision, .. } | Answer::Own { revision, .. }, _)
                if *revision < bound =>
            {
                late(format!("answered from {revision}"));
            }
            (Answer::Recorded(record), _) => {
                let session = |id: &Id| log.class.sessions.iter().find(|session| session.id == *id);
                let shown = record.as_ref().and_then(|(id, _)| session(id)).and_then(|session| session.log.last());
                let shown = shown.map_or(0, |entry| entry.revision);
                let mut ends = log.entries.range(..=bound).rev();
                let end = ends.find(|(_, (_, entry))| matches!(entry.event, Event::Done(_)));
                if let Some((end, _)) = end.filter(|(end, _)| **end > shown) {
                    late(format!("the record is of {shown}, DONE was at {end}"));
                }
            }
            (_, Call::Mark { .. } | Call::Summary | Call::Done) => {
                let revision = operation.name.as_ref().and_then(|name| stands.get(name));
                let Some(revision) = operation.answer.revision().or(revision.copied()) else { continue };
                if revision <= bound {
                    late(format!("done at {revision}"));
                }
                let (Some(socket), None) = (operation.socket, operation.resent) else { continue };
                if let Some((before, sent)) = order.insert(socket, (revision, index)).filter(|(r, _)| *r >= revision) {
                    let story = format!(
                        "sent in this order over one socket, done at {before} and {revision}:\n    {}\n    {}",
                        history.line(sent),
                        history.line(index)
                    );
                    found.push(Violation { rule: Rule::CommandOrder, story });
                }
            }
            _ => {}
        }
    }
}
