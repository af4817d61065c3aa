//! Where the keys of a provider are from; and which hosts the operator lets them be from.
//!
//! Who writes a policy makes the agents of all nodes call what it names, from the nodes' own network. So nothing is called that the
//! operator has not allowed, and only over HTTPS: whoever could change the keys on their way could sign tokens. What is in an object
//! of the policy's own namespace is read through the API server, as far as the operator has permitted that.

use std::{fmt, net::Ipv6Addr, str::FromStr, sync::Arc, time::Duration};

use http::Uri;

use super::Keys;

/// How often keys are fetched, unless the policy says otherwise.
pub const EVERY: Duration = Duration::from_secs(300);

/// The port of HTTPS.
const PORT: u16 = 443;

/// Where the keys of a provider are from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The policy has them itself.
    Inline(Arc<Keys>),
    /// They are fetched from there, this often.
    Remote { location: Location, every: Duration },
    /// They are in an object of the policy's namespace.
    Entry(Entry),
}

/// A kind of object that can have keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    ConfigMap,
    Secret,
}

impl Holder {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

/// An entry of an object in the policy's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    pub of: Holder,
    pub name: Arc<str>,
    /// In the object's `data`.
    pub key: Arc<str>,
}

/// Where keys are fetched from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// In lower case; an IPv6 address is in brackets.
    pub host: Arc<str>,
    pub port: u16,
    /// With the query.
    pub path: Arc<str>,
}

/// Why something is no place to fetch keys from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLocation {
    #[error("https:// is needed: over anything else whoever can change what is sent could sign tokens")]
    Scheme,
    #[error("a name and a password are not allowed in it")]
    Credentials,
    #[error("a fragment (#) is not allowed in it")]
    Fragment,
    #[error("it is no URI with a host, as in https://login.example.com/.well-known/jwks.json")]
    Host,
    #[error("its port is none of 1 to 65535")]
    Port,
}

impl FromStr for Location {
    type Err = NoLocation;

    fn from_str(text: &str) -> Result<Self, NoLocation> {
        let rest = text.strip_prefix("https://").ok_or(NoLocation::Scheme)?;
        // The parser of URIs leaves it out without a word.
        if rest.contains('#') {
            return Err(NoLocation::Fragment);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(NoLocation::Credentials);
        }
        let (host, port) = host_and_port(authority).ok_or(NoLocation::Host)?;
        let port = port.map_or(Ok(PORT), |port| port_of(port).ok_or(NoLocation::Port))?;
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NoLocation::Host);
        }
        let uri: Uri = text.parse().map_err(|_| NoLocation::Host)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { host: host.into(), port, path: path.into() })
    }
}

impl Location {
    /// The host as it is resolved, and as its certificate has it: without brackets.
    pub fn name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Host and port, as the header Host has it.
    pub fn authority(&self) -> String {
        if self.port == PORT { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }
}

/// As a policy writes it.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

/// A host, or all below a domain, that keys may be fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    /// `*.` before the domain.
    below: bool,
    host: Box<str>,
    port: u16,
}

impl AllowedHost {
    /// Whether keys may be fetched from there. Other ports than that of HTTPS are not meant, unless they are named.
    pub fn allows(&self, location: &Location) -> bool {
        let is_host = if self.below {
            let rest = location.host.strip_suffix(&*self.host);
            rest.and_then(|rest| rest.strip_suffix('.')).is_some_and(|name| !name.is_empty())
        } else {
            *location.host == *self.host
        };
        is_host && location.port == self.port
    }
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (below, rest) = match text.strip_prefix("*.") {
                Some(rest) => (true, rest),
                None => (false, text),
            };
            let (host, port) = host_and_port(rest)?;
            let port = port.map_or(Some(PORT), port_of)?;
            // Below an address there is nothing.
            (!below || !host.starts_with('[')).then(|| Self { below, host: host.into(), port })
        };
        parse().ok_or_else(|| {
            "a host, or *. and a domain, and a port if it is not 443, as in login.example.com, *.corp.example or 10.0.0.7:8443"
                .to_owned()
        })
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { below, host, port } = self;
        write!(f, "{}{host}", if *below { "*." } else { "" })?;
        if *port == PORT { Ok(()) } else { write!(f, ":{port}") }
    }
}

/// The host in lower case, and the port as it is written.
fn host_and_port(authority: &str) -> Option<(String, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        let host: Ipv6Addr = host.parse().ok()?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        return Some((format!("[{host}]"), port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_host = host.len() <= 253 && host.split('.').all(is_label);
    is_host.then(|| (host.to_ascii_lowercase(), port))
}

fn port_of(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str) -> Result<Location, NoLocation> {
        text.parse()
    }

    #[test]
    fn keys_are_fetched_over_https_from_a_host() {
        for (text, host, port, path) in [
            ("https://login.example.com/keys", "login.example.com", 443, "/keys"),
            ("https://LOGIN.example.com:443/Keys?p=a/b", "login.example.com", 443, "/Keys?p=a/b"),
            ("https://10.0.0.7:8443", "10.0.0.7", 8443, "/"),
            ("https://[FD00::1]/k", "[fd00::1]", 443, "/k"),
        ] {
            let found = location(text).unwrap();
            assert_eq!((&*found.host, found.port, &*found.path), (host, port, path));
            assert_eq!(location(&found.to_string()), Ok(found), "{text}");
        }
        assert_eq!(location("https://[fd00::1]/k").unwrap().name(), "fd00::1");
        for (text, why) in [
            ("http://login.example.com/keys", NoLocation::Scheme),
            ("file:///etc/passwd", NoLocation::Scheme),
            ("login.example.com", NoLocation::Scheme),
            ("https://", NoLocation::Host),
            ("https:///keys", NoLocation::Host),
            ("https://a b/", NoLocation::Host),
            ("https://login.example.com./", NoLocation::Host),
            ("https://-a.example/", NoLocation::Host),
            ("https://[fd00::1/", NoLocation::Host),
            ("https://a\\b.example/", NoLocation::Host),
            ("https://a%2eexample/", NoLocation::Host),
            ("https://ö.example/", NoLocation::Host),
            ("https://a.example/ö b", NoLocation::Host),
            ("https://me:secret@login.example.com/", NoLocation::Credentials),
            ("https://login.example.com@evil.example/", NoLocation::Credentials),
            ("https://login.example.com/#a", NoLocation::Fragment),
            ("https://login.example.com:0/", NoLocation::Port),
            ("https://login.example.com:/", NoLocation::Port),
            ("https://login.example.com:+443/", NoLocation::Port),
            ("https://login.example.com:70000/", NoLocation::Port),
        ] {
            assert_eq!(location(text), Err(why), "{text}");
        }
    }

    #[test]
    fn only_what_is_named_is_allowed() {
        let allows =
            |host: &str, text: &str| host.parse::<AllowedHost>().unwrap().allows(&location(text).unwrap());
        for (host, text) in [
            ("login.example.com", "https://login.example.com/a"),
            ("LOGIN.example.com", "https://login.EXAMPLE.com/a"),
            ("login.example.com:443", "https://login.example.com/a"),
            ("login.example.com:8443", "https://login.example.com:8443/a"),
            ("*.corp.example", "https://a.corp.example/"),
            ("*.corp.example", "https://a.b.corp.example/"),
            ("[fd00::1]:8443", "https://[fd00:0::1]:8443/"),
        ] {
            assert!(allows(host, text), "{host} {text}");
        }
        for (host, text) in [
            ("login.example.com", "https://login.example.com:8443/a"),
            ("login.example.com:8443", "https://login.example.com/a"),
            ("example.com", "https://login.example.com/a"),
            ("*.corp.example", "https://corp.example/"),
            ("*.corp.example", "https://evilcorp.example/"),
            ("*.corp.example", "https://a.corp.example.evil.example/"),
            ("*.corp.example", "https://a.corp.example:8443/"),
        ] {
            assert!(!allows(host, text), "{host} {text}");
        }
        for bad in ["", "*", "*.", "a.*.b", "https://a.example", "a.example/", "a b", "a:0", "*.[fd00::1]"] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad:?}");
        }
        for text in ["*.corp.example", "login.example.com:8443", "[fd00::1]"] {
            assert_eq!(text.parse::<AllowedHost>().unwrap().to_string(), text);
        }
    }
}
