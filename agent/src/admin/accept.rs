//! What a scraper takes: the format by `Accept`, the coding by `Accept-Encoding`.
//!
//! Both are lists of ranges with weights, and the most specific range that fits says the weight.
//! <https://www.rfc-editor.org/rfc/rfc9110.html#section-12.5>

use http::{
    HeaderMap, HeaderName,
    header::{ACCEPT, ACCEPT_ENCODING},
};

use crate::observe::metrics::Format;

/// Thousandths, as a weight has no more than three digits.
type Weight = u16;

/// The format that is wanted most. Without a wish, or with none that can be met, it is the text format, as every scraper
/// understands it.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let ranges = entries(headers, ACCEPT);
    let weight = |kind, version| {
        let fits = ranges.iter().filter_map(|entry| Some((entry.specificity(kind, version)?, entry.weight?)));
        fits.max_by_key(|(specificity, _)| *specificity).map_or(0, |(_, weight)| weight)
    };
    let openmetrics = weight(("application", "openmetrics-text"), "1.0.0");
    if openmetrics > weight(("text", "plain"), "0.0.4") { Format::OpenMetrics } else { Format::Text }
}

/// Whether a body is to be packed. Without a wish it is not.
pub(super) fn gzip(headers: &HeaderMap) -> bool {
    let codings = entries(headers, ACCEPT_ENCODING);
    let weight = |names: &[&str]| {
        let named = |entry: &&Entry| names.iter().any(|name| entry.value.eq_ignore_ascii_case(name));
        codings.iter().find(named).and_then(|entry| entry.weight)
    };
    let any = weight(&["*"]);
    let gzip = weight(&["gzip", "x-gzip"]).or(any).unwrap_or(0);
    // As it is, is always all right unless it is said not to be, but it is no wish.
    let identity = weight(&["identity"]).unwrap_or(0);
    gzip > 0 && gzip >= identity
}

/// An element of the list.
struct Entry {
    value: String,
    /// Without the weight. Names are lower case.
    parameters: Vec<(String, String)>,
    /// `None`: it cannot be read, and the entry counts for nothing.
    weight: Option<Weight>,
}

impl Entry {
    fn parse(text: &str) -> Self {
        let mut parts = split(text, ';').into_iter();
        let value = parts.next().unwrap_or_default();
        let (mut parameters, mut weight) = (Vec::new(), Some(1000));
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((&part, ""));
            let (name, value) = (name.trim().to_ascii_lowercase(), unquoted(value.trim()));
            if name == "q" {
                weight = thousandths(&value);
            } else {
                parameters.push((name, value));
            }
        }
        Self { value, parameters, weight }
    }

    /// How much the range says of a type; `None`: it is not in it. Of the parameters only the version tells formats apart.
    fn specificity(&self, (kind, subtype): (&str, &str), version: &str) -> Option<u8> {
        let (its_kind, its_subtype) = self.value.split_once('/')?;
        let level = match (its_kind.trim(), its_subtype.trim()) {
            ("*", "*") => 0,
            (its, "*") if its.eq_ignore_ascii_case(kind) => 1,
            (its, subtypes) if its.eq_ignore_ascii_case(kind) && subtypes.eq_ignore_ascii_case(subtype) => 2,
            _ => return None,
        };
        match self.parameters.iter().find(|(name, _)| name == "version") {
            None => Some(level),
            Some((_, its)) => (its == version).then_some(level + 1),
        }
    }
}

/// The elements of a header, of all lines that have its name. What is not ASCII is none.
fn entries(headers: &HeaderMap, name: HeaderName) -> Vec<Entry> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    let elements = lines.flat_map(|line| split(line, ',')).filter(|element| !element.is_empty());
    elements.map(|element| Entry::parse(&element)).collect()
}

/// At each separator that is not in a quoted string; without the spaces around.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut part, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for character in text.chars() {
        match character {
            '"' if !escaped => quoted = !quoted,
            other if other == separator && !quoted => {
                parts.push(std::mem::take(&mut part).trim().to_owned());
                continue;
            }
            _ => {}
        }
        escaped = quoted && character == '\\' && !escaped;
        part.push(character);
    }
    parts.push(part.trim().to_owned());
    parts
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut escaped = false;
    inner
        .chars()
        .filter(|character| {
            escaped = *character == '\\' && !escaped;
            !escaped
        })
        .collect()
}

/// `0`, `0.5`, `1.000`: at most three digits behind the point.
fn thousandths(text: &str) -> Option<Weight> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    if !matches!(whole, "0" | "1") || digits.len() > 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let weight: Weight = format!("{whole}{digits:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        let values =
            lines.iter().map(|line| (name.clone(), HeaderValue::from_bytes(line.as_bytes()).unwrap()));
        values.collect()
    }

    #[test]
    fn scrapers_get_the_format_that_they_ask_for() {
        // Prometheus 2.42 and 3, the Datadog agent, vmagent, a browser, curl.
        let prometheus2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let text_first =
            "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1";
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";
        for (lines, openmetrics) in [
            (&[][..], false),
            (&[""], false),
            (&[prometheus2], true),
            (&[prometheus3], true),
            (&[text_first], false),
            (&["text/plain;version=0.0.4;q=1,*/*;q=0.1"], false),
            (&[browser], false),
            (&["*/*"], false),
            (&["application/openmetrics-text"], true),
            (&["APPLICATION/OpenMetrics-Text ; Version=1.0.0"], true),
            (&["application/openmetrics-text; version=\"1.0.0\"; charset=\"utf-8, or so\""], true),
            // Another version is another format.
            (&["application/openmetrics-text;version=0.0.1"], false),
            (&["application/openmetrics-text;version=2.0.0, */*;q=0.1"], false),
            // As good as each other: what everybody understands.
            (&["application/openmetrics-text, text/plain"], false),
            (&["application/*;q=0.3, text/*;q=0.2"], true),
            // What is more specific goes before what comes first.
            (
                &[
                    "application/openmetrics-text;q=0.9;version=1.0.0, application/openmetrics-text;q=0, text/plain;q=0.5",
                ],
                true,
            ),
            (&["*/*, application/openmetrics-text;q=0"], false),
            (&["text/plain;q=0, */*;q=0.1"], true),
            // On several lines.
            (&["text/plain;q=0.1", "application/openmetrics-text"], true),
            // Nothing that there is: the text format all the same.
            (&["application/json"], false),
            // What cannot be read counts for nothing.
            (&["application/openmetrics-text;q=2"], false),
            (&["application/openmetrics-text;q=0.1234"], false),
            (&["application/openmetrics-text;q=, ;;,=,/,\"", "text"], false),
            (&["\u{e4}"], false),
        ] {
            let wanted = if openmetrics { Format::OpenMetrics } else { Format::Text };
            assert_eq!(format(&headers(&ACCEPT, lines)), wanted, "{lines:?}");
        }
    }

    #[test]
    fn bodies_are_packed_for_those_who_ask_for_it() {
        for (lines, packed) in [
            (&[][..], false),
            (&[""], false),
            (&["gzip"], true),
            (&["GZIP"], true),
            (&["x-gzip"], true),
            (&["br, zstd, gzip;q=0.1"], true),
            (&["deflate", "gzip"], true),
            (&["gzip;q=0"], false),
            (&["gzip;q=0.000"], false),
            (&["gzip ; q=0.001"], true),
            (&["gzip;q=0.5, identity"], false),
            (&["gzip;q=0.5, identity;q=0.5"], true),
            (&["identity"], false),
            (&["*"], true),
            (&["*;q=0"], false),
            (&["gzip;q=0, *"], false),
            (&["identity;q=0"], false),
            (&["br"], false),
            (&["gzip;q=1.5"], false),
            (&["gzipped"], false),
        ] {
            assert_eq!(gzip(&headers(&ACCEPT_ENCODING, lines)), packed, "{lines:?}");
        }
    }

    #[test]
    fn weights_have_at_most_three_digits() {
        for (text, weight) in [
            ("0", Some(0)),
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("0.", Some(0)),
            ("1.000", Some(1000)),
            ("0.001", Some(1)),
        ] {
            assert_eq!(thousandths(text), weight, "{text}");
        }
        for text in ["", "2", "1.1", "0.0001", "-0", ".5", "0,5", "0x1", "1e0", "00"] {
            assert_eq!(thousandths(text), None, "{text}");
        }
    }
}
