//! A student's mark as a linearizable register.
//!
//! Wing and Gong's search, just in time as Gavin Lowe described it ("Testing for linearizability", 2017): the history
//! is read in the order of time, and kept are all states that the register can be in, each with the operations under
//! way that have taken effect already. An operation takes effect no earlier than the first answer that needs it. Operations
//! on one student of one class are looked at alone: linearizability is local, and that keeps the search small.

use std::collections::HashSet;

use rollcall_core::session::Status;

use super::{Answer, Call, Class, History, Id, Moment, Operation, Rule, Violation, show};

/// What there is to know of the session now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Session {
    /// None is open.
    #[default]
    None,
    /// One is open, and this is the student's mark.
    Open(Option<Status>),
}

/// What there is to know of one student in one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    session: Session,
    /// The status in the last finished session.
    record: Option<Status>,
}

/// What an operation does or shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A session is open from now on.
    Start,
    /// The student is marked so.
    Mark(Status),
    /// The session ends.
    Done,
    /// A session is open.
    IsOpen,
    /// No session is open.
    IsClosed,
    /// A session is open, and the mark is this.
    Shows(Option<Status>),
    /// The last finished session left this.
    Recorded(Option<Status>),
}

impl Step {
    /// Whether it does something in some state.
    fn changes(self) -> bool {
        matches!(self, Self::Start | Self::Mark(_) | Self::Done)
    }

    /// The state afterwards; `None` where the step is not possible.
    fn apply(self, state: State) -> Option<State> {
        let kept = |holds: bool| holds.then_some(state);
        let State { session, record } = state;
        match (self, session) {
            (Self::Start, Session::None) => Some(State { session: Session::Open(None), record }),
            (Self::Start | Self::IsOpen, Session::Open(_)) | (Self::IsClosed, Session::None) => Some(state),
            (Self::Mark(status), Session::Open(_)) => Some(State { session: Session::Open(Some(status)), record }),
            (Self::Done, Session::Open(mark)) => {
                Some(State { session: Session::None, record: Some(mark.unwrap_or(Status::Absent)) })
            }
            (Self::Shows(shown), Session::Open(mark)) => kept(shown == mark),
            (Self::Recorded(shown), _) => kept(shown == record),
            (Self::Mark(_) | Self::Done | Self::IsOpen | Self::Shows(_), Session::None)
            | (Self::IsClosed, Session::Open(_)) => None,
        }
    }
}

/// An operation as far as it concerns the student.
#[derive(Clone, Copy, Debug)]
struct Item {
    operation: usize,
    step: Step,
    from: Moment,
    /// By when it has taken effect; `None`: at any time after, or never.
    until: Option<Moment>,
}

/// What may be: a state, and the operations under way that have taken effect, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Possibility {
    state: State,
    taken: Vec<usize>,
}

impl Possibility {
    fn took(&self, item: usize) -> bool {
        self.taken.binary_search(&item).is_ok()
    }

    fn take(&mut self, item: usize) {
        if let Err(place) = self.taken.binary_search(&item) {
            self.taken.insert(place, item);
        }
    }

    /// Lets what only shows something take effect where it shows this: it never changes what is possible.
    fn settle(mut self, items: &[Item], under_way: &[usize]) -> Self {
        for &index in under_way {
            let step = items[index].step;
            if !step.changes() && step.apply(self.state).is_some() {
                self.take(index);
            }
        }
        self
    }
}

/// Where no order explains the answers any more.
struct Failure {
    /// The item whose answer cannot be.
    item: usize,
    /// The last moment before at which only one thing was possible: the state then, and the items from which on.
    state: State,
    since: Vec<usize>,
}

/// Reads `items`, which stand in the order of their beginnings, from `state` on.
fn search(items: &[Item], state: State) -> Result<(), Failure> {
    let mut events: Vec<_> = items.iter().enumerate().map(|(index, item)| (item.from, false, index)).collect();
    events.extend(items.iter().enumerate().filter_map(|(index, item)| Some((item.until?, true, index))));
    // Of what happens at the same moment the beginnings come first: that excuses more.
    events.sort_unstable();
    let mut under_way: Vec<usize> = Vec::new();
    let mut possible = HashSet::from([Possibility { state, taken: Vec::new() }]);
    let mut certain = (state, Vec::new());
    for (_, answered, index) in events {
        if !answered {
            under_way.push(index);
            certain.1.push(index);
            possible = possible.into_iter().map(|possibility| possibility.settle(items, &under_way)).collect();
            continue;
        }
        possible = explain(items, &under_way, possible, index);
        under_way.retain(|&other| other != index);
        match possible.iter().next() {
            None => return Err(Failure { item: index, state: certain.0, since: certain.1 }),
            Some(only) if possible.len() == 1 => {
                certain = (only.state, under_way.iter().copied().filter(|&other| !only.took(other)).collect());
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What may be once `answered` has taken effect, which leaves the operations under way.
fn explain(
    items: &[Item],
    under_way: &[usize],
    possible: HashSet<Possibility>,
    answered: usize,
) -> HashSet<Possibility> {
    let mut explained = HashSet::new();
    let mut seen = possible.clone();
    let mut open: Vec<_> = possible.into_iter().collect();
    while let Some(mut possibility) = open.pop() {
        if possibility.took(answered) {
            possibility.taken.retain(|&other| other != answered);
            explained.insert(possibility);
            continue;
        }
        for &index in under_way {
            if possibility.took(index) || !is_first_of_its_kind(items, under_way, &possibility, index) {
                continue;
            }
            let Some(state) = items[index].step.apply(possibility.state) else { continue };
            if state == possibility.state && items[index].until.is_none() {
                // Nobody could tell whether it was done.
                continue;
            }
            let mut next = Possibility { state, taken: possibility.taken.clone() };
            next.take(index);
            let next = next.settle(items, under_way);
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    explained
}

/// Of operations that do the same, the one that has to be done first may as well be the first.
fn is_first_of_its_kind(items: &[Item], under_way: &[usize], possibility: &Possibility, index: usize) -> bool {
    let due = |index: usize| (items[index].until.unwrap_or(Moment(u64::MAX)), index);
    under_way
        .iter()
        .all(|&other| items[other].step != items[index].step || possibility.took(other) || due(index) <= due(other))
}

/// What of `operation` concerns `student`; two things where a command was sent twice and then refused.
fn items(index: usize, operation: &Operation, student: &Id) -> Vec<Item> {
    let whole = |step| Item { operation: index, step, from: operation.invoked, until: operation.answered };
    let maybe = |step| Item { until: None, ..whole(step) };
    let done = match &operation.call {
        Call::Start => Some(Step::Start),
        Call::Mark { student: marked, status } if marked == student => Some(Step::Mark(*status)),
        Call::Done => Some(Step::Done),
        _ => None,
    };
    match &operation.answer {
        Answer::Started { .. } => vec![whole(Step::Start)],
        Answer::Marked { .. } | Answer::Counted { .. } => vec![whole(done.unwrap_or(Step::IsOpen))],
        Answer::Viewed { marks, .. } => vec![whole(Step::Shows(marks.get(student).copied()))],
        Answer::Own { status, .. } => match &operation.call {
            Call::OwnMark { student: asks } if asks == student => vec![whole(Step::Shows(*status))],
            _ => vec![whole(Step::IsOpen)],
        },
        Answer::Recorded(record) => match &operation.call {
            Call::LastRecord { student: asks } if asks == student => {
                vec![whole(Step::Recorded(record.as_ref().map(|(_, status)| *status)))]
            }
            _ => Vec::new(),
        },
        Answer::NoSession => {
            let refused = Item { from: operation.resent.unwrap_or(operation.invoked), ..whole(Step::IsClosed) };
            // Only the last sending was refused; what became of one before it was never told.
            let before = done.filter(|_| operation.resent.is_some()).map(maybe);
            before.into_iter().chain([refused]).collect()
        }
        Answer::NotDone if operation.resent.is_none() => Vec::new(),
        Answer::NotDone | Answer::Unknown => done.map(maybe).into_iter().collect(),
    }
}

/// Every student of every class.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let students = history.classes.iter().flat_map(|class| class.students.iter().map(move |student| (class, student)));
    students.filter_map(|(class, student)| check_student(history, class, student)).collect()
}

fn check_student(history: &History, class: &Class, student: &Id) -> Option<Violation> {
    let operations = history.operations.iter().enumerate().filter(|(_, operation)| operation.class == class.id);
    let mut items: Vec<_> = operations.flat_map(|(index, operation)| items(index, operation, student)).collect();
    items.sort_by_key(|item| item.from);
    let failure = search(&items, State::default()).err()?;
    let (shown, state) = shortest(&items, &failure);
    let before = match state.session {
        Session::None => "nothing was open".to_owned(),
        Session::Open(mark) => format!("a session was open, the mark was {}", show(mark)),
    };
    let mut story = format!(
        "no order explains what was answered about {} in {}. Before, {before}, and the last record was {}. Then:",
        history.name(student),
        history.name(&class.id),
        show(state.record),
    );
    for operation in shown {
        story.push_str("\n    ");
        story.push_str(&history.line(operation));
    }
    Some(Violation { rule: Rule::Linearizable, story })
}

/// The operations without which there would be no contradiction, and the state before them.
///
/// What only shows something is left out where the rest contradicts itself all the same. What does something is
/// left out of what is shown where the rest contradicts itself whether it was done or not.
fn shortest(items: &[Item], failure: &Failure) -> (Vec<usize>, State) {
    let end = items[failure.item].until;
    let mut kept: Vec<_> = failure.since.iter().map(|&index| (items[index], true)).collect();
    for (item, _) in &mut kept {
        // Answers after the contradiction are no part of it.
        item.until = item.until.filter(|until| Some(*until) <= end);
    }
    kept.sort_by_key(|(item, _)| item.from);
    let contradicts = |kept: &[(Item, bool)]| {
        let items: Vec<_> = kept.iter().map(|(item, _)| *item).collect();
        search(&items, failure.state).is_err()
    };
    // What only shows something and has no answer yet shows nothing.
    kept.retain(|(item, _)| item.until.is_some() || item.step.changes());
    // Many at once first: most of a long history has nothing to do with it.
    let mut many = kept.len();
    while many > 0 {
        for from in (0..kept.len()).step_by(many) {
            let part = from..kept.len().min(from + many);
            let before = kept[part.clone()].to_vec();
            for (item, shown) in &mut kept[part.clone()] {
                (item.until, *shown) = (None, false);
            }
            if !contradicts(&kept) {
                kept[part].copy_from_slice(&before);
            }
        }
        many /= 2;
    }
    (kept.iter().filter(|(_, shown)| *shown).map(|(item, _)| item.operation).collect(), failure.state)
}
