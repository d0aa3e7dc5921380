//! Sends spans to a collector, by OpenTelemetry's protocol: OTLP over HTTP, as protobuf.
//!
//! Spans wait in a queue of bounded length, which nobody waits for: what does not fit is dropped and counted. One task
//! takes them out in batches. While the collector is away it tries the same batch again, less and less often.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use metrics::{Counter, Unit, counter, describe_counter};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyOf;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Outcome;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status};
use prost::Message;
use rollcall_api::trace::{Finished, Kind, Sampler, Sink, SpanContext, Traces, Value};
use rollcall_core::Clock;
use rustls::ClientConfig;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{http_client, system};

/// What is added to the collector's address, as the protocol has it.
pub(crate) const PATH: &str = "/v1/traces";

/// Spans that may wait, of some 500 bytes each.
const QUEUE: usize = 8192;
/// Spans that are sent at once, and how long the first of them waits for others.
const BATCH: usize = 512;
const COLLECT: Duration = Duration::from_secs(2);
/// How long the collector may take for a batch.
const REQUEST: Duration = Duration::from_secs(10);
/// How long after a failure a batch is sent again: twice as long each time, up to the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How often at most is logged that spans are not taken.
const COMPLAIN: Duration = Duration::from_mins(5);
/// How long what is left may take when the server ends.
const FINISH: Duration = Duration::from_secs(3);
/// Answers are a few bytes.
const MAX_ANSWER: usize = 1 << 16;

/// Where spans go, and which.
#[derive(Clone, Debug)]
pub(crate) struct Collector {
    /// Where it takes spans, with [`PATH`].
    pub endpoint: Uri,
    /// What it wants with each request.
    pub headers: HeaderMap,
    /// A PEM file of whom to trust when it is asked over TLS, instead of those whom browsers trust.
    pub ca: Option<PathBuf>,
    /// What the server is called.
    pub service: Option<String>,
    /// What else is known of it.
    pub attributes: Vec<(String, String)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
}

/// Takes spans, and has them sent until it is told to finish.
pub(crate) struct Exporter {
    traces: Arc<Traces>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Begins; must run inside the runtime. An error is one that time does not heal.
    pub(crate) fn start(collector: &Collector, clock: &Arc<dyn Clock>) -> anyhow::Result<Self> {
        describe_counter!("rollcall_spans_exported_total", Unit::Count, "Spans that the collector of traces took.");
        describe_counter!(
            "rollcall_spans_dropped_total",
            Unit::Count,
            "Spans that the collector of traces did not get."
        );
        let (exported, dropped) = (counter!("rollcall_spans_exported_total"), counter!("rollcall_spans_dropped_total"));
        exported.increment(0);
        dropped.increment(0);
        let (sender, queue) = channel(QUEUE);
        let sink = Queue { sender, dropped: dropped.clone() };
        let traces = Traces::new(Box::new(sink), collector.sampler, Arc::clone(clock));
        let delivery = Delivery {
            queue,
            trust: http_client::trust("OTEL_EXPORTER_OTLP_CERTIFICATE", collector.ca.as_deref())?,
            endpoint: collector.endpoint.clone(),
            headers: collector.headers.clone(),
            resource: resource(collector)?,
            exported,
            dropped,
            complained: None,
        };
        let stop = CancellationToken::new();
        Ok(Self { traces, task: tokio::spawn(delivery.run(stop.clone())), stop })
    }

    /// What makes the spans.
    pub(crate) fn traces(&self) -> Arc<Traces> {
        Arc::clone(&self.traces)
    }

    /// Sends what is left, if the collector takes it soon.
    pub(crate) async fn finish(mut self) {
        self.stop.cancel();
        if timeout(FINISH, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the collector of traces did not take the last spans in time");
        }
    }
}

/// The way to the task that sends.
struct Queue {
    sender: Sender<Finished>,
    dropped: Counter,
}

impl Sink for Queue {
    fn take(&self, span: Finished) {
        if self.sender.try_send(span).is_err() {
            self.dropped.increment(1);
        }
    }
}

/// What is said of the server with each batch.
fn resource(collector: &Collector) -> anyhow::Result<Resource> {
    let mut said = vec![
        ("service.name".to_owned(), "rollcall".to_owned()),
        ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id".to_owned(), format!("{:032x}", u128::from_ne_bytes(system::random()?))),
    ];
    let service = collector.service.iter().map(|name| ("service.name".to_owned(), name.clone()));
    // The later counts: the name has a variable of its own, which wins over the list.
    for (name, value) in collector.attributes.iter().cloned().chain(service) {
        said.retain(|(earlier, _)| *earlier != name);
        said.push((name, value));
    }
    let attributes = said.into_iter().map(|(name, value)| attribute(&name, value)).collect();
    Ok(Resource { attributes, ..Resource::default() })
}

/// Why a batch was not taken.
enum Failure {
    /// It may be taken later, after that time if the collector said one.
    ForNow(anyhow::Error, Option<Duration>),
    /// It never will be.
    ForGood(anyhow::Error),
}

/// The task that sends.
struct Delivery {
    queue: Receiver<Finished>,
    trust: Arc<ClientConfig>,
    endpoint: Uri,
    headers: HeaderMap,
    resource: Resource,
    exported: Counter,
    dropped: Counter,
    /// When it was last logged that spans are not taken, if that is so at present.
    complained: Option<Instant>,
}

impl Delivery {
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(()) = stop.run_until_cancelled(self.collect(&mut batch)).await {
            self.deliver(&mut batch, &stop).await;
        }
        self.queue.close();
        loop {
            if !batch.is_empty() && self.send(&mut batch).await.is_err() {
                break;
            }
            if self.queue.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
        }
        let left = batch.len() + self.queue.len();
        self.dropped.increment(left as u64);
        tracing::warn!(spans = left, "the collector of traces did not take the last spans");
    }

    /// Fills a batch, and waits for others not for long. What it took stays when this is dropped.
    async fn collect(&mut self, batch: &mut Vec<Finished>) {
        if batch.is_empty() {
            self.queue.recv_many(batch, BATCH).await;
        }
        let fill = async { while batch.len() < BATCH && self.queue.recv_many(batch, BATCH - batch.len()).await > 0 {} };
        // Slow is as good as full.
        let _ = timeout(COLLECT, fill).await;
    }

    /// Sends a batch until it is taken, refused, or the server ends: then it is left.
    async fn deliver(&mut self, batch: &mut Vec<Finished>, stop: &CancellationToken) {
        let mut wait = FIRST_RETRY;
        while !stop.is_cancelled()
            && let Err(after) = self.send(batch).await
        {
            let pause = after.unwrap_or(wait).min(LONGEST_RETRY);
            wait = (wait * 2).min(LONGEST_RETRY);
            stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// Sends a batch once. It is left where it may be sent again, after that time if the collector said one.
    async fn send(&mut self, batch: &mut Vec<Finished>) -> Result<(), Option<Duration>> {
        let spans = batch.len() as u64;
        match self.ask(batch).await {
            Ok(refused) => {
                let refused = refused.min(spans);
                self.exported.increment(spans - refused);
                self.dropped.increment(refused);
                if self.complained.take().is_some() {
                    tracing::info!("the collector of traces takes spans again");
                }
            }
            Err(Failure::ForGood(error)) => {
                self.dropped.increment(spans);
                self.complain(&error);
            }
            Err(Failure::ForNow(error, after)) => {
                self.complain(&error);
                return Err(after);
            }
        }
        batch.clear();
        Ok(())
    }

    /// Asks the collector to take a batch; answers with how many of it were refused.
    async fn ask(&self, batch: &[Finished]) -> Result<u64, Failure> {
        let message = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "rollcall".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans: batch.iter().map(span).collect(),
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let mut request = Request::new(Full::new(Bytes::from(message.encode_to_vec())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("rollcall/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.headers.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let answer = timeout(REQUEST, http_client::ask(Arc::clone(&self.trust), request, MAX_ANSWER)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {REQUEST:?}")));
        let answer = answer.map_err(|error| Failure::ForNow(error, None))?;
        let status = answer.status();
        if status.is_success() {
            let message = ExportTraceServiceResponse::decode(answer.into_body()).unwrap_or_default();
            let refused = message.partial_success.map_or(0, |partial| partial.rejected_spans);
            return Ok(u64::try_from(refused).unwrap_or_default());
        }
        let error = anyhow!("it answers {status}");
        match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let after = answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
                Err(Failure::ForNow(error, after.map(Duration::from_secs)))
            }
            _ => Err(Failure::ForGood(error)),
        }
    }

    /// Logs that spans are not taken, once in a while.
    fn complain(&mut self, error: &anyhow::Error) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            self.complained = Some(Instant::now());
            // Some have who asks in the path.
            let collector = self.endpoint.authority().map(ToString::to_string);
            let error = format!("{error:#}");
            tracing::warn!(collector, error, "spans are not taken; those that do not fit the queue are dropped");
        }
    }
}

/// A span as the protocol has it.
fn span(finished: &Finished) -> Span {
    let Finished { context, parent, remote_parent, link, name, kind, began, ended, attributes, failed } = finished;
    let mut flags = flags(*context);
    if *remote_parent {
        flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    let kind = match kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Internal => SpanKind::Internal,
    };
    let code = if *failed { Outcome::Error } else { Outcome::Unset };
    Span {
        trace_id: context.trace_id.to_be_bytes().into(),
        span_id: context.span_id.to_be_bytes().into(),
        parent_span_id: parent.map(|parent| parent.span_id.to_be_bytes().into()).unwrap_or_default(),
        flags,
        name: name.clone().into_owned(),
        kind: kind.into(),
        start_time_unix_nano: *began,
        end_time_unix_nano: *ended,
        attributes: attributes.iter().map(|(name, value)| attribute(name, value.clone())).collect(),
        links: link.iter().map(|link| self::link(*link)).collect(),
        status: Some(Status { code: code.into(), message: String::new() }),
        ..Span::default()
    }
}

fn link(to: SpanContext) -> Link {
    Link {
        trace_id: to.trace_id.to_be_bytes().into(),
        span_id: to.span_id.to_be_bytes().into(),
        flags: flags(to),
        ..Link::default()
    }
}

fn flags(context: SpanContext) -> u32 {
    SpanFlags::ContextHasIsRemoteMask as u32 | u32::from(context.sampled)
}

fn attribute(name: &str, value: impl Into<Value>) -> KeyValue {
    let value = match value.into() {
        Value::Text(text) => AnyOf::StringValue(text.into_owned()),
        Value::Number(number) => AnyOf::IntValue(number),
    };
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
