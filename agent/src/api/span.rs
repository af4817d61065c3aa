//! Durations as Kubernetes writes them: `1m30s`, `500ms` (GEP-2257).
//!
//! <https://gateway-api.sigs.k8s.io/geps/gep-2257/>

use std::{borrow::Cow, fmt::Write as _, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::field::{At, quoted};

/// What a duration looks like, as the schema says it.
pub(super) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

const MILLIS_OF: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A duration between `MIN` and `MAX` milliseconds, as it was written. It may be anything until it is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span<const MIN: u64, const MAX: u64>(pub String);

impl<const MIN: u64, const MAX: u64> Span<MIN, MAX> {
    /// What it says. Refused, and as near to it as is allowed, if it makes no sense.
    pub(super) fn check(&self, at: &At<'_>) -> Duration {
        let allowed = || format!("allowed are {} to {}", text(millis(MIN)), text(millis(MAX)));
        let Some(span) = parse(&self.0) else {
            let fraction = if self.0.contains(['.', ',']) { ", which has no fractions" } else { "" };
            let meant = meant(&self.0).map_or_else(String::new, |meant| format!("did you mean {meant:?}? "));
            at.refuse(format!(
                "{} is no duration such as \"1m30s\" or \"500ms\"{fraction}: {meant}{}",
                quoted(&self.0),
                allowed()
            ));
            return millis(MIN);
        };
        if span < millis(MIN) || span > millis(MAX) {
            at.refuse(format!("{} is out of range: {}", quoted(&self.0), allowed()));
        }
        span.clamp(millis(MIN), millis(MAX))
    }
}

impl<const MIN: u64, const MAX: u64> JsonSchema for Span<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Duration{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (min, max) = (text(millis(MIN)), text(millis(MAX)));
        json_schema!({
            "type": "string",
            "maxLength": 28,
            "pattern": PATTERN,
            "x-kubernetes-validations": [{
                "rule": format!("duration(self) >= duration('{min}') && duration(self) <= duration('{max}')"),
                "message": format!("allowed are {min} to {max}"),
            }],
        })
    }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One to four numbers of up to five digits, each with its unit.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = 0;
    for part in 0.. {
        if rest.is_empty() {
            return (1..=4).contains(&part).then(|| millis(sum));
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        if !(1..=5).contains(&digits) || part >= 4 {
            return None;
        }
        let (_, of) = MILLIS_OF.into_iter().find(|(name, _)| *name == unit)?;
        sum += number.parse::<u64>().ok()? * of;
        rest = after;
    }
    None
}

/// What somebody may have meant who wrote a number of seconds without a unit, or a fraction: `5`, `1.5s`.
fn meant(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let of = match unit {
        "" => 1000,
        _ => MILLIS_OF.into_iter().find(|(name, _)| *name == unit)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || number.ends_with('.') || whole.len() > 5 || fraction.len() > 9 {
        return None;
    }
    let part = match fraction {
        "" => 0,
        digits => digits.parse::<u64>().ok()? * of / 10_u64.pow(digits.len() as u32),
    };
    Some(self::text(millis(whole.parse::<u64>().ok()? * of + part)))
}

/// The shortest way to write it; what is below a millisecond is cut off.
pub(super) fn text(span: Duration) -> String {
    let mut rest = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, of) in MILLIS_OF {
        if rest >= of {
            let _ = write!(text, "{}{unit}", rest / of);
            rest %= of;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::field::Errors;

    #[test]
    fn spans_are_those_of_gateway_api() {
        for (text, millis) in [
            ("0s", 0),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1h1m1s1ms", 3_661_001),
            ("10s10m", 610_000),
            ("99999h", 359_996_400_000),
            ("00005s", 5000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "0",
            "1",
            "s",
            "1.5h",
            "-1s",
            "1d",
            "1us",
            "100000s",
            "1s1s1s1s1s",
            "1 s",
            " 1s",
            "1s\n",
            "1S",
            "１s",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn out_of_range_is_refused_and_clamped() {
        let errors = Errors::default();
        let check = |text: &str| Span::<1000, 60_000>(text.to_owned()).check(&errors.at("spec"));
        assert_eq!(check("2s"), Duration::from_secs(2));
        assert_eq!(check("2h"), Duration::from_secs(60));
        assert_eq!(
            errors.end(()).unwrap_err()[0].to_string(),
            "spec: \"2h\" is out of range: allowed are 1s to 1m"
        );
    }

    #[test]
    fn what_was_meant_is_proposed() {
        for (written, proposed) in [
            ("5", Some("5s")),
            ("90", Some("1m30s")),
            ("1.5s", Some("1s500ms")),
            ("1.5", Some("1s500ms")),
            ("0.25s", Some("250ms")),
            ("1.5h", Some("1h30m")),
            ("2.50m", Some("2m30s")),
            ("0.0001s", Some("0s")),
            ("1.9ms", Some("1ms")),
            ("", None),
            (".5s", None),
            ("1.s", None),
            ("1.5.5s", None),
            ("1.5d", None),
            ("123456.5s", None),
            ("1.0000000000s", None),
            ("1,5s", None),
            ("-1s", None),
        ] {
            assert_eq!(meant(written).as_deref(), proposed, "{written:?}");
        }
        let errors = Errors::default();
        Span::<1000, 60_000>("1.5s".to_owned()).check(&errors.at("one"));
        Span::<1000, 60_000>("1,5s".to_owned()).check(&errors.at("other"));
        let said: Vec<_> = errors.end(()).unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "one: \"1.5s\" is no duration such as \"1m30s\" or \"500ms\", which has no fractions: did you mean \"1s500ms\"? \
                 allowed are 1s to 1m",
                "other: \"1,5s\" is no duration such as \"1m30s\" or \"500ms\", which has no fractions: allowed are 1s to 1m",
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_proposed_is_a_duration(text in "[0-9]{0,6}(\\.[0-9]{0,10})?(h|m|s|ms|d|)") {
            if let Some(meant) = meant(&text) {
                prop_assert!(parse(&meant).is_some(), "{} {}", text, meant);
            }
        }

        #[test]
        fn what_is_written_is_read(millis in 0..359_999_999_999_u64) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(parse(&text(span)), Some(span));
        }

        #[test]
        fn whatever_is_read_does_no_harm(text in "\\PC*|([0-9]{0,6}(h|m|s|ms|)){0,5}") {
            let pattern = regex::Regex::new(PATTERN).expect("a pattern");
            prop_assert_eq!(parse(&text).is_some(), pattern.is_match(&text), "{}", text);
        }
    }
}
