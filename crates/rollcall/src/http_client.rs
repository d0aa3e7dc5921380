//! Asking others over HTTP/1.1, in plain text or over TLS, with a connection for each request: what is asked here is asked
//! seldom. Redirects are not followed.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use axum::body::Bytes;
use axum::http::header::HOST;
use axum::http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Body;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Trusts those in the file that the setting names, or those whom browsers trust.
pub(crate) fn trust(setting: &str, ca: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unusable = || format!("{setting} {} cannot be used", path.display());
            let pem = std::fs::read(path).with_context(unusable)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.with_context(unusable)?).with_context(unusable)?;
            }
            ensure!(!roots.is_empty(), "{}: there is no certificate in it", unusable());
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS cannot be configured")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Sends `request` to the address that it names, and answers with what came, of at most so many bytes. The caller says
/// how long that may take.
pub(crate) async fn ask<B>(
    trust: Arc<ClientConfig>,
    mut request: Request<B>,
    max_answer: usize,
) -> anyhow::Result<Response<Bytes>>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let uri = request.uri().clone();
    let authority = uri.authority().context("an address without a host")?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    request.headers_mut().insert(HOST, HeaderValue::from_str(authority.as_str())?);
    *request.uri_mut() = Uri::from(uri.path_and_query().cloned().context("an address without a path")?);
    let tls = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((name.as_str(), port)).await?;
    if tls {
        let stream = TlsConnector::from(trust).connect(ServerName::try_from(name)?, stream).await?;
        exchange(TokioIo::new(stream), request, max_answer).await
    } else {
        exchange(TokioIo::new(stream), request, max_answer).await
    }
}

async fn exchange<B>(
    io: impl Read + Write + Send + Unpin + 'static,
    request: Request<B>,
    max_answer: usize,
) -> anyhow::Result<Response<Bytes>>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // It ends with the answer, since nothing else is asked.
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, max_answer).collect().await.map_err(|error| anyhow!(error))?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_to_trust_is_read_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let told = |path: &Path| format!("{:#}", trust("ACME_CA", Some(path)).map(drop).unwrap_err());
        assert!(told(&path).contains("ACME_CA") && told(&path).contains("No such file"));
        std::fs::write(&path, "nothing").unwrap();
        assert!(told(&path).contains("there is no certificate in it"));
        assert!(trust("ACME_CA", None).is_ok());
    }
}
