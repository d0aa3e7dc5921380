//! What could be wrong with a history that really happened.

use rollcall_core::session::Status;
use rollcall_testkit::history::{Answer, Call, Event, Frame, History, Id, Rule, Said};

/// Alters a history; `None` where it has nothing that could be altered so.
type Alter = fn(&mut History) -> Option<()>;

/// What is altered, and which promise is broken then.
pub(crate) const ALTERATIONS: &[(&str, Rule, Alter)] = &[
    ("an acknowledged mark is gone", Rule::Acknowledged, |history| {
        let log = &mut history.classes[0].sessions.last_mut()?.log;
        let place = log.iter().position(|entry| matches!(entry.event, Event::Marked { .. }))?;
        log.remove(place);
        Some(())
    }),
    ("a mark that stands is reported as not recorded", Rule::Acknowledged, |history| {
        let operation = history.operations.iter_mut().find(|of| matches!(of.answer, Answer::Marked { .. }))?;
        operation.answer = Answer::NotDone;
        Some(())
    }),
    ("a mark lands after DONE", Rule::WholeLog, |history| {
        let sessions = &mut history.classes.iter_mut().find(|class| class.sessions.len() > 1)?.sessions;
        let log = &mut sessions[0].log;
        let place = log.iter().rposition(|entry| matches!(entry.event, Event::Marked { .. }))?;
        let (last, mark) = (log.len() - 1, log[place].event.clone());
        log[place].event = std::mem::replace(&mut log[last].event, mark);
        Some(())
    }),
    ("a student is shown the mark before the last", Rule::Linearizable, |history| {
        let (read, old) = stale_read(history)?;
        let Answer::Own { status, .. } = &mut history.operations[read].answer else { return None };
        *status = old;
        Some(())
    }),
    ("an answer is older than one before it", Rule::RealTime, |history| {
        let mut reads = (0..history.operations.len())
            .filter(|&index| matches!(history.operations[index].answer, Answer::Viewed { .. }))
            .filter(|&index| history.operations[index].class == history.classes[0].id);
        let (first, second) = (reads.next()?, reads.next_back()?);
        let early = history.operations[first].answer.clone();
        history.operations[first].answer = std::mem::replace(&mut history.operations[second].answer, early);
        Some(())
    }),
    ("a refusal while a session is open", Rule::Linearizable, |history| {
        let sessions =
            history.classes.iter().flat_map(|class| class.sessions.iter().map(move |session| (class, session)));
        let (class, session) = sessions.max_by_key(|(_, session)| session.log.len())?;
        let log = &session.log;
        // Well within: nothing is under way that opens or closes it.
        let within = log.get(log.len() / 4)?.revision..log.get(log.len() / 2)?.revision;
        let mut reads = history.operations.iter_mut().filter(|operation| operation.class == class.id);
        let read = reads.find(|operation| match operation.answer {
            Answer::Viewed { revision, .. } | Answer::Own { revision, .. } => within.contains(&revision),
            _ => false,
        })?;
        read.answer = Answer::NoSession;
        Some(())
    }),
    ("two frames change places", Rule::FrameOrder, |history| {
        for socket in &mut history.sockets {
            let told = |said: &Said| *said != Said::Own;
            let pair = |pair: &[rollcall_testkit::history::Frame]| {
                pair[0].class == pair[1].class && told(&pair[0].said) && told(&pair[1].said)
            };
            if let Some(place) = socket.frames.windows(2).position(pair) {
                socket.frames.swap(place, place + 1);
                return Some(());
            }
        }
        None
    }),
    ("a frame says something else", Rule::TrueFrames, |history| {
        let mut frames = history.sockets.iter_mut().flat_map(|socket| &mut socket.frames);
        frames.find_map(|frame| match &mut frame.said {
            Said::Marked { status, .. } => {
                *status = if *status == Status::Late { Status::Absent } else { Status::Late };
                Some(())
            }
            _ => None,
        })
    }),
    ("a screen never hears of the last mark", Rule::Convergence, |history| {
        let (class, last) = history.classes.iter().find_map(|class| {
            let mut log = class.sessions.last()?.log.iter().rev();
            let mark = log.find(|entry| matches!(entry.event, Event::Marked { .. }))?;
            Some((class.id.clone(), mark.revision))
        })?;
        let tells =
            |frame: &Frame| frame.class == class && frame.revision == last && matches!(frame.said, Said::Marked { .. });
        let client = history.sockets.iter().find(|socket| socket.frames.iter().any(tells))?.client;
        // A command that was sent again may have been answered once more.
        for socket in history.sockets.iter_mut().filter(|socket| socket.client == client) {
            socket.frames.retain(|frame| !tells(frame));
        }
        Some(())
    }),
];

/// A question of the own mark that nothing overlapped which could excuse another answer, and the mark before.
fn stale_read(history: &History) -> Option<(usize, Option<Status>)> {
    let of_student = |index: usize, id: &Id, class: &Id| match &history.operations[index].call {
        Call::Mark { student, .. } => student == id && history.operations[index].class == *class,
        Call::Start | Call::Done => history.operations[index].class == *class,
        _ => false,
    };
    (0..history.operations.len()).find_map(|index| {
        let read = &history.operations[index];
        let (Call::OwnMark { student }, Answer::Own { status: Some(status), .. }) = (&read.call, &read.answer) else {
            return None;
        };
        let changes = (0..history.operations.len()).filter(|&other| of_student(other, student, &read.class));
        let alone = changes.clone().all(|other| {
            let change = &history.operations[other];
            change.answered.is_some_and(|at| at < read.invoked) || Some(change.invoked) > read.answered
        });
        let other = Status::ALL.into_iter().find(|other| other != status);
        alone.then_some((index, other))
    })
}
