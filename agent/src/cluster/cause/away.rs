//! How the API server is away, in one sentence, and what to look at then.
//!
//! What a client library says of it names layers of its own; that stays behind the sentence, in parentheses. The [reasons] are
//! found where the errors come from.
//!
//! [reasons]: super::super::kubernetes

/// How the API server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Away {
    /// Nobody listens at its address.
    NotListening,
    /// There is no way to its address.
    NoRoute,
    /// No connection came about, or no response came, in time.
    Silent,
    /// Its name has no address.
    NoAddress,
    /// Its certificate is of a CA that the agent does not trust.
    UnknownAuthority,
    /// Its certificate is for other names and addresses.
    OtherName,
    Expired,
    NotYetValid,
    /// Its certificate is wrong in another way.
    BadCertificate,
    /// It does not take the certificate that the agent shows.
    CertificateRejected,
    /// What listens there speaks no TLS.
    NoTls,
    /// What listens there speaks TLS, and the agent does not.
    Tls,
    /// What listens there speaks no HTTP.
    NoHttp,
    /// It sends elsewhere, or gives a page for browsers.
    NotTheApiServer,
    /// Something else.
    Otherwise,
}

impl Away {
    /// Whatever of it is known is worth more than that something is.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NotListening => "nothing listens at the API server's address",
            Self::NoRoute => "there is no route from this node to the API server's address",
            Self::Silent => "the API server does not respond in time",
            Self::NoAddress => "the API server's name cannot be resolved",
            Self::UnknownAuthority => "the API server's certificate is of a CA that the agent does not trust",
            Self::OtherName => {
                "the API server's certificate is not valid for the name or address by which the agent calls it"
            }
            Self::Expired => "the API server's certificate has expired",
            Self::NotYetValid => "the API server's certificate is not valid yet",
            Self::BadCertificate => "the API server's certificate is not valid",
            Self::CertificateRejected => "the API server does not take the agent's client certificate",
            Self::NoTls => "what listens at the API server's address does not speak TLS",
            Self::Tls => {
                "what listens at the API server's address wants TLS, and the agent is told to use none"
            }
            Self::NoHttp => "what listens at the API server's address does not speak HTTP",
            Self::NotTheApiServer => {
                "what responds at the API server's address is no API server: it redirects, or sends a page for browsers"
            }
            Self::Otherwise => "the API server does not respond as it should",
        }
    }

    /// In whole sentences.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::NotListening => {
                "Check that the API server runs, and that its address and port are right: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, or the kubeconfig."
            }
            Self::NoRoute => "Check this node's network and routes to the API server.",
            Self::Silent => {
                "Check that the API server is not overloaded, and that no firewall or NetworkPolicy drops what this node sends it."
            }
            Self::NoAddress => {
                "Check the node's DNS, or name the API server by its address: KUBERNETES_SERVICE_HOST, or the kubeconfig."
            }
            Self::UnknownAuthority => {
                "Check whether something on the way ends TLS, and whether the CA that the agent is given is the cluster's: ca.crt of its service account, or the kubeconfig."
            }
            Self::OtherName => {
                "Call the API server by a name or address that is in its certificate (KUBERNETES_SERVICE_HOST, or the kubeconfig), or add this one to the certificate."
            }
            Self::Expired => "Renew the API server's certificate. Check this node's clock, too.",
            Self::NotYetValid => "Check the clocks of this node and of the API server.",
            Self::BadCertificate => {
                "Replace the API server's certificate, or find out what on the way shows another one."
            }
            Self::CertificateRejected => "Renew the client certificate of the kubeconfig.",
            Self::NoTls => {
                "Check the address and port: it may be those of something else, or want http:// in the kubeconfig."
            }
            Self::Tls => "Write https:// in the kubeconfig's server.",
            Self::NoHttp => {
                "Check the address and port: they may be those of something else, or want https://."
            }
            Self::NotTheApiServer => {
                "Check the address and port, and proxies on the way that ask for a login: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, or the kubeconfig."
            }
            Self::Otherwise => "Check the API server, and this node's way to it.",
        }
    }
}
