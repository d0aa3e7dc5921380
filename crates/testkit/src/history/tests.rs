//! The checker against histories written by hand: good ones pass, and each way to be wrong is named.

use super::*;
use Status::{Absent, Late, Present};

const CLASS: &str = "class";
const ANN: &str = "ann";
const BEN: &str = "ben";

fn id(text: &str) -> Id {
    text.into()
}

/// A history of one class with two students, a teacher who hears everything, and times as they are written.
struct Book(History);

impl Book {
    fn new() -> Self {
        let clients = vec![Client { name: "teacher".to_owned(), hears: vec![id(CLASS)] }];
        let sockets =
            vec![Socket { client: 0, since: BTreeMap::new(), frames: Vec::new(), opened: Moment(0), ended: None }];
        let class = Class { id: id(CLASS), students: vec![id(ANN), id(BEN)], sessions: Vec::new() };
        Self(History { clients, sockets, classes: vec![class], ..History::default() })
    }

    fn operation(&mut self, from: u64, until: impl Into<Option<u64>>, call: Call, answer: Answer) -> &mut Operation {
        let changes = matches!(call, Call::Mark { .. } | Call::Summary | Call::Done);
        let name = changes.then(|| format!("op{}", self.0.operations.len()).into());
        self.0.operations.push(Operation {
            client: 0,
            class: id(CLASS),
            call,
            name,
            socket: None,
            invoked: Moment(from),
            resent: None,
            answered: until.into().map(Moment),
            answer,
        });
        self.0.operations.last_mut().unwrap()
    }

    fn start(&mut self, from: u64, until: u64, session: &str, revision: u64) {
        self.operation(from, until, Call::Start, Answer::Started { session: id(session), revision });
    }

    fn mark(&mut self, from: u64, until: impl Into<Option<u64>>, student: &str, status: Status, answer: Answer) {
        self.operation(from, until, Call::Mark { student: id(student), status }, answer);
    }

    fn own(&mut self, from: u64, until: u64, student: &str, revision: u64, status: Option<Status>) {
        self.operation(from, until, Call::OwnMark { student: id(student) }, Answer::Own { revision, status });
    }

    fn done(&mut self, from: u64, until: u64, revision: u64, counts: Counts) {
        self.operation(from, until, Call::Done, Answer::Counted { revision, counts });
    }

    fn frame(&mut self, at: u64, revision: u64, said: Said) {
        let frame = Frame { at: Moment(at), class: id(CLASS), revision, said, answers: None };
        self.0.sockets[0].frames.push(frame);
    }

    /// A session whose log has these events, and what they add up to.
    fn session(&mut self, session: &str, log: &[(&str, Event)]) {
        let class = &mut self.0.classes[0];
        let first = class.sessions.iter().map(|session| session.log.len()).sum::<usize>() as u64;
        let mut standing = BTreeMap::new();
        let mut open = true;
        let log = (first + 1..).zip(log).map(|(revision, (operation, event))| {
            match event {
                Event::Marked { student, new, .. } => drop(standing.insert(student.clone(), *new)),
                Event::Done(_) => open = false,
                Event::Started | Event::Summary(_) => {}
            }
            Entry { revision, event: event.clone(), operation: id(operation) }
        });
        let log = log.collect();
        if !open {
            for student in &class.students {
                standing.entry(student.clone()).or_insert(Absent);
            }
        }
        class.sessions.push(Session { id: id(session), open, log, standing });
    }

    #[track_caller]
    fn is_good(&self) -> Sum {
        self.0.check().unwrap_or_else(|found| panic!("{found:#?}"))
    }

    #[track_caller]
    fn breaks(&self, rules: &[Rule]) -> Vec<Violation> {
        let found = self.0.check().expect_err("this cannot be");
        let mut broken: Vec<_> = found.iter().map(|violation| violation.rule).collect();
        broken.sort_unstable();
        broken.dedup();
        assert_eq!(broken, rules, "{found:#?}");
        found
    }
}

fn marked(student: &str, old: Option<Status>, new: Status) -> Event {
    Event::Marked { student: id(student), old, new }
}

fn counts(present: u32, absent: u32, late: u32) -> Counts {
    Counts { present, absent, late, excused: 0 }
}

fn at(revision: u64) -> Answer {
    Answer::Marked { revision }
}

fn told(student: &str, status: Status) -> Said {
    Said::Marked { student: id(student), status }
}

/// Start, two marks of Ann, DONE; with reads between, all in order.
fn lesson() -> Book {
    let mut book = Book::new();
    book.start(0, 5, "s1", 1);
    book.mark(10, 20, ANN, Present, at(2)); // op1
    book.own(30, 40, ANN, 2, Some(Present));
    book.mark(50, 60, ANN, Late, at(3)); // op3
    book.own(70, 80, ANN, 3, Some(Late));
    book.own(70, 80, BEN, 3, None);
    book.done(90, 100, 4, counts(0, 1, 1)); // op6
    let record = Answer::Recorded(Some((id("s1"), Absent)));
    book.operation(110, 120, Call::LastRecord { student: id(BEN) }, record);
    book.operation(110, 120, Call::View, Answer::NoSession);
    book.session(
        "s1",
        &[
            ("start", Event::Started),
            ("op1", marked(ANN, None, Present)),
            ("op3", marked(ANN, Some(Present), Late)),
            ("op6", Event::Done(counts(0, 1, 1))),
        ],
    );
    book.frame(18, 2, told(ANN, Present));
    book.frame(58, 3, told(ANN, Late));
    book.frame(98, 4, Said::Done(counts(0, 1, 1)));
    book
}

#[test]
fn a_lesson_in_order_is_good() {
    let sum = lesson().is_good();
    assert_eq!((sum.acknowledged, sum.read, sum.refused, sum.heard, sum.finished), (4, 4, 1, 3, 1));
}

#[test]
fn what_overlaps_may_have_either_order() {
    for (seen, last) in [(Some(Present), 2), (Some(Late), 3), (None, 1)] {
        let mut book = Book::new();
        book.start(0, 5, "s1", 1);
        book.mark(10, 50, ANN, Present, at(2)); // op1
        book.mark(11, 50, ANN, Late, at(3)); // op2
        book.own(12, 45, ANN, last, seen);
        book.own(60, 70, ANN, 3, Some(Late));
        book.session(
            "s1",
            &[
                ("start", Event::Started),
                ("op1", marked(ANN, None, Present)),
                ("op2", marked(ANN, Some(Present), Late)),
            ],
        );
        book.frame(55, 2, told(ANN, Present));
        book.frame(56, 3, told(ANN, Late));
        book.is_good();
    }
}

#[test]
fn a_mark_that_overlaps_others_may_come_last_although_it_would_change_nothing_first() {
    let mut book = Book::new();
    book.start(0, 5, "s1", 1);
    book.mark(10, 20, ANN, Present, at(2)); // op1
    book.mark(30, 90, ANN, Present, at(4)); // op2
    book.mark(40, 50, ANN, Late, at(3)); // op3
    book.own(91, 95, ANN, 4, Some(Present));
    book.session(
        "s1",
        &[
            ("start", Event::Started),
            ("op1", marked(ANN, None, Present)),
            ("op3", marked(ANN, Some(Present), Late)),
            ("op2", marked(ANN, Some(Late), Present)),
        ],
    );
    for (revision, status) in [(2, Present), (3, Late), (4, Present)] {
        book.frame(100, revision, told(ANN, status));
    }
    book.is_good();
}

#[test]
fn an_acknowledged_mark_is_seen_by_every_later_read() {
    let mut book = lesson();
    // The answer claims what stood before, and says so.
    book.0.operations[4].answer = Answer::Own { revision: 2, status: Some(Present) };
    let found = book.breaks(&[Rule::Linearizable, Rule::RealTime]);
    assert!(found[0].story.contains("a session was open, the mark was late"), "{}", found[0]);
    assert_eq!(found[0].story.matches('\n').count(), 1, "the read alone contradicts what is certain: {}", found[0]);
    // The answer claims what stood before under a new revision: the log tells.
    book.0.operations[4].answer = Answer::Own { revision: 3, status: Some(Present) };
    book.breaks(&[Rule::Linearizable, Rule::Consistent]);
}

#[test]
fn two_reads_do_not_go_back() {
    let mut book = Book::new();
    book.start(0, 5, "s1", 1);
    book.mark(10, 90, ANN, Present, at(2)); // op1
    book.own(20, 30, ANN, 2, Some(Present));
    book.own(40, 50, ANN, 1, None);
    book.mark(11, 95, BEN, Late, at(3)); // op4: has nothing to do with it
    book.session(
        "s1",
        &[("start", Event::Started), ("op1", marked(ANN, None, Present)), ("op4", marked(BEN, None, Late))],
    );
    book.frame(99, 2, told(ANN, Present));
    book.frame(99, 3, told(BEN, Late));
    let found = book.breaks(&[Rule::Linearizable, Rule::RealTime]);
    // The shortest story: the mark, which may have come at any time, is no part of it; the two reads are.
    let story = &found[0].story;
    assert!(story.contains("present") && story.contains("not yet marked") && !story.contains("mark ben"), "{story}");
}

#[test]
fn nothing_lands_after_done() {
    let mut book = lesson();
    book.mark(105, 109, ANN, Present, at(4));
    book.breaks(&[Rule::Linearizable, Rule::Acknowledged, Rule::RealTime]);
    let mut book = lesson();
    let after = Entry { revision: 5, event: marked(ANN, Some(Late), Present), operation: id("op9") };
    book.mark(105, 109, ANN, Present, at(5));
    book.0.classes[0].sessions[0].log.push(after);
    book.0.classes[0].sessions[0].standing.insert(id(ANN), Present);
    book.frame(108, 5, told(ANN, Present));
    book.breaks(&[Rule::Linearizable, Rule::WholeLog]);
}

#[test]
fn a_refusal_needs_a_moment_without_a_session() {
    let mut book = lesson();
    book.mark(82, 88, ANN, Present, Answer::NoSession);
    book.breaks(&[Rule::Linearizable]);
    let mut book = lesson();
    book.mark(95, 99, ANN, Present, Answer::NoSession);
    book.is_good();
}

#[test]
fn two_done_do_not_both_end_one_session() {
    let mut book = lesson();
    book.done(85, 101, 4, counts(0, 1, 1));
    book.breaks(&[Rule::Linearizable, Rule::Acknowledged]);
}

#[test]
fn a_session_has_one_start_and_one_done() {
    let mut book = lesson();
    let log = &mut book.0.classes[0].sessions[0].log;
    log.pop();
    book.breaks(&[Rule::WholeLog, Rule::Acknowledged, Rule::TrueFrames]);
    let mut book = lesson();
    book.0.classes[0].sessions[0].log[0].event = Event::Summary(Counts::default());
    book.breaks(&[Rule::WholeLog, Rule::Acknowledged]);
}

#[test]
fn an_acknowledged_mark_stands() {
    let mut book = lesson();
    let session = &mut book.0.classes[0].sessions[0];
    session.log.remove(2);
    session.log[2].revision = 3;
    session.standing.insert(id(ANN), Present);
    book.breaks(&[Rule::WholeLog, Rule::Acknowledged, Rule::Consistent, Rule::TrueFrames, Rule::Convergence]);
}

#[test]
fn what_was_proven_not_done_does_not_stand() {
    let mut book = lesson();
    book.0.operations[3].answer = Answer::NotDone;
    book.breaks(&[Rule::Linearizable, Rule::Acknowledged]);
    let mut book = lesson();
    book.mark(61, 63, ANN, Present, Answer::NotDone);
    book.is_good();
}

#[test]
fn an_unknown_outcome_may_be_either_and_late() {
    for happened in [None, Some(71), Some(2)] {
        let mut book = Book::new();
        book.start(0, 5, "s1", 1);
        book.mark(10, None, ANN, Present, Answer::Unknown); // op1
        book.own(20, 30, ANN, 1, None);
        book.own(60, 70, ANN, 1, None);
        if happened.is_some() {
            book.own(80, 90, ANN, 2, Some(Present));
            book.session("s1", &[("start", Event::Started), ("op1", marked(ANN, None, Present))]);
            book.frame(85, 2, told(ANN, Present));
        } else {
            book.own(80, 90, ANN, 1, None);
            book.session("s1", &[("start", Event::Started)]);
        }
        book.is_good();
        // It does not come and go.
        book.own(100, 110, ANN, 1, if happened.is_some() { None } else { Some(Late) });
        let found = book.0.check().unwrap_err();
        assert!(found.iter().any(|violation| violation.rule == Rule::Linearizable), "{found:?}");
    }
}

#[test]
fn many_unknown_outcomes_do_not_make_the_search_long() {
    let mut book = Book::new();
    book.start(0, 5, "s1", 1);
    let mut at = 10;
    for _ in 0..20 {
        for status in [Present, Absent, Late] {
            book.mark(at, None, ANN, status, Answer::Unknown);
            book.mark(at, None, ANN, status, Answer::Unknown);
            book.own(at + 5, at + 10, ANN, 2, Some(status));
            at += 20;
        }
        book.operation(at, None, Call::Start, Answer::Unknown);
        book.operation(at, None, Call::Done, Answer::Unknown);
    }
    let recorded = |status| Answer::Recorded(Some((id("s1"), status)));
    for status in [Late, Present] {
        book.operation(at, at + 5, Call::LastRecord { student: id(ANN) }, recorded(status));
        at += 10;
    }
    assert!(register::check(&book.0).is_empty(), "each may have been done any time later");
    book.operation(at, at + 5, Call::LastRecord { student: id(ANN) }, recorded(Status::Excused));
    let found = register::check(&book.0);
    assert_eq!(found.len(), 1, "nobody was marked so: {found:?}");
    assert_eq!(found[0].story.matches('\n').count(), 1, "the last answer alone contradicts: {}", found[0]);
}

#[test]
fn a_command_sent_twice_and_refused_may_have_been_done_the_first_time() {
    let mut book = lesson();
    let mark = Call::Mark { student: id(BEN), status: Present };
    book.operation(31, 130, mark, Answer::NoSession).resent = Some(Moment(105)); // op9
    book.is_good();
    let session = &mut book.0.classes[0].sessions[0];
    session.log.insert(2, Entry { revision: 3, event: marked(BEN, None, Present), operation: id("op9") });
    for (revision, entry) in (1..).zip(&mut session.log) {
        entry.revision = revision;
    }
    session.log[4].event = Event::Done(counts(1, 0, 1));
    session.standing.insert(id(BEN), Present);
    let answers = [
        (3, at(4)),
        (4, Answer::Own { revision: 4, status: Some(Late) }),
        (5, Answer::Own { revision: 4, status: Some(Present) }),
    ];
    for (operation, answer) in answers {
        book.0.operations[operation].answer = answer;
    }
    book.0.operations[6].answer = Answer::Counted { revision: 5, counts: counts(1, 0, 1) };
    book.0.operations[7].answer = Answer::Recorded(Some((id("s1"), Present)));
    let frames = &mut book.0.sockets[0].frames;
    (frames[1].revision, frames[2].revision, frames[2].said) = (4, 5, Said::Done(counts(1, 0, 1)));
    frames.insert(1, Frame { at: Moment(50), class: id(CLASS), revision: 3, said: told(BEN, Present), answers: None });
    book.is_good();
}

#[test]
fn nothing_is_done_twice_or_unasked() {
    let mut book = lesson();
    book.0.classes[0].sessions[0].log[2].operation = id("op1");
    book.breaks(&[Rule::WholeLog, Rule::Acknowledged]);
    let mut book = lesson();
    book.0.operations[3].name = Some(id("another"));
    book.breaks(&[Rule::Acknowledged]);
}

#[test]
fn nothing_is_answered_from_before_what_a_frame_has_told() {
    let mut book = lesson();
    // The frame comes before the mark is acknowledged, and a read in between does not know of it.
    book.0.operations[3].answered = Some(Moment(69));
    book.own(59, 62, ANN, 2, Some(Present));
    book.breaks(&[Rule::RealTime]);
}

#[test]
fn commands_of_one_socket_keep_their_order() {
    let mut book = lesson();
    book.0.operations[1].answered = Some(Moment(61));
    book.0.operations[3].invoked = Moment(9);
    (book.0.operations[1].socket, book.0.operations[3].socket) = (Some(0), Some(0));
    book.0.operations.swap(1, 3);
    book.0.operations[2].answered = Some(Moment(62));
    book.breaks(&[Rule::CommandOrder]);
}

#[test]
fn frames_come_in_order_each_once_and_true() {
    let mut book = lesson();
    book.0.sockets[0].frames.swap(0, 1);
    book.breaks(&[Rule::FrameOrder, Rule::Convergence]);
    let mut book = lesson();
    let again = book.0.sockets[0].frames[1].clone();
    book.0.sockets[0].frames.insert(1, again);
    book.breaks(&[Rule::FrameOrder]);
    let mut book = lesson();
    book.0.sockets[0].since.insert(id(CLASS), 2);
    book.breaks(&[Rule::FrameOrder]);
    let mut book = lesson();
    book.0.sockets[0].frames[0].said = told(BEN, Present);
    book.breaks(&[Rule::TrueFrames, Rule::Convergence]);
    let mut book = lesson();
    book.0.clients[0].hears.clear();
    book.breaks(&[Rule::TrueFrames]);
}

#[test]
fn an_answer_follows_the_frames_up_to_what_it_saw() {
    let own = |at| Frame { at: Moment(at), class: id(CLASS), revision: 2, said: Said::Own, answers: Some(2) };
    let mut book = lesson();
    book.0.sockets[0].frames.insert(1, own(39));
    book.is_good();
    book.0.sockets[0].frames.swap(0, 1);
    book.breaks(&[Rule::FrameOrder]);
    // What came later may be told before it.
    let mut book = lesson();
    book.0.sockets[0].frames.insert(2, own(59));
    book.is_good();
}

#[test]
fn screens_end_on_what_the_store_holds() {
    let mut book = lesson();
    book.0.sockets[0].frames.remove(1);
    book.breaks(&[Rule::Convergence]);
    let mut book = lesson();
    book.0.sockets[0].frames.pop();
    book.breaks(&[Rule::Convergence]);
    let mut book = lesson();
    book.0.sockets[0].ended = Some(Moment(1));
    book.breaks(&[Rule::Convergence]);
    // A second connection goes on where the first broke off.
    let mut book = lesson();
    let since = BTreeMap::from([(id(CLASS), 2)]);
    let frames = book.0.sockets[0].frames.split_off(1);
    book.0.sockets[0].ended = Some(Moment(1));
    book.0.sockets.push(Socket { client: 0, since, frames, opened: Moment(3), ended: None });
    assert_eq!(book.0.check().unwrap().gap, Duration::from_nanos(2));
}

#[test]
fn a_summary_and_a_view_add_up() {
    let mut book = Book::new();
    book.start(0, 5, "s1", 1);
    book.mark(10, 20, ANN, Present, at(2)); // op1
    book.operation(30, 40, Call::Summary, Answer::Counted { revision: 3, counts: counts(1, 0, 0) }); // op2
    let view = Answer::Viewed { session: id("s1"), revision: 3, marks: BTreeMap::from([(id(ANN), Present)]) };
    book.operation(50, 60, Call::View, view);
    book.session(
        "s1",
        &[("start", Event::Started), ("op1", marked(ANN, None, Present)), ("op2", Event::Summary(counts(1, 0, 0)))],
    );
    book.frame(15, 2, told(ANN, Present));
    book.is_good();
    let good = book.0.clone();
    book.0.operations[2].answer = Answer::Counted { revision: 3, counts: counts(0, 1, 0) };
    book.breaks(&[Rule::Acknowledged]);
    book.0 = good.clone();
    let both = BTreeMap::from([(id(ANN), Present), (id(BEN), Late)]);
    book.0.operations[3].answer = Answer::Viewed { session: id("s1"), revision: 3, marks: both };
    book.breaks(&[Rule::Linearizable, Rule::Consistent]);
    book.0 = good;
    let view = Answer::Viewed { session: id("s0"), revision: 3, marks: BTreeMap::from([(id(ANN), Present)]) };
    book.0.operations[3].answer = view;
    book.breaks(&[Rule::Consistent]);
}

#[test]
fn records_of_a_session_before_the_last_are_over() {
    let mut book = lesson();
    book.start(130, 135, "s2", 5);
    book.done(140, 150, 6, counts(0, 2, 0)); // op10
    book.session("s2", &[("start2", Event::Started), ("op10", Event::Done(counts(0, 2, 0)))]);
    book.frame(149, 6, Said::Done(counts(0, 2, 0)));
    let record = |session: &str| Answer::Recorded(Some((id(session), Absent)));
    book.operation(160, 170, Call::LastRecord { student: id(BEN) }, record("s2"));
    book.is_good();
    book.0.operations[11].answer = record("s1");
    book.breaks(&[Rule::RealTime]);
    book.0.operations[11].answer = Answer::Recorded(None);
    book.breaks(&[Rule::Linearizable, Rule::RealTime]);
}

#[test]
fn answers_that_the_contract_does_not_know_are_told() {
    let mut book = lesson();
    book.0.surprises.push("teapot".to_owned());
    book.breaks(&[Rule::Contract]);
}
