//! An issuer for tests: keys, sets of them, and tokens that are signed with them.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa::PublicKeyComponents,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RsaKeyPair,
    },
};
use serde_json::{Value, json};

use super::{Jwt, Keys, Number, OnNoKeys, Place, Provider, Slot, Source};

/// Made for these tests with openssl; it is no secret.
const RSA: &[u8] = include_bytes!("rsa2048.pk8");

pub(crate) const NOW: u64 = 1_800_000_000;

/// A key that signs.
pub(crate) enum Signer {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub(crate) fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(RSA).unwrap())
    }

    pub(crate) fn p256() -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    pub(crate) fn p384() -> Self {
        let (algorithm, random) = (&ECDSA_P384_SHA384_FIXED_SIGNING, SystemRandom::new());
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self::P384(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap())
    }

    pub(crate) fn ed25519() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    /// The usual algorithm of its kind.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    /// Its public half as a JWK, with what else it is to say.
    #[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
    pub(crate) fn jwk(&self, more: Value) -> Value {
        let ec = |curve: &str, pair: &EcdsaKeyPair| {
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)})
        };
        let mut jwk = match self {
            Self::Rsa(pair) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": base64url(n), "e": base64url(e)})
            }
            Self::P256(pair) => ec("P-256", pair),
            Self::P384(pair) => ec("P-384", pair),
            Self::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key())})
            }
        };
        for (name, value) in more.as_object().into_iter().flatten() {
            jwk[name] = value.clone();
        }
        jwk
    }

    pub(crate) fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let padding: &'static dyn signature::RsaEncoding = match algorithm {
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, message, &mut out).unwrap();
                out
            }
            Self::P256(pair) | Self::P384(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header and these claims.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let algorithm = header["alg"].as_str().unwrap_or_default();
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", base64url(signature))
    }

    /// A token that is good for an hour, but for what is to be otherwise.
    pub(crate) fn good(&self, more: Value) -> String {
        self.token(&json!({"alg": self.algorithm(), "typ": "JWT"}), &claims(more))
    }
}

/// The claims of a token that is good for an hour, but for what is to be otherwise; null takes one out.
#[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
pub(crate) fn claims(more: Value) -> Value {
    let mut claims =
        json!({"iss": "https://login.example.com/", "aud": "orders", "sub": "ann", "exp": NOW + 3600});
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    if let Some(claims) = claims.as_object_mut() {
        claims.retain(|_, value| !value.is_null());
    }
    claims
}

pub(crate) fn set(keys: &[Value]) -> Arc<Keys> {
    Arc::new(Keys::read(json!({"keys": keys}).to_string().as_bytes()).unwrap())
}

pub(crate) fn provider(name: &str, issuer: &str, keys: Arc<Keys>) -> Provider {
    Provider {
        name: name.into(),
        issuer: issuer.into(),
        audiences: vec!["orders".into()],
        skew: 60,
        source: Source::Inline(keys.clone()),
        on_no_keys: OnNoKeys::Deny,
        to_headers: Vec::new(),
        keys: Slot::of(keys),
    }
}

/// A policy with one provider.
pub(crate) fn jwt(keys: &[Value]) -> Jwt {
    of(vec![provider("login", "https://login.example.com/", set(keys))])
}

pub(crate) fn of(providers: Vec<Provider>) -> Jwt {
    Jwt {
        providers: providers.into_iter().map(Arc::new).collect(),
        places: vec![Place::Header { name: http::header::AUTHORIZATION, prefix: "Bearer ".into() }],
        forward: true,
        number: Number::default(),
    }
}
