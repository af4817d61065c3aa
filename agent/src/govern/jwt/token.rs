//! The check of one token: its form (JWS compact serialisation, RFC 7515), its signature, and what it says of itself.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{
    Claims, Failure, Found, Jwt, MAX_TOKEN, Provider, Verified,
    keys::{Algorithm, Unfit, Verdict},
};

/// JSON, and whether an object in it says something twice, at whatever depth: readers differ in which of the two counts.
struct Read {
    value: Value,
    repeats: bool,
}

impl Read {
    fn of(value: impl Into<Value>) -> Self {
        Self { value: value.into(), repeats: false }
    }
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Read;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Read, E> {
                Ok(Read::of(Value::Null))
            }

            fn visit_bool<E>(self, is: bool) -> Result<Read, E> {
                Ok(Read::of(is))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Read, E> {
                Ok(Read::of(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Read, E> {
                Ok(Read::of(number))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Read, E> {
                Ok(Read::of(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Read, E> {
                Ok(Read::of(text))
            }

            fn visit_string<E>(self, text: String) -> Result<Read, E> {
                Ok(Read::of(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Read, A::Error> {
                let (mut all, mut repeats) = (Vec::new(), false);
                while let Some(item) = items.next_element::<Read>()? {
                    repeats |= item.repeats;
                    all.push(item.value);
                }
                Ok(Read { value: Value::Array(all), repeats })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
                let (mut members, mut repeats) = (Map::new(), false);
                while let Some((name, read)) = map.next_entry::<String, Read>()? {
                    repeats |= read.repeats;
                    repeats |= members.insert(name, read.value).is_some();
                }
                Ok(Read { value: Value::Object(members), repeats })
            }
        }

        deserializer.deserialize_any(Any)
    }
}

fn decoded(part: &[u8]) -> Result<Vec<u8>, Failure> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Failure::Malformed)
}

fn object(part: &[u8]) -> Result<Map<String, Value>, Failure> {
    let Read { value, repeats } = serde_json::from_slice(&decoded(part)?).map_err(|_| Failure::NotJson)?;
    match value {
        Value::Object(_) if repeats => Err(Failure::Repeated),
        Value::Object(members) => Ok(members),
        _ => Err(Failure::NotJson),
    }
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
    let header = object(header)?;
    let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Failure::Header)?;
    let id = match header.get("kid") {
        None | Some(Value::Null) => None,
        Some(id) => Some(id.as_str().ok_or(Failure::Header)?),
    };
    let algorithm = Algorithm::named(algorithm).ok_or_else(|| not_accepted(algorithm))?;
    // It names what must be understood; nothing is.
    if header.contains_key("crit") {
        return Err(Failure::Critical);
    }
    let signature = decoded(signature)?;
    // Not believed yet: it says only whose keys are to be asked.
    let claims = object(payload)?;
    let issuer = claims.get("iss").and_then(Value::as_str).ok_or(Failure::Issuer)?;
    let provider = jwt.providers.iter().find(|provider| *provider.issuer == *issuer);
    let provider = provider.ok_or(Failure::Issuer)?;
    let Some(keys) = provider.keys.keys() else { return Ok(Found::Unverifiable(provider.clone())) };
    match keys.verify(algorithm, id, message, &signature) {
        Verdict::Good => {}
        Verdict::Bad => return Err(Failure::Signature),
        Verdict::Unfit => return Err(Failure::KeyAlgorithm),
        Verdict::PassedOver(why) => {
            // A fit one may have come in its place.
            unknown(provider);
            return Err(match why {
                Unfit::Symmetric | Unfit::Kind => Failure::KeyKind,
                Unfit::Curve => Failure::KeyCurve,
                Unfit::Use | Unfit::Algorithm | Unfit::Parameter | Unfit::Point | Unfit::Weak => {
                    Failure::KeyUnfit
                }
            });
        }
        Verdict::BadOrUnknown => {
            unknown(provider);
            return Err(Failure::Signature);
        }
        Verdict::NotAllTried => {
            if id.is_none() {
                unknown(provider);
            }
            return Err(Failure::NotAllTried);
        }
        Verdict::Unknown => {
            unknown(provider);
            return Err(Failure::UnknownKey);
        }
    }
    verified(provider, claims).map(|verified| Found::Valid(Arc::new(verified)))
}

/// What to say of an algorithm that is none of those that are accepted.
fn not_accepted(name: &str) -> Failure {
    match name {
        // Some readers take any spelling of it, which is why attackers try them.
        _ if name.eq_ignore_ascii_case("none") => Failure::Unsigned,
        "HS256" | "HS384" | "HS512" => Failure::SharedSecret,
        "ES512" | "ES256K" | "Ed448" => Failure::Curve,
        _ => Failure::Algorithm,
    }
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
    // Whole seconds are compared: a token never counts for longer than it says.
    let expires = time(claims.get("exp"), f64::floor)?.ok_or(Failure::NoExpiry)?;
    let not_before = time(claims.get("nbf"), f64::ceil)?;
    Ok(Verified { provider: provider.clone(), claims: Claims(claims), expires, not_before })
}

/// A `NumericDate` (RFC 7519, section 2): seconds, with or without a fraction. What is before 1970 ends there, and what is larger
/// than any time at the largest.
fn time(claim: Option<&Value>, whole: fn(f64) -> f64) -> Result<Option<u64>, Failure> {
    match claim {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => {
            let fraction = || number.as_f64().map(|seconds| whole(seconds) as u64);
            number.as_u64().or_else(fraction).map(Some).ok_or(Failure::Time)
        }
        Some(_) => Err(Failure::Time),
    }
}
