//! Logs to standard error, and what `/metrics` shows: the figures that were recorded, and the process's own, which are
//! read when they are asked for.

use std::fmt::{self, Display, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use rollcall_api::trace::SpanContext;
use rollcall_core::Clock;
use rustix::process::{Resource, getrlimit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
        LogFormat::Json => lines.json().event_format(WithTrace(format().json().flatten_event(true))).boxed(),
    };
    let lines = lines.with_filter(logs.filter).with_filter(filter_fn(may_be_logged));
    if tracing_subscriber::registry().with(lines).try_init().is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let at = panic.location().map(ToString::to_string).unwrap_or_default();
            let why = panic.payload_as_str().unwrap_or("no message");
            metrics::counter!("rollcall_panics_total").increment(1);
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(at, why, %backtrace, "a task panicked; this is a defect in Rollcall");
        }));
    }
}

/// Lines of JSON, which name the trace that they belong to, if there is one, as OpenTelemetry asks for it.
struct WithTrace(Format<Json>);

impl<S, N> FormatEvent<S, N> for WithTrace
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(SpanContext { trace_id, span_id, .. }) = rollcall_api::trace::current() else {
            return self.0.format_event(context, out, event);
        };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(out, r#"{{"trace_id":"{trace_id:032x}","span_id":"{span_id:016x}",{rest}"#),
            None => out.write_str(&line),
        }
    }
}

/// A library's details could hold request lines and frames, and so tokens: they are in no log, whatever its level.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with("rollcall")
}

/// What `/metrics` shows.
pub(crate) struct Figures {
    recorded: PrometheusHandle,
    /// When the process started, in seconds since 1970.
    started: f64,
    /// The file of the embedded database.
    database: Option<PathBuf>,
}

/// Starts recording metrics; must run inside the runtime, which keeps the recorder's memory flat. Once per process.
/// `database` is the file of the embedded database, of which the size is shown.
pub(crate) fn start_metrics(clock: &dyn Clock, database: Option<PathBuf>) -> anyhow::Result<Figures> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), SIZES)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;

    metrics::describe_gauge!("rollcall_build_info", "Always 1; the version is a label.");
    metrics::gauge!("rollcall_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::describe_gauge!("rollcall_hash_queue_depth", "Passwords that wait to be hashed or checked.");
    metrics::describe_histogram!("rollcall_hash_seconds", "Time to hash or check one password.");
    metrics::describe_counter!("rollcall_hash_refused_total", "Passwords refused because too many waited.");
    metrics::describe_gauge!("rollcall_connections", "Open connections, HTTP and WebSocket.");
    metrics::describe_gauge!("rollcall_connections_limit", "Connections that may be open; more have to wait.");
    metrics::describe_counter!("rollcall_accept_errors_total", "Connections that could not be accepted.");
    // Shown from the start, before there is anything to tell.
    let _ = metrics::gauge!("rollcall_hash_queue_depth");
    let _ = metrics::histogram!("rollcall_hash_seconds");
    let _ = metrics::counter!("rollcall_hash_refused_total");
    let _ = metrics::counter!("rollcall_accept_errors_total");

    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(Figures { recorded: handle, started: clock.now().millis() as f64 / 1000.0, database })
}

impl Figures {
    /// All figures as of now, in Prometheus's text format.
    pub(crate) fn show(&self) -> String {
        let mut text = self.recorded.render();
        let started = ("process_start_time_seconds", "When the process started, in seconds since 1970.");
        write(&mut text, started, "gauge", self.started);
        write_process(&mut text);
        if let Some(database) = &self.database {
            write_database(&mut text, database);
        }
        text
    }
}

fn write(text: &mut String, (name, help): (&str, &str), kind: &str, value: impl Display) {
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
}

/// What every Prometheus client shows of its process, under the names that all of them use. Where the system does not
/// tell, it is left out.
fn write_process(text: &mut String) {
    #[cfg(target_os = "linux")]
    if let Some(Usage { cpu, virtual_memory, resident_memory }) = Usage::of_this_process() {
        write(text, ("process_cpu_seconds_total", "Processor time, in seconds."), "counter", cpu);
        write(text, ("process_resident_memory_bytes", "Memory that is held."), "gauge", resident_memory);
        write(text, ("process_virtual_memory_bytes", "Addresses that are in use."), "gauge", virtual_memory);
    }
    if let Some(open) = open_files() {
        write(text, ("process_open_fds", "Open files, connections among them."), "gauge", open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        write(text, ("process_max_fds", "The limit on open files."), "gauge", most);
    }
}

#[cfg(target_os = "linux")]
struct Usage {
    cpu: f64,
    virtual_memory: u64,
    resident_memory: u64,
}

#[cfg(target_os = "linux")]
impl Usage {
    fn of_this_process() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// Reads `/proc/<pid>/stat`, which `proc_pid_stat(5)` describes.
    fn read(stat: &str) -> Option<Self> {
        // The second field is a name in parentheses and may hold anything; the third is the first behind it.
        let fields: Vec<_> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = field(14)? + field(15)?;
        Some(Self {
            cpu: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            virtual_memory: field(23)?,
            resident_memory: field(24)? * rustix::param::page_size() as u64,
        })
    }
}

/// How many files the process has open.
fn open_files() -> Option<u64> {
    let folder = Path::new("/proc/self/fd");
    // Linux tells the number as the folder's size since 6.2; before, it is 0.
    match folder.metadata().ok()?.len() {
        0 => Some(folder.read_dir().ok()?.count() as u64),
        open => Some(open),
    }
}

fn write_database(text: &mut String, database: &Path) {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let size = |path: &Path| path.metadata().map_or(0, |file| file.len());
    let bytes = size(database) + size(Path::new(&log));
    write(text, ("rollcall_database_bytes", "Size of the embedded database with its log."), "gauge", bytes);
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(disk) = rustix::fs::statvfs(folder) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        write(text, ("rollcall_disk_free_bytes", "Room on the disk of the embedded database."), "gauge", free);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_processes_own_figures_are_read() {
        let page = rustix::param::page_size() as u64;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let stat = "42 (a ) b) S 1 2 3 0 -1 5 6 7 8 9 150 50 12 13 20 0 4 0 99 4096000 77 18446744073709551615 1";
        let usage = Usage::read(stat).unwrap();
        assert!((usage.cpu - 200.0 / ticks).abs() < 1e-9);
        assert_eq!((usage.virtual_memory, usage.resident_memory), (4_096_000, 77 * page));
        for broken in ["", "42", "42 (x)", "42 (x) S 1 2", "42 (x) S x x x x x x x x x x x x x x x x x x x x x x"] {
            assert!(Usage::read(broken).is_none(), "{broken}");
        }
        let own = Usage::of_this_process().unwrap();
        assert!(own.resident_memory > 0 && own.virtual_memory >= own.resident_memory);
        assert!(open_files().unwrap() > 2);
    }
}
