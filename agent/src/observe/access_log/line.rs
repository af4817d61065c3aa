//! How a line looks.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    io::{self, Write},
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use super::Entry;
use crate::observe::trace::context::{SpanId, TraceId};

/// The fields of a JSON line, in order. Names as in metrics; absent where there is nothing to say.
#[derive(Serialize)]
struct Json<'e> {
    time: &'e str,
    source_namespace: &'e str,
    source_pod: &'e str,
    method: Cow<'e, str>,
    path: Cow<'e, str>,
    protocol: &'e str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
    service: Shown<&'e dyn Display>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lane: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag_source: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'e str>,
    retries: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    duration_ms: f64,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Shown<TraceId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<Shown<SpanId>>,
}

/// Written as it displays itself.
struct Shown<D>(D);

impl<D: Display> Serialize for Shown<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// JSON in printable ASCII: terminals obey some characters beyond it too.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let printable = |byte: u8| matches!(byte, b' '..=b'~');
        if fragment.bytes().all(printable) {
            return out.write_all(fragment.as_bytes());
        }
        for unit in fragment.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if printable(byte) => out.write_all(&[byte])?,
                _ => write!(out, "\\u{unit:04x}")?,
            }
        }
        Ok(())
    }
}

impl Entry<'_> {
    pub(super) fn json(&self, out: &mut Vec<u8>) {
        let time = timestamp(self.time);
        let fields = Json {
            time: str::from_utf8(&time).unwrap_or_default(),
            source_namespace: self.source_namespace,
            source_pod: self.source_pod,
            method: String::from_utf8_lossy(self.method),
            path: String::from_utf8_lossy(self.path),
            protocol: self.protocol,
            status: self.status,
            grpc_status: self.grpc_status,
            service: Shown(self.service),
            endpoint: self.endpoint,
            lane: self.lane_name(),
            tag: self.tag,
            tag_source: self.tag_source,
            reason: self.reason.map(super::Reason::code),
            rule: self.rule,
            policy: self.policy,
            retries: self.retries,
            upstream_ms: self.upstream_duration.map(milliseconds),
            duration_ms: milliseconds(self.duration),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            trace_id: self.trace.map(|(trace, _)| Shown(trace)),
            span_id: self.trace.map(|(_, span)| Shown(span)),
        };
        let began = out.len();
        // Strings and numbers into memory: this cannot fail, and an empty line is the least harm if it did.
        if fields.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, Ascii)).is_err() {
            out.truncate(began);
        }
        out.push(b'\n');
    }

    pub(super) fn text(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = self.write_text(out);
    }

    fn write_text(&self, line: &mut Vec<u8>) -> io::Result<()> {
        line.extend_from_slice(&timestamp(self.time));
        write!(
            line,
            " {}/{} \"{} {} {}\" {}",
            self.source_namespace,
            self.source_pod,
            Escaped(self.method),
            Escaped(self.path),
            self.protocol,
            self.status,
        )?;
        if let Some(status) = self.grpc_status {
            write!(line, "/{status}")?;
        }
        write!(line, " {}", self.service)?;
        match self.endpoint {
            Some(endpoint) => write!(line, " {endpoint}")?,
            None => line.extend_from_slice(b" -"),
        }
        write!(line, " lane={}", self.lane_name().unwrap_or("-"))?;
        match (self.tag, self.tag_source) {
            (Some(tag), Some(source)) => write!(line, " tag={tag} from={source}")?,
            _ => line.extend_from_slice(b" tag=- from=-"),
        }
        write!(line, " reason={}", self.reason.map_or("-", super::Reason::code))?;
        for (key, value) in [("rule", self.rule), ("policy", self.policy)] {
            write!(line, " {key}={}", Escaped(value.unwrap_or("-").as_bytes()))?;
        }
        write!(line, " retries={} upstream=", self.retries)?;
        match self.upstream_duration {
            Some(duration) => write!(line, "{:.3}ms", milliseconds(duration))?,
            None => line.push(b'-'),
        }
        write!(
            line,
            " {:.3}ms in={} out={}",
            milliseconds(self.duration),
            self.request_bytes,
            self.response_bytes,
        )?;
        match self.trace {
            Some((trace, span)) => writeln!(line, " trace={trace} span={span}"),
            None => writeln!(line, " trace=- span=-"),
        }
    }

    /// As in the metrics' label: nothing where no endpoint was chosen.
    fn lane_name(&self) -> Option<&str> {
        self.endpoint.map(|_| self.lane.unwrap_or("baseline"))
    }
}

/// With a precision of a microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Bytes from the network as printable ASCII: the rest, quotes and backslashes as `\xNN`, so that no request can
/// fake a line or a terminal sequence.
struct Escaped<'b>(&'b [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'"' | b'\\' | 0..=0x1f | 0x7f.. => write!(f, "\\x{byte:02x}")?,
                printable => fmt::Write::write_char(f, char::from(*printable))?,
            }
        }
        Ok(())
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
