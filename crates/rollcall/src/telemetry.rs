//! Logs to standard error, and the recorder behind `/metrics`.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rollcall_core::Clock;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogFormat, Logs};

/// Upper ends of the buckets for times, in seconds: from a commit on a fast disk to a request that waits for a hash.
const SECONDS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Upper ends of the buckets for how many were done at once.
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
/// How often what was recorded is moved into the buckets, so that memory stays flat when nobody asks.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sends logs to standard error, panics included. Only the first call of a process has an effect.
pub(crate) fn start_logs(logs: Logs) {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match logs.format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            lines.with_ansi(colour).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(logs.filter).with_filter(filter_fn(may_be_logged));
    if tracing_subscriber::registry().with(lines).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            let why = panic.payload_as_str().unwrap_or("no message");
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(at, why, %backtrace, "a task panicked; this is a defect in Rollcall");
        }));
    }
}

/// A library's details could hold request lines and frames, and so tokens: they are in no log, whatever its level.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with("rollcall")
}

/// Starts recording metrics; must run inside the runtime, which keeps the recorder's memory flat. Once per process.
pub(crate) fn start_metrics(clock: &dyn Clock) -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), SIZES)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    metrics::describe_gauge!("rollcall_build_info", "Always 1; the version is a label.");
    metrics::gauge!("rollcall_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::describe_gauge!("process_start_time_seconds", "When the process started, in seconds since 1970.");
    metrics::gauge!("process_start_time_seconds").set(clock.now().millis() as f64 / 1000.0);
    metrics::describe_gauge!("rollcall_hash_queue_depth", "Passwords that wait to be hashed or checked.");
    metrics::describe_histogram!("rollcall_hash_seconds", "Time to hash or check one password.");
    metrics::describe_counter!("rollcall_hash_refused_total", "Passwords refused because too many waited.");
    metrics::describe_gauge!("rollcall_connections", "Open connections, HTTP and WebSocket.");
    metrics::describe_counter!("rollcall_accept_errors_total", "Connections that could not be accepted.");

    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}
