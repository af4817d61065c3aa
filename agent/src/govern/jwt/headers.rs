//! What a verified token changes in a request's headers: claims go into some, and what clients send under those names, or under
//! names that servers take for them, never gets through.

use http::{HeaderName, HeaderValue};

use super::{Jwt, Place, Verified};
use crate::govern::headers::is_taken_for;

/// What is changed in a request's head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderPlan {
    /// Names that are not the client's to send.
    pub own: Vec<HeaderName>,
    /// Headers that tokens are looked for in: a client's line under another spelling could be taken for what was verified.
    pub misspelt: Vec<HeaderName>,
    /// The header that had the token.
    pub token: Option<HeaderName>,
    pub set: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderPlan {
    pub fn is_empty(&self) -> bool {
        self.own.is_empty() && self.misspelt.is_empty() && self.token.is_none() && self.set.is_empty()
    }

    /// Adds what a policy changes, given the token that is good and where it was.
    pub fn add(&mut self, jwt: &Jwt, verified: Option<(&Verified, Option<usize>)>) {
        self.own.extend(jwt.own_headers().cloned());
        self.misspelt.extend(jwt.misspelt_headers().cloned());
        let Some((verified, place)) = verified else { return };
        for (name, path) in &verified.provider.to_headers {
            let value = verified.claims.header_value(path);
            self.set.extend(value.and_then(|value| Some((name.clone(), HeaderValue::try_from(value).ok()?))));
        }
        let place = place.and_then(|place| jwt.places.get(place)).filter(|_| !jwt.forward);
        if let Some(Place::Header { name, .. }) = place {
            self.token = Some(name.clone());
        }
    }

    /// Whether a line that came is not to go on, also where it is only taken for one.
    pub fn removes(&self, name: &[u8]) -> bool {
        let is = |known: &HeaderName| name.eq_ignore_ascii_case(known.as_str().as_bytes());
        let is_taken_for = |known: &HeaderName| is_taken_for(name, known.as_str().as_bytes());
        self.own.iter().any(is_taken_for)
            || (self.misspelt.iter().any(is_taken_for) && !self.misspelt.iter().any(is))
            || self.token.as_ref().is_some_and(is)
    }

    /// The same of a line of the trailers. A token there was never looked at, however its name is spelt.
    pub fn removes_trailer(&self, name: &[u8]) -> bool {
        self.removes(name) || self.misspelt.iter().any(|known| is_taken_for(name, known.as_str().as_bytes()))
    }

    /// Whether trailers would have to be looked at.
    pub fn minds_trailers(&self) -> bool {
        !(self.own.is_empty() && self.misspelt.is_empty())
    }
}
