//! A student's mark as a linearizable register.
//!
//! Wing and Gong's search, just in time as Gavin Lowe described it ("Testing for linearizability", 2017): the history
//! is read in the order of time, and kept are all states that the register can be in, each with the operations under
//! way that have taken effect already. An operation takes effect no earlier than the first answer that needs it. Operations
//! on one student of one class are looked at alone: linearizability is local, and that keeps the search small. What has
//! no answer stays under way to the end and could multiply what may be without a bound; but where the same may be
//! without some of it, it may as well take effect later, or never, and nothing else needs to be kept.

use std::collections::{HashMap, VecDeque};

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
#[derive(Clone, Debug)]
struct Possibility {
    state: State,
    /// Those whose answer is to come.
    taken: Vec<usize>,
    /// Those that have none.
    spent: Vec<usize>,
}

impl Possibility {
    fn took(&self, item: usize) -> bool {
        self.taken.binary_search(&item).is_ok() || self.spent.binary_search(&item).is_ok()
    }

    fn take(&mut self, items: &[Item], item: usize) {
        let took = if items[item].until.is_some() { &mut self.taken } else { &mut self.spent };
        if let Err(place) = took.binary_search(&item) {
            took.insert(place, item);
        }
    }

    /// Lets what only shows something take effect where it shows this: it never changes what is possible.
    fn settle(mut self, items: &[Item], under_way: &[usize]) -> Self {
        for &index in under_way {
            let step = items[index].step;
            if !step.changes() && step.apply(self.state).is_some() {
                self.take(items, index);
            }
        }
        self
    }
}

/// All that may be, each state with the operations taken, and what was spent on it: nothing that another way to the same
/// did without.
#[derive(Default)]
struct Possible(HashMap<(State, Vec<usize>), Vec<Vec<usize>>>);

impl Possible {
    /// Whether it was not there, with as little spent.
    fn insert(&mut self, Possibility { state, taken, spent }: Possibility) -> bool {
        let is_part = |part: &[usize], whole: &[usize]| part.iter().all(|item| whole.binary_search(item).is_ok());
        let ways = self.0.entry((state, taken)).or_default();
        if ways.iter().any(|way| is_part(way, &spent)) {
            return false;
        }
        ways.retain(|way| !is_part(&spent, way));
        ways.push(spent);
        true
    }

    fn iter(&self) -> impl Iterator<Item = Possibility> {
        self.0.iter().flat_map(|((state, taken), ways)| {
            ways.iter().map(|spent| Possibility { state: *state, taken: taken.clone(), spent: spent.clone() })
        })
    }
}

impl FromIterator<Possibility> for Possible {
    fn from_iter<T: IntoIterator<Item = Possibility>>(possibilities: T) -> Self {
        let mut all = Self::default();
        for possibility in possibilities {
            all.insert(possibility);
        }
        all
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
    // What only shows something and has no answer shows nothing.
    let begun = items.iter().enumerate().filter(|(_, item)| item.until.is_some() || item.step.changes());
    let mut events: Vec<_> = begun.map(|(index, item)| (item.from, false, index)).collect();
    events.extend(items.iter().enumerate().filter_map(|(index, item)| Some((item.until?, true, index))));
    // Of what happens at the same moment the beginnings come first: that excuses more.
    events.sort_unstable();
    let mut under_way: Vec<usize> = Vec::new();
    let mut possible = Possible::from_iter([Possibility { state, taken: Vec::new(), spent: Vec::new() }]);
    let mut certain = (state, Vec::new());
    for (_, answered, index) in events {
        if !answered {
            under_way.push(index);
            certain.1.push(index);
            possible = possible.iter().map(|possibility| possibility.settle(items, &under_way)).collect();
            continue;
        }
        possible = explain(items, &under_way, &possible, index);
        under_way.retain(|&other| other != index);
        let mut each = possible.iter();
        match (each.next(), each.next()) {
            (None, _) => return Err(Failure { item: index, state: certain.0, since: certain.1 }),
            (Some(only), None) => {
                certain = (only.state, under_way.iter().copied().filter(|&other| !only.took(other)).collect());
            }
            (Some(_), Some(_)) => {}
        }
    }
    Ok(())
}

/// What may be once `answered` has taken effect, which leaves the operations under way.
fn explain(items: &[Item], under_way: &[usize], possible: &Possible, answered: usize) -> Possible {
    let mut explained = Possible::default();
    let mut open: VecDeque<_> = possible.iter().collect();
    let mut seen: Possible = possible.iter().collect();
    while let Some(mut possibility) = open.pop_front() {
        if possibility.took(answered) {
            possibility.taken.retain(|&other| other != answered);
            explained.insert(possibility);
            continue;
        }
        for index in next(items, under_way, &possibility) {
            let Some(state) = items[index].step.apply(possibility.state) else { continue };
            if state == possibility.state && items[index].until.is_none() {
                // Nobody could tell whether it was done.
                continue;
            }
            let mut then = Possibility { state, ..possibility.clone() };
            then.take(items, index);
            let then = then.settle(items, under_way);
            if seen.insert(then.clone()) {
                open.push_back(then);
            }
        }
    }
    explained
}

/// What may take effect next. Of operations that do the same, the one that has to be done first may as well be the first.
fn next(items: &[Item], under_way: &[usize], possibility: &Possibility) -> Vec<usize> {
    let due = |index: usize| (items[index].until.unwrap_or(Moment(u64::MAX)), index);
    let mut first: Vec<usize> = Vec::new();
    for &index in under_way.iter().filter(|&&index| !possibility.took(index)) {
        match first.iter_mut().find(|other| items[**other].step == items[index].step) {
            None => first.push(index),
            Some(other) if due(index) < due(*other) => *other = index,
            Some(_) => {}
        }
    }
    first
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
