//! What a connection speaks, told from its first bytes. Pure.

/// The HTTP/2 connection preface (RFC 9113, section 3.4).
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No first line is looked at for longer than this: it is a request line of a head that would be rejected, or no line.
const LONGEST_LINE: usize = 64 * 1024;

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

/// Classifies the first bytes that a client sent on a port of which nothing is declared.
///
/// HTTP/1 is what has ` HTTP/1.` and a digit at the end of its first line. Methods and targets tell nothing: RTSP, SIP, ICAP,
/// NATS, Redis' inline commands and many others have lines that begin as requests do. So a first line is waited for, unless
/// bytes come before its end that no request line has.
pub(crate) fn classify(bytes: &[u8]) -> Spoken {
    if let Some(spoken) = binary(bytes) {
        return spoken;
    }
    let line = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(feed) = memchr::memchr(b'\n', line) else {
        let possible = bytes.len() < LONGEST_LINE && could_be_request(line);
        return if possible { Spoken::Unclear } else { Spoken::Other };
    };
    let line = &line[..feed];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if could_be_request(line) && ends_as_request(line) && !is_source(line) {
        Spoken::Http1
    } else {
        Spoken::Other
    }
}

/// The same on a port that is declared to speak HTTP: all that is neither TLS nor HTTP/2 is for HTTP/1's reader to accept or
/// to reject.
pub(crate) fn classify_declared(bytes: &[u8]) -> Spoken {
    match binary(bytes) {
        _ if bytes.is_empty() => Spoken::Unclear,
        Some(Spoken::Other) | None => Spoken::Http1,
        Some(spoken) => spoken,
    }
}

/// The same on a port of which nothing is declared, where it matters what is asked for: whatever an obliging server may take for
/// a request is for HTTP/1's reader. That are lines behind empty ones, with tabs or with another version, and those of
/// HTTP/0.9, which have none.
pub(crate) fn classify_guarded(bytes: &[u8]) -> Spoken {
    if let Some(spoken) = binary(bytes) {
        return spoken;
    }
    let bytes = &bytes[..bytes.len().min(LONGEST_LINE)];
    let line = bytes.trim_ascii_start();
    let Some(feed) = memchr::memchr(b'\n', line) else {
        let possible = line.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\t' | b'\r'));
        return match (possible, bytes.len() < LONGEST_LINE) {
            (false, _) => Spoken::Other,
            (true, true) => Spoken::Unclear,
            (true, false) => Spoken::Http1,
        };
    };
    if may_ask(&line[..feed]) { Spoken::Http1 } else { Spoken::Other }
}

/// Whether a server may take a line for that of a request: it names the protocol, or asks a path of it.
fn may_ask(line: &[u8]) -> bool {
    let names = |window: &[u8]| window.eq_ignore_ascii_case(b"HTTP/");
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    let target = line[method..].trim_ascii_start();
    // A scheme before the path goes for one to some servers of HTTP/0.9. Its only method is GET, and in other protocols a key may
    // have a colon (`get user:1`).
    let path = |target: &[u8]| {
        let colon = memchr::memchr(b':', target).filter(|_| line[..method] == *b"GET");
        target.starts_with(b"/") || colon.is_some_and(|at| matches!(target.get(at + 1), Some(b'/' | b'\\')))
    };
    let asks = method > 0 && target.len() < line.len() - method && path(target);
    asks || line.windows(5).any(names)
}

/// Whether these bytes, the first of a server that speaks before its client, are of HTTP/2: every connection of such a
/// server begins with SETTINGS (RFC 9113, section 3.4). Fewer than [`SETTINGS_BYTES`] of them may be.
pub(crate) fn may_be_settings(bytes: &[u8]) -> bool {
    // Three bytes of length, the type, no flags, stream 0.
    let head = bytes.iter().skip(3).take(6);
    head.zip([4, 0, 0, 0, 0, 0]).all(|(byte, wanted)| *byte == wanted)
        && bytes.first().is_none_or(|byte| *byte == 0)
}

/// The head of a frame (RFC 9113, section 4.1).
pub(crate) const SETTINGS_BYTES: usize = 9;

/// What needs no line to be told; `None`: neither TLS nor HTTP/2, nor the beginning of either.
fn binary(bytes: &[u8]) -> Option<Spoken> {
    let first = *bytes.first()?;
    if first == 0x16 {
        // TLS record header: handshake, then the legacy version's major byte.
        return Some(match bytes.get(1) {
            None => Spoken::Unclear,
            Some(3) => Spoken::Tls,
            Some(_) => Spoken::Other,
        });
    }
    let common = bytes.len().min(H2_PREFACE.len());
    if bytes[..common] != H2_PREFACE[..common] {
        return None;
    }
    Some(if common == H2_PREFACE.len() { Spoken::Http2 } else { Spoken::Unclear })
}

/// Whether these bytes, which come before the end of a line, can be the beginning of a request line: a method, a space, and
/// what has no control characters in it.
fn could_be_request(line: &[u8]) -> bool {
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    match line.get(method) {
        None => true,
        // Its carriage return may have come, and its line feed not yet.
        Some(b' ') if method > 0 => {
            let rest = &line[method..];
            let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
            rest.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t')
        }
        Some(_) => false,
    }
}

/// ` HTTP/1.` and a digit.
fn ends_as_request(line: &[u8]) -> bool {
    let version = line.len().checked_sub(b" HTTP/1.1".len()).map(|at| &line[at..]);
    version.is_some_and(|version| version.starts_with(b" HTTP/1.") && version[8].is_ascii_digit())
}

/// The `SOURCE` method is Icecast's: its request looks as HTTP's do, but what follows the head is a stream without framing.
fn is_source(line: &[u8]) -> bool {
    line.starts_with(b"SOURCE ")
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_')
        || matches!(byte, b'`' | b'|' | b'~')
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
            (b"GET /", Spoken::Unclear),
            (b"GET / HTTP/1.1", Spoken::Unclear),
            (b"GET / HTTP/1.1\r", Spoken::Unclear),
            (b"GET / HTTP/1.1\r\n", Spoken::Http1),
            (b"GET / HTTP/1.0\n", Spoken::Http1),
            (b"OPTIONS * HTTP/1.1\r\nHost", Spoken::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Spoken::Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Spoken::Http1),
            (b"get /a b  HTTP/1.1\r\n", Spoken::Http1),
            (b"PRI", Spoken::Unclear),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Spoken::Unclear),
            (H2_PREFACE, Spoken::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\nx", Spoken::Other),
            (b"PRINT / HTTP/1.1\r\n", Spoken::Http1),
            (b"\x16", Spoken::Unclear),
            (b"\x16\x03\x01\x02", Spoken::Tls),
            (b"\x16\x01", Spoken::Other),
            (b"\x00\x00\x00\x4a", Spoken::Other),
            // Text that begins as HTTP does.
            (b"GET /\r\n", Spoken::Other),
            (b"GET / HTTP/2.0\r\n", Spoken::Other),
            (b"GET / HTTP/1.\r\n", Spoken::Other),
            (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Spoken::Other),
            (b"INVITE sip:bob@a SIP/2.0\r\n", Spoken::Other),
            (b"REQMOD icap://a/b ICAP/1.0\r\n", Spoken::Other),
            (b"SOURCE /live ICE/1.0\r\n", Spoken::Other),
            (b"SOURCE /live HTTP/1.0\r\n", Spoken::Other),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n", Spoken::Other),
            (b"\r\n\r\n\0\r\nQUIT\n", Spoken::Other),
            (b"\r\nGET / HTTP/1.1\r\n", Spoken::Other),
            (b"NICK bob\r\n", Spoken::Other),
            (b"EHLO a\r\n", Spoken::Other),
            (b"SUB orders 1\r\n", Spoken::Other),
            (b"CONNECT {\"verbose\":false}\r\n", Spoken::Other),
            (b"GET key\r\n", Spoken::Other),
            (b"DELETE key\r\n", Spoken::Other),
            (b"put 0 0 60 5\r\n", Spoken::Other),
            (b"PING\r\n", Spoken::Other),
            (b"PING\n", Spoken::Other),
            (b"shop.orders.count 5 1700000000\n", Spoken::Other),
            (b"zPING\0", Spoken::Other),
            (b"nPING\n", Spoken::Other),
            (b"*1\r\n$4\r\nPING", Spoken::Other),
            (b"SSH-2.0-OpenSSH\r\n", Spoken::Other),
            (b"JRMI\0\x02K", Spoken::Other),
            (b"GET \0", Spoken::Other),
            (b" GET /", Spoken::Other),
            (b"{\"a\":1}", Spoken::Other),
        ] {
            assert_eq!(classify(bytes), spoken, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(classify(&vec![b'A'; LONGEST_LINE - 1]), Spoken::Unclear);
        assert_eq!(classify(&vec![b'A'; LONGEST_LINE]), Spoken::Other);
    }

    #[test]
    fn what_may_be_a_request_is_one_where_it_matters() {
        for (bytes, spoken) in [
            (&b""[..], Spoken::Unclear),
            (b"\r\n", Spoken::Unclear),
            (b"G", Spoken::Unclear),
            (b"GET / HTTP/1.1\r", Spoken::Unclear),
            (b"GET / HTTP/1.1\r\n", Spoken::Http1),
            (b"\r\nGET / HTTP/1.1\r\n", Spoken::Http1),
            (b"\n\n  get\t/a\thttp/1.1\n", Spoken::Http1),
            (b"GET / HTTP/2.0\r\n", Spoken::Http1),
            (b"GET /actuator\r\n", Spoken::Http1),
            (b"GET a HTTP/1.1\r\n", Spoken::Http1),
            (b"GET x:/actuator\r\n", Spoken::Http1),
            (b"GET x:\\actuator\r\n", Spoken::Http1),
            (b"GET http://a/actuator\r\n", Spoken::Http1),
            (b"GET x:/actuator HTTP/1.1\r\n", Spoken::Http1),
            (b"GET / HTTP/1.1\rHost: a\r\n", Spoken::Http1),
            (H2_PREFACE, Spoken::Http2),
            (b"\x16\x03\x01", Spoken::Tls),
            // What no server of HTTP answers.
            (b"PING\r\n", Spoken::Other),
            (b"GET key\r\n", Spoken::Other),
            (b"GET user:1\r\n", Spoken::Other),
            (b"get http://a/b\r\n", Spoken::Other),
            (b"/a\r\n", Spoken::Other),
            (b"EHLO a\r\n", Spoken::Other),
            (b"*1\r\n$4\r\nPING", Spoken::Other),
            (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Spoken::Other),
            (b"\x00\x00\x00\x4a", Spoken::Other),
            (b"JRMI\0\x02K", Spoken::Other),
        ] {
            assert_eq!(classify_guarded(bytes), spoken, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(classify_guarded(&vec![b'A'; LONGEST_LINE - 1]), Spoken::Unclear);
        assert_eq!(classify_guarded(&vec![b'A'; LONGEST_LINE]), Spoken::Http1);
    }

    #[test]
    fn a_server_of_http2_is_told_by_its_settings() {
        let settings = [0, 0, 18, 4, 0, 0, 0, 0, 0];
        assert_eq!(settings.len(), SETTINGS_BYTES);
        for length in 0..=settings.len() {
            assert!(may_be_settings(&settings[..length]), "{length}");
        }
        for other in [
            &b"220 mail ESMTP"[..],
            b"HTTP/1.1 408 Request Timeout",
            // MySQL's greeting.
            &[0x4a, 0, 0, 0, 10, 0x38],
            // GOAWAY, SETTINGS of a stream, an acknowledgement.
            &[0, 0, 8, 7, 0, 0, 0, 0, 0],
            &[0, 0, 0, 4, 0, 0, 0, 0, 1],
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
        ] {
            assert!(!may_be_settings(other), "{other:?}");
        }
    }

    #[test]
    fn on_a_declared_port_all_else_is_for_the_reader_of_http1() {
        for (bytes, spoken) in [
            (&b"\n"[..], Spoken::Http1),
            (b"\r\nGET / HTTP/1.1", Spoken::Http1),
            (b"GET  / HTTP/1.1", Spoken::Http1),
            (b"get / HTTP/1.1", Spoken::Http1),
            (b"*1\r\n", Spoken::Http1),
            (b"\x00", Spoken::Http1),
            (b"\x16\x01", Spoken::Http1),
            (b"PRINT", Spoken::Http1),
            (b"\x16", Spoken::Unclear),
            (b"\x16\x03\x01", Spoken::Tls),
            (b"PRI * HT", Spoken::Unclear),
            (H2_PREFACE, Spoken::Http2),
        ] {
            assert_eq!(classify_declared(bytes), spoken, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn more_bytes_never_change_a_verdict() {
        for whole in [
            &b"POST /a HTTP/1.1\r\nHost: a\r\n"[..],
            H2_PREFACE,
            b"\x16\x03\x01\x02\x00",
            b"*1\r\n$4\r\nPING\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\rHost: a\r\n",
        ] {
            for classify in [classify, classify_declared, classify_guarded] {
                let verdicts: Vec<_> = (0..=whole.len()).map(|n| classify(&whole[..n])).collect();
                let settled: Vec<_> = verdicts.iter().filter(|v| **v != Spoken::Unclear).collect();
                assert!(settled.windows(2).all(|pair| pair[0] == pair[1]), "{verdicts:?}");
                assert!(!settled.is_empty());
            }
        }
    }
}
