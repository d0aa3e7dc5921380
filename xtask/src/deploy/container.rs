//! One container of the image, hardened as an operator would run it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use reqwest::Method;
use rollcall_testkit::server::{Class, Client, Person, Socket};
use serde_json::json;

use super::Deploy;
use super::podman::{Container, Podman};

/// How long a container may take until it is ready: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is taken from the container: it needs none of it.
const HARDENED: [&str; 4] = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--pids-limit=256"];

/// A Rollcall in a container, on the embedded store.
pub(super) struct Rollcall<'a> {
    pub(super) container: Container<'a>,
    pub(super) client: Client,
    /// From the engine's being asked to the first yes of `/health/ready`.
    pub(super) started_in: Duration,
}

impl<'a> Rollcall<'a> {
    /// Starts one with this mounted at `/data`, and with other settings beside those of the image.
    pub(super) async fn start(deploy: &'a Deploy, data: &str, settings: &[&str]) -> anyhow::Result<Self> {
        let podman = deploy.podman()?;
        let mut arguments = HARDENED.to_vec();
        // Any free port of this machine.
        arguments.extend(["--publish=127.0.0.1::8000", "--volume", data]);
        arguments.extend(settings.iter().flat_map(|setting| ["--env", setting]));
        arguments.push(&deploy.image()?.name);
        let started = Instant::now();
        let container = podman.start("rollcall-test-deploy", &arguments)?;
        let address = podman.ask(&["port", &container.name, "8000/tcp"])?;
        let client = Client::new(&format!("http://{address}"));
        ready(&client).await.with_context(|| container.logs())?;
        Ok(Self { container, client, started_in: started.elapsed() })
    }
}

/// Waits until the server is ready.
pub(super) async fn ready(client: &Client) -> anyhow::Result<()> {
    let ready = async {
        while !matches!(client.call(Method::GET, "/health/ready").attempt().await, Ok(answer) if answer.status == 200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.with_context(|| format!("{} is not ready", client.base()))
}

/// The image does its job with nothing allowed to it, drains when it is asked to stop, and comes back with all it had.
pub(super) fn hardened(deploy: &Deploy) -> anyhow::Result<String> {
    let podman = deploy.podman()?;
    let volume = Volume::new(podman, "rollcall-test-deploy")?;
    super::block_on(async {
        let rollcall = Rollcall::start(deploy, &volume.mount(), &[]).await?;
        check_restrictions(&rollcall.container)?;
        podman.ask(&["healthcheck", "run", &rollcall.container.name]).context("the HEALTHCHECK of a ready server")?;
        let mut school = School::new(&rollcall.client).await;
        school.whole_session().await;
        let class = school.teacher.open_class("Geometry", &[&school.students[0]]).await;
        let revision = school.mark("late").await;

        let stopped = Instant::now();
        rollcall.container.signal("TERM")?;
        for socket in school.sockets() {
            socket.expect_close(1012).await;
        }
        let code = rollcall.container.wait()?;
        let drained = stopped.elapsed();
        ensure!(code == 0, "exit code {code} after SIGTERM:\n{}", rollcall.container.logs());
        drop(rollcall);

        let rollcall = Rollcall::start(deploy, &volume.mount(), &[]).await?;
        school.check_survived(&rollcall.client, &class, revision).await;
        podman.ask(&["healthcheck", "run", &rollcall.container.name]).context("the HEALTHCHECK after a new start")?;
        Ok(format!(
            "read-only, no capability, not root; drained in {:.1} s (1012, exit 0); session and mark survived in the volume",
            drained.as_secs_f64()
        ))
    })
}

/// Whether the kernel allows the program as little as it was asked to.
fn check_restrictions(container: &Container<'_>) -> anyhow::Result<()> {
    let process = PathBuf::from(format!("/proc/{}", container.pid()?));
    let status = std::fs::read_to_string(process.join("status")).context("the container's process")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().split('\t').next().unwrap_or_default()
    };
    // Without privileges of its own, the engine maps the number to another one.
    ensure!(field("Uid") != "0", "it runs as root");
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(field(capabilities) == "0000000000000000", "{capabilities} is {}", field(capabilities));
    }
    ensure!(field("NoNewPrivs") == "1", "it may gain privileges");
    let mounts = std::fs::read_to_string(process.join("mountinfo")).context("the container's mounts")?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("the container's root")?;
    let options = root.split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "its root is mounted {options}");
    Ok(())
}

/// A volume that goes when this goes out of scope.
pub(super) struct Volume<'a> {
    podman: &'a Podman,
    name: String,
}

impl<'a> Volume<'a> {
    /// A new one, in the place of what an earlier run has left.
    pub(super) fn new(podman: &'a Podman, name: &str) -> anyhow::Result<Self> {
        let volume = Self { podman, name: name.to_owned() };
        volume.remove();
        podman.ask(&["volume", "create", name])?;
        Ok(volume)
    }

    /// How it is mounted for the data.
    pub(super) fn mount(&self) -> String {
        format!("{}:/data", self.name)
    }

    fn remove(&self) {
        // Fails only where there is none.
        let _ = self.podman.ask(&["volume", "rm", "--force", &self.name]);
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A teacher with two students, all connected.
pub(super) struct School {
    pub(super) teacher: Person,
    pub(super) students: Vec<Person>,
    teacher_socket: Socket,
    student_sockets: Vec<Socket>,
}

impl School {
    pub(super) async fn new(client: &Client) -> Self {
        let teacher = client.teacher("Ada Lovelace").await;
        let students = vec![client.student("Sam Student").await, client.student("Kim Student").await];
        let teacher_socket = teacher.socket().await;
        let student_sockets = vec![students[0].socket().await, students[1].socket().await];
        Self { teacher, students, teacher_socket, student_sockets }
    }

    pub(super) fn sockets(&mut self) -> impl Iterator<Item = &mut Socket> {
        std::iter::once(&mut self.teacher_socket).chain(&mut self.student_sockets)
    }

    /// Marks the first student; the revision.
    async fn mark(&mut self, status: &str) -> u64 {
        let student = self.students[0].id.clone();
        self.teacher_socket.mark(&student, status).await;
        let revision = self.teacher_socket.expect_mark(&student, status).await;
        assert_eq!(self.student_sockets[0].expect_mark(&student, status).await, revision);
        revision
    }

    /// The contract's main job: a class, a session, marks that everybody hears, and the records.
    pub(super) async fn whole_session(&mut self) {
        let class = self.teacher.open_class("Algebra I", &[&self.students[0], &self.students[1]]).await;
        self.teacher_socket.mark(&self.students[0].id, "present").await;
        for socket in self.sockets() {
            let marked = socket.expect("ATTENDANCE_MARKED").await;
            assert_eq!(marked["status"], "present");
        }
        self.student_sockets[1].send("DONE", &json!({})).await;
        self.student_sockets[1].expect_error("Forbidden, teacher event only").await;
        self.teacher_socket.send("DONE", &json!({})).await;
        for socket in self.sockets() {
            let done = socket.expect("DONE").await;
            assert_eq!((&done["present"], &done["absent"], &done["total"]), (&json!(1), &json!(1), &json!(2)));
        }
        for (student, status) in self.students.iter().zip(["present", "absent"]) {
            let record = student.get(&class.path("/my-attendance")).await.ok();
            assert_eq!(record["status"], status, "{record}");
        }
    }

    /// Asserts that another server has the open session with its mark, and still knows everybody's token.
    async fn check_survived(&self, client: &Client, class: &Class, revision: u64) {
        let teacher = self.teacher.at(client);
        let open = teacher.get(&class.path("/session")).await.ok();
        let mark = &open["marks"][0];
        assert_eq!((&mark["status"], &mark["revision"]), (&json!("late"), &json!(revision)), "{open}");
        let mut socket = teacher.socket().await;
        socket.send("DONE", &json!({})).await;
        assert_eq!(socket.expect("DONE").await["late"], 1);
    }
}
