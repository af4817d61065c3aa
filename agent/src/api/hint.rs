//! What somebody who mistyped a word may have meant.

use super::{field::quoted, foreign};

/// How alike two words have to be (Jaro-Winkler, 0 to 1) for one to be proposed in place of the other.
const ALIKE: f64 = 0.8;

/// `there is no such field: did you mean "maxRequests"?`, or which fields there are.
pub(super) fn unknown_field<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    if let Some(meant) = foreign::meant(name, known.clone()) {
        return format!("there is no such field: {meant}");
    }
    match closest(name, known.clone()) {
        Some(closest) => format!("there is no such field: did you mean {closest:?}?"),
        None => format!("there is no such field: allowed are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// `there is no sluice.dev/captur: did you mean sluice.dev/capture?`, or which there are.
pub fn unknown_among(name: &str, known: &[&str]) -> String {
    // The group is the same in all of them, and would make any two alike.
    let key = |name: &str| -> String { name.split_once('/').map_or(name, |(_, key)| key).to_owned() };
    let keys: Vec<String> = known.iter().map(|name| key(name)).collect();
    let meant = closest(&key(name), keys.iter().map(String::as_str));
    let short: String = name.chars().take(80).collect();
    match known.iter().find(|name| meant.is_some_and(|meant| key(name) == meant)) {
        Some(closest) => format!("there is no {short}, so it has no effect: did you mean {closest}?"),
        None => format!("there is no {short}, so it has no effect: allowed are {}", known.join(", ")),
    }
}

/// `"enforce" is not allowed: did you mean "Enforce"? Allowed are "Enforce", "Observe"`
pub fn not_one_of<'a>(value: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let all: Vec<String> = known.clone().map(|value| format!("{value:?}")).collect();
    let meant = closest(value, known).map(|closest| format!("did you mean {closest:?}? "));
    let verb = if all.len() == 1 { "is" } else { "are" };
    format!(
        "{} is not allowed: {}allowed {verb} {}",
        quoted(value),
        meant.unwrap_or_default(),
        all.join(", ")
    )
}

/// The known word that a mistyped one is most like, if it is like one at all.
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    // Long words are not mistyped ones, and cost time.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    // `labels` for `matchLabels`.
    let mut holders = known.clone().filter(|known| word.len() > 3 && known.to_lowercase().contains(&word));
    if let (Some(only), None) = (holders.next(), holders.next()) {
        return Some(only);
    }
    let alike = known.map(|known| (strsim::jaro_winkler(&word, &known.to_lowercase()), known));
    let (alike, closest) = alike.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (alike >= ALIKE).then_some(closest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_proposed() {
        let known = ["maxRequests", "adaptive", "mode"];
        for (word, wanted) in [
            ("maxRequest", Some("maxRequests")),
            ("max_requests", Some("maxRequests")),
            ("maxrequests", Some("maxRequests")),
            ("Mode", Some("mode")),
            ("adpative", Some("adaptive")),
            ("requests", Some("maxRequests")),
            ("burst", None),
            ("", None),
        ] {
            assert_eq!(closest(word, known.into_iter()), wanted, "{word}");
        }
        assert_eq!(
            unknown_field("burst", known.into_iter()),
            "there is no such field: allowed are maxRequests, adaptive, mode"
        );
        assert_eq!(
            not_one_of("observed", ["Enforce", "Observe"].into_iter()),
            "\"observed\" is not allowed: did you mean \"Observe\"? allowed are \"Enforce\", \"Observe\""
        );
    }
}
