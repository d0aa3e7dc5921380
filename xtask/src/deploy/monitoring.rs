//! Monitoring: `deploy/monitoring` with the Prometheus and Alertmanager of Debian beside a Rollcall at work.
//!
//! Grafana is not to be had here. What it would ask is: every query of the dashboard goes to Prometheus as Grafana would
//! send it, and has to find something.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::Json;
use axum::http::Method;
use axum::routing::post;
use form_urlencoded::Serializer;
use rollcall_testkit::server::{Builder, Client, PATIENCE, Person, Server};
use rollcall_testkit::smtp::{MailServer, Security};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Deploy, tools};
use crate::cargo;

/// How long the whole may take.
const LIMIT: Duration = Duration::from_mins(2);
/// How long to wait before something that is not there yet is asked for again.
const PAUSE: Duration = Duration::from_millis(200);
/// What the windows of the dashboard's queries are, where figures are asked for every second.
const WINDOW: &str = "15s";

/// What the load must have moved: a panel that shows nothing but zeros would prove little.
const MOVED: [&str; 14] = [
    r#"rollcall_http_requests_total{route="/me", status="200"}"#,
    r#"rollcall_http_requests_total{status="404"}"#,
    "rollcall_marks_total",
    "rollcall_command_seconds_count",
    "rollcall_commit_seconds_count",
    "rollcall_frames_sent_total",
    "rollcall_hash_seconds_count",
    r#"rollcall_logins_refused_total{why="credentials"}"#,
    r#"rollcall_logins_refused_total{why="limit"}"#,
    "rollcall_messages_refused_total",
    "rollcall_signups_refused_total",
    r#"rollcall_mails_total{outcome="sent"}"#,
    "rollcall_mail_seconds_count",
    "rollcall_sockets_refused_total",
];

/// The whole step.
pub(super) fn monitoring(deploy: &Deploy) -> anyhow::Result<String> {
    let prometheus = deploy.tools.debian("prometheus")?.join("usr");
    let alertmanager = deploy.tools.debian("prometheus-alertmanager")?.join("usr");
    check(&prometheus, &alertmanager)?;
    cargo::run(cargo::cargo().args(["build", "--package", "rollcall"]))?;
    let rollcall = std::env::current_exe()?.with_file_name("rollcall");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let watch = async { Watched::start(&prometheus, &alertmanager, &rollcall).await?.try_all(&prometheus).await };
    runtime.block_on(async { timeout(LIMIT, watch).await.with_context(|| format!("not done after {LIMIT:?}"))? })
}

/// The files by themselves.
fn check(prometheus: &Path, alertmanager: &Path) -> anyhow::Result<()> {
    let promtool = || Command::new(prometheus.join("bin/promtool"));
    tools::output(promtool().args(["check", "config"]).arg(file("prometheus.yml")))?;
    tools::output(promtool().args(["test", "rules"]).args(["alerts", "recording"].map(tests_of)))?;
    tools::output(Command::new(alertmanager.join("bin/amtool")).arg("check-config").arg(file("alertmanager.yml")))?;
    Ok(())
}

fn file(name: &str) -> PathBuf {
    cargo::root().join("deploy/monitoring").join(name)
}

fn tests_of(rules: &str) -> PathBuf {
    file("rules/tests").join(rules).with_extension("yml")
}

/// A file of `deploy/monitoring` as text.
fn text(name: &str) -> anyhow::Result<String> {
    fs::read_to_string(file(name)).with_context(|| format!("cannot read {name}"))
}

/// `text` with `from` replaced, which must be there.
fn swap(text: &str, from: &str, to: &str) -> anyhow::Result<String> {
    ensure!(text.contains(from), "no {from:?} in\n{text}");
    Ok(text.replace(from, to))
}

/// An address that is free now.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A process that is killed when it goes out of scope.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::create(log)?;
        let shown = cargo::shown(command);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().with_context(|| format!("cannot run {shown}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Rollcall, the Prometheus that watches it, the Alertmanager that is told, and who hears of alerts in the end.
struct Watched {
    server: Server,
    prometheus: Client,
    alertmanager: Client,
    /// What the Alertmanager sent to the webhook.
    told: mpsc::UnboundedReceiver<Value>,
    _mail: MailServer,
    folder: TempDir,
    _processes: [Process; 2],
}

impl Watched {
    /// Starts all of them with the files of `deploy/monitoring`, in which only addresses and times are changed.
    async fn start(prometheus: &Path, alertmanager: &Path, rollcall: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mail = MailServer::start(&Security::Plain).await?;
        let server = with_mails(with_limits(rollcall), &mail).start().await?;
        let (told, webhook) = webhook().await?;
        let (prometheus_at, alertmanager_at) = (free_address()?, free_address()?);

        let config = text("alertmanager.yml")?;
        let config = swap(&config, "mail.school.example:587", "127.0.0.1:9")?;
        let config = swap(&config, "127.0.0.1:9095", &webhook.to_string())?;
        let config = swap(&config, "group_wait: 10s", "group_wait: 0s")?;
        let config = swap(&config, "group_interval: 5m", "group_interval: 1s")?;
        fs::write(folder.path().join("alertmanager.yml"), config)?;
        let mut command = with_shared(&alertmanager.join("share"));
        command.arg(alertmanager.join("bin/prometheus-alertmanager"));
        command.current_dir(folder.path()).args(["--config.file=alertmanager.yml", "--storage.path=alerts"]);
        command.arg(format!("--web.listen-address={alertmanager_at}")).arg("--cluster.listen-address=");
        let alerting = Process::start(&mut command, &folder.path().join("alertmanager.log"))?;

        let config = text("prometheus.yml")?;
        let config = swap(&config, "_interval: 15s", "_interval: 1s")?;
        let config = swap(&config, "127.0.0.1:9093", &alertmanager_at.to_string())?;
        let config = swap(&config, "127.0.0.1:9000", &server.address().to_string())?;
        fs::write(folder.path().join("prometheus.yml"), config)?;
        fs::create_dir(folder.path().join("rules"))?;
        fs::write(folder.path().join("rules/recording.yml"), text("rules/recording.yml")?)?;
        fs::write(folder.path().join("rules/alerts.yml"), impatient(&text("rules/alerts.yml")?))?;
        let mut command = Command::new(prometheus.join("bin/prometheus"));
        command.current_dir(folder.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=figures"]);
        command.arg(format!("--web.listen-address={prometheus_at}"));
        let watching = Process::start(&mut command, &folder.path().join("prometheus.log"))?;

        let client = |address| Client::new(&format!("http://{address}"));
        let (prometheus, alertmanager) = (client(prometheus_at), client(alertmanager_at));
        Ok(Self { server, prometheus, alertmanager, told, _mail: mail, folder, _processes: [alerting, watching] })
    }

    async fn try_all(mut self, prometheus: &Path) -> anyhow::Result<String> {
        let found = self.try_each(prometheus).await;
        if found.is_err() {
            for name in ["prometheus.log", "alertmanager.log"] {
                eprintln!("--- {name}\n{}", fs::read_to_string(self.folder.path().join(name)).unwrap_or_default());
            }
        }
        found
    }

    async fn try_each(&mut self, prometheus: &Path) -> anyhow::Result<String> {
        // Asked once before anything happens, so that what happens is an increase.
        self.has_data(r#"up{job="rollcall"} == 1"#).await?;
        let people = People::come(&self.server.client()).await;
        let at_work = tokio::spawn(people.work());
        provoke(&self.server.client()).await?;

        self.lint(prometheus).await?;
        for series in MOVED {
            self.has_data(&format!("increase({series}[2m]) > 0")).await?;
        }
        let dashboard: Value = serde_json::from_str(&text("grafana-dashboard.json")?)?;
        let queries = queries(&dashboard);
        for query in &queries {
            self.has_data(&as_grafana_asks(query)?).await?;
        }
        for variable in variables(&dashboard) {
            let labels = self.prometheus.get(&label_values(&variable)?).await.json(200);
            ensure!(labels["data"].as_array().is_some_and(|values| !values.is_empty()), "{variable}: {labels}");
        }
        let rules = self.rules().await?;
        ensure!(!at_work.is_finished(), "the load ended: {:?}", at_work.await);
        at_work.abort();

        self.server.kill();
        self.hears("firing").await?;
        let alerts = self.alertmanager.get("/api/v2/alerts?filter=alertname%3D%22RollcallDown%22").await.json(200);
        ensure!(alerts[0]["labels"]["severity"] == "critical", "{alerts}");
        self.server.restart_in_place().await?;
        self.hears("resolved").await?;
        // Starts are marked on the dashboard, now that there was another one.
        let starts = dashboard["annotations"]["list"][0]["expr"].as_str().context("an annotation")?;
        self.has_data(&as_grafana_asks(starts)?).await?;
        Ok(format!(
            "{} queries of the dashboard and {rules} rules evaluated, RollcallDown sent and taken back",
            queries.len()
        ))
    }

    /// Lets Prometheus's own linter read the figures.
    async fn lint(&self, prometheus: &Path) -> anyhow::Result<()> {
        let figures = self.server.client().get("/metrics").await.text();
        let mut promtool = Command::new(prometheus.join("bin/promtool"));
        let mut promtool = promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        promtool.stdin.take().context("stdin")?.write_all(figures.as_bytes())?;
        let output = promtool.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.is_empty(), "promtool check metrics: {said}");
        Ok(())
    }

    /// Asks Prometheus, again and again, until the query finds a figure.
    async fn has_data(&self, query: &str) -> anyhow::Result<()> {
        let path = format!("/api/v1/query?{}", Serializer::new(String::new()).append_pair("query", query).finish());
        let mut last = Value::Null;
        let asking = async {
            loop {
                // It may still be starting.
                if let Ok(answer) = self.prometheus.call(Method::GET, &path).attempt().await {
                    last = serde_json::from_slice(&answer.body).unwrap_or_default();
                    if answer.status == 400 || is_found(&last) {
                        return answer.status == 200;
                    }
                }
                sleep(PAUSE).await;
            }
        };
        let found = timeout(PATIENCE, asking).await.unwrap_or(false);
        ensure!(found, "{query} finds nothing: {last}");
        Ok(())
    }

    /// Sees that every rule is evaluated without an error and that each that records something does. Answers with how
    /// many there are.
    async fn rules(&self) -> anyhow::Result<usize> {
        let answer = self.prometheus.get("/api/v1/rules").await.json(200);
        let groups = answer["data"]["groups"].as_array().context("groups")?;
        let rules: Vec<_> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
        for rule in &rules {
            ensure!(rule["health"] == "ok", "{rule}");
            if rule["type"] == "recording" {
                self.has_data(rule["name"].as_str().context("a name")?).await?;
            }
        }
        ensure!(rules.len() == names(&text("rules/alerts.yml")?, "alert").len() + recorded()?.len(), "{answer}");
        Ok(rules.len())
    }

    /// Waits until the webhook was told that `RollcallDown` is in this state.
    async fn hears(&mut self, status: &str) -> anyhow::Result<()> {
        let hearing = async {
            while let Some(message) = self.told.recv().await {
                let alerts = message["alerts"].as_array().into_iter().flatten();
                let mut down = alerts.filter(|alert| alert["labels"]["alertname"] == "RollcallDown");
                if let Some(alert) = down.find(|alert| alert["status"] == status) {
                    let runbook = alert["annotations"]["runbook"].as_str();
                    ensure!(runbook == Some("docs/runbook.md#rollcalldown"), "{alert}");
                    return Ok(());
                }
            }
            bail!("the webhook is gone")
        };
        timeout(PATIENCE, hearing).await.with_context(|| format!("RollcallDown is not told as {status}"))?
    }
}

/// A server with its limits on.
fn with_limits(rollcall: &Path) -> Builder {
    Server::builder(rollcall).without("RATE_LIMIT")
}

/// Mails go to this mail server.
fn with_mails(server: Builder, mail: &MailServer) -> Builder {
    server.env("SMTP_URL", mail.url()).env("PUBLIC_URL", "https://school.example")
}

/// A command that runs the arguments it is given where `share` lies at `/usr/share`, for it alone: Debian's Alertmanager
/// wants its templates there, and is not installed.
fn with_shared(share: &Path) -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", r#"mount --bind "$0" /usr/share && exec "$@""#]).arg(share);
    command
}

/// The alerts without their patience.
fn impatient(alerts: &str) -> String {
    let line = |line: &str| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 1s\n"),
        _ => format!("{line}\n"),
    };
    alerts.lines().map(line).collect()
}

/// Who is told of alerts: gives what it is sent, and where it listens.
async fn webhook() -> anyhow::Result<(mpsc::UnboundedReceiver<Value>, SocketAddr)> {
    let (send, told) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let hear = async move |Json(message): Json<Value>| drop(send.send(message));
    let router = axum::Router::new().route("/alerts", post(hear));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((told, address))
}

/// Whether an answer of Prometheus has a figure that is a number.
fn is_found(answer: &Value) -> bool {
    let results = answer["data"]["result"].as_array();
    results.into_iter().flatten().any(|result| {
        let value = result["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
        value.is_some_and(f64::is_finite)
    })
}

/// A class and its people.
struct People {
    teacher: Person,
    students: Vec<Person>,
}

impl People {
    async fn come(client: &Client) -> Self {
        let teacher = client.teacher("Thea").await;
        let mut students = Vec::new();
        for name in ["Ada", "Ben", "Cem"] {
            students.push(client.student(name).await);
        }
        Self { teacher, students }
    }

    /// Attends lessons without end: marks, questions, logins, sockets that come and go.
    async fn work(self) {
        let Self { teacher, students } = self;
        let class = teacher.open_class("Algebra", &students.iter().collect::<Vec<_>>()).await;
        let mut marking = teacher.socket().await;
        for round in 0.. {
            let mut hearing = students[0].socket().await;
            let status = if round % 2 == 0 { "present" } else { "absent" };
            for student in &students {
                marking.mark(&student.id, status).await;
                marking.expect_mark(&student.id, status).await;
                hearing.expect_mark(&student.id, status).await;
            }
            hearing.close().await;
            teacher.get("/me").await.ok();
            teacher.get(&class.path("/session")).await.ok();
            teacher.client().get("/nowhere").await;
            teacher.client().log_in(&teacher.email, &teacher.password).await;
            sleep(PAUSE).await;
        }
    }
}

/// Does what is refused: each limit is gone over.
async fn provoke(client: &Client) -> anyhow::Result<()> {
    let student = client.student("Dan").await;
    let guess = json!({"email": "nobody@example.org", "password": "a guess"});
    let sign_up = json!({"name": "", "email": "", "password": "", "role": "student"});
    for (path, body) in [("/login", &guess), ("/signup", &sign_up)] {
        let mut attempts = 0;
        while client.post(path, body).await.status != 429 {
            attempts += 1;
            ensure!(attempts < 1_000, "no limit on {path}");
        }
    }
    let mut sockets = Vec::new();
    while let Ok(socket) = student.dial().attempt().await {
        sockets.push(socket);
        ensure!(sockets.len() < 1_000, "no limit on the sockets of an account");
    }
    let flooding = sockets.first_mut().context("a socket")?;
    for _ in 0..80 {
        flooding.queue("MY_ATTENDANCE", &json!({})).await;
    }
    flooding.flush().await;
    while flooding.next().await.data["message"] != "Too many messages" {}
    Ok(())
}

/// The queries of all panels.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.filter_map(|target| target["expr"].as_str()).map(str::to_owned).collect()
}

/// The queries behind the dashboard's choices.
fn variables(dashboard: &Value) -> Vec<String> {
    let variables = dashboard["templating"]["list"].as_array().into_iter().flatten();
    variables.filter_map(|variable| variable["definition"].as_str()).map(str::to_owned).collect()
}

/// A query with what Grafana puts in the place of its variables.
fn as_grafana_asks(query: &str) -> anyhow::Result<String> {
    let query = query.replace("$__rate_interval", WINDOW).replace("$__interval", WINDOW);
    let query = query.replace("$job", "rollcall").replace("$instance", ".*");
    ensure!(!query.contains('$'), "a variable that nobody sets: {query}");
    Ok(query)
}

/// Where Grafana asks for `label_values(series, label)`.
fn label_values(variable: &str) -> anyhow::Result<String> {
    let inner = variable.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (series, label) = inner.and_then(|inner| inner.rsplit_once(", ")).context("label_values(series, label)")?;
    let series = as_grafana_asks(series)?;
    Ok(format!(
        "/api/v1/label/{label}/values?{}",
        Serializer::new(String::new()).append_pair("match[]", &series).finish()
    ))
}

/// What stands behind `- kind: ` in rules.
fn names(rules: &str, kind: &str) -> Vec<String> {
    let prefix = format!("- {kind}: ");
    rules.lines().filter_map(|line| line.trim_start().strip_prefix(&prefix)).map(str::to_owned).collect()
}

fn recorded() -> anyhow::Result<Vec<String>> {
    Ok(names(&text("rules/recording.yml")?, "record"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn page(name: &str) -> String {
        fs::read_to_string(cargo::root().join("docs").join(name)).unwrap()
    }

    /// The names of series in queries or rules, without what a histogram's have at their end.
    fn series(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let own = words.filter(|word| word.starts_with("rollcall_") || word.starts_with("process_"));
        own.map(|word| {
            let end = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| word.strip_suffix(end));
            end.unwrap_or(word).to_owned()
        })
        .collect()
    }

    #[test]
    fn each_alert_has_a_section_in_the_runbook() {
        let alerts = text("rules/alerts.yml").unwrap();
        let runbook = page("runbook.md");
        let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(names(&alerts, "alert"), sections, "the same, in the same order");
        for rule in alerts.split("- alert: ").skip(1) {
            let name = rule.lines().next().unwrap();
            let runbook = format!("runbook: docs/runbook.md#{}\n", name.to_lowercase());
            assert!(rule.contains(&runbook), "{name} does not link to its section");
            for what in ["severity: ", "summary: ", "description: "] {
                assert!(rule.contains(what), "{name} has no {what}");
            }
            let severity = if rule.contains("severity: critical") { "**Critical.**" } else { "**Warning.**" };
            let section = page("runbook.md").split(&format!("## {name}\n\n")).nth(1).unwrap().to_owned();
            assert!(section.starts_with(severity), "{name} in the runbook is not {severity}");
        }
    }

    #[test]
    fn each_alert_is_tested() {
        let tests =
            fs::read_to_string(tests_of("alerts")).unwrap() + &fs::read_to_string(tests_of("recording")).unwrap();
        for name in names(&text("rules/alerts.yml").unwrap(), "alert").into_iter().chain(recorded().unwrap()) {
            assert!(tests.contains(&name), "{name} has no test");
        }
    }

    #[test]
    fn rules_and_dashboard_ask_for_what_there_is() {
        let documented = page("operate.md");
        let dashboard = serde_json::from_str(&text("grafana-dashboard.json").unwrap()).unwrap();
        let asked = [text("rules/alerts.yml").unwrap(), text("rules/recording.yml").unwrap()];
        let asked = asked.into_iter().chain(queries(&dashboard)).chain(variables(&dashboard));
        for name in asked.flat_map(|text| series(&text)) {
            assert!(documented.contains(&format!("| `{name}` |")), "{name} is asked for and not documented");
        }
    }

    #[test]
    fn series_are_found_in_queries() {
        let query = r#"rate(rollcall_commit_seconds_bucket{job="$job"}[5m]) / instance:process_open_fds:ratio"#;
        assert_eq!(series(query).into_iter().collect::<Vec<_>>(), ["rollcall_commit_seconds"]);
    }

    #[test]
    fn only_numbers_are_figures() {
        let answer = |value: &str| json!({"data": {"result": [{"value": [1.5, value]}]}});
        assert!(is_found(&answer("0")) && is_found(&answer("1.5e-3")));
        assert!(!is_found(&answer("NaN")) && !is_found(&answer("+Inf")) && !is_found(&json!({"data": {"result": []}})));
    }

    #[test]
    fn patience_is_taken_from_alerts_alone() {
        assert_eq!(
            impatient("  - alert: X\n    for: 5m\n    # for: you\n"),
            "  - alert: X\n    for: 1s\n    # for: you\n"
        );
    }
}
