//! Whom the agent trusts where it connects by TLS to what the operator names: issuers' hosts and the store of limits. (Connections
//! to the API server are its client's own matter.)

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum NoTrust {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} has no certificate in PEM that can be used{why}", path.display())]
    NoCertificate { path: PathBuf, why: String },
    #[error("TLS cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// What is in a file with the certificates of CAs.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, NoTrust> {
    std::fs::read(path).map_err(|source| NoTrust::Read { path: path.into(), source })
}

/// Trusts the CAs that `text` has in PEM, which is in the file `path`.
///
/// # Errors
/// One of them is no certificate, or there is none.
pub(crate) fn trusting(path: &Path, text: &[u8]) -> Result<Arc<ClientConfig>, NoTrust> {
    let none = |why: String| NoTrust::NoCertificate { path: path.into(), why };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| none(format!(": {error}")))?;
        roots.add(certificate).map_err(|error| none(format!(": {error}")))?;
    }
    if roots.is_empty() { Err(none(String::new())) } else { config(roots) }
}

/// Trusts the public CAs that Mozilla trusts. The image has no others.
///
/// # Errors
/// TLS cannot be used at all.
pub(crate) fn trusting_public() -> Result<Arc<ClientConfig>, NoTrust> {
    config(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
}

fn config(roots: RootCertStore) -> Result<Arc<ClientConfig>, NoTrust> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}
