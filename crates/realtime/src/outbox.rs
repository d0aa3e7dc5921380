//! What waits for one socket.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::task::{Context, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Close, Frame, close};

/// Held by a chunk until it is written and flushed, or will never be.
pub(crate) type Ticket = mpsc::Sender<Infallible>;

/// Bytes for the wire: whole frames, one or many.
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    pub(crate) frames: usize,
    pub(crate) ticket: Option<Ticket>,
}

impl From<Frame> for Chunk {
    fn from(frame: Frame) -> Self {
        Self { bytes: frame.into_wire(), frames: 1, ticket: None }
    }
}

/// The most that may wait for a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// An amount of frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amount {
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// A request to end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closing {
    pub(crate) close: Close,
    /// Whether commands that are being carried out are answered first.
    pub(crate) graceful: bool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Chunk>,
    /// What is queued, and what the actor took and has not written yet.
    waiting: Amount,
    closing: Option<Closing>,
    waker: Option<Waker>,
}

impl State {
    fn takes_frames(&self) -> bool {
        self.closing.is_none_or(|closing| closing.graceful)
    }
}

/// A bounded queue between all who send to a connection and the actor that writes. Sending never waits.
pub(crate) struct Outbox {
    limits: Limits,
    state: Mutex<State>,
}

impl Outbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// Queues a chunk. An outbox that would grow over its limits is closed instead.
    pub(crate) fn push(&self, chunk: Chunk) {
        let mut state = self.state.lock();
        if !state.takes_frames() {
            return;
        }
        let frames = state.waiting.frames + chunk.frames;
        let bytes = state.waiting.bytes + chunk.bytes.len();
        let waker = if frames > self.limits.frames || bytes > self.limits.bytes {
            state.queue = VecDeque::new();
            state.closing = Some(Closing { close: close::TOO_SLOW, graceful: false });
            state.waker.take()
        } else {
            state.waiting = Amount { frames, bytes };
            state.queue.push_back(chunk);
            // Who finds frames in the queue knows that the actor was woken for them.
            if state.queue.len() == 1 { state.waker.take() } else { None }
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Asks the actor to end the connection. The first to ask decides why; only a graceful end can be hastened.
    pub(crate) fn close(&self, closing: Closing) {
        let mut state = self.state.lock();
        if !state.takes_frames() || (state.closing.is_some() && closing.graceful) {
            return;
        }
        state.closing = Some(closing);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// For the actor: tells what it wrote since the last time, learns whether the connection shall end, and is woken
    /// when there is news. With `into`, which must be empty, it gets all that waits.
    pub(crate) fn exchange(
        &self,
        written: Amount,
        into: Option<&mut VecDeque<Chunk>>,
        context: &Context<'_>,
    ) -> Option<Closing> {
        let mut state = self.state.lock();
        state.waiting.frames -= written.frames;
        state.waiting.bytes -= written.bytes;
        if let Some(into) = into {
            mem::swap(&mut state.queue, into);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        state.closing
    }

    /// Lets go of everything, and takes nothing any more: the connection has ended.
    pub(crate) fn seal(&self) {
        let mut state = self.state.lock();
        let queue = mem::take(&mut state.queue);
        state.closing = Some(Closing { close: close::PROTOCOL, graceful: false });
        state.waker = None;
        drop(state);
        drop(queue);
    }
}
