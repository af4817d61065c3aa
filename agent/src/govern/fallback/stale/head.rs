//! What an answer's head says about keeping it.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};

use crate::govern::headers;

/// The head of an answer that may be kept.
#[derive(Debug)]
pub(super) struct Head {
    /// Of all hops.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's headers that the answer depends on, sorted.
    pub(super) vary: Box<[HeaderName]>,
    /// `content-length`.
    pub(super) length: Option<u64>,
    /// `age`.
    pub(super) age: Duration,
}

/// `Cache-Control` directives that forbid to store an answer, or to give it out when it is stale (RFC 9111, section
/// 4.2.4; `s-maxage` implies `proxy-revalidate`, section 5.2.2.10).
const FORBIDDING: [&[u8]; 6] =
    [b"no-store", b"private", b"no-cache", b"must-revalidate", b"proxy-revalidate", b"s-maxage"];

impl Head {
    /// `None`: the answer must not be kept.
    pub(super) fn read<'a>(headers: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Self> {
        let mut kept = Vec::new();
        let mut vary = Vec::new();
        let mut dropped = Vec::new();
        let mut length = None;
        let mut age = Duration::ZERO;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name).ok()?;
            match name {
                // A cookie is for one user; trailers would be lost.
                header::SET_COOKIE | header::TRAILER => return None,
                header::CACHE_CONTROL if directives(value).any(is_forbidding) => return None,
                // HTTP/1.0's way to say `no-cache`, where nobody says it better.
                header::PRAGMA if directives(value).any(|it| it.eq_ignore_ascii_case(b"no-cache")) => {
                    return None;
                }
                header::VARY => {
                    for element in elements(value) {
                        // `*`, or what cannot be looked up: another request may well get another answer.
                        vary.push(HeaderName::from_bytes(element).ok().filter(|_| element != b"*")?);
                    }
                }
                header::CONTENT_ENCODING => vary.push(header::ACCEPT_ENCODING),
                header::CONNECTION => {
                    dropped.extend(elements(value).filter_map(|it| HeaderName::from_bytes(it).ok()));
                }
                header::CONTENT_LENGTH => {
                    length = Some(number(value)?);
                    continue;
                }
                header::AGE => {
                    age = Duration::from_secs(number(value).unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            if headers::may_be_kept(name.as_str().as_bytes()) {
                kept.push((name, HeaderValue::from_bytes(value).ok()?));
            }
        }
        kept.retain(|(name, _)| !dropped.contains(name));
        vary.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        vary.dedup();
        Some(Self { headers: kept, vary: vary.into_boxed_slice(), length, age })
    }

    /// How much memory it takes, in bytes.
    pub(super) fn size(&self) -> u64 {
        let entry = size_of::<(HeaderName, HeaderValue)>();
        let headers = self.headers.iter().map(|(name, value)| entry + name.as_str().len() + value.len());
        let vary = self.vary.iter().map(|name| size_of::<HeaderName>() + name.as_str().len());
        headers.chain(vary).sum::<usize>() as u64
    }
}

/// The names of the directives in a line of `Cache-Control`, without their arguments.
pub(super) fn directives(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    elements(line).map(|element| {
        let end = element.iter().position(|byte| *byte == b'=').unwrap_or(element.len());
        element[..end].trim_ascii()
    })
}

fn is_forbidding(directive: &[u8]) -> bool {
    FORBIDDING.iter().any(|forbidding| forbidding.eq_ignore_ascii_case(directive))
}

/// The elements of a list. A comma within quotes splits one too: then a name in quotes, as in `no-cache="a, private"`, is
/// taken for a directive, which only ever keeps less.
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn number(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // What is too large to count is large.
    Some(str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&str, &str)]) -> Option<Head> {
        Head::read(lines.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    #[test]
    fn what_must_not_be_shared_or_given_out_stale_is_not_kept() {
        for (name, value) in [
            ("cache-control", "no-store"),
            ("Cache-Control", "max-age=60, No-Store"),
            ("cache-control", "private"),
            ("cache-control", "private=\"x-user\""),
            ("cache-control", "public,no-cache"),
            ("cache-control", "no-cache=\"set-cookie\""),
            ("cache-control", "max-age=0,must-revalidate"),
            ("cache-control", "proxy-revalidate"),
            ("cache-control", "s-maxage=60"),
            ("pragma", "no-cache"),
            ("set-cookie", "id=1"),
            ("vary", "*"),
            ("vary", "accept, *"),
            ("vary", "not a name"),
            ("trailer", "x-checksum"),
            ("content-length", "1, 2"),
            ("content-length", "-1"),
        ] {
            assert!(read(&[("x-a", "b"), (name, value)]).is_none(), "{name}: {value}");
        }
        for (name, value) in [
            ("cache-control", "public, max-age=0"),
            ("cache-control", "max-age=60, stale-if-error=600"),
            ("cache-control", "x-private, no-transform"),
            ("cache-control", ""),
            ("pragma", "x"),
            ("vary", "accept"),
            ("expires", "0"),
            ("etag", "\"no-store\""),
        ] {
            assert!(read(&[(name, value)]).is_some(), "{name}: {value}");
        }
    }

    #[test]
    fn only_what_is_meant_for_all_hops_is_kept() {
        let head = read(&[
            ("Content-Type", "text/plain"),
            ("connection", "x-hop, close"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("x-twice", "a"),
            ("x-twice", "b"),
            ("content-length", "7"),
            ("age", "30"),
        ])
        .unwrap();
        let kept: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(kept, [("content-type", "text/plain"), ("x-twice", "a"), ("x-twice", "b")]);
        assert_eq!((head.length, head.age), (Some(7), Duration::from_secs(30)));
    }

    #[test]
    fn what_an_answer_varies_by_is_collected() {
        let head =
            read(&[("vary", "X-B, accept-language"), ("vary", "x-a,x-b"), ("content-encoding", "gzip")])
                .unwrap();
        let names: Vec<_> = head.vary.iter().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept-encoding", "accept-language", "x-a", "x-b"]);
    }

    #[test]
    fn extreme_numbers_are_read() {
        let head = read(&[("age", "99999999999999999999999"), ("content-length", "99999999999999999999999")]);
        let head = head.unwrap();
        assert_eq!((head.length, head.age), (Some(u64::MAX), Duration::from_secs(u64::MAX)));
        assert_eq!(read(&[("age", "soon")]).unwrap().age, Duration::ZERO);
    }
}
