//! The Kubernetes manifests: every overlay is rendered, held against the schemas of Kubernetes and the rules of a policy
//! scanner, and against the program itself: its paths, its settings, its time to end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Deploy, tools, unavailable};
use crate::cargo;

/// The versions of Kubernetes that the manifests are for, oldest first. The newest is the newest that the validator has.
const VERSIONS: [&str; 5] = ["1.33", "1.34", "1.35", "1.36", "1.37"];
const VALIDATOR: &str = "kubernetes-validate==1.37.0";
const SCANNER: &str = "checkov==3.3.30";

/// What each overlay consists of, in the order of names.
const OVERLAYS: [(&str, &[&str]); 3] = [
    (
        "embedded",
        &[
            "ConfigMap",
            "Ingress",
            "Namespace",
            "NetworkPolicy",
            "NetworkPolicy",
            "Service",
            "ServiceAccount",
            "StatefulSet",
        ],
    ),
    ("cluster", &REPLICATED),
    ("eks", &REPLICATED),
];
const REPLICATED: [&str; 11] = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Ingress",
    "Namespace",
    "NetworkPolicy",
    "NetworkPolicy",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
];

/// Every overlay against the program, and against the schemas of the oldest and the newest Kubernetes.
pub(super) fn check(deploy: &Deploy) -> anyhow::Result<String> {
    let overlays = render(deploy)?;
    let program = Program::read()?;
    for overlay in &overlays {
        overlay.check(&program).with_context(|| format!("overlay {}", overlay.name))?;
    }
    secrets_are_templates(deploy, &program)?;
    outbound(deploy)?;
    let versions = [VERSIONS[0], VERSIONS[VERSIONS.len() - 1]];
    validate(deploy, &overlays, &versions)?;
    Ok(format!("3 overlays fit the program, and Kubernetes {} by schema, strictly", versions.join(" and ")))
}

/// Every overlay against the schemas of all versions.
pub(super) fn versions(deploy: &Deploy) -> anyhow::Result<String> {
    validate(deploy, &render(deploy)?, &VERSIONS)?;
    Ok(format!("3 overlays fit Kubernetes {} by schema, strictly", VERSIONS.join(", ")))
}

/// Every overlay against the policies of the scanner. What is meant to be otherwise says so, with a reason, in its
/// annotations.
pub(super) fn policy(deploy: &Deploy) -> anyhow::Result<String> {
    let checkov = deploy.tools.python("checkov", SCANNER)?;
    let mut command = Command::new(checkov);
    // `--soft-fail`: what was found is told below, not by the exit code.
    command.args(["--skip-download", "--framework", "kubernetes", "--compact", "--soft-fail", "--output", "json"]);
    for overlay in &render(deploy)? {
        command.arg("--file").arg(&overlay.file);
    }
    let report: Value = serde_json::from_str(&tools::output(&mut command)?).context("checkov's report")?;
    let count = |what: &str| report["summary"][what].as_u64().with_context(|| format!("no {what} in {report}"));
    let checks = |outcome: &str| report["results"][outcome].as_array().into_iter().flatten();
    let found = checks("failed_checks")
        .map(|check| format!("{} {} {}", check["check_id"], check["check_name"], check["resource"]));
    let found: Vec<_> = found.collect();
    ensure!(found.is_empty(), "checkov found:\n{}", found.join("\n"));
    ensure!(count("failed")? == 0 && count("parsing_errors")? == 0 && count("passed")? > 0, "{}", report["summary"]);
    let mut reasons = BTreeSet::new();
    for check in checks("skipped_checks") {
        let reason = check["check_result"]["suppress_comment"].as_str().unwrap_or_default();
        ensure!(reason.len() > 20, "{} is skipped without a reason", check["check_id"]);
        reasons.insert(check["check_id"].as_str().unwrap_or_default());
    }
    let reasons: Vec<_> = reasons.into_iter().collect();
    Ok(format!("checkov: {} checks passed; meant otherwise, with reasons: {}", count("passed")?, reasons.join(", ")))
}

/// The overlay for several replicas.
pub(super) fn cluster(deploy: &Deploy) -> anyhow::Result<Overlay> {
    render_one(deploy, "cluster")
}

/// A rendered overlay.
pub(super) struct Overlay {
    name: &'static str,
    /// Where it is.
    pub(super) file: PathBuf,
    documents: Vec<Value>,
}

/// What of the program the manifests have to fit.
struct Program {
    /// The paths that it serves.
    paths: BTreeSet<String>,
    /// The names of its settings.
    settings: BTreeSet<String>,
    /// How many seconds its end may take after `DRAIN_DELAY`.
    drain: u64,
    /// As whom the image runs.
    user: u64,
}

impl Program {
    fn read() -> anyhow::Result<Self> {
        let read = |path: &str| {
            std::fs::read_to_string(cargo::root().join(path)).with_context(|| format!("cannot read {path}"))
        };
        // The description that the contract's tests compare with what the server serves.
        let snapshot = read("crates/rollcall/tests/contract/snapshots/contract__matrix__openapi.snap")?;
        let document = snapshot.splitn(3, "---\n").nth(2).unwrap_or_default();
        let document: Value = serde_json::from_str(document).context("the OpenAPI snapshot")?;
        let paths =
            document["paths"].as_object().context("no paths in the OpenAPI snapshot")?.keys().cloned().collect();
        let settings = read("crates/rollcall/src/settings.rs")?;
        let settings = settings.lines().filter_map(|line| line.trim().strip_prefix("env: \"")?.strip_suffix("\","));
        let lifecycle = read("crates/rollcall/src/lifecycle.rs")?;
        let seconds = |name: &str| {
            let start = format!("const {name}: Duration = Duration::from_secs(");
            let number = lifecycle.split_once(&start).and_then(|(_, rest)| rest.split_once(')'))?.0;
            number.parse::<u64>().ok()
        };
        let drain = ["FINISH_REQUESTS", "FINISH_SOCKETS", "CLOSE_STORE"].into_iter().map(seconds).sum::<Option<u64>>();
        let dockerfile = read("Dockerfile")?;
        let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")?.split(':').next()?.parse().ok());
        Ok(Self {
            paths,
            settings: settings.map(str::to_owned).collect(),
            drain: drain.context("the drain's bounds are not where they were in lifecycle.rs")?,
            user: user.context("no numeric USER in the Dockerfile")?,
        })
    }
}

impl Overlay {
    /// The one document of a kind.
    pub(super) fn one(&self, kind: &str) -> anyhow::Result<&Value> {
        let mut found = self.of(kind);
        match (found.next(), found.next()) {
            (Some(document), None) => Ok(document),
            _ => bail!("there is not one {kind}"),
        }
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.documents.iter().filter(move |document| document["kind"] == kind)
    }

    fn check(&self, program: &Program) -> anyhow::Result<()> {
        self.consists_of_its_kinds()?;
        let replicated = self.name != "embedded";
        let workload = self.one(if replicated { "Deployment" } else { "StatefulSet" })?;
        let pod = &workload["spec"]["template"];
        let containers = pod["spec"]["containers"].as_array().context("no containers")?;
        let [container] = &containers[..] else { bail!("{} containers", containers.len()) };
        let image = container["image"].as_str().unwrap_or_default();
        ensure!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image} is of another version");
        let settings = self.settings(container, program)?;
        probes(container, program)?;
        self.ports(pod, container, &settings)?;
        self.selectors(workload, pod)?;
        restricted(pod, container, program)?;

        let delay = settings.get("DRAIN_DELAY").map_or(Ok(0), |delay| {
            delay.strip_suffix('s').and_then(|delay| delay.parse::<u64>().ok()).context("DRAIN_DELAY is not in seconds")
        })?;
        let grace =
            pod["spec"]["terminationGracePeriodSeconds"].as_u64().context("no terminationGracePeriodSeconds")?;
        let least = delay + program.drain;
        ensure!(grace > least, "the pod is killed after {grace} s; its end may take {least} s");
        ensure!((delay > 0) == replicated, "DRAIN_DELAY is for pods that others stand in for");
        if replicated {
            let rolling = &workload["spec"]["strategy"]["rollingUpdate"];
            ensure!(
                rolling["maxUnavailable"] == 0 && rolling["maxSurge"] == 1,
                "a roll-out ends pods before others run"
            );
            ensure!(workload["spec"].get("replicas").is_none(), "`replicas` is the autoscaler's");
        } else {
            ensure!(workload["spec"]["replicas"] == 1, "one server for one file");
        }
        Ok(())
    }

    fn consists_of_its_kinds(&self) -> anyhow::Result<()> {
        let mut kinds: Vec<_> =
            self.documents.iter().map(|document| document["kind"].as_str().unwrap_or("?")).collect();
        kinds.sort_unstable();
        let wanted = OVERLAYS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, kinds)| kinds);
        ensure!(kinds == wanted, "it consists of {kinds:?}, not of {wanted:?}");
        for document in &self.documents {
            let metadata = &document["metadata"];
            let namespace = if document["kind"] == "Namespace" { &metadata["name"] } else { &metadata["namespace"] };
            ensure!(namespace == "rollcall", "{} is not in the namespace", metadata["name"]);
            ensure!(metadata["labels"]["app.kubernetes.io/name"] == "rollcall", "{} has no label", metadata["name"]);
        }
        Ok(())
    }

    /// What the pod finds in its environment, as far as it is not secret. All of it has to be settings.
    fn settings(&self, container: &Value, program: &Program) -> anyhow::Result<BTreeMap<String, String>> {
        let map = self.one("ConfigMap")?;
        let named = &container["envFrom"][0]["configMapRef"]["name"];
        ensure!(*named == map["metadata"]["name"], "the pod asks for the ConfigMap {named}");
        ensure!(container["envFrom"][1]["secretRef"]["name"] == "rollcall", "the pod asks for no Secret");
        let settings: BTreeMap<String, String> = serde_json::from_value(map["data"].clone())?;
        let unknown: Vec<_> = settings.keys().filter(|name| !program.settings.contains(*name)).collect();
        ensure!(unknown.is_empty(), "{unknown:?} are no settings of the server");
        ensure!(!settings.contains_key("JWT_SECRET"), "a secret is in the ConfigMap");
        ensure!(settings.contains_key("DB_URL") == (self.name == "embedded"), "where DB_URL is from");
        Ok(settings)
    }

    /// One port goes through all: where the server listens, what the container names, what the Service, the probes, the
    /// Ingress and the network policies mean.
    fn ports(&self, pod: &Value, container: &Value, settings: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let listens = |setting: &str| {
            let port = settings.get(setting).and_then(|address| address.rsplit(':').next()?.parse::<u64>().ok());
            port.with_context(|| format!("no port in {setting}"))
        };
        let ports: BTreeMap<_, _> = container["ports"].as_array().into_iter().flatten().map(port_of).collect();
        let wanted = BTreeMap::from([("http", listens("LISTEN_ADDR")?), ("metrics", listens("METRICS_ADDR")?)]);
        ensure!(ports == wanted, "the container has the ports {ports:?}, the server {wanted:?}");
        let scraped = pod["metadata"]["annotations"]["prometheus.io/port"].as_str().and_then(|port| port.parse().ok());
        ensure!(scraped == Some(wanted["metrics"]), "Prometheus is sent to port {scraped:?}");
        let service = &self.one("Service")?["spec"]["ports"];
        ensure!(service.as_array().is_some_and(|ports| ports.len() == 1), "the Service has more than the one port");
        ensure!(service[0]["targetPort"] == "http", "the Service is for another port");
        let backend = &self.one("Ingress")?["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
        let service = self.one("Service")?;
        ensure!(
            backend["name"] == service["metadata"]["name"]
                && backend["port"]["name"] == service["spec"]["ports"][0]["name"],
            "the Ingress leads to {backend}"
        );
        let policy = self.of("NetworkPolicy").find(|policy| policy["metadata"]["name"] == "rollcall");
        let ingress = &policy.context("no policy for what the server hears")?["spec"]["ingress"];
        ensure!(
            ingress[0]["ports"][0]["port"] == "http" && ingress[1]["ports"][0]["port"] == "metrics",
            "the network policy opens {ingress}"
        );
        let denied = self.of("NetworkPolicy").any(|policy| policy["spec"]["podSelector"] == serde_json::json!({}));
        ensure!(denied, "nothing is denied by default");
        Ok(())
    }

    /// Whatever selects pods selects these.
    fn selectors(&self, workload: &Value, pod: &Value) -> anyhow::Result<()> {
        let labels = pod["metadata"]["labels"].as_object().context("no labels")?;
        let spread = pod["spec"]["topologySpreadConstraints"].as_array().into_iter().flatten();
        let spread = spread.map(|constraint| &constraint["labelSelector"]["matchLabels"]);
        let policies = self.of("NetworkPolicy").map(|policy| &policy["spec"]["podSelector"]["matchLabels"]);
        let budgets = self.of("PodDisruptionBudget").map(|budget| &budget["spec"]["selector"]["matchLabels"]);
        let own = [&workload["spec"]["selector"]["matchLabels"], &self.one("Service")?["spec"]["selector"]];
        for selector in own.into_iter().chain(spread).chain(policies).chain(budgets) {
            for (name, value) in selector.as_object().into_iter().flatten() {
                ensure!(labels.get(name) == Some(value), "{selector} selects other pods");
            }
        }
        for autoscaler in self.of("HorizontalPodAutoscaler") {
            let target = &autoscaler["spec"]["scaleTargetRef"];
            let same = target["kind"] == workload["kind"] && target["name"] == workload["metadata"]["name"];
            ensure!(same, "the autoscaler scales {target}");
        }
        Ok(())
    }
}

fn port_of(port: &Value) -> (&str, u64) {
    (port["name"].as_str().unwrap_or("?"), port["containerPort"].as_u64().unwrap_or_default())
}

/// Every probe asks for what the server serves, and means what it should.
fn probes(container: &Value, program: &Program) -> anyhow::Result<()> {
    let probes =
        [("startupProbe", "/health/live"), ("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")];
    for (probe, path) in probes {
        let get = &container[probe]["httpGet"];
        ensure!(get["path"] == path && get["port"] == "http", "{probe} asks for {get}");
        ensure!(program.paths.contains(path), "the server does not serve {path}");
    }
    Ok(())
}

/// The restricted Pod Security Standard, and the image's user.
fn restricted(pod: &Value, container: &Value, program: &Program) -> anyhow::Result<()> {
    let (pod, own) = (&pod["spec"], &container["securityContext"]);
    let context = &pod["securityContext"];
    ensure!(context["runAsNonRoot"] == true && context["seccompProfile"]["type"] == "RuntimeDefault", "{context}");
    ensure!(
        context["runAsUser"] == program.user && context["fsGroup"] == program.user,
        "the image runs as {}",
        program.user
    );
    ensure!(
        own["allowPrivilegeEscalation"] == false
            && own["readOnlyRootFilesystem"] == true
            && own["capabilities"]["drop"][0] == "ALL",
        "{own}"
    );
    ensure!(pod["automountServiceAccountToken"] == false, "a token for the Kubernetes API is mounted");
    let resources = &container["resources"];
    for what in ["cpu", "memory"] {
        ensure!(
            resources["requests"][what].is_string() && resources["limits"][what].is_string(),
            "no bounds on {what}"
        );
    }
    Ok(())
}

/// The templates of secrets hold none, and name settings only.
fn secrets_are_templates(deploy: &Deploy, program: &Program) -> anyhow::Result<()> {
    let file = cargo::root().join("deploy/k8s/secrets/secret.example.yaml");
    for document in documents(deploy, &file)? {
        for (name, value) in document["stringData"].as_object().context("no stringData")? {
            ensure!(program.settings.contains(name), "{name} is no setting");
            ensure!(value == "", "{name} has a value in a file of the repository");
        }
    }
    Ok(())
}

/// An overlay as an operator writes one, with the component that no overlay of ours has.
fn outbound(deploy: &Deploy) -> anyhow::Result<()> {
    let folder = cargo::root().join("target/deploy/manifests/outbound");
    std::fs::create_dir_all(&folder)?;
    let ours = "../../../../deploy/k8s";
    let own = format!("resources: [{ours}/overlays/cluster]\ncomponents: [{ours}/components/outbound]\n");
    std::fs::write(folder.join("kustomization.yaml"), format!("namespace: rollcall\n{own}"))?;
    let file = folder.with_extension("yaml");
    std::fs::write(&file, kustomize(&folder)?)?;
    let there = documents(deploy, &file)?.iter().any(|document| document["metadata"]["name"] == "rollcall-outbound");
    ensure!(there, "the component adds no policy");
    validate(deploy, &[Overlay { name: "outbound", documents: Vec::new(), file }], &VERSIONS[VERSIONS.len() - 1..])
}

/// Renders all overlays.
fn render(deploy: &Deploy) -> anyhow::Result<Vec<Overlay>> {
    OVERLAYS.iter().map(|(name, _)| render_one(deploy, name)).collect()
}

/// Renders an overlay into a file.
fn render_one(deploy: &Deploy, name: &'static str) -> anyhow::Result<Overlay> {
    let folder = cargo::root().join("target/deploy/manifests");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.yaml"));
    std::fs::write(&file, kustomize(&cargo::root().join("deploy/k8s/overlays").join(name))?)?;
    let documents = documents(deploy, &file)?;
    Ok(Overlay { name, file, documents })
}

/// What a folder with a kustomization renders to.
fn kustomize(folder: &Path) -> anyhow::Result<String> {
    for program in [&["kubectl", "kustomize"][..], &["kustomize", "build"]] {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(folder);
        match command.output() {
            Ok(_) => return tools::output(&mut command),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot run {}", program[0])),
        }
    }
    Err(unavailable("needs kubectl 1.27 or kustomize 5, or newer"))
}

/// The documents of a YAML file, read by the library of the validator.
fn documents(deploy: &Deploy, file: &Path) -> anyhow::Result<Vec<Value>> {
    const TO_JSON: &str = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let python = deploy.tools.python("python", VALIDATOR)?;
    let text = tools::output(Command::new(python).args(["-c", TO_JSON]).arg(file))?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// Holds overlays against the schemas of `versions`, and sees that these refuse what they should.
fn validate(deploy: &Deploy, overlays: &[Overlay], versions: &[&str]) -> anyhow::Result<()> {
    let validator = deploy.tools.python("kubernetes-validate", VALIDATOR)?;
    let on = |version: &str| {
        let mut command = Command::new(&validator);
        command.args(["--strict", "--quiet", "--kubernetes-version", version]);
        command
    };
    let template = cargo::root().join("deploy/k8s/secrets/secret.example.yaml");
    for version in versions {
        tools::output(on(version).args(overlays.iter().map(|overlay| &overlay.file)).arg(&template))?;
    }
    for overlay in overlays {
        let broken = overlay.file.with_extension("broken.yaml");
        let text = std::fs::read_to_string(&overlay.file)?;
        std::fs::write(&broken, text.replace("readinessProbe:", "readynessProbe:"))?;
        let refused = tools::output(on(versions[0]).arg(&broken)).is_err();
        ensure!(refused, "the validator takes a member that there is not");
    }
    Ok(())
}
