//! Gets keys over HTTPS: one request over a connection of its own, from the network namespace of the agent, which is the node's, so
//! that it is never captured. No proxy is used, no redirect is followed, no cookie or credential is sent.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};
use tokio_util::task::AbortOnDropHandle;

use super::fetch::{Failed, Transport};
use crate::govern::jwt::{Location, keys::MAX_BYTES};

/// The next address is tried after so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum NoTrust {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} has no certificate in PEM that can be used{why}", path.display())]
    NoCertificate { path: PathBuf, why: String },
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

/// A client, and whom it trusts.
pub struct Https {
    /// The file of the CAs, if they are not the public ones.
    ca_file: Option<PathBuf>,
    last: Mutex<Last>,
}

/// What was read last, and came to something.
struct Last {
    text: Vec<u8>,
    tls: Arc<ClientConfig>,
    /// What has become of the file since.
    trouble: Option<String>,
}

impl Https {
    /// Trusts the CAs of a file, or the public ones that Mozilla trusts.
    pub fn new(ca_file: Option<PathBuf>) -> Result<Self, NoTrust> {
        let (text, tls) = match &ca_file {
            Some(path) => {
                let text = read(path)?;
                let tls = config(from_pem(path, &text)?)?;
                (text, tls)
            }
            None => (Vec::new(), config(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })?),
        };
        Ok(Self { ca_file, last: Mutex::new(Last { text, tls, trouble: None }) })
    }

    /// As the file says now. If it has become bad, the last good ones stay.
    fn tls(&self) -> Arc<ClientConfig> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.ca_file else { return last.tls.clone() };
        let trouble = match read(path) {
            Ok(text) if text == last.text => None,
            Ok(text) => match from_pem(path, &text).and_then(config) {
                Ok(tls) => {
                    (last.text, last.tls) = (text, tls);
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = trouble.as_ref().filter(|error| last.trouble.as_ref() != Some(error)) {
            tracing::warn!(%error, "--jwks-ca-file cannot be used: the last certificates stay in use");
        }
        last.trouble = trouble;
        last.tls.clone()
    }
}

impl Transport for Https {
    async fn get(&self, at: &Location) -> Result<Vec<u8>, Failed> {
        let stream = connect(at).await?;
        let tls = |error: String| Failed::Tls(at.authority(), error);
        let name = ServerName::try_from(at.name().to_owned()).map_err(|error| tls(error.to_string()))?;
        let connector = TlsConnector::from(self.tls());
        let stream = connector.connect(name, stream).await.map_err(|error| tls(error.to_string()))?;
        let broken = |error: hyper::Error| Failed::Http(error.to_string());
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the request: nothing is kept open.
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let request = Request::get(&*at.path)
            .header(header::HOST, at.authority())
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failed::Http(error.to_string()))?;
        let response = send.send_request(request).await.map_err(broken)?;
        match response.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => return Err(Failed::Redirect(status.as_u16())),
            status => return Err(Failed::Status(status.as_u16())),
        }
        match Limited::new(response.into_body(), MAX_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes().into()),
            Err(error) if error.is::<LengthLimitError>() => Err(Failed::TooLarge),
            Err(error) => Err(Failed::Http(error.to_string())),
        }
    }
}

/// A connection to the first address of the host that accepts one.
async fn connect(at: &Location) -> Result<TcpStream, Failed> {
    let addresses = tokio::net::lookup_host((at.name(), at.port)).await;
    let addresses = addresses.map_err(|error| Failed::Resolve(at.name().to_owned(), error.to_string()))?;
    let mut last = "it has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    Err(Failed::Connect(at.authority(), last))
}

fn read(path: &Path) -> Result<Vec<u8>, NoTrust> {
    std::fs::read(path).map_err(|source| NoTrust::Read { path: path.into(), source })
}

fn from_pem(path: &Path, text: &[u8]) -> Result<RootCertStore, NoTrust> {
    let none = |why: String| NoTrust::NoCertificate { path: path.into(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| none(format!(": {error}")))?;
        roots.add(certificate).map_err(|error| none(format!(": {error}")))?;
    }
    if roots.is_empty() { Err(none(String::new())) } else { Ok(roots) }
}

fn config(roots: RootCertStore) -> Result<Arc<ClientConfig>, NoTrust> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
