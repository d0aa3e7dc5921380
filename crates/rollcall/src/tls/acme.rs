//! A certificate from an ACME server (RFC 8555), such as Let's Encrypt, by TLS-ALPN-01 (RFC 8737).
//!
//! The ACME server connects to the port that is served anyway and finds the proof there: nothing else has to be
//! reachable. The account and the certificate are kept in a folder, so that a restart asks for nothing.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use axum::body::Bytes;
use axum::http::Request;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error, HttpClient,
    Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use parking_lot::RwLock;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rollcall_core::{Clock, Timestamp};
use rustls::ClientConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::{Certificate, Current, Standing};
use crate::http_client;

/// Where an account and certificates are asked for unless the operator names another server.
pub(crate) const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// A certificate is renewed when this part of its life is left, as Let's Encrypt advises.
const RENEW_AT_PART: u32 = 3;
/// How often at least it is looked whether that is so: clocks are set, machines sleep.
const LOOK_EVERY: Duration = Duration::from_hours(1);
/// How long after a failure it is tried again: twice as long each time, up to the longest. Let's Encrypt allows five
/// failures an hour.
const FIRST_RETRY: Duration = Duration::from_mins(2);
const LONGEST_RETRY: Duration = Duration::from_hours(6);
/// How long an order may take in all, one request, and the ACME server's look.
const ORDER: Duration = Duration::from_mins(5);
const REQUEST: Duration = Duration::from_secs(30);
const POLL: RetryPolicy = RetryPolicy::new().initial_delay(Duration::from_millis(250)).timeout(Duration::from_mins(2));
/// Answers are a few kilobytes.
const MAX_ANSWER: usize = 1 << 20;
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.pem";
/// What the ACME server says when it knows nothing of an account.
const NO_SUCH_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// What certificate is wanted, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The names, in lower case; at least one.
    pub domains: Vec<String>,
    /// Where the ACME server may write to, if it does.
    pub email: Option<String>,
    /// The address of its directory.
    pub directory: String,
    /// A PEM file of whom to trust when it is asked, instead of those whom browsers trust.
    pub ca: Option<PathBuf>,
    /// The folder in which accounts and certificates are kept.
    pub cache: PathBuf,
}

impl Order {
    /// What is kept of this ACME server.
    fn folder(&self) -> PathBuf {
        let name = self.directory.strip_prefix("https://").unwrap_or(&self.directory);
        self.cache.join(name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-"))
    }

    /// The certificate that is kept, if there is one for exactly what is wanted.
    pub(crate) fn kept(&self) -> anyhow::Result<Option<Certificate>> {
        let path = self.folder().join(CERTIFICATE);
        let Some(pem) = read(&path)? else { return Ok(None) };
        let pem = pem.expose_secret().as_bytes();
        let certificate =
            Certificate::from_pem(pem, pem).with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(Some(certificate).filter(|certificate| self.domains.iter().all(|domain| certificate.is_for(domain))))
    }
}

/// Gets the certificate, and another one in time.
pub(crate) struct Keeper {
    order: Order,
    current: Arc<Current>,
    challenges: Arc<Challenges>,
    clock: Arc<dyn Clock>,
    http: Arc<ClientConfig>,
}

impl Keeper {
    /// Serves the certificate that is kept, if there is one. An error is one that time does not heal.
    pub(crate) fn start(order: &Order, current: Arc<Current>, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let folder = order.folder();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("certificates cannot be kept in {}", folder.display()))?;
        let http = http_client::trust("ACME_CA", order.ca.as_deref())?;
        match order.kept() {
            Ok(Some(certificate)) => current.set(certificate, &*clock),
            Ok(None) => tracing::info!(domains = order.domains.join(", "), "there is no certificate yet"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the kept certificate is got again"),
        }
        Ok(Self { order: order.clone(), current, challenges: Arc::default(), clock, http })
    }

    /// What the ACME server is shown.
    pub(crate) fn challenges(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::clone(&self.challenges) as _
    }

    /// Gets certificates until `stop`.
    pub(crate) async fn keep(self: Box<Self>, stop: CancellationToken) {
        let keep = async {
            let mut failures = 0;
            loop {
                while self.due().is_some_and(|due| self.clock.now() < due) {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                let outcome = tokio::time::timeout(ORDER, self.get()).await;
                match outcome.unwrap_or_else(|_| Err(anyhow!("it took longer than {ORDER:?}"))) {
                    Ok(certificate) => {
                        failures = 0;
                        self.current.set(certificate, &*self.clock);
                    }
                    Err(error) => {
                        let wait = retry_after(failures);
                        failures += 1;
                        self.tell(&error, wait);
                        tokio::time::sleep(wait).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    /// When the certificate that is served is to be renewed; `None` is now, since there is none.
    fn due(&self) -> Option<Timestamp> {
        let certificate = self.current.get()?;
        Some(certificate.not_after().before(certificate.lifetime() / RENEW_AT_PART))
    }

    fn tell(&self, error: &anyhow::Error, wait: Duration) {
        let (domains, error) = (self.order.domains.join(", "), format!("{error:#}"));
        let served = self.current.get().is_some_and(|served| served.standing(self.clock.now()) != Standing::Ended);
        if served {
            tracing::warn!(domains, error, again_after = ?wait, "no new certificate; the one there is is served on");
        } else {
            tracing::error!(domains, error, again_after = ?wait, "no certificate: nobody can connect");
        }
    }

    /// Orders a certificate, and keeps it.
    async fn get(&self) -> anyhow::Result<Certificate> {
        tracing::info!(domains = self.order.domains.join(", "), from = self.order.directory, "getting a certificate");
        let account = self.account().await?;
        let pem = match self.issue(&account).await {
            Err(error) if is_unknown_account(&error) => {
                tracing::warn!("the ACME server does not know the account any more: another one is made");
                self.issue(&self.new_account().await?).await?
            }
            outcome => outcome?,
        };
        let certificate = Certificate::from_pem(pem.expose_secret().as_bytes(), pem.expose_secret().as_bytes())?;
        for domain in &self.order.domains {
            ensure!(certificate.is_for(domain), "the certificate that came is not for {domain}");
        }
        self.write(CERTIFICATE, pem).await?;
        Ok(certificate)
    }

    /// The account that is kept, or a new one.
    async fn account(&self) -> anyhow::Result<Account> {
        let path = self.order.folder().join(ACCOUNT);
        let Some(text) = read(&path)? else { return self.new_account().await };
        // What is wrong with it is not told: the text is a secret.
        let credentials: AccountCredentials = serde_json::from_str(text.expose_secret())
            .map_err(|_| anyhow!("{} is damaged; remove it and another account is made", path.display()))?;
        let builder = Account::builder_with_http(self.http());
        builder.from_credentials(credentials).await.context("the ACME server cannot be asked")
    }

    async fn new_account(&self) -> anyhow::Result<Account> {
        let contact = self.order.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let wanted = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(self.http());
        let (account, credentials) = builder
            .create(&wanted, self.order.directory.clone(), None)
            .await
            .context("the ACME server makes no account")?;
        self.write(ACCOUNT, serde_json::to_string(&credentials)?.into()).await?;
        Ok(account)
    }

    fn http(&self) -> Box<dyn HttpClient> {
        Box::new(Https(Arc::clone(&self.http)))
    }

    /// Has the ACME server issue a certificate, and answers with it and its key.
    async fn issue(&self, account: &Account) -> anyhow::Result<SecretString> {
        let identifiers: Vec<_> = self.order.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await.context("no order is taken")?;
        let _shown = Shown(&self.challenges);
        self.show(&mut order).await?;
        let outcome = order.poll_ready(&POLL).await;
        if !matches!(outcome, Ok(OrderStatus::Ready)) {
            let why = refusals(&mut order).await;
            ensure!(why.is_empty(), "the ACME server refuses {why}");
            bail!("the order is {:?}", outcome.context("the order does not become ready")?);
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(self.order.domains.clone())?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key)?.der()).await.context("the order cannot be finalized")?;
        let chain = order.poll_certificate(&POLL).await.context("the certificate did not come")?;
        Ok(format!("{}{chain}", key.serialize_pem()).into())
    }

    /// Shows the proof for each name, and has the ACME server look.
    async fn show(&self, order: &mut instant_acme::Order) -> anyhow::Result<()> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.context("an authorization cannot be read")?;
            let name = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => bail!("the authorization for {name} is {status:?}"),
            }
            let mut challenge = authorization
                .challenge(ChallengeType::TlsAlpn01)
                .with_context(|| format!("the ACME server offers no TLS-ALPN-01 for {name}"))?;
            let proof = proof(&name, challenge.key_authorization().digest().as_ref())?;
            self.challenges.0.write().insert(name, Arc::new(proof));
            challenge.set_ready().await.context("the ACME server does not look")?;
        }
        Ok(())
    }

    /// Keeps a secret in a file that is its owner's alone and appears whole or not at all.
    async fn write(&self, name: &str, text: SecretString) -> anyhow::Result<()> {
        let (folder, path) = (self.order.folder(), self.order.folder().join(name));
        let shown = path.display().to_string();
        let write = move || -> anyhow::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".rollcall-").suffix(".tmp").tempfile_in(&folder)?;
            file.write_all(text.expose_secret().as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            std::fs::File::open(folder)?.sync_all()?;
            Ok(())
        };
        tokio::task::spawn_blocking(write).await?.with_context(|| format!("{shown} cannot be written"))
    }
}

/// The text of a file, if there is one.
fn read(path: &Path) -> anyhow::Result<Option<SecretString>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

fn retry_after(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST_RETRY)
}

fn is_unknown_account(error: &anyhow::Error) -> bool {
    let problem = error.chain().find_map(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Api(problem)) => Some(problem),
        _ => None,
    });
    problem.is_some_and(|problem| problem.r#type.as_deref() == Some(NO_SUCH_ACCOUNT))
}

/// Why the ACME server refuses each name that it refuses.
async fn refusals(order: &mut instant_acme::Order) -> String {
    let mut refusals = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let name = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { continue };
        let problems = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        refusals.extend(problems.map(|problem| match &problem.detail {
            Some(detail) => format!("{name}: {detail}"),
            None => format!("{name}: {problem}"),
        }));
    }
    refusals.join("; ")
}

/// A certificate that proves to the ACME server that the order comes from here.
fn proof(name: &str, digest: &[u8]) -> anyhow::Result<CertifiedKey> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow!(error))?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], provider.key_provider.load_private_key(key)?))
}

/// What the ACME server is shown, by name.
#[derive(Debug, Default)]
struct Challenges(RwLock<HashMap<String, Arc<CertifiedKey>>>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().get(&hello.server_name()?.to_ascii_lowercase()).cloned()
    }
}

/// Takes back what is shown when the order is over.
struct Shown<'a>(&'a Challenges);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.0.write().clear();
    }
}

/// HTTPS to the ACME server. A connection for each request: there are some twenty in two months.
struct Https(Arc<ClientConfig>);

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let config = Arc::clone(&self.0);
        Box::pin(async move {
            let host = request.uri().host().unwrap_or_default().to_owned();
            let answer = tokio::time::timeout(REQUEST, ask(config, request)).await;
            let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {REQUEST:?}")));
            answer.with_context(|| format!("{host} cannot be asked")).map_err(|error| Error::Other(error.into()))
        })
    }
}

async fn ask(config: Arc<ClientConfig>, request: Request<BodyWrapper<Bytes>>) -> anyhow::Result<BytesResponse> {
    let uri = request.uri();
    ensure!(uri.scheme_str() == Some("https"), "{uri} is no address under https://");
    let (parts, body) = http_client::ask(config, request, MAX_ANSWER).await?.into_parts();
    Ok(BytesResponse { parts, body: Box::new(body) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(directory: &str, cache: &Path) -> Order {
        let domains = vec!["school.example".to_owned(), "www.school.example".to_owned()];
        Order { domains, email: None, directory: directory.to_owned(), ca: None, cache: cache.to_owned() }
    }

    #[test]
    fn each_server_has_a_folder_of_its_own() {
        let folder = |directory| order(directory, Path::new("cache")).folder();
        assert_eq!(folder(LETS_ENCRYPT), Path::new("cache/acme-v02-api-letsencrypt-org-directory"));
        assert_eq!(folder("https://[::1]:14000/../dir?x=/"), Path::new("cache/---1--14000----dir-x--"));
    }

    #[test]
    fn a_kept_certificate_is_used_if_it_is_for_all_names() {
        let folder = tempfile::tempdir().unwrap();
        let order = order(LETS_ENCRYPT, folder.path());
        assert!(order.kept().unwrap().is_none());
        let path = order.folder().join(CERTIFICATE);
        std::fs::create_dir(order.folder()).unwrap();
        for (names, fits) in [(&["school.example"][..], false), (&["www.school.example", "school.example"], true)] {
            let key = KeyPair::generate().unwrap();
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let pem = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
            std::fs::write(&path, format!("{}{pem}", key.serialize_pem())).unwrap();
            assert_eq!(order.kept().unwrap().is_some(), fits);
        }
        std::fs::write(&path, "damaged").unwrap();
        assert!(format!("{:#}", order.kept().unwrap_err()).contains("certificate.pem cannot be used"));
    }

    #[test]
    fn it_is_tried_again_less_and_less_often() {
        let minutes: Vec<_> = [0, 1, 2, 3, 7, 8, 40, u32::MAX].map(|n| retry_after(n).as_secs() / 60).into();
        assert_eq!(minutes, [2, 4, 8, 16, 256, 360, 360, 360]);
    }
}
