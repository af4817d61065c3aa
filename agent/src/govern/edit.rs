//! Editing a request's head: the one place that says what of it is changed on its way, for HTTP/1, HTTP/2 and `explain`.
//!
//! Who sees which head:
//!
//! | the head | is seen by |
//! |---|---|
//! | as it came | the search for the tag ([`super::lane`]; not for tags that are [stripped](strip)), entry rules of lanes ([`super::entry`]), trace contexts |
//! | with its [tag](tag()), without what was for one hop only | everything that a policy says: its rules, limits (match and key), what is kept as stale, retries, health check paths |
//! | [changed](modify) as the policy, or the rule that holds, asks for | the endpoint |
//!
//! So a rule about the tag header holds for every request of a lane, whoever gave it its tag; and a rule that takes a header out
//! may limit by it.

use http::HeaderName;

use super::{
    carrier::Carrier,
    lane::{TagNames, Tagging},
    policy::Edits,
};

/// The header lines of a request on its way to an endpoint, in whatever form its protocol has them. Values are given to it
/// without line ends or other control characters.
pub trait Head {
    /// The values of all lines with this name, in their order.
    fn get_all<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]>;

    /// One line in the place of all with this name.
    fn set(&mut self, name: &HeaderName, value: &[u8]) {
        self.remove(name);
        self.add(name, value);
    }

    /// Another line, behind all others.
    fn add(&mut self, name: &HeaderName, value: &[u8]);

    /// Takes out all lines with this name.
    fn remove(&mut self, name: &HeaderName);

    /// Takes out all lines that servers take for ones with this name ([`super::headers::is_misspelt`]) and that are spelt otherwise.
    fn remove_misspelt(&mut self, name: &HeaderName);
}

/// Puts a request's tag where the next hop looks for it: in the tag header and in the [carriers](super::carrier) that it has.
pub fn tag(head: &mut impl Head, names: &TagNames, tagging: &Tagging) {
    if tagging.strip {
        strip(head, names);
    }
    let Some(tag) = &tagging.tag else { return };
    if tagging.set_header {
        head.set(names.header(), tag.as_bytes());
    }
    for carrier in tagging.set.iter() {
        let header = carrier.header();
        if let Some(edited) = carrier.set(head.get_all(header), names.key(), tag.as_bytes()) {
            head.set(header, &edited);
        }
    }
}

/// Takes out all that says what the request's tag is, or says it to the service that passes it on.
pub fn strip(head: &mut impl Head, names: &TagNames) {
    for name in names.iter() {
        head.remove(name);
        head.remove_misspelt(name);
    }
    for carrier in Carrier::ALL {
        let header = carrier.header();
        head.remove_misspelt(header);
        if let Some(edited) = carrier.remove(head.get_all(header), names.key()) {
            head.remove(header);
            if !edited.is_empty() {
                head.add(header, &edited);
            }
        }
    }
}

/// Changes headers as a policy asks for. What carries the tag is not its to change.
pub fn modify(head: &mut impl Head, edits: &Edits, is_kept: impl Fn(&HeaderName) -> bool) {
    let Edits { remove, set, add } = edits;
    for name in remove.iter().filter(|name| !is_kept(name)) {
        head.remove(name);
    }
    for (name, value) in set.iter().filter(|(name, _)| !is_kept(name)) {
        head.set(name, value.as_bytes());
    }
    for (name, value) in add.iter().filter(|(name, _)| !is_kept(name)) {
        head.add(name, value.as_bytes());
    }
}

/// What every implementation of [`Head`] has to do alike.
#[cfg(test)]
pub(crate) mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::govern::{
        headers::is_misspelt,
        lane::{Caused, TagScan},
    };

    /// Goes through a head that has the lines `accept: a`, `x-twice: 1`, `accept: b`, `X-Twice: 2`.
    pub(crate) fn behaves(head: &mut impl Head) {
        let (accept, twice) = (HeaderName::from_static("accept"), HeaderName::from_static("x-twice"));
        let new = HeaderName::from_static("x-new");
        let all = |head: &dyn Fn() -> Vec<Vec<u8>>| head().join(&b","[..]);
        macro_rules! lines {
            ($name:expr) => {
                all(&|| head.get_all($name).map(<[u8]>::to_vec).collect())
            };
        }
        assert_eq!(lines!(&accept), b"a,b");
        assert_eq!(lines!(&twice), b"1,2");
        assert_eq!(lines!(&new), b"");
        head.set(&twice, b"3");
        assert_eq!(lines!(&twice), b"3");
        head.add(&twice, b"4");
        assert_eq!(lines!(&twice), b"3,4");
        head.add(&new, b"5");
        head.set(&new, b"6");
        assert_eq!(lines!(&new), b"6");
        head.remove(&new);
        head.remove(&new);
        assert_eq!(lines!(&new), b"");
        let misspelt = HeaderName::from_static("x_twice");
        head.add(&misspelt, b"8");
        head.remove_misspelt(&accept);
        assert_eq!(lines!(&misspelt), b"8");
        head.remove_misspelt(&twice);
        assert_eq!((lines!(&misspelt), lines!(&twice)), (b"".to_vec(), b"3,4".to_vec()));
        head.remove(&accept);
        head.add(&accept, b"7");
        assert_eq!(lines!(&accept), b"7");
        head.set(&accept, b"");
        assert_eq!((lines!(&accept), lines!(&twice)), (b"".to_vec(), b"3,4".to_vec()));
    }

    /// A head for tests.
    #[derive(Default)]
    struct Plain(Vec<(HeaderName, Vec<u8>)>);

    impl Head for Plain {
        fn get_all<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
            self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_slice())
        }

        fn add(&mut self, name: &HeaderName, value: &[u8]) {
            self.0.push((name.clone(), value.to_vec()));
        }

        fn remove(&mut self, name: &HeaderName) {
            self.0.retain(|(key, _)| key != name);
        }

        fn remove_misspelt(&mut self, name: &HeaderName) {
            self.0.retain(|(key, _)| !is_misspelt(key.as_str().as_bytes(), name));
        }
    }

    #[test]
    fn the_tag_goes_into_both_places_and_nothing_else_changes() {
        let mut plain = Plain::default();
        for (name, value) in [("accept", "a"), ("x-twice", "1"), ("accept", "b"), ("x-twice", "2")] {
            plain.add(&HeaderName::from_static(name), value.as_bytes());
        }
        behaves(&mut plain);

        let names = TagNames::new(&[HeaderName::from_static("x-mse-tag")]).unwrap();
        let mut head = Plain::default();
        for (name, value) in
            [("x-mse-tag", "-"), ("baggage", "a=1"), ("x-a", "b"), ("x-mse-tag", "gray"), ("baggage", "c=2")]
        {
            head.add(&HeaderName::from_static(name), value.as_bytes());
        }
        let mut scan = TagScan::new(&names);
        head.0.iter().for_each(|(name, value)| scan.see(name.as_str().as_bytes(), value));
        tag(&mut head, &names, &scan.decide(Caused::default(), None, || None));
        let written: Vec<_> = head
            .0
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
            .collect();
        assert_eq!(written, ["x-a: b", "x-mse-tag: gray", "baggage: a=1,c=2,x-mse-tag=gray"]);
        let mut scan = TagScan::new(&names);
        head.0.iter().for_each(|(name, value)| scan.see(name.as_str().as_bytes(), value));
        let next = scan.decide(Caused::default(), None, || None);
        assert!(!next.set_header && next.set.is_empty(), "the next hop has nothing to do: {next:?}");
    }

    fn written(head: &Plain) -> Vec<String> {
        let line =
            |(name, value): &(HeaderName, Vec<u8>)| format!("{name}: {}", String::from_utf8_lossy(value));
        head.0.iter().map(line).collect()
    }

    #[test]
    fn a_tag_from_outside_is_taken_out_wherever_it_stands() {
        let names = TagNames::new(&[HeaderName::from_static("x-mse-tag"), HeaderName::from_static("x-lane")])
            .unwrap();
        let mut head = Plain::default();
        for (name, value) in [
            ("x-mse-tag", "gray"),
            ("baggage", "a=1, x-mse-tag=gray;p ,c=2"),
            ("x-a", "b"),
            ("x-lane", "gray"),
            ("x_mse_tag", "gray"),
            ("x_mse-tag", "gray"),
            ("sw8_correlation", "gray"),
            ("baggage", "x-mse-tag=blue"),
        ] {
            head.add(&HeaderName::from_static(name), value.as_bytes());
        }
        let mut others = Plain(head.0.clone());
        strip(&mut head, &names);
        assert_eq!(written(&head), ["x-a: b", "baggage: a=1,c=2"]);
        strip(&mut head, &names);
        assert_eq!(written(&head), ["x-a: b", "baggage: a=1,c=2"], "there is nothing left to take out");
        others.0.retain(|(_, value)| value != b"a=1, x-mse-tag=gray;p ,c=2");
        strip(&mut others, &names);
        assert_eq!(written(&others), ["x-a: b"], "an empty baggage is none");
    }

    #[test]
    fn headers_are_changed_as_asked_but_for_the_tag() {
        let pair = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let names = TagNames::new(&[HeaderName::from_static("x-mse-tag")]).unwrap();
        let edits = Edits {
            remove: ["x-gone", "x-mse-tag", "x-again"].map(HeaderName::from_static).into(),
            set: vec![pair("x-set", "1"), pair("x-mse-tag", "blue")],
            add: vec![pair("x-set", "2"), pair("x-again", "3")],
        };
        let mut head = Plain::default();
        for (name, value) in
            [("x-mse-tag", "gray"), ("x-gone", "a"), ("x-set", "a"), ("x-again", "b"), ("x-set", "b")]
        {
            head.add(&HeaderName::from_static(name), value.as_bytes());
        }
        modify(&mut head, &edits, |name| names.is_listed(name));
        assert_eq!(written(&head), ["x-mse-tag: gray", "x-set: 1", "x-set: 2", "x-again: 3"]);
    }
}
