//! How a line looks. Written by hand: with a formatter, a line costs several times as much, and there is one for each request.

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::Entry;

impl Entry<'_> {
    /// An object with the names that metrics have; what there is nothing to say of is not in it.
    pub(super) fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":\"");
        out.extend_from_slice(&timestamp(self.time));
        out.push(b'"');
        let mut json = Json(out);
        json.text("source_namespace", self.source_namespace.as_bytes());
        json.text("source_pod", self.source_pod.as_bytes());
        json.text("method", self.method);
        json.text("path", self.path);
        json.text("protocol", self.protocol.as_bytes());
        json.number("status", self.status.into());
        if let Some(status) = self.grpc_status {
            json.number("grpc_status", status.into());
        }
        json.key("service");
        json.quoted(|out| self.service(out));
        if let Some(endpoint) = self.endpoint {
            json.key("endpoint");
            json.quoted(|out| socket(out, endpoint));
        }
        let reason = self.reason.map(super::Reason::code);
        for (key, value) in [
            ("lane", self.lane_name()),
            ("tag", self.tag),
            ("tag_source", self.tag_source),
            ("reason", reason),
            ("rule", self.rule),
            ("policy", self.policy),
            ("token", self.token),
            ("route", self.route),
            ("called_service", self.called),
        ] {
            if let Some(value) = value {
                json.text(key, value.as_bytes());
            }
        }
        if let Some(path) = self.called_path {
            json.text("called_path", path);
        }
        json.number("retries", self.retries.into());
        if let Some(duration) = self.upstream_duration {
            json.key("upstream_ms");
            milliseconds(json.0, duration);
        }
        json.key("duration_ms");
        milliseconds(json.0, self.duration);
        json.number("request_bytes", self.request_bytes);
        json.number("response_bytes", self.response_bytes);
        if let Some((trace, span)) = self.trace {
            json.key("trace_id");
            json.quoted(|out| hex(out, trace.get(), 32));
            json.key("span_id");
            json.quoted(|out| hex(out, span.get().into(), 16));
        }
        out.extend_from_slice(b"}\n");
    }

    pub(super) fn text(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&timestamp(self.time));
        out.push(b' ');
        out.extend_from_slice(self.source_namespace.as_bytes());
        out.push(b'/');
        out.extend_from_slice(self.source_pod.as_bytes());
        out.extend_from_slice(b" \"");
        for word in [self.method, self.path] {
            escape(out, word, hexadecimal);
            out.push(b' ');
        }
        out.extend_from_slice(self.protocol.as_bytes());
        out.extend_from_slice(b"\" ");
        number(out, self.status.into());
        if let Some(status) = self.grpc_status {
            out.push(b'/');
            number(out, status.into());
        }
        out.push(b' ');
        self.service(out);
        out.push(b' ');
        match self.endpoint {
            Some(endpoint) => socket(out, endpoint),
            None => out.push(b'-'),
        }
        for (key, value) in [
            (" lane=", self.lane_name()),
            (" tag=", self.tag),
            (" from=", self.tag_source),
            (" reason=", self.reason.map(super::Reason::code)),
            (" rule=", self.rule),
            (" policy=", self.policy),
        ] {
            out.extend_from_slice(key.as_bytes());
            escape(out, value.unwrap_or("-").as_bytes(), hexadecimal);
        }
        if let Some(token) = self.token {
            out.extend_from_slice(b" token=");
            escape(out, token.as_bytes(), hexadecimal);
        }
        // Only where there are routes: nothing else has a column for them.
        let (route, called) = (self.route.map(str::as_bytes), self.called.map(str::as_bytes));
        for (key, value) in [(" route=\"", route), (" called=\"", called), (" asked=\"", self.called_path)] {
            if let Some(value) = value {
                out.extend_from_slice(key.as_bytes());
                escape(out, value, hexadecimal);
                out.push(b'"');
            }
        }
        out.extend_from_slice(b" retries=");
        number(out, self.retries.into());
        out.extend_from_slice(b" upstream=");
        match self.upstream_duration {
            Some(duration) => {
                milliseconds(out, duration);
                out.extend_from_slice(b"ms ");
            }
            None => out.extend_from_slice(b"- "),
        }
        milliseconds(out, self.duration);
        out.extend_from_slice(b"ms in=");
        number(out, self.request_bytes);
        out.extend_from_slice(b" out=");
        number(out, self.response_bytes);
        match self.trace {
            Some((trace, span)) => {
                out.extend_from_slice(b" trace=");
                hex(out, trace.get(), 32);
                out.extend_from_slice(b" span=");
                hex(out, span.get().into(), 16);
                out.push(b'\n');
            }
            None => out.extend_from_slice(b" trace=- span=-\n"),
        }
    }

    /// As in `orders.shop:8080`.
    fn service(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.service.as_bytes());
        out.push(b'.');
        out.extend_from_slice(self.namespace.as_bytes());
        out.push(b':');
        number(out, self.port.into());
    }

    /// As in the metrics' label: nothing where no endpoint was chosen.
    fn lane_name(&self) -> Option<&str> {
        self.endpoint.map(|_| self.lane.unwrap_or("baseline"))
    }
}

/// An object that has a field already.
struct Json<'o>(&'o mut Vec<u8>);

impl Json<'_> {
    fn key(&mut self, key: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn quoted(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.0.push(b'"');
        write(self.0);
        self.0.push(b'"');
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.quoted(|out| escape(out, value, unicode));
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        number(self.0, value);
    }
}

/// Printable ASCII that means nothing but itself, in both formats.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Bytes from the network as printable ASCII, so that no request can fake a line, or a sequence that terminals obey (some
/// of which are not ASCII).
fn escape(out: &mut Vec<u8>, bytes: &[u8], rare: fn(&mut Vec<u8>, &[u8])) {
    if bytes.iter().all(|byte| is_plain(*byte)) {
        out.extend_from_slice(bytes);
    } else {
        rare(out, bytes);
    }
}

/// What is not plain as `\xNN`.
fn hexadecimal(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        if is_plain(*byte) {
            out.push(*byte);
        } else {
            out.extend_from_slice(b"\\x");
            hex(out, (*byte).into(), 2);
        }
    }
}

/// What is not plain as JSON's `\uNNNN`; bytes that are no text as U+FFFD.
fn unicode(out: &mut Vec<u8>, bytes: &[u8]) {
    for unit in String::from_utf8_lossy(bytes).encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if is_plain(byte) => out.push(byte),
            _ => {
                out.extend_from_slice(b"\\u");
                hex(out, unit.into(), 4);
            }
        }
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    // The longest there is has 20 digits.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn hex(out: &mut Vec<u8>, value: u128, digits: u32) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend((0..digits).rev().map(|index| DIGITS[(value >> (4 * index)) as usize & 15]));
}

/// With a precision of a microsecond.
fn milliseconds(out: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    number(out, micros / 1000);
    let rest = micros % 1000;
    let digit = |number: u64| b'0' + (number % 10) as u8;
    out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
}

fn socket(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            for (index, octet) in address.ip().octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                number(out, octet.into());
            }
            out.push(b':');
            number(out, address.port().into());
        }
        // Into memory: this cannot fail.
        SocketAddr::V6(address) => {
            let _ = write!(out, "{address}");
        }
    }
}

/// A point in time as RFC 3339 in UTC with milliseconds. Written by hand, for it is in every line.
fn timestamp(time: SystemTime) -> [u8; 24] {
    // A clock before 1970 is shown as 1970.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |end: usize, mut number: u64| {
        let mut at = end;
        while number > 0 && at > 0 {
            at -= 1;
            text[at] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(4, year % 10_000);
    put(7, month);
    put(10, day);
    put(13, second / 3600);
    put(16, second / 60 % 60);
    put(19, second % 60);
    put(23, since.subsec_millis().into());
    text
}

/// Year, month and day of a count of days since 1970-01-01.
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_utc() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), *text.as_bytes());
        }
    }
}
