//! The operator's own certificate: a pair of files, followed when they change.
//!
//! They are looked at by what is in them: Kubernetes changes mounted secrets by swapping a symbolic link, tools write
//! one file after the other, and neither shows in the way that notifications or times of files would tell.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_lc_rs::digest::{Context as Hash, SHA256};
use rollcall_core::Clock;
use secrecy::{ExposeSecret, SecretSlice};
use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::{Certificate, Current, RELOADS_TOTAL, Standing};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A chain is a few kilobytes; a file that is much longer is something else.
const MAX_BYTES: u64 = 1 << 20;

/// Where the certificate and its key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The chain as PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// The key as PEM.
    pub key: PathBuf,
}

/// What is in the two files.
pub(crate) struct Content {
    chain: Vec<u8>,
    key: SecretSlice<u8>,
}

/// A hash of both files, to know whether they changed.
type Print = [u8; 32];

impl Pair {
    /// Reads both files.
    pub(crate) fn read(&self) -> anyhow::Result<Content> {
        let chain = read(&self.certificate).with_context(|| told("TLS_CERT", &self.certificate))?;
        let key = read(&self.key).with_context(|| told("TLS_KEY", &self.key))?;
        Ok(Content { chain, key: key.into() })
    }

    /// The certificate that the content makes.
    pub(crate) fn certificate(&self, content: &Content) -> anyhow::Result<Certificate> {
        Certificate::from_pem(&content.chain, content.key.expose_secret()).with_context(|| {
            format!("TLS_CERT {} with TLS_KEY {} cannot be used", self.certificate.display(), self.key.display())
        })
    }

    /// Whether the key can be read by everybody on the machine.
    pub(crate) fn key_is_open(&self) -> bool {
        self.key.metadata().is_ok_and(|file| file.mode() & 0o004 != 0)
    }
}

impl Content {
    fn print(&self) -> Print {
        let mut hash = Hash::new(&SHA256);
        hash.update(&self.chain.len().to_le_bytes());
        hash.update(&self.chain);
        hash.update(self.key.expose_secret());
        let mut print = Print::default();
        print.copy_from_slice(hash.finish().as_ref());
        print
    }
}

fn told(setting: &str, path: &Path) -> String {
    format!("{setting} {} cannot be read", path.display())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "it is larger than {MAX_BYTES} bytes");
    Ok(bytes)
}

/// Serves what is in the files, and answers with what to compare later content with.
pub(crate) fn start(pair: &Pair, current: &Current, clock: &dyn Clock) -> anyhow::Result<Follower> {
    let content = pair.read()?;
    let print = content.print();
    current.set(pair.certificate(&content)?, clock);
    if pair.key_is_open() {
        tracing::warn!(path = %pair.key.display(), "everybody on this machine can read the key; take that right away");
    }
    Ok(Follower { pair: pair.clone(), seen: Ok(print) })
}

/// Follows the files.
pub(crate) struct Follower {
    pair: Pair,
    /// What was found last: the content, or why there is none.
    seen: Result<Print, String>,
}

impl Follower {
    /// Serves each new pair that can be used, until `stop`. `hangup` has the files looked at now.
    pub(crate) async fn follow(
        mut self,
        current: Arc<Current>,
        clock: Arc<dyn Clock>,
        mut hangup: Signal,
        stop: CancellationToken,
    ) {
        let follow = async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = hangup.recv() => tracing::info!("SIGHUP: looking at the certificate"),
                }
                self.look(&current, &*clock).await;
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    async fn look(&mut self, current: &Current, clock: &dyn Clock) {
        let pair = self.pair.clone();
        // Files may be far away, where reading hangs.
        let read = tokio::task::spawn_blocking(move || pair.read()).await;
        let read = read.context("reading was interrupted").flatten();
        let found = read.as_ref().map(Content::print).map_err(|error| format!("{error:#}"));
        if found == self.seen {
            return;
        }
        self.seen = found;
        let fresh = read.and_then(|content| self.pair.certificate(&content)).and_then(|certificate| {
            ensure!(
                certificate.standing(clock.now()) != Standing::Ended,
                "{} has ended at {}",
                self.pair.certificate.display(),
                certificate.not_after()
            );
            Ok(certificate)
        });
        let outcome = match fresh {
            Ok(certificate) => {
                current.set(certificate, clock);
                "done"
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the new certificate is not taken; the old one is served on"
                );
                "failed"
            }
        };
        metrics::counter!(RELOADS_TOTAL, "outcome" => outcome).increment(1);
    }
}
