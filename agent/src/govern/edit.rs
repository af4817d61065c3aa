//! Editing a request's head: the one place that says what of it is changed on its way, for HTTP/1, HTTP/2 and `explain`.
//!
//! Who sees which head:
//!
//! | the head | is seen by |
//! |---|---|
//! | as it came | the search for the tag ([`super::lane`]), entry rules of lanes ([`super::entry`]), trace contexts |
//! | with its [tag] | everything that a policy says: limits (match and key), what is kept as stale, retries, health check paths |
//! | as it is sent, without what was for one hop only | the endpoint |
//!
//! So a rule about the tag header holds for every request of a lane, whoever gave it its tag.

use http::HeaderName;

use super::{
    baggage,
    lane::{TagNames, Tagging},
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
}

static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Puts a request's tag where the next hop looks for it: in the tag header and in its baggage.
pub fn tag(head: &mut impl Head, names: &TagNames, tagging: &Tagging) {
    let Some(tag) = &tagging.tag else { return };
    if tagging.set_header {
        head.set(names.header(), tag.as_bytes());
    }
    if tagging.set_baggage
        && let Some(edited) = baggage::set(head.get_all(&BAGGAGE), names.baggage_key(), tag.as_bytes())
    {
        head.set(&BAGGAGE, &edited);
    }
}

/// What every implementation of [`Head`] has to do alike.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::govern::lane::TagScan;

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
        tag(&mut head, &names, &scan.decide(None, || None));
        let written: Vec<_> = head
            .0
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
            .collect();
        assert_eq!(written, ["x-a: b", "x-mse-tag: gray", "baggage: a=1,c=2,x-mse-tag=gray"]);
        let mut scan = TagScan::new(&names);
        head.0.iter().for_each(|(name, value)| scan.see(name.as_str().as_bytes(), value));
        let next = scan.decide(None, || None);
        assert!(!next.set_header && !next.set_baggage, "the next hop has nothing to do: {next:?}");
    }
}
