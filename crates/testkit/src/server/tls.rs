//! TLS: an authority that nobody else trusts, its certificates, and connections that trust it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An authority that issues certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both as PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// The authority's own certificate as PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names and addresses, which holds for ever.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Pair> {
        self.issue_until(names, 4096)
    }

    /// A certificate for these names and addresses, which ends when this year begins.
    pub fn issue_until(&self, names: &[&str], year: i32) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate()?;
        Ok(Pair { certificate: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }

    /// Trust in this authority alone.
    pub fn trust(&self) -> anyhow::Result<Trust> {
        Trust::in_pem(&self.pem())
    }
}

/// Whom a client trusts, and what it speaks.
#[derive(Clone, Debug)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Trust in the authorities of this PEM text alone, over TLS 1.2 and 1.3.
    pub fn in_pem(pem: &str) -> anyhow::Result<Self> {
        Self::over(pem, rustls::DEFAULT_VERSIONS)
    }

    /// Trust in the authorities of this PEM text alone, over these versions.
    pub fn over(pem: &str, versions: &[&'static SupportedProtocolVersion]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.context("a certificate")?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Trust in nobody.
    pub(super) fn nobody() -> Self {
        Self::in_pem("").expect("a configuration without certificates needs nothing that could fail")
    }

    /// The configuration, for libraries that take one.
    pub fn config(&self) -> ClientConfig {
        ClientConfig::clone(&self.0)
    }
}

/// How a client gets to a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// Over TLS, with this trust.
    pub trust: Option<Trust>,
    /// To this address, whatever the server's name says.
    pub at: Option<SocketAddr>,
}

impl Way {
    /// A connection to a name or an address, with a port.
    pub(super) async fn connect(&self, authority: &str, receive_buffer: Option<u32>) -> io::Result<Stream> {
        let address = if let Some(address) = self.at {
            address
        } else {
            let not_found = || io::Error::from(io::ErrorKind::AddrNotAvailable);
            tokio::net::lookup_host(authority).await?.next().ok_or_else(not_found)?
        };
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(size) = receive_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(Trust(config)) = &self.trust else { return Ok(Stream::Plain(stream)) };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// A connection to a server.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// In TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Either kind of stream, as far as it matters.
trait Either: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Either for S {}

impl Stream {
    fn either(&mut self) -> Pin<&mut dyn Either> {
        match self {
            Self::Plain(stream) => Pin::new(stream),
            Self::Tls(stream) => Pin::new(&mut **stream),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.either().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.either().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.either().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.either().poll_shutdown(cx)
    }
}
