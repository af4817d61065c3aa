//! What header names mean to Sluice: the one place that lists them.
//!
//! Each name has a row and its classes; whoever drops, keeps, refuses or reserves headers asks for a class, so that a name
//! that is added here is known everywhere. Names are compared regardless of case.

use http::HeaderName;

/// About one connection only: never passed on as it came (RFC 9110, section 7.6.1, and what is sent all the same).
const CONNECTION: u8 = 1;
/// Says where a message ends, or whom it is for. HTTP/1 passes it on with the body that it frames; whoever makes a message
/// says it anew.
const FRAMING: u8 = 1 << 1;
/// Between a client and its next proxy: passed on, but not kept for others.
const PROXY: u8 = 1 << 2;
/// Sluice sets it itself in responses that it makes up.
const OWN: u8 = 1 << 3;
/// Every hop needs it: a sender's `Connection: name` does not get it dropped.
const VITAL: u8 = 1 << 4;
/// Has another meaning than that of a tag.
const MEANING: u8 = 1 << 5;

/// About a connection of HTTP/1: a message of HTTP/2 that has it is malformed (RFC 9113, section 8.2.2).
const HTTP1: u8 = 1 << 6;

/// By length, so that a name is compared with a few others only.
const TABLE: [(&str, u8); 25] = [
    ("te", CONNECTION),
    ("sw8", MEANING | VITAL),
    ("host", FRAMING | VITAL),
    ("cookie", MEANING),
    ("expect", MEANING),
    ("server", OWN),
    ("baggage", MEANING | VITAL),
    ("trailer", FRAMING),
    ("upgrade", CONNECTION | HTTP1),
    ("connection", CONNECTION | HTTP1),
    ("keep-alive", CONNECTION | HTTP1),
    ("tracestate", MEANING | VITAL),
    ("traceparent", MEANING | VITAL),
    ("content-type", MEANING | VITAL),
    ("authorization", MEANING | VITAL),
    ("content-length", FRAMING | VITAL),
    ("http2-settings", CONNECTION),
    ("accept-encoding", MEANING),
    ("x-sluice-reason", OWN),
    ("sw8-correlation", MEANING | VITAL),
    ("content-encoding", MEANING),
    ("proxy-connection", CONNECTION | HTTP1),
    ("transfer-encoding", FRAMING | VITAL | HTTP1),
    ("x-sluice-fallback", OWN),
    ("proxy-authenticate", PROXY),
];

const LONGEST: usize = 18;

/// Where in the table the names of each length begin.
const START: [usize; LONGEST + 2] = {
    let mut start = [0; LONGEST + 2];
    let mut row = 0;
    let mut length = 0;
    while length < start.len() {
        while row < TABLE.len() && TABLE[row].0.len() < length {
            row += 1;
        }
        start[length] = row;
        length += 1;
    }
    assert!(row == TABLE.len(), "a name is longer than the longest, or out of order");
    start
};

#[inline]
fn has(name: &[u8], classes: u8) -> bool {
    let (Some(&from), Some(&to)) = (START.get(name.len()), START.get(name.len() + 1)) else { return false };
    // A name has one row, so that those of other classes need not be compared.
    TABLE[from..to].iter().any(|(known, of)| of & classes != 0 && name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether it is about one connection only, and goes no further than it. (What frames a message is not: HTTP/1 passes it on
/// with the body.)
#[inline]
pub fn is_for_one_hop(name: &[u8]) -> bool {
    has(name, CONNECTION)
}

/// Whether it is about a connection of HTTP/1, so that no message of HTTP/2 may have it.
#[inline]
pub fn is_of_http1(name: &[u8]) -> bool {
    has(name, HTTP1)
}

/// Whether a sender may ask for it to be dropped (`Connection: name`): not what frames or addresses the message, since the next
/// hop would then read another message than this one, nor what every hop relies on.
pub fn may_be_dropped(name: &[u8]) -> bool {
    !has(name, VITAL)
}

/// Whether it says where a message ends, or whom it is for.
pub fn frames(name: &[u8]) -> bool {
    has(name, FRAMING)
}

/// The length of the longest of them.
pub const LONGEST_FRAMING: usize = {
    let (mut longest, mut row) = (0, 0);
    while row < TABLE.len() {
        if TABLE[row].1 & FRAMING != 0 && TABLE[row].0.len() > longest {
            longest = TABLE[row].0.len();
        }
        row += 1;
    }
    longest
};

/// Whether it belongs to the response as a whole, so that it may be kept and given to another client.
pub fn may_be_kept(name: &[u8]) -> bool {
    !has(name, CONNECTION | FRAMING | PROXY)
}

/// Whether a policy may set it: not what frames a message or is about a connection, nor what Sluice says itself.
pub fn may_be_set(name: &[u8]) -> bool {
    !has(name, CONNECTION | FRAMING | PROXY | OWN)
}

/// Whether it may be the header that carries a tag.
pub fn may_carry_a_tag(name: &[u8]) -> bool {
    !has(name, CONNECTION | FRAMING | PROXY | OWN | MEANING)
}

/// The names that a policy [must not set](may_be_set), as a list in CEL: `['te', 'host', ...]`.
pub fn reserved_in_cel() -> String {
    in_cel(|name| !may_be_set(name))
}

/// The same of those that mean something else than [a value of somebody's own](may_carry_a_tag).
pub fn meaningful_in_cel() -> String {
    in_cel(|name| !may_carry_a_tag(name))
}

fn in_cel(is: impl Fn(&[u8]) -> bool) -> String {
    let names = TABLE.iter().map(|(name, _)| *name).filter(|name| is(name.as_bytes()));
    format!("[{}]", names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", "))
}

/// Whether servers may take a header for the one with this name: many make no difference between a dash and an underscore (CGI, WSGI,
/// PHP).
pub fn is_taken_for(name: &[u8], known: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == known.len() && name.iter().zip(known).all(|(a, b)| plain(a) == plain(b))
}

/// Whether a line is spelt otherwise than the header for which servers take it.
pub fn is_misspelt(line: &[u8], name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    is_taken_for(line, name) && !line.eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(test: impl Fn(&[u8]) -> bool) -> Vec<&'static str> {
        let mut names: Vec<_> =
            TABLE.iter().map(|(name, _)| *name).filter(|name| test(name.as_bytes())).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_name_with_other_dashes_is_misspelt() {
        let name = HeaderName::from_static("x-mse-tag");
        for (line, misspelt) in [
            ("x-mse-tag", false),
            ("X-Mse-Tag", false),
            ("x_mse-tag", true),
            ("X_MSE_TAG", true),
            ("x-mse-tags", false),
        ] {
            assert_eq!(is_misspelt(line.as_bytes(), &name), misspelt, "{line}");
        }
    }

    /// Spelled out, so that none is lost.
    #[test]
    fn every_class_has_its_names() {
        let connection = ["connection", "http2-settings", "keep-alive", "proxy-connection", "te", "upgrade"];
        assert_eq!(named(is_for_one_hop), connection);
        let http1 = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
        assert_eq!(named(is_of_http1), http1);
        assert_eq!(
            named(|name| !may_be_dropped(name)),
            [
                "authorization",
                "baggage",
                "content-length",
                "content-type",
                "host",
                "sw8",
                "sw8-correlation",
                "traceparent",
                "tracestate",
                "transfer-encoding"
            ]
        );
        assert_eq!(
            named(|name| !may_be_kept(name)),
            [
                "connection",
                "content-length",
                "host",
                "http2-settings",
                "keep-alive",
                "proxy-authenticate",
                "proxy-connection",
                "te",
                "trailer",
                "transfer-encoding",
                "upgrade"
            ]
        );
        assert_eq!(
            named(|name| !may_be_set(name)),
            [
                "connection",
                "content-length",
                "host",
                "http2-settings",
                "keep-alive",
                "proxy-authenticate",
                "proxy-connection",
                "server",
                "te",
                "trailer",
                "transfer-encoding",
                "upgrade",
                "x-sluice-fallback",
                "x-sluice-reason"
            ]
        );
        assert_eq!(named(|name| !may_carry_a_tag(name)).len(), TABLE.len(), "all have a meaning");
        assert_eq!(
            named(|name| may_be_set(name) && !may_carry_a_tag(name)),
            [
                "accept-encoding",
                "authorization",
                "baggage",
                "content-encoding",
                "content-type",
                "cookie",
                "expect",
                "sw8",
                "sw8-correlation",
                "traceparent",
                "tracestate"
            ]
        );
    }

    #[test]
    fn names_are_found_in_any_case_and_others_are_not() {
        for (name, _) in TABLE {
            assert!(!may_carry_a_tag(name.to_uppercase().as_bytes()), "{name}");
            let other = format!("{name}x");
            assert!(may_carry_a_tag(other.as_bytes()) && may_be_kept(&other.as_bytes()[1..]), "{name}");
        }
        for name in ["", "x", "x-mse-tag", "a-header-name-that-is-longer-than-all"] {
            assert!(may_carry_a_tag(name.as_bytes()) && !is_for_one_hop(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_list_in_cel_is_the_same() {
        let cel = reserved_in_cel();
        for (name, _) in TABLE {
            assert_eq!(cel.contains(&format!("'{name}'")), !may_be_set(name.as_bytes()), "{name}");
        }
        assert!(cel.starts_with("['te', ") && cel.ends_with("'proxy-authenticate']"), "{cel}");
    }
}
