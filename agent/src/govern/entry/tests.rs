//! Who enters a lane.

use std::collections::BTreeMap;

use http::HeaderName;
use proptest::prelude::*;

use super::{
    super::policy::{Detour, PathMatch, Percentage, RequestMatch, ValueMatch, ValueTest},
    *,
};
use crate::govern::request::tests::Plain;

const CALLER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

fn lane(name: &str, entry: Vec<EntryRule>) -> Arc<Lane> {
    let tag = name.rsplit('/').next().unwrap_or_default().parse().expect("a tag");
    Arc::new(Lane {
        endpoints: Vec::new(),
        name: name.into(),
        tag,
        selector: None,
        fallback: Detour::default(),
        service_fallbacks: BTreeMap::default(),
        priority: 0,
        trusts_incoming_tag: true,
        targets: Vec::new(),
        entry,
    })
}

fn entry(lanes: &[Arc<Lane>]) -> Entry {
    Entry::new(lanes)
}

fn user() -> PercentageKey {
    PercentageKey::Header(HeaderName::from_static("x-user"))
}

fn rule(matches: RequestMatch, share: Option<(f64, PercentageKey)>) -> EntryRule {
    EntryRule { matches, percentage: share.map(|(percent, key)| Percentage { percent, key }) }
}

fn percent(name: &str, percent: f64) -> Arc<Lane> {
    lane(name, vec![rule(RequestMatch::default(), Some((percent, user())))])
}

fn header(name: &'static str, value: &str) -> RequestMatch {
    let test = ValueTest::Is(ValueMatch::Exact(value.to_owned()));
    RequestMatch { headers: vec![(HeaderName::from_static(name), test)], ..RequestMatch::default() }
}

/// A request of which only the user matters.
struct Of(String);

impl Request for Of {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        b"/"
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        (name == "x-user").then_some(self.0.as_bytes())
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        self.header(name).into_iter().for_each(each);
    }
}

/// The lanes of users 0 to 20,000.
fn users(entry: &Entry) -> Vec<Option<String>> {
    (0..20_000).map(|user| of(entry, &format!("user-{user}"))).collect()
}

fn of(entry: &Entry, user: &str) -> Option<String> {
    entry.colour(&Of(user.to_owned()), CALLER).map(|coloured| coloured.tag.to_string())
}

/// The part of `all` that is in this lane, in percent.
fn part(all: &[Option<String>], lane: &str) -> f64 {
    let count = all.iter().filter(|tag| tag.as_deref() == Some(lane)).count();
    count as f64 * 100.0 / all.len() as f64
}

#[test]
fn conditions_colour_and_the_oldest_lane_comes_first() {
    let path = RequestMatch { path: Some(PathMatch::Prefix("/beta".to_owned())), ..RequestMatch::default() };
    let entry = entry(&[
        lane("shop/gray", vec![rule(header("x-beta", "1"), None), rule(path, None)]),
        lane("shop/blue", vec![rule(header("x-user", "ann"), None)]),
    ]);
    let colour = |request: Plain| entry.colour(&request, CALLER).map(|coloured| coloured.tag.to_string());
    assert_eq!(colour(Plain::get("/")), None);
    assert_eq!(colour(Plain::get("/").with("x-beta", "1")).as_deref(), Some("gray"));
    assert_eq!(colour(Plain::get("/beta/x")).as_deref(), Some("gray"), "any rule is enough");
    assert_eq!(colour(Plain::get("/").with("x-user", "ann")).as_deref(), Some("blue"));
    assert_eq!(colour(Plain::get("/beta").with("x-user", "ann")).as_deref(), Some("gray"));
    let both = Plain::get("/beta");
    assert_eq!(entry.colour(&both, CALLER).map(|coloured| &**coloured.lane), Some("shop/gray"));
    assert!(Entry::default().is_empty() && !entry.is_empty());
    assert_eq!(Entry::default().colour(&Plain::get("/"), CALLER), None);
}

#[test]
fn who_asks_for_a_lane_gets_it_whatever_share_another_has() {
    // The older lane takes everybody; the younger one those who ask for it.
    let old = percent("shop/old", 100.0);
    let asked = lane(
        "shop/asked",
        vec![rule(header("x-tester", "1"), None), rule(RequestMatch::default(), Some((10.0, user())))],
    );
    let of = |entry: &Entry, request: Plain| {
        entry.colour(&request, CALLER).map(|coloured| (coloured.tag.to_string(), coloured.rule))
    };
    let both = entry(&[old.clone(), asked.clone()]);
    let tester = || Plain::get("/").with("x-user", "ann").with("x-tester", "1");
    assert_eq!(of(&both, tester()), Some(("asked".to_owned(), 0)));
    assert_eq!(of(&both, Plain::get("/").with("x-user", "ann")), Some(("old".to_owned(), 0)));
    // Of two that ask for the same the older one counts, as before.
    let older = lane("shop/older", vec![rule(header("x-tester", "1"), None)]);
    let three = entry(&[older, old.clone(), asked.clone()]);
    assert_eq!(of(&three, tester()), Some(("older".to_owned(), 0)));
    // A priority goes before both, also before a negative one that was never set.
    let ranked = |priority| Arc::new(Lane { priority, ..(*old).clone() });
    assert_eq!(of(&entry(&[asked.clone(), ranked(1)]), tester()), Some(("old".to_owned(), 0)));
    assert_eq!(of(&entry(&[ranked(-1), asked.clone()]), tester()), Some(("asked".to_owned(), 0)));
    // Shares of the same requests add up in the new order: the lane with the priority has its own first.
    let (low, high) = (percent("shop/low", 60.0), percent("shop/high", 60.0));
    let high = Arc::new(Lane { priority: 5, ..(*high).clone() });
    let all = users(&entry(&[low, high]));
    assert!((part(&all, "high") - 60.0).abs() <= 1.4, "{}", part(&all, "high"));
    assert!((part(&all, "low") - 40.0).abs() <= 1.4, "{}", part(&all, "low"));
}

/// These values are a promise to every user of an upgraded agent: <http://www.isthe.com/chongo/tech/comp/fnv/> for the
/// first two; the rest were computed apart from this code.
#[test]
fn the_hash_never_changes() {
    assert_eq!(fnv1a("".bytes()), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a("foobar".bytes()), 0x8594_4171_f739_67e8);
    assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
    let places = [("shop/gray", "ann"), ("shop/gray", "bob"), ("shop/blue", "ann")]
        .map(|(lane, key)| (place(lane, key.as_bytes()).unwrap() * 1e6) as u32);
    assert_eq!(places, [502_440, 466_242, 3_067]);
    assert_eq!(place("shop/gray", b""), None, "an empty key is nobody's");
}

#[test]
fn a_share_is_as_large_as_it_says() {
    // Four standard deviations of 20,000 draws are 1.4 %; at both ends it is exact.
    for (asked, slack) in [(0.0, 0.0), (0.5, 0.2), (5.0, 0.7), (50.0, 1.4), (99.5, 0.2), (100.0, 0.0)] {
        let all = users(&entry(&[percent("shop/gray", asked)]));
        let got = part(&all, "gray");
        assert!((got - asked).abs() <= slack, "{asked} %: {got}");
    }
}

#[test]
fn without_its_key_a_request_is_in_no_share() {
    let all = |key| entry(&[lane("shop/gray", vec![rule(RequestMatch::default(), Some((100.0, key)))])]);
    let coloured = |entry: &Entry, request: Plain| entry.colour(&request, CALLER).is_some();
    let by_header = all(user());
    assert!(!coloured(&by_header, Plain::get("/")));
    assert!(!coloured(&by_header, Plain::get("/").with("x-user", "")));
    assert!(coloured(&by_header, Plain::get("/").with("x-user", "ann")));
    let by_cookie = all(PercentageKey::Cookie("uid".into()));
    assert!(!coloured(&by_cookie, Plain::get("/").with("cookie", "xuid=1")));
    assert!(coloured(&by_cookie, Plain::get("/").with("cookie", "a=b; uid=1")));
    assert!(coloured(&all(PercentageKey::ClientAddress), Plain::get("/")), "a caller always has an address");
}

#[test]
fn a_key_is_the_same_wherever_it_stands() {
    let by = |key| entry(&[lane("shop/gray", vec![rule(RequestMatch::default(), Some((50.0, key)))])]);
    let (header, cookie, caller) =
        (by(user()), by(PercentageKey::Cookie("uid".into())), by(PercentageKey::ClientAddress));
    for last in 0..=255 {
        let address = IpAddr::from([10, 1, 2, last]);
        let text: &'static str = address.to_string().leak();
        let in_header = header.colour(&Plain::get("/").with("x-user", text), CALLER);
        let line: &'static str = format!("uid={text}").leak();
        let in_cookie = cookie.colour(&Plain::get("/").with("cookie", line), CALLER);
        let IpAddr::V4(v4) = address else { unreachable!() };
        for caller_address in [address, IpAddr::V6(v4.to_ipv6_mapped())] {
            let by_caller = caller.colour(&Plain::get("/"), caller_address);
            assert_eq!((in_header.is_some(), in_header), (in_cookie.is_some(), by_caller), "{address}");
        }
    }
    let everybody = [rule(RequestMatch::default(), Some((100.0, PercentageKey::ClientAddress)))];
    let everybody = entry(&[lane("shop/gray", everybody.into())]);
    let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe".parse().unwrap();
    assert!(everybody.colour(&Plain::get("/"), longest).is_some());
}

#[test]
fn shares_of_the_same_requests_add_up() {
    for (asked, expected) in [
        ([10.0, 10.0, 10.0], [10.0, 10.0, 10.0]),
        ([50.0, 30.0, 20.0], [50.0, 30.0, 20.0]),
        ([60.0, 60.0, 60.0], [60.0, 40.0, 0.0]),
        ([100.0, 50.0, 0.0], [100.0, 0.0, 0.0]),
    ] {
        let names = ["a", "b", "c"];
        let lanes: Vec<_> =
            names.iter().zip(asked).map(|(name, share)| percent(&format!("shop/{name}"), share)).collect();
        let all = users(&entry(&lanes));
        for (name, expected) in names.iter().zip(expected) {
            let got = part(&all, name);
            assert!((got - expected).abs() <= 1.4, "{asked:?}: {name} has {got}");
        }
    }
}

#[test]
fn shares_of_different_requests_do_not_add_up() {
    // Ten percent of what the older lane leaves of everything, which is what the younger lane sees.
    let old = lane("shop/a", vec![rule(header("x-user", "nobody"), Some((90.0, user())))]);
    let all = users(&entry(&[old, percent("shop/b", 10.0)]));
    assert!((part(&all, "b") - 10.0).abs() <= 1.4);
    // A lane's own rules are one lane: the wider holds the narrower, and counts for the younger.
    let rules = [20.0, 10.0].map(|share| rule(RequestMatch::default(), Some((share, user()))));
    let all = users(&entry(&[lane("shop/a", rules.into()), percent("shop/b", 40.0)]));
    assert!((part(&all, "a") - 20.0).abs() <= 1.4, "{}", part(&all, "a"));
    assert!((part(&all, "b") - 40.0).abs() <= 1.4, "{}", part(&all, "b"));
}

#[test]
fn lanes_are_independent() {
    let one = users(&entry(&[percent("shop/a", 50.0)]));
    let two = users(&entry(&[percent("shop/b", 50.0)]));
    let both = one.iter().zip(&two).filter(|(a, b)| a.is_some() && b.is_some()).count();
    assert!((both as f64 / 20_000.0 - 0.25).abs() < 0.014, "{both}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Nobody leaves a lane that grows, and nobody but the changed share moves.
    #[test]
    fn a_change_of_a_share_moves_that_much(from in 0.0..100.0f64, to in 0.0..100.0f64) {
        let (less, more) = (from.min(to), from.max(to));
        let (before, after) =
            (users(&entry(&[percent("shop/gray", less)])), users(&entry(&[percent("shop/gray", more)])));
        prop_assert!(before.iter().zip(&after).all(|(before, after)| before.is_none() || after.is_some()));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        prop_assert!((moved as f64 / 200.0 - (more - less)).abs() <= 1.5, "{} moved", moved);
    }

    /// A younger lane never takes from an older one, however it changes.
    #[test]
    fn an_older_lane_does_not_notice_a_younger(
        old in 0.0..100.0f64, young in 0.0..100.0f64, user in ".{0,20}",
    ) {
        let alone = of(&entry(&[percent("shop/a", old)]), &user);
        let both = of(&entry(&[percent("shop/a", old), percent("shop/b", young)]), &user);
        if alone.is_some() {
            prop_assert_eq!(both, alone);
        } else {
            prop_assert_ne!(both.as_deref(), Some("a"));
        }
    }

    /// When an older lane grows, the younger loses what it gives and gets as much from those in no lane.
    #[test]
    fn a_younger_lane_keeps_its_size(old in 0.0..50.0f64, grown in 0.0..50.0f64, young in 1.0..50.0f64) {
        let at = |old| users(&entry(&[percent("shop/a", old), percent("shop/b", young)]));
        let (before, after) = (at(old), at(grown));
        for all in [&before, &after] {
            prop_assert!((part(all, "b") - young).abs() <= 1.5, "{} of {}", part(all, "b"), young);
        }
        if grown >= old {
            let left = before.iter().zip(&after).filter(|(before, after)| before.as_deref() == Some("b") && after.is_none());
            prop_assert_eq!(left.count(), 0, "whoever leaves the younger lane is in the older");
        }
    }
}

#[test]
fn only_lanes_with_entry_rules_distrust_a_tag_that_comes_along() {
    let strict =
        |name: &str, rules| Arc::new(Lane { trusts_incoming_tag: false, ..(*lane(name, rules)).clone() });
    let all = || vec![rule(RequestMatch::default(), None)];
    let tags = |lanes: &[Arc<Lane>]| {
        let entry = entry(lanes);
        entry.untrusted().iter().map(|(tag, lane)| format!("{tag} of {lane}")).collect::<Vec<_>>()
    };
    assert_eq!(tags(&[lane("shop/gray", all())]), [""; 0]);
    assert_eq!(tags(&[strict("shop/gray", vec![])]), [""; 0]);
    assert_eq!(
        tags(&[strict("shop/gray", all()), lane("shop/red", all()), strict("shop/blue", all())]),
        ["blue of shop/blue", "gray of shop/gray"]
    );
}
