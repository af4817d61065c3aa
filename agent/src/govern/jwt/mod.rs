//! JSON Web Tokens (RFC 7519): what an AccessPolicy asks of one, and whether a request has it.
//!
//! A token is believed only if a key that its provider has published verifies its signature, with an algorithm that fits the key.
//! What the token says of keys itself (`jku`, `jwk`, `x5u`, `x5c`) is never looked at, and an algorithm without a public key (`none`,
//! `HS256`) is never accepted. Time is an argument; [`keys`] has the keys, [`source`] and [`refresh`] say
//! where they are fetched and when, [`token`] has the check, and [`cache`] what was found before.

pub mod cache;
pub mod claims;
pub mod headers;
pub mod keys;
pub mod refresh;
pub mod slot;
pub mod source;
#[cfg(test)]
mod strict_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod token;

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderName;

pub use self::{
    claims::{ClaimPath, ClaimTest, Claims},
    headers::HeaderPlan,
    keys::Keys,
    slot::{Known, Slot},
    source::{AllowedHost, Entry, Holder, Location, Source},
};
use super::request::Request;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// What a policy says of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    pub providers: Vec<Arc<Provider>>,
    /// Where a token is looked for; the first place that has one counts.
    pub places: Vec<Place>,
    /// A token that is valid goes on to the application.
    pub forward: bool,
    pub number: Number,
}

/// Another one for each policy that was ever read; all are equal.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub(super) u64);

impl Default for Number {
    fn default() -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self(NUMBERS.fetch_add(1, Ordering::Relaxed))
    }
}

impl PartialEq for Number {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Who issues tokens, and what one of them must say.
#[derive(Debug)]
pub struct Provider {
    pub name: Arc<str>,
    pub issuer: Box<str>,
    /// One of these; never empty.
    pub audiences: Vec<Box<str>>,
    /// In seconds: how far clocks may be apart.
    pub skew: u64,
    pub source: Source,
    pub on_no_keys: OnNoKeys,
    pub to_headers: Vec<(HeaderName, ClaimPath)>,
    /// The keys as they are known now.
    pub keys: Slot,
}

/// What holds of conditions on its tokens for as long as none of its keys has ever been known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnNoKeys {
    /// None holds.
    #[default]
    Deny,
    /// All hold for a request that has a token which says that it is from this issuer.
    Allow,
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind this prefix, in any case.
    Header {
        name: HeaderName,
        prefix: Box<str>,
    },
    Cookie(Box<str>),
    QueryParameter(Box<str>),
}

/// The keys are not compared: they change while the policy stays as it is.
impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, issuer, audiences, skew, source, on_no_keys, to_headers, keys: _ } = self;
        *name == other.name
            && *issuer == other.issuer
            && *audiences == other.audiences
            && *skew == other.skew
            && *source == other.source
            && *on_no_keys == other.on_no_keys
            && *to_headers == other.to_headers
    }
}

/// Why a request has no token that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    Missing,
    Several,
    SeveralLines,
    TooLarge,
    Malformed,
    NotJson,
    Repeated,
    Header,
    Algorithm,
    Unsigned,
    SharedSecret,
    Curve,
    Critical,
    Issuer,
    UnknownKey,
    KeyAlgorithm,
    KeyKind,
    KeyCurve,
    KeyUnfit,
    Signature,
    NotAllTried,
    Time,
    NoExpiry,
    Expired,
    NotYetValid,
    Audience,
    NoKeys,
}

impl Failure {
    pub const ALL: [Self; 27] = [
        Self::Missing,
        Self::Several,
        Self::SeveralLines,
        Self::TooLarge,
        Self::Malformed,
        Self::NotJson,
        Self::Repeated,
        Self::Header,
        Self::Algorithm,
        Self::Unsigned,
        Self::SharedSecret,
        Self::Curve,
        Self::Critical,
        Self::Issuer,
        Self::UnknownKey,
        Self::KeyAlgorithm,
        Self::KeyKind,
        Self::KeyCurve,
        Self::KeyUnfit,
        Self::Signature,
        Self::NotAllTried,
        Self::Time,
        Self::NoExpiry,
        Self::Expired,
        Self::NotYetValid,
        Self::Audience,
        Self::NoKeys,
    ];

    /// As metrics have it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Several => "several",
            Self::SeveralLines => "several_lines",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::NotJson => "not_json",
            Self::Repeated => "repeated",
            Self::Header => "header",
            Self::Algorithm => "algorithm",
            Self::Unsigned => "unsigned",
            Self::SharedSecret => "shared_secret",
            Self::Curve => "curve",
            Self::Critical => "critical_header",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown_key",
            Self::KeyAlgorithm => "key_algorithm",
            Self::KeyKind => "key_kind",
            Self::KeyCurve => "key_curve",
            Self::KeyUnfit => "key_unfit",
            Self::Signature => "signature",
            Self::NotAllTried => "not_all_tried",
            Self::Time => "time",
            Self::NoExpiry => "no_expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Audience => "audience",
            Self::NoKeys => "no_keys",
        }
    }

    /// For people, without anything of the token. Fit for `error_description` (RFC 6750, section 3) as it is.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Missing => "there is no token",
            Self::Several => "there is more than one token",
            Self::SeveralLines => "the header that has the token is there more than once",
            Self::TooLarge => "the token is longer than 16 KiB",
            Self::Malformed => "the token is not a signed JWT",
            Self::NotJson => {
                "the header or the payload of the token is not a JSON object (in UTF-8, without a byte order mark)"
            }
            Self::Repeated => "the token has a header parameter or a claim twice, or a name in one of them",
            Self::Header => "the header of the token has no alg, or an alg or kid that is not a string",
            Self::Algorithm => {
                "the token is signed with an algorithm (alg) that is not accepted: RS256 to RS512, PS256 to PS512, ES256, ES384 and EdDSA are"
            }
            Self::Unsigned => "the token is not signed (alg none)",
            Self::SharedSecret => {
                "the token is signed with a shared secret (alg HS256 or the like), which is never accepted"
            }
            Self::Curve => {
                "the token is signed on a curve that is not accepted (alg ES512, ES256K or Ed448): P-256, P-384 and Ed25519 are"
            }
            Self::Critical => "the token has a header parameter that must be understood and is not (crit)",
            Self::Issuer => "the token is not from an accepted issuer",
            Self::UnknownKey => "the token is signed with an unknown key",
            Self::KeyAlgorithm => {
                "the key that the token names (kid) is for another algorithm than that of the token (alg)"
            }
            Self::KeyKind => {
                "the key that the token names (kid) is of a kind that is not used (kty): RSA, EC and OKP are"
            }
            Self::KeyCurve => {
                "the key that the token names (kid) is on a curve that is not used (crv): P-256, P-384 and Ed25519 are"
            }
            Self::KeyUnfit => {
                "the key that the token names (kid) is among those of its issuer, but is not fit to verify with: sluice check says why"
            }
            Self::Signature => "the signature of the token is wrong",
            Self::NotAllTried => {
                "not all keys that fit the token were tried, and none of those that were has signed it: its issuer has to give it a kid that one key alone has"
            }
            Self::Time => "the exp or nbf of the token is not a number",
            Self::NoExpiry => "the token has no expiry (exp)",
            Self::Expired => "the token has expired",
            Self::NotYetValid => "the token is not valid yet",
            Self::Audience => "the token is for another audience",
            Self::NoKeys => "the keys of the token's issuer are not known yet",
        }
    }

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What was found of a request's token.
#[derive(Clone, Debug)]
pub enum Found {
    Valid(Arc<Verified>),
    Invalid(Failure),
    /// It says that it is from this provider, of which no keys have ever been known.
    Unverifiable(Arc<Provider>),
}

/// A token that is good.
#[derive(Debug)]
pub struct Verified {
    pub provider: Arc<Provider>,
    pub claims: Claims,
    /// In seconds since 1970.
    pub expires: u64,
    pub not_before: Option<u64>,
}

impl Verified {
    /// Whether it is valid at this time.
    pub fn at(&self, now: u64) -> Result<(), Failure> {
        let skew = self.provider.skew;
        if now >= self.expires.saturating_add(skew) {
            return Err(Failure::Expired);
        }
        if self.not_before.is_some_and(|from| from > now.saturating_add(skew)) {
            return Err(Failure::NotYetValid);
        }
        Ok(())
    }
}

/// A token of a request, and where it was.
#[derive(Debug)]
pub struct Carried<'r> {
    pub token: Cow<'r, [u8]>,
    pub place: usize,
}

impl Jwt {
    /// The token that a request has. Where a place has two, the application could take the other one for that which was verified.
    pub fn carried<'r>(&self, request: &'r impl Request) -> Result<Carried<'r>, Failure> {
        for (place, at) in self.places.iter().enumerate() {
            let found = match at {
                Place::Header { name, prefix } => in_header(request, name, prefix)?.map(Cow::Owned),
                Place::Cookie(name) => in_cookie(request, name)?.map(Cow::Owned),
                Place::QueryParameter(name) => in_query(request, name)?,
            };
            if let Some(token) = found {
                return if token.len() > MAX_TOKEN {
                    Err(Failure::TooLarge)
                } else {
                    Ok(Carried { token, place })
                };
            }
        }
        Err(Failure::Missing)
    }

    /// The provider that has this name.
    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.providers.iter().find(|provider| *provider.name == *name)
    }

    /// Headers that may have a token, and have a name that servers may not tell from others.
    pub(super) fn misspelt_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.places.iter().filter_map(|place| match place {
            Place::Header { name, .. } if name.as_str().contains(['-', '_']) => Some(name),
            Place::Header { .. } | Place::Cookie(_) | Place::QueryParameter(_) => None,
        })
    }

    /// Names that are the policy's own: what clients send under them does not count.
    pub fn own_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.providers.iter().flat_map(|provider| provider.to_headers.iter().map(|(name, _)| name))
    }
}

/// What a header has behind the prefix. Other values are somebody else's, such as `Basic`, but not beside a token: who reads the
/// first line, or the last, or all as one, may find something else.
fn in_header(request: &impl Request, name: &HeaderName, prefix: &str) -> Result<Option<Vec<u8>>, Failure> {
    let mut found = None;
    let (mut several, mut lines) = (false, 0);
    request.each_header(name, &mut |value| {
        lines += 1;
        let value = value.trim_ascii();
        let Some((start, token)) = value.split_at_checked(prefix.len()) else { return };
        if start.eq_ignore_ascii_case(prefix.as_bytes()) {
            several |= found.is_some();
            found = Some(copied(token));
        }
    });
    if several {
        return Err(Failure::Several);
    }
    match found.filter(|token| !token.is_empty()) {
        Some(_) if lines > 1 => Err(Failure::SeveralLines),
        found => Ok(found),
    }
}

/// The value of a cookie. Some servers do not mind blanks around its name, so they are not minded here.
fn in_cookie(request: &impl Request, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let (mut found, mut several) = (None, false);
    request.each_header(&http::header::COOKIE, &mut |line| {
        for pair in line.split(|byte| *byte == b';') {
            let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            if pair[..end].trim_ascii() == name.as_bytes() {
                several |= found.is_some();
                found = Some(copied(pair.get(end + 1..).unwrap_or_default()));
            }
        }
    });
    if several { Err(Failure::Several) } else { Ok(found.filter(|token| !token.is_empty())) }
}

fn in_query<'r>(request: &'r impl Request, name: &str) -> Result<Option<Cow<'r, [u8]>>, Failure> {
    let mut all = request.query_parameters(name);
    let found = all.next();
    if all.next().is_some() { Err(Failure::Several) } else { Ok(found.filter(|token| !token.is_empty())) }
}

/// Beyond what is looked at nothing is copied.
fn copied(token: &[u8]) -> Vec<u8> {
    token[..token.len().min(MAX_TOKEN + 1)].trim_ascii().to_vec()
}
