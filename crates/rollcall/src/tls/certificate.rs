//! A certificate with its key: read, checked, and what it says of itself.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rollcall_core::Timestamp;
use rustls::InconsistentKeys;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate as X509;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::time::Time;

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// With less than this left somebody should have renewed it.
const SOON: Duration = Duration::from_hours(14 * 24);
/// Certificates that live for a short time are renewed later: with this part of their life left it is late.
const LATE_PART: u32 = 6;

/// A certificate that connections can be served with.
#[derive(Debug)]
pub(crate) struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<Name>,
    not_before: Timestamp,
    not_after: Timestamp,
    in_order: bool,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// A host's name, in lower case.
    Host(String),
    /// All names with one label before this, which begins with a dot.
    Below(String),
    Address(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Name {
    fn of(name: &GeneralName) -> Option<Self> {
        match name {
            GeneralName::DnsName(name) => {
                let name = name.as_str().to_ascii_lowercase();
                Some(match name.strip_prefix('*') {
                    Some(below) if below.starts_with('.') => Self::Below(below.to_owned()),
                    _ => Self::Host(name),
                })
            }
            GeneralName::IpAddress(bytes) => {
                let four = <[u8; 4]>::try_from(bytes.as_bytes()).map(IpAddr::from);
                four.or_else(|_| <[u8; 16]>::try_from(bytes.as_bytes()).map(IpAddr::from)).ok().map(Self::Address)
            }
            _ => None,
        }
    }

    /// `host` is in lower case.
    fn fits(&self, host: &str) -> bool {
        match self {
            Self::Host(name) => name == host,
            Self::Below(below) => {
                host.strip_suffix(below.as_str()).is_some_and(|label| !label.is_empty() && !label.contains('.'))
            }
            Self::Address(address) => host.parse() == Ok(*address),
        }
    }
}

/// How long a certificate still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// As long as it should.
    Good,
    /// Somebody should have renewed it by now.
    EndsSoon,
    /// It has ended.
    Ended,
    /// It does not count yet, by this machine's clock.
    NotYet,
}

impl Certificate {
    /// The certificate whose chain and key are in these PEM texts, which may be one and the same.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8]) -> anyhow::Result<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| not_pem(&error))
            .context("the certificate cannot be read")?;
        ensure!(!chain.is_empty(), "there is no certificate: no section that begins with -----BEGIN CERTIFICATE-----");
        let key = private_key(key)?;
        let parsed: Vec<_> = chain
            .iter()
            .map(|der| X509::from_der(der).context("a certificate of the chain cannot be read"))
            .collect::<Result<_, _>>()?;

        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let signing = provider.key_provider.load_private_key(key).context("the key is of no kind that can be used")?;
        let public = signing.public_key().map(|key| key.to_vec());
        let of_key =
            |certificate: &X509| certificate.tbs_certificate().subject_public_key_info().to_der().ok() == public;
        let certified = CertifiedKey::new(chain, signing);
        match certified.keys_match() {
            Ok(()) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) if parsed.iter().any(of_key) => {
                bail!("the key belongs to a later certificate of the chain; the server's own has to stand first")
            }
            Err(rustls::Error::InconsistentKeys(_)) => bail!("the key does not belong to the certificate"),
            Err(error) => return Err(error).context("the certificate cannot be used"),
        }

        // `keys_match` would have found nothing in an empty chain.
        let leaf = parsed.first().context("the chain is empty")?.tbs_certificate();
        let names = match leaf.get_extension::<SubjectAltName>() {
            Ok(Some((_, names))) => names.0.iter().filter_map(Name::of).collect(),
            _ => Vec::new(),
        };
        ensure!(!names.is_empty(), "the certificate names no host as its subjectAltName, so no client would accept it");
        let in_order =
            parsed.windows(2).all(|pair| pair[0].tbs_certificate().issuer() == pair[1].tbs_certificate().subject());
        Ok(Self {
            key: Arc::new(certified),
            names,
            not_before: moment(leaf.validity().not_before),
            not_after: moment(leaf.validity().not_after),
            in_order,
        })
    }

    /// What rustls signs with.
    pub(crate) fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Whether clients that ask for this host, by name or by address, accept the certificate.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.names.iter().any(|name| name.fits(&host))
    }

    /// A host that the certificate is for, and that is one: no wildcard. Names before addresses.
    pub(crate) fn host(&self) -> Option<String> {
        let name = |name: &Name| matches!(name, Name::Host(_)).then(|| name.to_string());
        let address = |name: &Name| match name {
            Name::Address(IpAddr::V6(address)) => Some(format!("[{address}]")),
            Name::Address(address) => Some(address.to_string()),
            _ => None,
        };
        self.names.iter().find_map(name).or_else(|| self.names.iter().find_map(address))
    }

    /// All that it is for, for people.
    pub(crate) fn names(&self) -> String {
        self.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// When it ends.
    pub(crate) fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// How long it counts in all.
    pub(crate) fn lifetime(&self) -> Duration {
        let millis = self.not_after.millis().saturating_sub(self.not_before.millis());
        Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }

    /// Whole days that it still counts at `now`; negative when it has ended.
    pub(crate) fn days_left(&self, now: Timestamp) -> i64 {
        self.not_after.millis().saturating_sub(now.millis()).div_euclid(DAY_MILLIS)
    }

    /// How long it still counts, in words that matter.
    pub(crate) fn standing(&self, now: Timestamp) -> Standing {
        if now >= self.not_after {
            Standing::Ended
        } else if now < self.not_before {
            Standing::NotYet
        } else if now >= self.not_after.before(SOON.min(self.lifetime() / LATE_PART)) {
            Standing::EndsSoon
        } else {
            Standing::Good
        }
    }

    /// Whether each certificate of the chain is followed by its issuer's. Some clients insist on it.
    pub(crate) fn in_order(&self) -> bool {
        self.in_order
    }
}

fn moment(time: Time) -> Timestamp {
    Timestamp::from_millis(i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX))
}

fn private_key(pem: &[u8]) -> anyhow::Result<PrivateKeyDer<'static>> {
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => {
            let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
            if pem.windows(encrypted.len()).any(|window| window == encrypted) {
                bail!("the key is encrypted; write it without a password: openssl pkey -in key.pem -out plain.pem")
            }
            bail!("there is no key: no section that begins with -----BEGIN PRIVATE KEY-----")
        }
        Err(error) => Err(not_pem(&error)).context("the key cannot be read"),
    }
}

/// What is wrong with a PEM text, without the line that is wrong: it may be a part of a key.
fn not_pem(error: &pem::Error) -> anyhow::Error {
    anyhow::anyhow!(match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end; is the file cut off?",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a section is malformed",
        pem::Error::Base64Decode(_) => "a section holds what is no Base64",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it is no PEM",
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names.concat());
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn read(chain: &str, key: &str) -> anyhow::Result<Certificate> {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes())
    }

    #[test]
    fn says_what_it_is_for() {
        let (chain, key) = made(&["School.example", "*.classes.example", "192.0.2.7", "2001:db8::7"]);
        let both = format!("{key}{chain}");
        let certificate = read(&both, &both).unwrap();
        for host in ["school.example", "SCHOOL.example", "a.classes.example", "192.0.2.7", "2001:db8:0::7"] {
            assert!(certificate.is_for(host), "{host}");
        }
        for host in ["", "example", "xschool.example", "classes.example", ".classes.example", "a.b.classes.example"] {
            assert!(!certificate.is_for(host), "{host}");
        }
        assert!(!certificate.is_for("192.0.2.8") && !certificate.is_for("*.classes.example.org"));
        assert_eq!(certificate.host().unwrap(), "school.example");
        assert_eq!(
            read(&made(&["::1"]).0, "").map(drop).unwrap_err().to_string().split(':').next(),
            Some("there is no key")
        );
    }

    #[test]
    fn says_until_when_it_counts() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["school.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        let certificate = read(&pem, &key.serialize_pem()).unwrap();
        assert_eq!(certificate.not_after().to_string(), "2026-04-01T00:00:00.000Z");
        assert_eq!(certificate.lifetime(), Duration::from_hours(90 * 24));
        let before = |days: u64| certificate.not_after().before(Duration::from_hours(24 * days));
        assert_eq!(certificate.standing(before(15)), Standing::Good);
        assert_eq!(certificate.standing(before(14)), Standing::EndsSoon);
        assert_eq!(certificate.standing(before(0)), Standing::Ended);
        assert_eq!(certificate.standing(before(91)), Standing::NotYet);
        assert_eq!((certificate.days_left(before(15)), certificate.days_left(before(0))), (15, 0));
        let after = Timestamp::from_millis(certificate.not_after().millis() + 1);
        assert_eq!(certificate.days_left(after), -1);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let (chain, key) = made(&["school.example"]);
        let (other, other_key) = made(&["other.example"]);
        let nameless = KeyPair::generate().unwrap();
        let no_names = CertificateParams::default().self_signed(&nameless).unwrap().pem();
        let garbled = chain.replacen("MII", "!!!", 1);
        let short = &chain[..chain.len() - 30];
        let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let odd_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (chain, key, told) in [
            (&*other, &*key, "the key does not belong to the certificate"),
            (&*format!("{other}{chain}"), &*key, "the server's own has to stand first"),
            ("", &*key, "there is no certificate"),
            (&*other_key, &*key, "there is no certificate"),
            (&*chain, "", "there is no key"),
            (&*chain, &*other, "there is no key"),
            (&*chain, encrypted, "the key is encrypted"),
            (&*chain, odd_key, "of no kind that can be used"),
            (&*garbled, &*key, "no Base64"),
            (short, &*key, "cut off"),
            (not_der, &*key, "cannot be read"),
            (&*no_names, &*nameless.serialize_pem(), "names no host"),
        ] {
            let error = format!("{:#}", read(chain, key).unwrap_err());
            assert!(error.contains(told), "{error}");
            assert!(!key.lines().any(|line| line.len() > 40 && error.contains(line)), "a part of the key is told");
        }
        assert!(!read(&format!("{chain}{other}"), &key).unwrap().in_order());
        assert!(read(&chain, &key).unwrap().in_order());
    }
}
