use proptest::prelude::*;

use super::*;
use crate::govern::request::tests::Plain;

const S: u64 = 1_000_000_000;
const BOUNDS: StaleBounds = StaleBounds { max_age: Duration::from_secs(60), max_bytes: 1 << 20 };

fn store() -> Arc<Store> {
    Arc::new(Store::new(Memory::new(u64::MAX)))
}

fn key(store: &Store, request: &impl Request) -> Key {
    store.key(request, b"shop", None, false, &[]).expect("it may be kept")
}

fn collect(store: &Arc<Store>, request: &Plain, head: &[(&str, &str)], at: u64) -> Option<Collector> {
    let head = head.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    store.collect(key(store, request), BOUNDS, request, 200, head, at)
}

fn keep(store: &Arc<Store>, request: &Plain, head: &[(&str, &str)], body: &str, at: u64) {
    let mut collector = collect(store, request, head, at).expect("it is kept");
    assert!(collector.see(body.as_bytes()));
    collector.finish();
}

fn find(store: &Arc<Store>, request: &Plain, at: u64) -> Option<String> {
    let answer = store.find(key(store, request), BOUNDS, request, at)?;
    Some(String::from_utf8(answer.body.to_vec()).expect("it is text"))
}

#[test]
fn the_last_good_answer_is_found_until_it_is_too_old() {
    let store = store();
    let request = Plain::get("/orders?full");
    assert_eq!(find(&store, &request, 0), None);
    keep(&store, &request, &[("content-type", "text/plain"), ("age", "5")], "one", 0);
    keep(&store, &request, &[("content-type", "text/plain"), ("age", "5")], "two", S);
    assert_eq!(store.answers(), 1);
    let answer = store.find(key(&store, &request), BOUNDS, &request, 61 * S).expect("it is 60 s old");
    assert_eq!(&*answer.body, b"two");
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    assert_eq!(answer.headers, [content_type]);
    assert_eq!(answer.age(61 * S), Duration::from_secs(65));
    assert_eq!(find(&store, &request, 61 * S + 1), None);
    store.trim(Some(BOUNDS), 61 * S);
    assert_eq!(store.answers(), 1);
    store.trim(Some(BOUNDS), 61 * S + 1);
    assert_eq!((store.answers(), store.bytes()), (0, 0));
}

#[test]
fn an_answer_that_came_first_and_ended_last_does_not_replace_a_newer_one() {
    let store = store();
    let request = Plain::get("/");
    let mut slow = collect(&store, &request, &[], 0).expect("it is kept");
    assert!(slow.see(b"old"));
    keep(&store, &request, &[], "new", S);
    slow.finish();
    assert_eq!(find(&store, &request, S).as_deref(), Some("new"));
}

#[test]
fn only_requests_that_can_be_answered_again_have_a_key() {
    let store = store();
    let get = |name, value| Plain::get("/").with(name, value);
    for (request, wanted) in [
        (Plain::get("/"), true),
        (Plain { method: "HEAD", ..Plain::get("/") }, true),
        (Plain { method: "POST", ..Plain::get("/") }, false),
        (Plain { method: "get", ..Plain::get("/") }, false),
        (get("range", "bytes=0-1"), false),
        (get("cache-control", "max-age=0, No-Store"), false),
        (get("cache-control", "no-cache"), true),
        (get("if-none-match", "\"a\""), true),
    ] {
        assert_eq!(
            store.key(&request, b"", None, false, &[]).is_some(),
            wanted,
            "{} {:?}",
            request.method,
            request.headers
        );
    }
    assert_eq!(store.key(&Plain::get("/"), b"", None, true, &[]), None, "the answer may depend on the body");
}

#[test]
fn an_answer_is_for_the_same_request_only() {
    let store = store();
    let gray: Tag = "gray".parse().expect("it is a tag");
    let of = |request: &Plain, authority: &[u8], lane| store.key(request, authority, lane, false, &[]);
    let plain = || Plain::get("/a");
    let same = of(&plain().with("x-request-id", "7"), b"shop", None);
    assert_eq!(same, of(&plain(), b"shop", None));
    let keys = [
        same,
        of(&plain(), b"shop:80", None),
        of(&plain(), b"shop", Some(&gray)),
        of(&Plain::get("/A"), b"shop", None),
        of(&Plain::get("/a?"), b"shop", None),
        of(&Plain { method: "HEAD", ..plain() }, b"shop", None),
        of(&plain().with("authorization", ""), b"shop", None),
        of(&plain().with("authorization", "Bearer a"), b"shop", None),
        of(&plain().with("authorization", "Bearer b"), b"shop", None),
        of(&plain().with("cookie", "a=1"), b"shop", None),
        of(&plain().with("cookie", "a=2"), b"shop", None),
        of(&plain().with("cookie", "a=1").with("cookie", "b=2"), b"shop", None),
        of(&plain().with("cookie", "a=1b=2"), b"shop", None),
        of(&plain().with("authorization", "a=1"), b"shop", None),
    ];
    for (n, key) in keys.iter().enumerate() {
        assert!(key.is_some() && !keys[..n].contains(key), "{n}");
    }
    // Other stores have other secrets.
    assert_ne!(self::store().key(&plain(), b"shop", None, false, &[]), same);
}

#[test]
fn an_answer_is_for_the_same_values_of_what_it_varies_by() {
    let store = store();
    let english = || Plain::get("/").with("accept-language", "en");
    let german = || Plain::get("/").with("accept-language", "de");
    keep(&store, &english(), &[("vary", "accept-language")], "hello", 0);
    assert_eq!(find(&store, &german(), 0), None);
    assert_eq!(find(&store, &Plain::get("/"), 0), None);
    keep(&store, &german(), &[("vary", "Accept-Language")], "hallo", 0);
    assert_eq!(find(&store, &english().with("x-other", "1"), 0).as_deref(), Some("hello"));
    assert_eq!(find(&store, &german(), 0).as_deref(), Some("hallo"));
    // The service comes to vary by something else: the newest that fits is the last good one.
    keep(&store, &german().with("x-plan", "b"), &[("vary", "accept-language, x-plan")], "servus", S);
    assert_eq!(find(&store, &german(), S).as_deref(), Some("hallo"));
    assert_eq!(find(&store, &german().with("x-plan", "b"), S).as_deref(), Some("servus"));
    // An encoding that one caller cannot read.
    let zip = Plain::get("/zip").with("accept-encoding", "gzip");
    keep(&store, &zip, &[("content-encoding", "gzip")], "zipped", 0);
    assert_eq!(find(&store, &zip, 0).as_deref(), Some("zipped"));
    assert_eq!(find(&store, &Plain::get("/zip"), 0), None);
}

#[test]
fn only_whole_good_answers_are_kept() {
    let store = store();
    let request = Plain::get("/");
    for status in [199, 201, 203, 204, 206, 301, 304, 404, 500] {
        let collector = store.collect(key(&store, &request), BOUNDS, &request, status, [].into_iter(), 0);
        assert!(collector.is_none(), "{status}");
    }
    assert!(collect(&store, &request, &[("set-cookie", "a=1")], 0).is_none());
    // Broken off: dropped, or finished too soon.
    let mut collector = collect(&store, &request, &[], 0).expect("it is kept");
    assert!(collector.see(b"half an ans"));
    drop(collector);
    let mut collector = collect(&store, &request, &[("content-length", "6")], 0).expect("it is kept");
    assert!(collector.see(b"short"));
    collector.finish();
    assert_eq!((find(&store, &request, 0), store.bytes()), (None, 0));
    let head = Plain { method: "HEAD", ..Plain::get("/") };
    collect(&store, &head, &[("content-length", "6")], 0).expect("it is kept").finish();
    let answer = store.find(key(&store, &head), BOUNDS, &head, 0).expect("it was kept");
    assert_eq!((answer.head_length, answer.body.len()), (Some(6), 0));
}

#[test]
fn what_is_too_large_is_given_up_as_soon_as_that_is_known() {
    let store = store();
    let request = Plain::get("/");
    assert!(collect(&store, &request, &[("content-length", "1048577")], 0).is_none());
    assert!(collect(&store, &request, &[("content-length", "18446744073709551615")], 0).is_none());
    // Of a service's megabyte the headers take a part.
    let mut collector = collect(&store, &request, &[], 0).expect("nobody knows yet");
    assert!(collector.see(&vec![0; (1 << 20) - OVERHEAD as usize]));
    assert!(!collector.see(&[0]));
    drop(collector);
    // However much a service may keep, no single answer is above a megabyte.
    let wide = StaleBounds { max_bytes: u64::MAX, ..BOUNDS };
    let collect = |length: &str| {
        let head = [(&b"content-length"[..], length.as_bytes())];
        store.collect(key(&store, &request), wide, &request, 200, head.into_iter(), 0)
    };
    assert!(collect("1048576").is_some() && collect("1048577").is_none());
    let none = StaleBounds { max_bytes: OVERHEAD - 1, ..BOUNDS };
    assert!(store.collect(key(&store, &request), none, &request, 200, [].into_iter(), 0).is_none());
}

#[test]
fn the_least_recently_used_goes_first() {
    let store = store();
    let bounds = StaleBounds { max_bytes: 3 * (OVERHEAD + 1000), ..BOUNDS };
    let keep = |target| {
        let request = Plain::get(target);
        let mut collector = store
            .collect(key(&store, &request), bounds, &request, 200, [].into_iter(), 0)
            .expect("it is kept");
        assert!(collector.see(&[b'x'; 1000]));
        collector.finish();
    };
    let is_there = |target| find(&store, &Plain::get(target), 0).is_some();
    ["/a", "/b", "/c"].into_iter().for_each(keep);
    assert_eq!(store.bytes(), bounds.max_bytes);
    assert!(is_there("/a"));
    keep("/d");
    assert!(is_there("/a") && !is_there("/b") && is_there("/c") && is_there("/d"));
    keep("/c");
    keep("/e");
    assert!(!is_there("/a") && is_there("/c") && is_there("/d") && is_there("/e"));
    store.trim(Some(StaleBounds { max_bytes: OVERHEAD + 1000, ..bounds }), 0);
    assert!(!is_there("/c") && !is_there("/d") && is_there("/e"));
    store.trim(None, 0);
    assert_eq!((store.answers(), store.bytes(), store.memory.used()), (0, 0, 0));
}

#[test]
fn answers_that_vary_without_end_push_each_other_out() {
    let store = store();
    let values: Vec<&'static str> = (0..100).map(|n| &*format!("{n}").leak()).collect();
    for value in &values {
        keep(&store, &Plain::get("/").with("x-user", value), &[("vary", "x-user")], value, 0);
    }
    assert_eq!(store.answers(), 32);
    assert_eq!(find(&store, &Plain::get("/").with("x-user", "99"), 0).as_deref(), Some("99"));
    assert_eq!(find(&store, &Plain::get("/").with("x-user", "1"), 0), None);
}

#[test]
fn all_services_together_are_bounded_answers_on_their_way_included() {
    let memory = Memory::new(10 * (OVERHEAD + 1000));
    let stores = [Arc::new(Store::new(memory.clone())), Arc::new(Store::new(memory.clone()))];
    let request = |n: usize| Plain::get(format!("/{n}").leak());
    let begin = |store: &Arc<Store>, n| collect(store, &request(n), &[("content-length", "1000")], 0);
    let keep = |store: &Arc<Store>, n| {
        let mut collector = begin(store, n).expect("it is kept");
        assert!(collector.see(&[0; 1000]));
        collector.finish();
    };
    (0..6).for_each(|n| keep(&stores[0], n));
    (0..4).for_each(|n| keep(&stores[1], n));
    assert_eq!(memory.used(), 10 * (OVERHEAD + 1000));
    // There is room only in the place of the service's own.
    let on_its_way = begin(&stores[1], 4).expect("the oldest makes room");
    assert_eq!((stores[0].answers(), stores[1].answers()), (6, 3));
    // What does not fit whatever is dropped drops nothing.
    assert!(collect(&stores[1], &request(5), &[("content-length", "9000")], 0).is_none());
    assert_eq!(stores[1].answers(), 3);
    drop(on_its_way);
    assert_eq!(memory.used(), 9 * (OVERHEAD + 1000));
    // An answer that is being given holds its memory until it is gone.
    let held = stores[1].find(key(&stores[1], &request(3)), BOUNDS, &request(3), 0).expect("it was kept");
    let [first, second] = stores;
    drop(second);
    drop(first);
    assert_eq!(memory.used(), OVERHEAD + 1000);
    drop(held);
    assert_eq!(memory.used(), 0);
}

#[test]
fn the_headers_that_tell_users_apart_are_of_the_key() {
    let store = store();
    let names = [header::ACCEPT, HeaderName::from_static("x-user-id")];
    let of = |request: Plain| store.key(&request, b"", None, false, &names).expect("it may be kept");
    let ann = of(Plain::get("/a").with("x-user-id", "ann"));
    assert_eq!(ann, of(Plain::get("/a").with("x-other", "1").with("x-user-id", "ann")));
    let others = [
        Plain::get("/a"),
        Plain::get("/a").with("x-user-id", "bob"),
        Plain::get("/a").with("x-user-id", ""),
        Plain::get("/a").with("accept", "ann"),
        Plain::get("/a").with("x-user-id", "ann").with("x-user-id", "bob"),
        Plain::get("/a").with("x-user-id", "ann").with("accept", "*/*"),
    ];
    let others: Vec<_> = others.into_iter().map(of).collect();
    for (n, key) in others.iter().enumerate() {
        assert!(*key != ann && !others[..n].contains(key), "{n}");
    }
}

#[test]
fn the_bounds_of_a_service_are_the_largest_of_its_fallbacks() {
    use crate::govern::policy::{FallbackOn, StaticAnswer};
    let fallback = |action| Arc::new(Fallback { name: "f".into(), on: vec![FallbackOn::Timeout], action });
    let stale = |seconds, max_bytes, vary_by: &[&'static str]| {
        fallback(FallbackAction::Stale(StaleAnswer {
            bounds: StaleBounds { max_age: Duration::from_secs(seconds), max_bytes },
            vary_by: vary_by.iter().map(|name| HeaderName::from_static(name)).collect(),
        }))
    };
    let fixed = || {
        fallback(FallbackAction::Static(StaticAnswer { status: 200, headers: vec![], body: Bytes::new() }))
    };
    assert_eq!(Store::wanted(&[fixed()]), None);
    let wanted =
        Store::wanted(&[stale(9, 5, &["x-b", "x-a"]), fixed(), stale(2, 7, &["x-c", "x-a"])]).unwrap();
    assert_eq!(wanted.bounds, StaleBounds { max_age: Duration::from_secs(9), max_bytes: 7 });
    assert_eq!(wanted.vary_by, ["x-a", "x-b", "x-c"]);
}

/// One of few requests, so that they often meet.
fn request() -> impl Strategy<Value = Plain> {
    let values = prop::sample::select(vec!["", "a", "b"]);
    let header = |name: &'static str| prop::option::of(values.clone().prop_map(move |value| (name, value)));
    let target = prop::sample::select(vec!["/", "/a"]);
    let headers = (header("authorization"), header("cookie"), header("x-one"), header("x-two"));
    (target, headers).prop_map(|(target, (authorization, cookie, one, two))| {
        let headers = [authorization, cookie, one, two].into_iter().flatten();
        headers.fold(Plain::get(target), |request, (name, value)| request.with(name, value))
    })
}

/// Everything that an answer that varies so must be the same in, as text.
fn identity(request: &Plain, vary: &str) -> String {
    let all = |name| request.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| *value);
    let names =
        ["authorization", "cookie"].into_iter().chain(vary.split(',').filter(|name| !name.is_empty()));
    let values: Vec<_> = names.map(|name| (name, all(name).collect::<Vec<_>>())).collect();
    format!("{} {values:?}", request.target)
}

proptest! {
    #[test]
    fn nothing_is_shared_and_no_bound_is_passed(
        steps in prop::collection::vec(
            (request(), prop::sample::select(vec!["", "x-one", "x-two", "x-one,x-two"]), 0..3000_usize, any::<bool>()),
            1..120,
        ),
        limit in 0..12_000_u64,
        max_bytes in 0..12_000_u64,
    ) {
        let memory = Memory::new(limit);
        let store = Arc::new(Store::new(memory.clone()));
        let bounds = StaleBounds { max_bytes, ..BOUNDS };
        let mut on_their_way = Vec::new();
        for (at, (request, vary, length, finishes)) in steps.into_iter().enumerate() {
            let at = at as u64;
            let key = key(&store, &request);
            if let Some(answer) = store.find(key, bounds, &request, at) {
                // Its body says for whom it was made, and by what it varied.
                let told = String::from_utf8(answer.body.to_vec()).unwrap();
                let (vary, rest) = told.split_once('|').unwrap();
                let (whom, _) = rest.split_once('|').unwrap();
                prop_assert_eq!(whom, identity(&request, vary));
            }
            let body = format!("{vary}|{}|{}", identity(&request, vary), "x".repeat(length));
            let head = [(&b"vary"[..], vary.as_bytes())];
            if let Some(mut collector) = store.collect(key, bounds, &request, 200, head.into_iter(), at) {
                let whole = body.as_bytes().chunks(700).all(|piece| collector.see(piece));
                match (whole, finishes) {
                    (true, true) => collector.finish(),
                    (true, false) => on_their_way.push(collector),
                    (false, _) => {}
                }
            }
            if on_their_way.len() > 2 {
                on_their_way.remove(0).finish();
            }
            prop_assert!(store.bytes() <= max_bytes);
            prop_assert!(memory.used() <= limit);
            let on_its_way: u64 = on_their_way.iter().map(|collector| collector.reserved.bytes()).sum();
            prop_assert_eq!(memory.used(), store.bytes() + on_its_way);
        }
        drop(on_their_way);
        prop_assert_eq!(memory.used(), store.bytes());
        store.trim(None, 0);
        prop_assert_eq!(memory.used(), 0);
    }
}
