//! Documents that are kept packed with gzip: the binary and the memory hold them so, nearly every client takes them so,
//! and for the others they are unpacked.

use std::io::{Read as _, Write as _};

use axum::body::Bytes;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use rollcall_core::Error;

use crate::error::ApiError;

/// Bytes that are packed with gzip.
#[derive(Clone)]
pub(super) struct Packed(Bytes);

impl Packed {
    /// What was packed before.
    pub(super) fn new(packed: &'static [u8]) -> Self {
        Self(Bytes::from_static(packed))
    }

    /// Packs a text, well and slowly: once for all that ask.
    pub(super) fn pack(text: &str) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let packed = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
        Self(packed.expect("writing to memory does not fail").into())
    }

    /// The answer to a request with these headers, without a type.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let vary = (VARY, HeaderValue::from_static("accept-encoding"));
        if takes_gzip(headers) {
            let encoding = (CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            return ([vary, encoding], self.0.clone()).into_response();
        }
        let mut text = Vec::new();
        match GzDecoder::new(&*self.0).read_to_end(&mut text) {
            Ok(_) => ([vary], text).into_response(),
            Err(error) => ApiError::from(Error::Internal(error.to_string())).into_response(),
        }
    }
}

/// Whether a client says that it takes gzip (RFC 9110, 12.5.3). One that says nothing might not: `curl` shows what comes.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let mut any = false;
    for value in headers.get_all(ACCEPT_ENCODING) {
        for coding in value.to_str().unwrap_or_default().split(',') {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let wanted = weight.is_none_or(|weight| weight.parse().is_ok_and(|weight: f32| weight > 0.0));
            if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
                return wanted;
            }
            any |= name == "*" && wanted;
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (ACCEPT_ENCODING, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn gzip_goes_to_those_who_say_so() {
        for taken in ["gzip", "GZIP", "br, gzip;q=0.5", "x-gzip", "deflate,gzip ; q=1", "*", "br;q=1.0, *;q=0.1"] {
            assert!(takes_gzip(&headers(&[taken])), "{taken}");
        }
        assert!(takes_gzip(&headers(&["br", "gzip"])));
        for not in ["", "br", "identity", "gzip;q=0", "*, gzip;q=0.000", "*;q=0", "gzip;q=x", "gzipped", ";q=1"] {
            assert!(!takes_gzip(&headers(&[not])), "{not}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
