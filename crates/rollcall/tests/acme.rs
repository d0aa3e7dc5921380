//! Certificates from a real ACME server: Let's Encrypt's `pebble`, which looks for the proof as Let's Encrypt does.
#![cfg(feature = "acme")]
#![expect(clippy::unwrap_used, reason = "a test that finds something else than expected fails")]

mod pebble {
    use std::fs::File;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    use rollcall_testkit::server::{Authority, Builder, Client, Server, Trust, until};
    use serde_json::json;
    use tempfile::TempDir;

    /// Names the folder with `pebble` and `pebble-challtestsrv`; without it they are searched for as any program.
    const PEBBLE: &str = "ROLLCALL_TEST_PEBBLE";

    const DOMAINS: &str = "rollcall.school.test, www.school.test";

    fn free_port() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    /// A process that is killed at the end.
    struct Running(Child);

    impl Running {
        fn start(program: &str, folder: &Path, arguments: &[&str]) -> Self {
            let path = std::env::var_os(PEBBLE)
                .map_or_else(|| PathBuf::from(program), |path| PathBuf::from(path).join(program));
            let log = File::options().create(true).append(true).open(folder.join(format!("{program}.log"))).unwrap();
            let mut command = Command::new(&path);
            command.args(arguments).current_dir(folder).stdin(Stdio::null());
            // Without it, it waits for up to 15 seconds before it looks.
            command.env("PEBBLE_VA_NOSLEEP", "1");
            let started = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
            Self(started.unwrap_or_else(|error| {
                panic!("{} cannot be run: {error}; {PEBBLE} may name its folder", path.display())
            }))
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// An ACME server that knows every name as this machine.
    struct Pebble {
        folder: Arc<TempDir>,
        authority: Authority,
        api: u16,
        management: u16,
        /// Where it looks for proofs.
        looks_at: u16,
        dns: String,
        running: Option<(Running, Running)>,
    }

    impl Pebble {
        async fn start() -> Self {
            let folder = Arc::new(tempfile::tempdir().unwrap());
            let authority = Authority::new().unwrap();
            let pair = authority.issue(&["127.0.0.1"]).unwrap();
            std::fs::write(folder.path().join("api.crt"), pair.certificate).unwrap();
            std::fs::write(folder.path().join("api.key"), pair.key).unwrap();
            std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
            let [api, management, looks_at] = std::array::from_fn(|_| free_port());
            let config = json!({"pebble": {
                "listenAddress": format!("127.0.0.1:{api}"),
                "managementListenAddress": format!("127.0.0.1:{management}"),
                "certificate": "api.crt",
                "privateKey": "api.key",
                "httpPort": free_port(),
                "tlsPort": looks_at,
            }});
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let dns = format!("127.0.0.1:{}", free_port());
            let mut pebble = Self { folder, authority, api, management, looks_at, dns, running: None };
            pebble.forget_everything().await;
            pebble
        }

        /// Starts it anew: it keeps nothing.
        async fn forget_everything(&mut self) {
            self.running = None;
            let folder = self.folder.path();
            let dns = [
                "-dns01",
                &self.dns,
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-management",
                "",
                "-defaultIPv6",
                "",
            ];
            let names = Running::start("pebble-challtestsrv", folder, &dns);
            let pebble =
                Running::start("pebble", folder, &["-strict", "-config", "config.json", "-dnsserver", &self.dns]);
            self.running = Some((names, pebble));
            for address in [&self.dns, &format!("127.0.0.1:{}", self.api), &format!("127.0.0.1:{}", self.management)] {
                until(&format!("{address} of pebble"), || TcpStream::connect(address).ok()).await;
            }
        }

        /// The root of what it issues.
        async fn trust(&self) -> Trust {
            let base = format!("https://127.0.0.1:{}", self.management);
            let root = Client::trusting(&base, &self.authority.trust().unwrap()).get("/roots/0").await;
            assert_eq!(root.status, 200, "{root:?}");
            Trust::in_pem(&root.text()).unwrap()
        }

        fn orders(&self) -> usize {
            let log = std::fs::read_to_string(self.folder.path().join("pebble.log")).unwrap();
            log.matches("POST /order-plz").count()
        }

        /// How a server is to be started that asks here.
        fn builder(&self, folder: &Arc<TempDir>, port: u16) -> Builder {
            Server::builder(env!("CARGO_BIN_EXE_rollcall"))
                .folder(Arc::clone(folder))
                .env("LISTEN_ADDR", format!("127.0.0.1:{port}"))
                .env("ACME_DOMAIN", DOMAINS)
                .env("ACME_EMAIL", "office@school.example")
                .env("ACME_DIRECTORY", format!("https://127.0.0.1:{}/dir", self.api))
                .env("ACME_CA", self.folder.path().join("ca.pem").to_str().unwrap())
                .env("HTTP_REDIRECT_ADDR", "127.0.0.1:0")
        }

        /// A client that finds the server under its name.
        async fn client(&self, name: &str) -> Client {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.looks_at));
            Client::trusting_at(&format!("https://{name}:{}", self.looks_at), &self.trust().await, address)
        }

        /// Where a server keeps what it got from here.
        fn cache(&self, folder: &TempDir) -> PathBuf {
            folder.path().join(format!("data/rollcall.acme/127-0-0-1-{}-dir", self.api))
        }
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    #[ignore = "needs pebble: cargo xtask test-deploy"]
    async fn a_certificate_is_got_served_kept_and_got_again() {
        let mut pebble = Pebble::start().await;
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut server = pebble.builder(&folder, pebble.looks_at).start().await.unwrap();
        let said = server.output();
        assert!(said.contains("Try: https://rollcall.school.test/docs"), "{said}");
        server.logged("a certificate is served").await;
        assert_eq!(pebble.orders(), 1);

        // Over TLS, under both names; the teacher under the one, the student under the other.
        let (one, other) = (pebble.client("rollcall.school.test").await, pebble.client("www.school.test").await);
        assert_eq!(one.get("/health/ready").await.header("strict-transport-security"), "max-age=31536000");
        let (teacher, student) = (one.teacher("Thea").await, other.student("Sam").await);
        let class = teacher.open_class("Algebra", &[&student]).await;
        let (mut marks, mut hears) = (teacher.socket().await, student.socket().await);
        marks.mark(&student.id, "present").await;
        hears.expect_mark(&student.id, "present").await;
        let healthy = server.run(&["healthcheck"]).await.unwrap();
        assert!(healthy.status.success(), "{}", String::from_utf8_lossy(&healthy.stderr));
        let doctor = server.run(&["doctor"]).await.unwrap();
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(said.contains("ok    certificate    for rollcall.school.test, www.school.test, until"), "{said}");
        let metrics = one.get("/metrics").await.text();
        assert!(metrics.contains(r#"rollcall_tls_handshakes_total{outcome="challenge"}"#), "{metrics}");

        // Kept, for its owner alone.
        let cache = pebble.cache(&folder);
        assert_eq!(mode(&cache), 0o700);
        for name in ["account.json", "certificate.pem"] {
            assert_eq!(mode(&cache.join(name)), 0o600, "{name}");
        }
        assert_eq!(cache.read_dir().unwrap().count(), 2, "nothing else is left");
        let key = std::fs::read_to_string(cache.join("certificate.pem")).unwrap();
        let key = key.lines().nth(1).unwrap();
        assert!(!server.logs().contains(key));

        // A restart asks for nothing.
        assert!(server.terminate().await.unwrap().success());
        hears.expect_close(1012).await;
        server.restart().await.unwrap();
        let mut hears = student.dial().since(&class, 0).open().await;
        hears.expect_mark(&student.id, "present").await;
        assert_eq!(pebble.orders(), 1);
        assert!(!server.logs().contains("getting a certificate"));

        // An ACME server that lost its accounts is told of a new one.
        assert!(server.terminate().await.unwrap().success());
        pebble.forget_everything().await;
        std::fs::remove_file(cache.join("certificate.pem")).unwrap();
        server.restart().await.unwrap();
        server.logged("does not know the account any more").await;
        server.logged("a certificate is served").await;
        pebble.client("www.school.test").await.get("/health/ready").await.ok();
    }

    #[tokio::test]
    #[ignore = "needs pebble: cargo xtask test-deploy"]
    async fn a_server_that_is_not_found_goes_on_and_says_why() {
        let pebble = Pebble::start().await;
        let folder = Arc::new(tempfile::tempdir().unwrap());
        // Not where the ACME server looks.
        let mut server = pebble.builder(&folder, 0).start().await.unwrap();
        server.logged("no certificate: nobody can connect").await;
        let logs = server.logs();
        for name in DOMAINS.split(", ") {
            assert!(logs.contains(&format!("{name}: Failed to connect to 127.0.0.1:")), "{logs}");
        }
        assert!(logs.contains("again_after=120s"), "{logs}");
        let client = Client::trusting(&format!("https://{}", server.address()), &pebble.trust().await);
        client.call(reqwest::Method::GET, "/health/ready").attempt().await.unwrap_err();
        assert!(!server.run(&["healthcheck"]).await.unwrap().status.success());
        assert!(server.terminate().await.unwrap().success());

        // Nobody there at all.
        let unreachable =
            pebble.builder(&folder, 0).env("ACME_DIRECTORY", "https://127.0.0.1:1/dir").start().await.unwrap();
        unreachable.logged("127.0.0.1 cannot be asked: Connection refused").await;
    }
}
