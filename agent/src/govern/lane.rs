//! Which tag a request carries, and whether the two places that carry it onwards must be written.
//!
//! The proxy walks through a request's headers once, showing each to a [`TagScan`]; HTTP/1 shows raw bytes,
//! HTTP/2 the bytes of its header map. The tag of the first that answers counts: a tag header (in the order in
//! which the operator lists them), the W3C `baggage` member, the caller workload's own tag (ARCHITECTURE.md#lanes).
//! Nothing here allocates, but for a baggage value that is percent-encoded.

use http::HeaderName;

use super::{baggage, headers, tag::Tag};

/// The header that carries the tag if nothing else is chosen.
pub const DEFAULT_TAG_HEADER: &str = "x-mse-tag";

/// The W3C header that carries it, too.
pub const BAGGAGE: &str = "baggage";

/// The longest tag, in bytes: that of a Kubernetes label value.
const MAX_TAG: usize = 63;

/// The names under which a request carries its tag.
#[derive(Clone, Debug)]
pub struct TagNames {
    /// Lower case, not empty.
    names: Vec<HeaderName>,
}

/// A header name that cannot carry a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagNamesError {
    #[error("no tag header: at least one name is needed")]
    Empty,
    #[error("`{0}` cannot be a tag header: it has a meaning of its own in HTTP")]
    Reserved(HeaderName),
    #[error("`{0}` is listed twice as a tag header")]
    Twice(HeaderName),
}

impl TagNames {
    /// The first name is the one that is set on forwarded requests, and the key of the baggage member.
    pub fn new(names: &[HeaderName]) -> Result<Self, TagNamesError> {
        if names.is_empty() {
            return Err(TagNamesError::Empty);
        }
        for (index, name) in names.iter().enumerate() {
            if !headers::may_carry_a_tag(name.as_str().as_bytes()) {
                return Err(TagNamesError::Reserved(name.clone()));
            }
            if names[..index].contains(name) {
                return Err(TagNamesError::Twice(name.clone()));
            }
        }
        Ok(Self { names: names.to_vec() })
    }

    /// The header that is set on forwarded requests.
    pub fn header(&self) -> &HeaderName {
        &self.names[0]
    }

    /// The key of the baggage member.
    pub fn baggage_key(&self) -> &str {
        self.names[0].as_str()
    }

    /// Whether `name`, in any case, is the header that is set on forwarded requests.
    pub fn is_header(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.names[0].as_str().as_bytes())
    }

    /// All headers that may say a tag.
    pub fn iter(&self) -> impl Iterator<Item = &HeaderName> {
        self.names.iter()
    }

    /// Whether a header may say a tag, or does.
    pub fn is_listed(&self, name: &HeaderName) -> bool {
        self.names.contains(name) || is_baggage(name.as_str().as_bytes())
    }

    /// The place of `name` in the list: lower answers first.
    fn rank(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|listed| name.eq_ignore_ascii_case(listed.as_str().as_bytes()))
    }
}

/// Whether `name` is the W3C baggage header. <https://www.w3.org/TR/baggage/>
pub fn is_baggage(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(BAGGAGE.as_bytes())
}

/// The tag that a request carries. Like [`Tag`] in syntax, but held in place: a caller may send any tag, so these
/// are neither shared nor kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestTag {
    length: u8,
    bytes: [u8; MAX_TAG],
}

impl RequestTag {
    /// `None` if these bytes are not a tag.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if !Tag::is_valid(bytes) {
            return None;
        }
        let mut tag = Self { length: bytes.len() as u8, bytes: [0; MAX_TAG] };
        tag.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(tag)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub fn as_str(&self) -> &str {
        // A tag is ASCII, so the default is never taken.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl From<&Tag> for RequestTag {
    fn from(tag: &Tag) -> Self {
        // A `Tag` has been checked: the same syntax.
        Self::new(tag.as_str().as_bytes()).unwrap_or(Self { length: 0, bytes: [0; MAX_TAG] })
    }
}

impl std::fmt::Debug for RequestTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestTag({})", self.as_str())
    }
}

/// Who answered the question for the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagSource {
    Header,
    Baggage,
    /// The caller workload's own tag.
    Workload,
    /// An entry rule of a lane.
    Entry,
}

impl TagSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Baggage => "baggage",
            Self::Workload => "workload",
            Self::Entry => "entry",
        }
    }
}

/// What a walk through the headers has found.
#[derive(Debug)]
pub struct TagScan<'n> {
    names: &'n TagNames,
    /// What the headers say is not believed.
    strip: bool,
    /// The best answer of a tag header so far, and its rank.
    header: Option<(usize, RequestTag)>,
    /// The first answer of baggage.
    baggage: Option<RequestTag>,
    /// Occurrences of the header that is set on forwarded requests, valid or not.
    header_seen: u32,
    baggage_seen: u32,
    /// Whether all members with our key say the same as the first.
    baggage_agrees: bool,
    invalid: u32,
}

/// The tag of a request, and what must be done for it to travel on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagging {
    pub tag: Option<RequestTag>,
    /// `None` exactly if `tag` is.
    pub source: Option<TagSource>,
    /// Whatever says a tag is to be taken out of the forwarded request first.
    pub strip: bool,
    /// The forwarded request must get [`TagNames::header`] with the tag, in the place of all it has by that name.
    pub set_header: bool,
    /// The forwarded request's baggage must be edited: [`baggage::set`].
    pub set_baggage: bool,
    /// Values that were ignored because they are no tags.
    pub invalid: u32,
}

impl<'n> TagScan<'n> {
    pub fn new(names: &'n TagNames) -> Self {
        Self {
            names,
            strip: false,
            header: None,
            baggage: None,
            header_seen: 0,
            baggage_seen: 0,
            baggage_agrees: true,
            invalid: 0,
        }
    }

    /// The same for a request from outside: what its headers say of its tag does not count, and does not travel on.
    #[must_use]
    pub fn stripping(mut self, strip: bool) -> Self {
        self.strip = strip;
        self
    }

    /// Shows a header, in the order of the head. Names in any case; values without the white space around them.
    #[inline]
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        if self.strip {
            return;
        }
        if is_baggage(name) {
            self.see_baggage(value);
        } else if let Some(rank) = self.names.rank(name) {
            self.see_header(rank, value);
        }
    }

    fn see_header(&mut self, rank: usize, value: &[u8]) {
        if rank == 0 {
            self.header_seen += 1;
        }
        match RequestTag::new(value.trim_ascii()) {
            // Among several of one name the first wins.
            Some(tag) if self.header.is_none_or(|(best, _)| rank < best) => self.header = Some((rank, tag)),
            Some(_) => {}
            None => self.invalid += 1,
        }
    }

    fn see_baggage(&mut self, value: &[u8]) {
        for member in baggage::values(value, self.names.baggage_key()) {
            self.baggage_seen += 1;
            match (RequestTag::new(&member), self.baggage) {
                (Some(tag), None) => {
                    self.baggage_agrees &= self.baggage_seen == 1;
                    self.baggage = Some(tag);
                }
                (Some(tag), Some(first)) => self.baggage_agrees &= tag == first,
                (None, _) => {
                    self.baggage_agrees = false;
                    self.invalid += 1;
                }
            }
        }
    }

    /// Decides, once all headers have been seen. `caller` is the caller workload's own tag; `entry` asks the entry rules
    /// ([`super::entry`]), if nobody else has an answer.
    pub fn decide(self, caller: Option<&Tag>, entry: impl FnOnce() -> Option<RequestTag>) -> Tagging {
        let answers = [
            (self.header.map(|(_, tag)| tag), TagSource::Header),
            (self.baggage, TagSource::Baggage),
            (caller.map(RequestTag::from), TagSource::Workload),
        ];
        let answer = answers.into_iter().find_map(|(tag, source)| Some((tag?, source)));
        let Some((tag, source)) = answer.or_else(|| Some((entry()?, TagSource::Entry))) else {
            return Tagging {
                tag: None,
                source: None,
                strip: self.strip,
                set_header: false,
                set_baggage: false,
                invalid: self.invalid,
            };
        };
        Tagging {
            tag: Some(tag),
            source: Some(source),
            strip: self.strip,
            set_header: self.header_seen != 1 || self.header != Some((0, tag)),
            set_baggage: !self.baggage_agrees || self.baggage != Some(tag),
            invalid: self.invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> TagNames {
        TagNames::new(&[HeaderName::from_static("x-mse-tag"), HeaderName::from_static("x-lane")])
            .expect("good")
    }

    fn tagging(headers: &[(&str, &str)], caller: Option<&str>) -> Tagging {
        let names = names();
        let mut scan = TagScan::new(&names);
        for (name, value) in headers {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        scan.decide(caller.map(|tag| tag.parse().expect("a tag")).as_ref(), || None)
    }

    /// The tag, its source, whether the header and the baggage must be set, and how many values were invalid.
    fn outcome(
        headers: &[(&str, &str)],
        caller: Option<&str>,
    ) -> (Option<String>, Option<TagSource>, bool, bool, u32) {
        let it = tagging(headers, caller);
        (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.set_header, it.set_baggage, it.invalid)
    }

    #[test]
    fn the_first_that_answers_gives_the_tag() {
        use TagSource::{Baggage, Header, Workload};
        let some = |tag: &str| Some(tag.to_owned());
        for (headers, caller, expected) in [
            (&[][..], None, (None, None, false, false, 0)),
            (&[("accept", "gray")][..], None, (None, None, false, false, 0)),
            (&[], Some("blue"), (some("blue"), Some(Workload), true, true, 0)),
            (&[("X-MSE-Tag", "gray")], Some("blue"), (some("gray"), Some(Header), false, true, 0)),
            (&[("x-mse-tag", " gray\t")], None, (some("gray"), Some(Header), false, true, 0)),
            (
                &[("Baggage", "a=1,x-mse-tag=gray")],
                Some("blue"),
                (some("gray"), Some(Baggage), true, false, 0),
            ),
            // Both carriers there and agreed: nothing to do.
            (
                &[("baggage", "x-mse-tag=gray"), ("x-mse-tag", "gray")],
                None,
                (some("gray"), Some(Header), false, false, 0),
            ),
            // Disagreed: the header counts.
            (
                &[("baggage", "x-mse-tag=red"), ("x-mse-tag", "gray")],
                None,
                (some("gray"), Some(Header), false, true, 0),
            ),
            // The order of the list, not of the head.
            (&[("x-lane", "red"), ("x-mse-tag", "gray")], None, (some("gray"), Some(Header), false, true, 0)),
            // Only another of the list: the first is set.
            (&[("x-lane", "red")], None, (some("red"), Some(Header), true, true, 0)),
            // Twice: the first counts, and one is sent on.
            (
                &[("x-mse-tag", "gray"), ("x-mse-tag", "red")],
                None,
                (some("gray"), Some(Header), true, true, 0),
            ),
            (
                &[("baggage", "x-mse-tag=a"), ("baggage", "x-mse-tag=b")],
                None,
                (some("a"), Some(Baggage), true, true, 0),
            ),
            (&[("baggage", "x-mse-tag=a,x-mse-tag=a")], None, (some("a"), Some(Baggage), true, false, 0)),
            // What is no tag is as if it were not there, and is replaced if there is one.
            (&[("x-mse-tag", "")], None, (None, None, false, false, 1)),
            (&[("x-mse-tag", "a b"), ("baggage", "x-mse-tag=%2C")], None, (None, None, false, false, 2)),
            (&[("x-mse-tag", "-"), ("x-lane", "red")], None, (some("red"), Some(Header), true, true, 1)),
            (&[("x-mse-tag", "-"), ("x-mse-tag", "red")], None, (some("red"), Some(Header), true, true, 1)),
            (&[("baggage", "x-mse-tag=,x-mse-tag=b")], None, (some("b"), Some(Baggage), true, true, 1)),
            (&[("x-mse-tag", "-")], Some("blue"), (some("blue"), Some(Workload), true, true, 1)),
            // Another key of the list is no baggage key.
            (&[("baggage", "x-lane=gray")], None, (None, None, false, false, 0)),
        ] {
            assert_eq!(outcome(headers, caller), expected, "{headers:?} from {caller:?}");
        }
    }

    #[test]
    fn names_with_a_meaning_of_their_own_are_refused() {
        let name = HeaderName::from_static;
        assert_eq!(TagNames::new(&[]).err(), Some(TagNamesError::Empty));
        let error = TagNames::new(&[name("x-a"), name("host")]).expect_err("reserved");
        assert_eq!(error.to_string(), "`host` cannot be a tag header: it has a meaning of its own in HTTP");
        assert_eq!(TagNames::new(&[name("x-a"), name("x-a")]).err(), Some(TagNamesError::Twice(name("x-a"))));
    }

    #[test]
    fn a_request_tag_holds_what_a_tag_holds() {
        let longest = "a".repeat(MAX_TAG);
        for text in ["a", "v1.2_3-x", &longest] {
            let tag: Tag = text.parse().expect("a tag");
            assert_eq!(RequestTag::from(&tag).as_str(), text);
            assert_eq!(RequestTag::new(text.as_bytes()), Some(RequestTag::from(&tag)));
        }
        assert_eq!(RequestTag::new("a".repeat(MAX_TAG + 1).as_bytes()), None);
    }

    fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name =
            prop::sample::select(vec!["x-mse-tag", "X-Mse-Tag", "x-lane", "baggage", "Baggage", "accept"]);
        let value = prop_oneof![
            "[a-z-]{0,4}",
            "(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})(,(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})){0,3}",
            any::<String>(),
        ];
        (name.prop_map(str::to_owned), value.prop_map(String::into_bytes))
    }

    proptest! {
        /// Doing what the decision says makes a request whose tag is the same, from the header, with nothing left
        /// to do: the next hop agrees with this one.
        #[test]
        fn the_next_hop_agrees(headers in prop::collection::vec(header(), 0..6), caller in prop::option::of("[a-z]{1,4}")) {
            let names = names();
            let caller: Option<Tag> = caller.map(|tag| tag.parse().expect("a tag"));
            let mut scan = TagScan::new(&names);
            for (name, value) in &headers {
                scan.see(name.as_bytes(), value);
            }
            let decision = scan.decide(caller.as_ref(), || None);
            let Some(tag) = decision.tag else {
                prop_assert!(!decision.set_header && !decision.set_baggage && caller.is_none());
                return Ok(());
            };
            let mut sent = headers.clone();
            if decision.set_header {
                sent.retain(|(name, _)| !names.is_header(name.as_bytes()));
                sent.push((names.header().to_string(), tag.as_bytes().to_vec()));
            }
            if decision.set_baggage {
                let lines = headers.iter().filter(|(name, _)| is_baggage(name.as_bytes()));
                let edited = baggage::set(lines.map(|(_, value)| value.as_slice()), names.baggage_key(), tag.as_bytes())
                    .expect("there is something to do");
                sent.retain(|(name, _)| !is_baggage(name.as_bytes()));
                sent.push(("baggage".to_owned(), edited));
            }
            let mut scan = TagScan::new(&names);
            for (name, value) in &sent {
                scan.see(name.as_bytes(), value);
            }
            let next = scan.decide(None, || None);
            prop_assert_eq!(next.tag, Some(tag));
            prop_assert_eq!(next.source, Some(TagSource::Header));
            prop_assert!(!next.set_header && !next.set_baggage, "{:?}", next);
        }
    }
}
