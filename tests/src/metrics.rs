//! The Prometheus text format, as far as the tests ask: the sum of the series that carry given labels.

use std::collections::BTreeMap;

/// One reading of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: Vec<Series>,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        Self { series: text.lines().filter_map(line).collect() }
    }

    /// The series of `name` that carry all of `labels`.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(key, value)| series.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// The sum over those series; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|series| series.value).sum()
    }
}

fn line(text: &str) -> Option<Series> {
    if text.starts_with('#') {
        return None;
    }
    let (name, labels, value) = match text.split_once('{') {
        Some((name, rest)) => {
            let (labels, value) = parse_labels(rest)?;
            (name, labels, value)
        }
        None => text.split_once(' ').map(|(name, value)| (name, BTreeMap::new(), value))?,
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// What follows the opening brace: the labels, and the text after the closing one.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(value) = rest.strip_prefix('}') {
            return Some((labels, value));
        }
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        loop {
            match characters.next()? {
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => {
                    rest = &after[at + 1..];
                    break;
                }
                (_, other) => value.push(other),
            }
        }
        labels.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_the_series_that_carry_the_labels() {
        let metrics = Metrics::parse(
            "# HELP requests what\n# TYPE requests counter\nrequests{to=\"a\",code=\"2xx\"} 3\n\
             requests{to=\"a\",code=\"5xx\"} 4\nrequests{to=\"say \\\"b\\\", ok}\",code=\"2xx\"} 5\nup 1\n",
        );
        assert!((metrics.sum("requests", &[("to", "a")]) - 7.0).abs() < f64::EPSILON);
        assert!((metrics.sum("requests", &[("to", "say \"b\", ok}")]) - 5.0).abs() < f64::EPSILON);
        assert!((metrics.sum("up", &[]) - 1.0).abs() < f64::EPSILON);
        assert_eq!(metrics.series("requests", &[("code", "2xx")]).count(), 2);
        assert_eq!(metrics.series("absent", &[]).count(), 0);
    }
}
