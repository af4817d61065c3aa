//! How an API server is away, by what comes of asking it.
//!
//! Errors of connections are wrapped in those of the layers above them; the innermost says what it is. Where a layer has no type that
//! could be asked, its words have to do. [`Away`] has a sentence and an action for each.

use std::{error::Error, io};

use http::{Response, Uri, header};
use tokio_rustls::rustls::{self, AlertDescription as Alert, CertificateError as Certificate};
use tower::BoxError;

use crate::cluster::cause::Away;

/// What went wrong, and at which server.
#[derive(Debug, thiserror::Error)]
#[error("{}", server.to_string().trim_end_matches('/'))]
pub(super) struct At {
    pub(super) server: Uri,
    pub(super) source: BoxError,
}

/// A response that no API server gives.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Strange {
    #[error("{code} with a redirect to {to}")]
    Redirect { code: u16, to: String },
    #[error("{code} with a page for browsers")]
    Page { code: u16 },
}

/// More of an address than this helps nobody.
const LONGEST_ADDRESS: usize = 200;
/// What servers in Go, API servers among them, say to who speaks HTTP where they speak TLS.
const WANTS_TLS: &str = "HTTP request to an HTTPS server";

impl Strange {
    /// What is strange about it, if something is.
    pub(super) fn of<B>(response: &Response<B>) -> Option<Self> {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let code = response.status().as_u16();
        if response.status().is_redirection() {
            // What is asked for there may be somebody's secret.
            let to = text(header::LOCATION).unwrap_or("nowhere").split(['?', '#']).next().unwrap_or_default();
            return Some(Self::Redirect { code, to: to.chars().take(LONGEST_ADDRESS).collect() });
        }
        let is_page = text(header::CONTENT_TYPE).is_some_and(|kind| kind.trim().starts_with("text/html"));
        is_page.then_some(Self::Page { code })
    }
}

/// How a server is away that gives this status, which is none that an API server gives to a watch that it does not refuse.
pub(super) fn by_status(code: u16, message: &str) -> Away {
    if code == 400 && message.contains(WANTS_TLS) { Away::Tls } else { Away::Otherwise }
}

/// How a server is away of which this error comes.
pub(super) fn of(error: &(dyn Error + 'static)) -> Away {
    let mut found = None;
    let mut next = Some(error);
    while let Some(error) = next {
        found = one(error).or(found);
        next = error.source();
    }
    found.unwrap_or(Away::Otherwise)
}

fn one(error: &(dyn Error + 'static)) -> Option<Away> {
    if error.is::<Strange>() {
        return Some(Away::NotTheApiServer);
    }
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return of_tls(error);
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // What is in it is no source of it.
        let inner = error.get_ref().map(|inner| of(inner)).filter(|away| *away != Away::Otherwise);
        return inner.or_else(|| of_kind(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        return match () {
            () if error.is_timeout() => Some(Away::Silent),
            () if error.is_parse() => Some(Away::NoHttp),
            () => None,
        };
    }
    // The connector's error is nobody's but its own.
    (error.to_string() == "dns error").then_some(Away::NoAddress)
}

fn of_kind(kind: io::ErrorKind) -> Option<Away> {
    match kind {
        io::ErrorKind::ConnectionRefused => Some(Away::NotListening),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Away::NoRoute),
        io::ErrorKind::TimedOut => Some(Away::Silent),
        _ => None,
    }
}

fn of_tls(error: &rustls::Error) -> Option<Away> {
    match error {
        rustls::Error::InvalidCertificate(why) => Some(match why {
            Certificate::UnknownIssuer | Certificate::BadSignature => Away::UnknownAuthority,
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => Away::OtherName,
            Certificate::Expired | Certificate::ExpiredContext { .. } => Away::Expired,
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => Away::NotYetValid,
            _ => Away::BadCertificate,
        }),
        // What came is no message of TLS.
        rustls::Error::InvalidMessage(_) => Some(Away::NoTls),
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate,
        ) => Some(Away::CertificateRejected),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layer(&'static str, #[source] BoxError);

    /// As it comes from a connection: within an error of input and output, beneath those of two layers.
    fn wrapped(error: impl Into<BoxError>) -> Away {
        let connecting = Layer("client error (Connect)", error.into());
        of(&At { server: Uri::from_static("https://10.96.0.1:443"), source: connecting.into() })
    }

    #[test]
    fn what_tls_says_is_found_within_what_the_connection_says() {
        let tls = |error: rustls::Error| wrapped(io::Error::new(io::ErrorKind::InvalidData, error));
        let certificate = |why| tls(rustls::Error::InvalidCertificate(why));
        for (found, expected) in [
            (certificate(Certificate::UnknownIssuer), Away::UnknownAuthority),
            (certificate(Certificate::NotValidForName), Away::OtherName),
            (certificate(Certificate::Expired), Away::Expired),
            (certificate(Certificate::NotValidYet), Away::NotYetValid),
            (certificate(Certificate::Revoked), Away::BadCertificate),
            (tls(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Away::NoTls),
            (tls(rustls::Error::AlertReceived(Alert::CertificateRequired)), Away::CertificateRejected),
            (tls(rustls::Error::AlertReceived(Alert::HandshakeFailure)), Away::Otherwise),
        ] {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_the_kernel_says_is_found() {
        for (kind, expected) in [
            (io::ErrorKind::ConnectionRefused, Away::NotListening),
            (io::ErrorKind::HostUnreachable, Away::NoRoute),
            (io::ErrorKind::NetworkUnreachable, Away::NoRoute),
            (io::ErrorKind::TimedOut, Away::Silent),
            (io::ErrorKind::ConnectionReset, Away::Otherwise),
        ] {
            assert_eq!(wrapped(io::Error::from(kind)), expected);
        }
        assert_eq!(wrapped(Layer("dns error", io::Error::other("failed to lookup").into())), Away::NoAddress);
    }

    #[test]
    fn what_is_no_api_server_is_told_by_its_responses() {
        let response = |code: u16, headers: &[(&str, &str)]| {
            let mut response = Response::builder().status(code);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            response.body(()).expect("it is one")
        };
        let long = format!("https://{}", "a".repeat(300));
        let short = long[..LONGEST_ADDRESS].to_owned();
        let redirect = |code, to: &str| Some(Strange::Redirect { code, to: to.to_owned() });
        for (code, headers, expected) in [
            (
                302,
                &[("location", "https://login.example/?state=secret")][..],
                redirect(302, "https://login.example/"),
            ),
            (302, &[("location", &*long)], redirect(302, &short)),
            (307, &[], redirect(307, "nowhere")),
            (200, &[("content-type", "text/html; charset=utf-8")], Some(Strange::Page { code: 200 })),
            (403, &[("content-type", "text/html")], Some(Strange::Page { code: 403 })),
            (200, &[("content-type", "application/json")], None),
            (404, &[("content-type", "text/plain")], None),
            (101, &[], None),
        ] {
            assert_eq!(Strange::of(&response(code, headers)), expected);
        }
        assert_eq!(wrapped(Strange::Page { code: 200 }), Away::NotTheApiServer);
        assert_eq!(by_status(400, "Client sent an HTTP request to an HTTPS server."), Away::Tls);
        assert_eq!(by_status(500, "etcd"), Away::Otherwise);
    }
}
