//! Traces: what a request or a command did, for how long, and as a part of what.
//!
//! A [`Span`] is made where something begins and told to the [`Sink`] when its last handle goes, also when its future is
//! dropped. The span that the present task works for is found by [`current`]; nothing of this is made without
//! [`Traces`]. To add a span: [`child`] where it begins. To add an attribute: [`note`], with text of our own, an id or a
//! number. Text that a client sent is in no span: it may be a token, an address or a name.

mod store;

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::http::HeaderMap;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rollcall_core::session::{Actor, OperationId, Origin};
use rollcall_core::{ClassId, Clock, Error};

pub use store::TracedStore;

use crate::error::socket_text;
use crate::metric::Failure;

/// Commands of which it is remembered what trace they belong to, until they are told.
const REMEMBERED: usize = 4096;
/// By how much the clock of the day may differ from the steady one before it is believed.
const CLOCK_SLACK: i64 = 20_000_000;

tokio::task_local! {
    /// The span that the present task works for.
    static CURRENT: Span;
}

/// Names a span, as the header `traceparent` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace, never 0.
    pub trace_id: u128,
    /// The span, never 0.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl SpanContext {
    /// Reads a `traceparent` (W3C Trace Context, level 1 and what later ones add behind it).
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version, trace_id, span_id, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let later = version != "00";
        let lengths = [version.len(), trace_id.len(), span_id.len(), flags.len()] == [2, 32, 16, 2];
        let digits = [version, trace_id, span_id, flags].concat();
        let hex = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !lengths || !hex || version == "ff" || (parts.next().is_some() && !later) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16).ok().filter(|id| *id != 0)?;
        Some(Self { trace_id, span_id, sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }

    /// The one of a request, if it has one and no more.
    fn of_request(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all("traceparent").iter();
        let parent = parents.next()?.to_str().ok()?;
        parents.next().is_none().then(|| Self::parse(parent))?
    }
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a trace that began elsewhere is recorded as it is there.
    pub parent_based: bool,
    /// Which part of all others, from 0 to 1.
    pub ratio: f64,
}

impl Sampler {
    /// `lot` decides where nobody else has: the lower half of the trace's id, as in OpenTelemetry's SDKs.
    fn samples(self, lot: u64, parent: Option<SpanContext>) -> bool {
        match parent {
            Some(parent) if self.parent_based => parent.sampled,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "63 bits, and a ratio")]
            _ => (lot >> 1) < (self.ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64,
        }
    }
}

/// What a span is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers somebody.
    Server,
    /// It asks somebody: the database.
    Client,
    /// A part of the work.
    Internal,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number.try_into().unwrap_or(i64::MAX))
    }
}

/// A span that is over.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its name among the spans of all.
    pub context: SpanContext,
    /// The span that it is a part of.
    pub parent: Option<SpanContext>,
    /// Whether that span is another program's.
    pub remote_parent: bool,
    /// A span of another trace that it has to do with.
    pub link: Option<SpanContext>,
    /// What it is called; few names in all.
    pub name: Cow<'static, str>,
    /// What it is to others.
    pub kind: Kind,
    /// When it began, in nanoseconds since 1970.
    pub began: u64,
    /// When it ended, likewise.
    pub ended: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Whether it failed, by Rollcall's own fault or the database's.
    pub failed: bool,
}

/// Takes spans that are over. Called on the way of requests: it must not wait.
pub trait Sink: Send + Sync + 'static {
    /// Takes one.
    fn take(&self, span: Finished);
}

/// Makes spans.
pub struct Traces {
    sink: Box<dyn Sink>,
    sampler: Sampler,
    clock: Arc<dyn Clock>,
    /// What the steady clock has to be added to, in nanoseconds since 1970.
    anchor: AtomicI64,
    /// Secret, so that its hashes of a counter are as good as random.
    random: RandomState,
    counter: AtomicU64,
    /// What trace a command belongs to that is being committed.
    commands: Cache<(Actor, OperationId), SpanContext>,
}

impl Traces {
    /// Traces whose spans go to `sink`.
    pub fn new(sink: Box<dyn Sink>, sampler: Sampler, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (anchor, counter) = (AtomicI64::new(i64::MIN), AtomicU64::new(0));
        let (random, commands) = (RandomState::new(), Cache::new(REMEMBERED));
        Arc::new(Self { sink, sampler, clock, anchor, random, counter, commands })
    }

    /// Nanoseconds since 1970, finer than the clock of the day tells them, and steady as long as that is.
    fn now(&self) -> u64 {
        let steady = i64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(i64::MAX);
        let of_day = self.clock.now().millis().saturating_mul(1_000_000);
        let now = self.anchor.load(Ordering::Relaxed).saturating_add(steady);
        let now = if now.abs_diff(of_day) > CLOCK_SLACK.unsigned_abs() {
            self.anchor.store(of_day.saturating_sub(steady), Ordering::Relaxed);
            of_day
        } else {
            now
        };
        u64::try_from(now).unwrap_or_default()
    }

    fn id(&self) -> u64 {
        loop {
            let id = self.random.hash_one(self.counter.fetch_add(1, Ordering::Relaxed));
            if id != 0 {
                return id;
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        name: impl Into<Cow<'static, str>>,
        kind: Kind,
        parent: Option<SpanContext>,
        remote_parent: bool,
    ) -> Span {
        let trace_id =
            parent.map_or_else(|| u128::from(self.id()) << 64 | u128::from(self.id()), |parent| parent.trace_id);
        let sampled = match parent {
            Some(parent) if !remote_parent => parent.sampled,
            // An id that a client chose would be chosen so that it is recorded.
            Some(_) => self.sampler.samples(self.id(), parent),
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            None => self.sampler.samples(trace_id as u64, None),
        };
        let context = SpanContext { trace_id, span_id: self.id(), sampled };
        let finished = sampled.then(|| {
            let began = self.now();
            Mutex::new(Finished {
                context,
                parent,
                remote_parent,
                link: None,
                name: name.into(),
                kind,
                began,
                ended: began,
                attributes: Vec::new(),
                failed: false,
            })
        });
        Span(Arc::new(Live { traces: Arc::clone(self), context, finished }))
    }

    /// A request, which may be a part of somebody's trace.
    pub(crate) fn request(self: &Arc<Self>, name: String, headers: &HeaderMap) -> Span {
        let parent = SpanContext::of_request(headers);
        self.begin(name, Kind::Server, parent, parent.is_some())
    }

    /// A message on a socket that the span `opened` opened. It is a trace of its own: a socket lives for hours.
    pub(crate) fn message(self: &Arc<Self>, opened: Option<SpanContext>) -> Span {
        let span = self.begin("message", Kind::Server, None, false);
        span.change(|span| span.link = opened);
        span
    }

    /// From now on it is known of what trace `origin` is a part.
    fn remember(&self, origin: &Origin, context: SpanContext) {
        self.commands.insert((origin.by, origin.operation.clone()), context);
    }

    fn forget(&self, origin: &Origin) -> Option<SpanContext> {
        self.commands.remove(&(origin.by, origin.operation.clone())).map(|(_, context)| context)
    }

    /// The telling of what the command with this origin did, if it belongs to a trace of this process.
    pub(crate) fn fan_out(self: &Arc<Self>, origin: &Origin, class: ClassId, revision: u64) -> Option<Span> {
        let span = self.begin("fan out", Kind::Internal, Some(self.forget(origin)?), false);
        span.note("rollcall.class.id", class.to_string());
        span.note("rollcall.revision", revision);
        Some(span)
    }
}

/// A span that goes on.
#[derive(Clone)]
pub(crate) struct Span(Arc<Live>);

struct Live {
    traces: Arc<Traces>,
    context: SpanContext,
    /// What is recorded, if anything is.
    finished: Option<Mutex<Finished>>,
}

impl Span {
    fn change(&self, change: impl FnOnce(&mut Finished)) {
        if let Some(finished) = &self.0.finished {
            change(&mut finished.lock());
        }
    }

    /// Adds an attribute.
    pub(crate) fn note(&self, key: &'static str, value: impl Into<Value>) {
        self.change(|span| span.attributes.push((key, value.into())));
    }

    /// Notes that it failed, by our own fault or the database's.
    pub(crate) fn fail(&self, kind: impl Into<Value>) {
        self.change(|span| {
            span.failed = true;
            span.attributes.push(("error.type", kind.into()));
        });
    }

    /// Runs `work` for this span, which ends with it unless it is kept elsewhere.
    pub(crate) fn around<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(finished) = self.finished.take() {
            let mut finished = finished.into_inner();
            finished.ended = self.traces.now().max(finished.began);
            self.traces.sink.take(finished);
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("sampler", &self.sampler).finish_non_exhaustive()
    }
}

/// `work` for the present span too, where another task does it.
pub(crate) fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let span = CURRENT.try_with(Span::clone).ok();
    async move {
        match span {
            Some(span) => span.around(work).await,
            None => work.await,
        }
    }
}

/// The span that the present task works for, for logs.
pub fn current() -> Option<SpanContext> {
    CURRENT.try_with(|span| span.0.context).ok()
}

/// A part of the present span, if that is recorded.
fn child(name: &'static str, kind: Kind) -> Option<Span> {
    let child = |span: &Span| {
        let Live { traces, context, .. } = &*span.0;
        context.sampled.then(|| traces.begin(name, kind, Some(*context), false))
    };
    CURRENT.try_with(child).ok().flatten()
}

/// Adds an attribute to the present span, if there is one.
pub(crate) fn note(key: &'static str, value: impl Into<Value>) {
    let _ = CURRENT.try_with(|span| span.note(key, value));
}

/// Notes what event the present message is.
pub(crate) fn event(name: &'static str) {
    let _ = CURRENT.try_with(|span| span.change(|span| span.name = name.into()));
}

/// Notes of what class the present message is; what is no class's id is not noted.
pub(crate) fn class(class: ClassId) {
    if class != ClassId::NOTHING {
        let _ = CURRENT.try_with(|span| span.note("rollcall.class.id", class.to_string()));
    }
}

/// Notes what became of the present message.
pub(crate) fn outcome(outcome: &'static str) {
    note("rollcall.outcome", outcome);
}

/// Notes that the present message is refused, and what its sender is told.
pub(crate) fn refused(text: &'static str) {
    outcome("refused");
    note("rollcall.refusal", text);
}

/// Notes what the present message fails of.
pub(crate) fn failed(error: &Error) {
    let Some(kind) = Failure::of(error) else { return refused(socket_text(error)) };
    outcome("failed");
    let _ = CURRENT.try_with(|span| span.fail(kind.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_as_w3c_has_it() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = SpanContext::parse(good).unwrap();
        assert_eq!((context.trace_id >> 64, context.span_id), (0x4bf9_2f35_77b3_4da6, 0x00f0_67aa_0ba9_02b7));
        assert!(context.sampled);
        assert!(!SpanContext::parse(&good.replace("-01", "-02")).unwrap().sampled);
        assert!(SpanContext::parse(&format!("01{}-more", &good[2..])).is_some(), "a later version");
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good[..good.len() - 1],
            &format!("{good}-more"),
            &format!("ff{}", &good[2..]),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace("4bf92f", "+bf92f"),
            &good.replace("-01", "-é"),
        ] {
            assert_eq!(SpanContext::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn samplers_keep_to_their_ratio_and_their_parents() {
        let parent = |sampled| Some(SpanContext { trace_id: 1, span_id: 1, sampled });
        for ratio in [0.0, 0.5, 1.0] {
            let [alone, based] = [false, true].map(|parent_based| Sampler { parent_based, ratio });
            let (low, high) = (u64::MAX / 4, u64::MAX);
            assert_eq!([alone.samples(low, None), alone.samples(high, None)], [ratio > 0.0, ratio > 0.5]);
            assert_eq!(alone.samples(high, parent(true)), ratio > 0.5);
            assert!(based.samples(high, parent(true)) && !based.samples(low, parent(false)));
        }
    }
}
