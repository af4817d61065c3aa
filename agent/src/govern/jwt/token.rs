//! The check of one token: its form (JWS compact serialisation, RFC 7515), its signature, and what it says of itself.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Claims, Failure, Found, Jwt, MAX_TOKEN, Provider, Verified,
    keys::{Algorithm, Verdict},
};

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// What must be understood; nothing is.
    crit: Option<Value>,
}

/// Checks a token at this time, in seconds since 1970. That changes nothing: a key that is not known is not asked for.
pub fn check(jwt: &Jwt, token: &[u8], now: u64) -> Found {
    match verify(jwt, token, |_| {}) {
        Ok(Found::Valid(verified)) => match verified.at(now) {
            Ok(()) => Found::Valid(verified),
            Err(failure) => Found::Invalid(failure),
        },
        Ok(found) => found,
        Err(failure) => Found::Invalid(failure),
    }
}

/// The same, but for the time: what does not change for as long as the keys do not. `unknown` is told whose keys may be newer than
/// those that are known.
pub(super) fn verify(jwt: &Jwt, token: &[u8], unknown: impl FnOnce(&Provider)) -> Result<Found, Failure> {
    if token.len() > MAX_TOKEN {
        return Err(Failure::TooLarge);
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Failure::Malformed);
    };
    let message = &token[..header.len() + 1 + payload.len()];
    let decoded = |part: &[u8]| URL_SAFE_NO_PAD.decode(part).map_err(|_| Failure::Malformed);
    let header: Header = serde_json::from_slice(&decoded(header)?).map_err(|_| Failure::Malformed)?;
    let Some(algorithm) = Algorithm::named(&header.alg) else { return Err(Failure::Algorithm) };
    if header.crit.is_some() {
        return Err(Failure::Critical);
    }
    let signature = decoded(signature)?;
    // Not believed yet: it says only whose keys are to be asked.
    let claims: Map<String, Value> =
        serde_json::from_slice(&decoded(payload)?).map_err(|_| Failure::Malformed)?;
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(Failure::Issuer)?;
    let provider = jwt.providers.iter().find(|provider| *provider.issuer == *issuer);
    let provider = provider.ok_or(Failure::Issuer)?;
    let Some(keys) = provider.keys.keys() else { return Ok(Found::Unverifiable(provider.clone())) };
    match keys.verify(algorithm, header.kid.as_deref(), message, &signature) {
        Verdict::Good => {}
        Verdict::Bad => return Err(Failure::Signature),
        Verdict::Unfit => return Err(Failure::Algorithm),
        Verdict::BadOrUnknown => {
            unknown(provider);
            return Err(Failure::Signature);
        }
        Verdict::Unknown => {
            unknown(provider);
            return Err(Failure::UnknownKey);
        }
    }
    verified(provider, claims).map(|verified| Found::Valid(Arc::new(verified)))
}

/// What a token says that is signed as it should be.
fn verified(provider: &Arc<Provider>, claims: Map<String, Value>) -> Result<Verified, Failure> {
    let is_for = |audience: &Value| {
        audience.as_str().is_some_and(|said| provider.audiences.iter().any(|one| **one == *said))
    };
    let for_us = match claims.get("aud") {
        Some(Value::Array(all)) => all.iter().any(is_for),
        Some(one) => is_for(one),
        None => false,
    };
    if !for_us {
        return Err(Failure::Audience);
    }
    let expires = time(claims.get("exp"))?.ok_or(Failure::NoExpiry)?;
    let not_before = time(claims.get("nbf"))?;
    Ok(Verified { provider: provider.clone(), claims: Claims(claims), expires, not_before })
}

/// A `NumericDate` (RFC 7519, section 2): seconds, with or without a fraction.
fn time(claim: Option<&Value>) -> Result<Option<u64>, Failure> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => {
            let fraction = || number.as_f64().filter(|seconds| *seconds >= 0.0 && seconds.is_finite());
            // What is larger than any time ends there.
            let seconds = number.as_u64().or_else(|| fraction().map(|seconds| seconds as u64));
            seconds.map(Some).ok_or(Failure::Malformed)
        }
        Some(_) => Err(Failure::Malformed),
    }
}
