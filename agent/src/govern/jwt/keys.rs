//! Sets of public keys (JWKS, RFC 7517), and verifying signatures with them. The cryptography is ring's, which the agent has for TLS.
//!
//! Of a set only the keys that can verify are kept: those of the wrong kind, for another use or too weak are passed over with a
//! reason, since issuers publish what others need beside what is needed here. A set in which nothing is left is an error.

use std::hash::{Hash, Hasher};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    agreement::{self, EphemeralPrivateKey},
    rand::SystemRandom,
    signature::{self, RsaParameters, UnparsedPublicKey, VerificationAlgorithm},
};
use serde::Deserialize;
use serde_json::Value;

use super::Number;

/// The most keys of a set, and the most bytes that one is written in.
pub const MAX_KEYS: usize = 100;
pub const MAX_BYTES: usize = 256 * 1024;

/// RSA keys have at least so many bits, as RFC 7518 (3.3) asks for, and at most so many, for the time that a signature takes.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// So many keys are tried at most for one token: of P-384, which takes more than ten times what the others do, one.
const fn most_tried(algorithm: Algorithm) -> usize {
    if matches!(algorithm, Algorithm::Es384) { 1 } else { 4 }
}

/// An algorithm that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// What the key of an algorithm is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Algorithm {
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// As `alg` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        // RFC 9864 has a name of its own for the only curve of EdDSA that is known here.
        if name == "Ed25519" {
            return Some(Self::EdDsa);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn scheme(self) -> Scheme {
        match self {
            Self::Rs256 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Scheme::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Scheme::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Scheme::Point(Family::P256, &signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Scheme::Point(Family::P384, &signature::ECDSA_P384_SHA384_FIXED),
            Self::EdDsa => Scheme::Point(Family::Ed25519, &signature::ED25519),
        }
    }

    fn family(self) -> Family {
        match self.scheme() {
            Scheme::Rsa(_) => Family::Rsa,
            Scheme::Point(family, _) => family,
        }
    }
}

/// How the signatures of an algorithm are verified: with which kind of key, and with what of ring.
enum Scheme {
    Rsa(&'static RsaParameters),
    Point(Family, &'static dyn VerificationAlgorithm),
}

/// A set of keys.
#[derive(Debug)]
pub struct Keys {
    usable: Vec<Key>,
    /// What was passed over, and why.
    pub passed_over: Vec<PassedOver>,
    /// Another number for each set that was ever read: what was verified with one counts for no other.
    pub(super) number: Number,
}

impl PartialEq for Keys {
    fn eq(&self, other: &Self) -> bool {
        self.usable == other.usable && self.passed_over == other.passed_over
    }
}

impl Eq for Keys {}

impl Hash for Keys {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.usable.hash(state);
    }
}

/// A key that verifies.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    id: Option<Box<str>>,
    family: Family,
    /// The only algorithm that it is for, if it says so.
    only: Option<Algorithm>,
    /// RSA: modulus and exponent. Others: the point, or the key, as it is.
    material: Material,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Material {
    Rsa { n: Box<[u8]>, e: Box<[u8]> },
    Point(Box<[u8]>),
}

/// A key of a set that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    pub index: usize,
    pub id: Option<Box<str>>,
    pub why: Unfit,
}

/// More keys fit an algorithm than are tried for a token without a key id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untried {
    pub algorithm: Algorithm,
    pub fit: usize,
    pub tried: usize,
}

/// Why a key is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error(
        "it is symmetric (kty oct): whoever can verify with it can sign, so HS256 and the like are never accepted"
    )]
    Symmetric,
    #[error("its kty is none of RSA, EC and OKP")]
    Kind,
    #[error("its crv is none of P-256, P-384 and Ed25519")]
    Curve,
    #[error("it is not for signatures (use is not sig, or key_ops has no verify)")]
    Use,
    #[error("its alg is not accepted, or does not fit its kty")]
    Algorithm,
    #[error("n, e, x or y is missing, or not base64url")]
    Parameter,
    #[error("x and y are no point of its curve")]
    Point,
    #[error("an RSA key has 2048 to 4096 bits, and an exponent that is odd and of at most 33 bits")]
    Weak,
}

/// Why there is no set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    #[error("not JSON: {0}")]
    Json(String),
    #[error("not a JSON Web Key Set: \"keys\" with a list of keys is needed")]
    Shape,
    #[error("it has {0} bytes, and may have {MAX_BYTES}")]
    TooLarge(usize),
    #[error("it has {0} keys, and may have {MAX_KEYS}")]
    TooMany(usize),
    #[error("it has no key")]
    Empty,
    #[error("no key of it can be used: keys[{}]: {}", .0.index, .0.why)]
    NoneFits(PassedOver),
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    public_use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Names in a key that only its owner has (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
const PRIVATE: [&str; 3] = ["d", "p", "k"];

impl Keys {
    /// Reads a set.
    pub fn read(text: &[u8]) -> Result<Self, KeysError> {
        if text.len() > MAX_BYTES {
            return Err(KeysError::TooLarge(text.len()));
        }
        let whole: Value =
            serde_json::from_slice(text).map_err(|error| KeysError::Json(error.to_string()))?;
        let all = whole.get("keys").and_then(Value::as_array).ok_or(KeysError::Shape)?;
        if all.len() > MAX_KEYS {
            return Err(KeysError::TooMany(all.len()));
        }
        let (mut keys, mut passed_over) = (Vec::new(), Vec::new());
        for (index, one) in all.iter().enumerate() {
            match Jwk::deserialize(one).map_err(|_| Unfit::Parameter).and_then(|jwk| Key::of(&jwk)) {
                Ok(key) => keys.push(key),
                Err(why) => {
                    let id = one.get("kid").and_then(Value::as_str).map(Into::into);
                    passed_over.push(PassedOver { index, id, why });
                }
            }
        }
        if keys.is_empty() {
            return Err(passed_over.into_iter().next().map_or(KeysError::Empty, KeysError::NoneFits));
        }
        Ok(Self { usable: keys, passed_over, number: Number::default() })
    }

    /// The first key of a set that holds what is secret.
    pub fn private(text: &[u8]) -> Option<(usize, &'static str)> {
        let whole: Value = serde_json::from_slice(text).ok()?;
        let keys = whole.get("keys")?.as_array()?.iter().enumerate();
        keys.flat_map(|(index, key)| PRIVATE.into_iter().map(move |name| (index, key, name)))
            .find(|(_, key, name)| key.get(name).is_some())
            .map(|(index, _, name)| (index, name))
    }

    pub fn len(&self) -> usize {
        self.usable.len()
    }

    pub fn is_empty(&self) -> bool {
        self.usable.is_empty()
    }

    /// Where a token without a key id may be of a key that is not tried: a key that has no id can be meant by no other token, and more
    /// fit its algorithm than are tried. Of each kind of key the first algorithm is told.
    pub fn untried(&self) -> impl Iterator<Item = Untried> + '_ {
        let mut told = Vec::new();
        Algorithm::ALL.into_iter().filter_map(move |algorithm| {
            let fitting = || self.usable.iter().filter(|key| key.fits(algorithm));
            let (fit, tried) = (fitting().count(), most_tried(algorithm));
            let is_new =
                fit > tried && fitting().any(|key| key.id.is_none()) && !told.contains(&algorithm.family());
            is_new.then(|| {
                told.push(algorithm.family());
                Untried { algorithm, fit, tried }
            })
        })
    }

    /// Whether one of the keys signed this. A key id that is said has to be that of the key; several keys may have one.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Verdict {
        let named = self.usable.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        let mut is_known = false;
        let mut fitting = named.inspect(|_| is_known = true).filter(|key| key.fits(algorithm)).peekable();
        if fitting.peek().is_none() {
            if is_known && id.is_some() {
                return Verdict::Unfit;
            }
            let mut useless = self.passed_over.iter().filter(|key| id.is_some() && key.id.as_deref() == id);
            return useless.next().map_or(Verdict::Unknown, |key| Verdict::PassedOver(key.why));
        }
        let mut tried = fitting.by_ref().take(most_tried(algorithm));
        if tried.any(|key| key.verifies(algorithm, message, signature)) {
            Verdict::Good
        } else if fitting.peek().is_some() {
            Verdict::NotAllTried
        } else if id.is_some() {
            Verdict::Bad
        } else {
            // It may be of a key that has come since.
            Verdict::BadOrUnknown
        }
    }
}

/// What the keys say of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    BadOrUnknown,
    /// It is of none of those that were tried, and more would fit.
    NotAllTried,
    /// The key is for another algorithm.
    Unfit,
    /// The key is in the set, and not used.
    PassedOver(Unfit),
    Unknown,
}

impl Key {
    fn of(jwk: &Jwk) -> Result<Self, Unfit> {
        let curve = jwk.crv.as_deref();
        let family = match &*jwk.kty {
            "RSA" => Family::Rsa,
            "EC" if curve == Some("P-256") => Family::P256,
            "EC" if curve == Some("P-384") => Family::P384,
            "OKP" if curve == Some("Ed25519") => Family::Ed25519,
            "EC" | "OKP" => return Err(Unfit::Curve),
            "oct" => return Err(Unfit::Symmetric),
            _ => return Err(Unfit::Kind),
        };
        let is_for_signatures = jwk.public_use.as_deref().is_none_or(|said| said == "sig")
            && jwk.key_ops.as_ref().is_none_or(|said| said.iter().any(|one| one == "verify"));
        if !is_for_signatures {
            return Err(Unfit::Use);
        }
        let only =
            jwk.alg.as_deref().map(|name| Algorithm::named(name).ok_or(Unfit::Algorithm)).transpose()?;
        if only.is_some_and(|only| only.family() != family) {
            return Err(Unfit::Algorithm);
        }
        let number = |text: &Option<String>| {
            let text = text.as_deref().ok_or(Unfit::Parameter)?;
            URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| Unfit::Parameter)
        };
        let point = |size: usize, parts: [&Option<String>; 2]| -> Result<Material, Unfit> {
            let mut point = vec![4];
            for part in parts {
                let part = number(part)?;
                if part.len() != size {
                    return Err(Unfit::Parameter);
                }
                point.extend_from_slice(&part);
            }
            if is_off_curve(family, &point) { Err(Unfit::Point) } else { Ok(Material::Point(point.into())) }
        };
        let material = match family {
            Family::Rsa => rsa(&number(&jwk.n)?, &number(&jwk.e)?)?,
            Family::P256 => point(32, [&jwk.x, &jwk.y])?,
            Family::P384 => point(48, [&jwk.x, &jwk.y])?,
            Family::Ed25519 => {
                let key = number(&jwk.x)?;
                if key.len() != 32 {
                    return Err(Unfit::Parameter);
                }
                Material::Point(key.into())
            }
        };
        Ok(Self { id: jwk.kid.as_deref().map(Into::into), family, only, material })
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        self.family == algorithm.family() && self.only.is_none_or(|only| only == algorithm)
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, algorithm.scheme()) {
            (Material::Rsa { n, e }, Scheme::Rsa(parameters)) => {
                let key = signature::RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }
            (Material::Point(point), Scheme::Point(family, verification)) if family == self.family => {
                UnparsedPublicKey::new(verification, point).verify(message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// Whether a point is none of its curve. A verification would not tell that from a wrong signature, but to agree on a secret with
/// the owner of such a point fails, whatever the own key is: so what is drawn here decides nothing.
fn is_off_curve(family: Family, point: &[u8]) -> bool {
    let algorithm = match family {
        Family::P256 => &agreement::ECDH_P256,
        Family::P384 => &agreement::ECDH_P384,
        Family::Rsa | Family::Ed25519 => return false,
    };
    EphemeralPrivateKey::generate(algorithm, &SystemRandom::new()).is_ok_and(|own| {
        agreement::agree_ephemeral(own, &agreement::UnparsedPublicKey::new(algorithm, point), |_| ()).is_err()
    })
}

/// A key for RSA, without the zeros that some write before it.
fn rsa(n: &[u8], e: &[u8]) -> Result<Material, Unfit> {
    let plain = |number: &[u8]| -> Box<[u8]> {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        number[zeros..].into()
    };
    let (n, e) = (plain(n), plain(e));
    let bits =
        |number: &[u8]| number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize);
    let odd = e.last().is_some_and(|last| last & 1 == 1);
    if !RSA_BITS.contains(&bits(&n)) || !odd || !(2..=33).contains(&bits(&e)) {
        return Err(Unfit::Weak);
    }
    Ok(Material::Rsa { n, e })
}
