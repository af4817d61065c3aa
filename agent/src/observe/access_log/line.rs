//! How a line looks.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use super::Entry;

/// Bytes of a method or a path that are shown. Lines wait in memory to be written, and a caller may send long ones.
const LONGEST: usize = 2048;

/// The fields of a JSON line, in order. Names as in metrics; absent where there is nothing to say.
#[derive(Serialize)]
struct Json<'e> {
    time: String,
    source_namespace: &'e str,
    source_pod: &'e str,
    method: Cow<'e, str>,
    path: Cow<'e, str>,
    protocol: &'e str,
    status: u16,
    service: String,
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
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    duration_ms: f64,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'e str>,
}

impl Entry<'_> {
    pub(super) fn json(&self) -> Vec<u8> {
        let fields = Json {
            time: Timestamp(self.time).to_string(),
            source_namespace: self.source_namespace,
            source_pod: self.source_pod,
            method: String::from_utf8_lossy(cut(self.method)),
            path: String::from_utf8_lossy(cut(self.path)),
            protocol: self.protocol,
            status: self.status,
            service: self.service.to_string(),
            endpoint: self.endpoint,
            lane: self.lane_name(),
            tag: self.tag,
            tag_source: self.tag_source,
            reason: self.reason.map(super::Reason::code),
            rule: self.rule,
            attempts: self.attempts,
            upstream_ms: self.upstream_duration.map(milliseconds),
            duration_ms: milliseconds(self.duration),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            trace_id: self.trace_id.as_ref().map(super::TraceId::as_str),
        };
        let mut line = Vec::with_capacity(512);
        // Strings and numbers into memory: this cannot fail, and an empty line is the least harm if it did.
        if serde_json::to_writer(&mut line, &fields).is_err() {
            line.clear();
        }
        line.push(b'\n');
        line
    }

    pub(super) fn text(&self) -> Vec<u8> {
        let mut line = String::with_capacity(256);
        // Writing to a `String` cannot fail.
        let _ = self.write_text(&mut line);
        line.into_bytes()
    }

    fn write_text(&self, line: &mut String) -> fmt::Result {
        write!(
            line,
            "{} {}/{} \"{} {} {}\" {} {}",
            Timestamp(self.time),
            self.source_namespace,
            self.source_pod,
            Escaped(cut(self.method)),
            Escaped(cut(self.path)),
            self.protocol,
            self.status,
            self.service,
        )?;
        match self.endpoint {
            Some(endpoint) => write!(line, " {endpoint}")?,
            None => line.push_str(" -"),
        }
        write!(line, " lane={}", self.lane_name().unwrap_or("-"))?;
        match (self.tag, self.tag_source) {
            (Some(tag), Some(source)) => write!(line, " tag={tag} from={source}")?,
            _ => line.push_str(" tag=- from=-"),
        }
        write!(line, " reason={} rule=", self.reason.map_or("-", super::Reason::code))?;
        match self.rule {
            Some(rule) => write!(line, "{}", Escaped(cut(rule.as_bytes())))?,
            None => line.push('-'),
        }
        write!(line, " attempts={} upstream=", self.attempts)?;
        match self.upstream_duration {
            Some(duration) => write!(line, "{:.3}ms", milliseconds(duration))?,
            None => line.push('-'),
        }
        writeln!(
            line,
            " {:.3}ms in={} out={} trace={}",
            milliseconds(self.duration),
            self.request_bytes,
            self.response_bytes,
            self.trace_id.as_ref().map_or("-", super::TraceId::as_str),
        )
    }

    /// As in the metrics' label: nothing where no endpoint was chosen.
    fn lane_name(&self) -> Option<&str> {
        self.endpoint.map(|_| self.lane.unwrap_or("baseline"))
    }
}

fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(LONGEST)]
}

/// With a precision of a microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// Bytes from the network as printable ASCII: the rest, quotes and backslashes as `\xNN`, so that no request can
/// fake a line or a terminal sequence.
struct Escaped<'b>(&'b [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            match byte {
                b'"' | b'\\' | 0..=0x1f | 0x7f.. => write!(f, "\\x{byte:02x}")?,
                printable => f.write_char(char::from(*printable))?,
            }
        }
        Ok(())
    }
}

/// A point in time as RFC 3339 in UTC with milliseconds.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock before 1970 is shown as 1970.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            since.subsec_millis(),
        )
    }
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
        ] {
            assert_eq!(Timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
        }
    }
}
