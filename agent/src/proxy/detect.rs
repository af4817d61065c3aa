//! What a connection speaks, told from its first bytes. Pure.

/// The HTTP/2 connection preface (RFC 9113, section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longer method names than this are not taken for HTTP (the longest registered one has 17 letters: `UPDATEREDIRECTREF`).
const LONGEST_METHOD: usize = 24;

/// What the first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// Too few bytes to tell.
    Unclear,
    Http1,
    Http2,
    /// A TLS ClientHello.
    Tls,
    /// Bytes of some other protocol.
    Other,
}

/// Classifies the first bytes that a client sent.
///
/// HTTP/1 is a method (upper-case token characters, as every method in use is), a space, and something that can begin a
/// request target; blank lines before it are allowed as RFC 9112, section 2.2 asks.
pub(crate) fn classify(bytes: &[u8]) -> Spoken {
    let Some(&first) = bytes.first() else { return Spoken::Unclear };
    if first == 0x16 {
        // TLS record header: handshake, then the legacy version's major byte.
        return match bytes.get(1) {
            None => Spoken::Unclear,
            Some(3) => Spoken::Tls,
            Some(_) => Spoken::Other,
        };
    }
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] == H2_PREFACE[..common] {
        // "PRI * HTTP/2.0" is reserved in HTTP/1, so a part of it cannot become anything else but "P..." methods.
        return if common == H2_PREFACE.len() { Spoken::Http2 } else { Spoken::Unclear };
    }
    let line = skip_blank_lines(bytes);
    let method = line.iter().take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')).count();
    if method > LONGEST_METHOD {
        return Spoken::Other;
    }
    match line.get(method) {
        None => Spoken::Unclear,
        Some(b' ') if method > 0 => match line.get(method + 1) {
            None => Spoken::Unclear,
            // origin-form, absolute-form, authority-form or `*`
            Some(b) if b.is_ascii_graphic() => Spoken::Http1,
            Some(_) => Spoken::Other,
        },
        Some(_) => Spoken::Other,
    }
}

fn skip_blank_lines(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    if bytes == b"\r" { &[] } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (bytes, spoken) in [
            (&b""[..], Spoken::Unclear),
            (b"G", Spoken::Unclear),
            (b"GET", Spoken::Unclear),
            (b"GET ", Spoken::Unclear),
            (b"GET /", Spoken::Http1),
            (b"\r\nGET / HTTP/1.1", Spoken::Http1),
            (b"\r", Spoken::Unclear),
            (b"OPTIONS *", Spoken::Http1),
            (b"M-SEARCH *", Spoken::Http1),
            (b"CONNECT a:1", Spoken::Http1),
            (b"GET  /", Spoken::Other),
            (b"get / HTTP/1.1", Spoken::Other),
            (b"PRI", Spoken::Unclear),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Spoken::Unclear),
            (H2_PREFACE, Spoken::Http2),
            (b"PRINT /", Spoken::Http1),
            (b"\x16", Spoken::Unclear),
            (b"\x16\x03\x01\x02", Spoken::Tls),
            (b"\x16\x01", Spoken::Other),
            (b"\x00\x00\x00\x4a", Spoken::Other),
            (b"*1\r\n$4\r\nPING", Spoken::Other),
            (b"SSH-2.0-OpenSSH", Spoken::Other),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Spoken::Other),
        ] {
            assert_eq!(classify(bytes), spoken, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn more_bytes_never_change_a_verdict() {
        for whole in
            [&b"POST /a HTTP/1.1\r\n"[..], H2_PREFACE, b"\x16\x03\x01\x02\x00", b"*1\r\n$4\r\nPING\r\n"]
        {
            let verdicts: Vec<_> = (0..=whole.len()).map(|n| classify(&whole[..n])).collect();
            let settled: Vec<_> = verdicts.iter().filter(|v| **v != Spoken::Unclear).collect();
            assert!(settled.windows(2).all(|pair| pair[0] == pair[1]), "{verdicts:?}");
            assert!(!settled.is_empty());
        }
    }
}
