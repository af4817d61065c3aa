//! Gets keys over HTTPS: one request over a connection of its own, from the network namespace of the agent, which is the node's, so
//! that it is never captured. No proxy is used, no redirect is followed, no cookie or credential is sent.

use std::{
    path::PathBuf,
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
    rustls::{ClientConfig, pki_types::ServerName},
};
use tokio_util::task::AbortOnDropHandle;

use super::fetch::{Failed, Transport};
use crate::{
    govern::jwt::{Location, keys::MAX_BYTES},
    tls::{self, NoTrust},
};

/// The next address is tried after so long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

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
                let text = tls::read(path)?;
                let tls = tls::trusting(path, &text)?;
                (text, tls)
            }
            None => (Vec::new(), tls::trusting_public()?),
        };
        Ok(Self { ca_file, last: Mutex::new(Last { text, tls, trouble: None }) })
    }

    /// As the file says now. If it has become bad, the last good ones stay.
    fn tls(&self) -> Arc<ClientConfig> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.ca_file else { return last.tls.clone() };
        let trouble = match tls::read(path) {
            Ok(text) if text == last.text => None,
            Ok(text) => match tls::trusting(path, &text) {
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
        let failed = |error: String| Failed::Tls(at.authority(), error);
        let name = ServerName::try_from(at.name().to_owned()).map_err(|error| failed(error.to_string()))?;
        let connector = TlsConnector::from(self.tls());
        let stream = connector.connect(name, stream).await.map_err(|error| failed(error.to_string()))?;
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
