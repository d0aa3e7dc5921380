//! The pod of the overlay `cluster`, run by Podman, which knows some of Kubernetes: the real image with the manifest's
//! settings, limits and restrictions, on a real MongoDB.
//!
//! What differs from a cluster: it has this machine's network, to reach MongoDB and not to take ports that others have;
//! there are no probes, as Podman runs these by a shell in the image; and the Secret is part of the environment.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use rollcall_testkit::mongo::ReplicaSet;
use rollcall_testkit::server::Client;
use serde_json::{Value, json};

use super::container::School;
use super::podman::Podman;
use super::{Deploy, image, manifests};

/// How long the pod may take until it is ready: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// The pod does the contract's main job, and ends as a roll-out wants it: not ready first, then drained, then gone.
pub(super) fn play(deploy: &Deploy) -> anyhow::Result<String> {
    let image = &deploy.image()?.name;
    let podman = deploy.podman()?;
    let overlay = manifests::cluster(deploy)?;
    super::block_on(async {
        let mongodb = ReplicaSet::start(1).await.context("a MongoDB for the pod")?;
        let [http, metrics] = free_addresses()?;
        let (mut map, mut workload) = (overlay.one("ConfigMap")?.clone(), overlay.one("Deployment")?.clone());
        let settings = &mut map["data"];
        settings["LISTEN_ADDR"] = json!(http);
        settings["METRICS_ADDR"] = json!(metrics);
        settings["TEACHER_SIGNUP"] = json!("open");
        let pod = &mut workload["spec"]["template"]["spec"];
        let grace = pod["terminationGracePeriodSeconds"].to_string();
        pod["hostNetwork"] = json!(true);
        let container = pod["containers"][0].as_object_mut().context("no container")?;
        for left_out in ["startupProbe", "livenessProbe", "readinessProbe", "ports"] {
            container.remove(left_out).with_context(|| format!("no {left_out}"))?;
        }
        container.insert("image".to_owned(), json!(image));
        container["envFrom"].as_array_mut().context("no envFrom")?.retain(|from| from.get("secretRef").is_none());
        let secret = |name: &str, value: &str| json!({"name": name, "value": value});
        let secrets = [secret("DB_URL", &mongodb.url("pod")), secret("JWT_SECRET", &"only for this run ".repeat(2))];
        container.insert("env".to_owned(), json!(secrets));

        let played = Played::start(podman, overlay.file.with_extension("pod.yaml"), &[map, workload])?;
        let client = Client::new(&format!("http://{http}"));
        let started = Instant::now();
        while status(&client, "/health/ready").await != Some(200) {
            ensure!(started.elapsed() < PATIENCE, "not ready within {PATIENCE:?}:\n{}", played.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        played.check_bounds()?;
        let mut school = School::new(&client).await;
        school.whole_session().await;
        let figures = Client::new(&format!("http://{metrics}")).get("/metrics").await.text();
        ensure!(figures.contains("\nrollcall_marks_total 1\n"), "{figures}");
        ensure!(status(&client, "/metrics").await == Some(404), "the figures are on the port for everybody");

        let stopping = Instant::now();
        let mut stop = podman.command();
        let mut stop =
            stop.args(["stop", "--time", &grace, &played.container]).stdout(std::process::Stdio::null()).spawn()?;
        while status(&client, "/health/ready").await != Some(503) {
            ensure!(stopping.elapsed() < PATIENCE, "ready in spite of the order to end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let not_ready = stopping.elapsed();
        ensure!(status(&client, "/health/live").await == Some(200), "not alive while it drains");
        school.teacher.socket().await.expect_close(1012).await;
        for socket in school.sockets() {
            socket.expect_close(1012).await;
        }
        ensure!(stop.wait()?.success(), "podman stop failed");
        let code = played.state()?["ExitCode"].take();
        ensure!(code == 0, "exit code {code} at the end:\n{}", played.logs());
        Ok(format!(
            "the Deployment by podman kube play: a session over MongoDB; SIGTERM: not ready after {} ms, served on, 1012, \
             exit 0 after {:.1} s of {grace}",
            not_ready.as_millis(),
            stopping.elapsed().as_secs_f64()
        ))
    })
}

/// Addresses of this machine alone that nobody listens on.
fn free_addresses() -> anyhow::Result<[String; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [first, second] = listeners.map(|listener| listener.local_addr().map(|address| address.to_string()));
    Ok([first?, second?])
}

/// The status of an answer; none if nobody answers.
async fn status(client: &Client, path: &str) -> Option<u16> {
    let asked = client.call(Method::GET, path).attempt();
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await.ok()?;
    answer.ok().map(|answer| answer.status)
}

/// What Podman made of manifests. It is taken down when this goes out of scope.
struct Played<'a> {
    podman: &'a Podman,
    file: PathBuf,
    /// The id of the pod's container.
    container: String,
}

impl<'a> Played<'a> {
    fn start(podman: &'a Podman, file: PathBuf, documents: &[Value]) -> anyhow::Result<Self> {
        // JSON is YAML.
        let documents: Vec<_> = documents.iter().map(Value::to_string).collect();
        std::fs::write(&file, documents.join("\n---\n"))?;
        let path = file.to_str().context("a path that is text")?.to_owned();
        let mut played = Self { podman, file, container: String::new() };
        // What an earlier run may have left.
        played.take_down();
        let said = podman.ask(&["kube", "play", "--network=host", &path])?;
        played.container.push_str(said.lines().last().unwrap_or_default().trim());
        Ok(played)
    }

    fn take_down(&self) {
        // Fails only where there is none.
        let _ = self.podman.ask(&["kube", "down", &self.file.to_string_lossy()]);
    }

    fn state(&self) -> anyhow::Result<Value> {
        Ok(self.podman.inspect("container", &self.container)?["State"].take())
    }

    fn logs(&self) -> String {
        self.podman.ask(&["logs", &self.container]).unwrap_or_else(|error| error.to_string())
    }

    /// Whether the container is bound as the manifest says, as far as Podman goes by it.
    fn check_bounds(&self) -> anyhow::Result<()> {
        let known = self.podman.inspect("container", &self.container)?;
        let host = &known["HostConfig"];
        ensure!(known["Config"]["User"] == image::USER, "it runs as {}", known["Config"]["User"]);
        ensure!(host["ReadonlyRootfs"] == true, "its root can be written to");
        ensure!(host["Memory"].as_u64().is_some_and(|bytes| bytes > 0), "its memory has no bound");
        let capabilities = &known["EffectiveCaps"];
        ensure!(capabilities.as_array().is_none_or(Vec::is_empty), "it may do {capabilities}");
        Ok(())
    }
}

impl Drop for Played<'_> {
    fn drop(&mut self) {
        self.take_down();
    }
}
