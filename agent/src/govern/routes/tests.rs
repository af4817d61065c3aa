use http::{HeaderName, Method};
use proptest::prelude::*;

use super::{
    super::{path, policy::ValueMatch, request::tests::Plain},
    matching::PathTest,
    *,
};

fn rule(route: &str, name: &str, matches: Vec<Match>) -> Arc<Rule> {
    let action = Action::Forward { rewrite: Rewrite::default(), backends: Backends::default() };
    Arc::new(Rule {
        route: route.into(),
        kind: Kind::Http,
        name: name.into(),
        matches,
        headers: HeaderEdits::default(),
        mirrors: Vec::new(),
        cors: None,
        timeouts: Timeouts::default(),
        action,
    })
}

fn route(name: &str, created: i64, rules: Vec<(&str, Match)>) -> Route {
    let rules = rules.into_iter().map(|(called, one)| rule(name, called, vec![one])).collect();
    Route { age: Age { created: Some(created), name: name.into() }, rules }
}

fn on(path: PathTest) -> Match {
    Match { path, ..Match::default() }
}

fn header(name: &'static str, value: &str) -> (HeaderName, ValueMatch) {
    (HeaderName::from_static(name), ValueMatch::Exact(value.to_owned()))
}

/// The name of the rule that holds.
fn found(routes: &Routes, request: &Plain) -> Option<String> {
    routes.find(request).map(|found| found.rule.name.to_string())
}

#[test]
fn the_more_exact_counts() {
    let regex = |text: &str| PathTest::Regex(pattern(text).unwrap());
    let routes = Routes::new(vec![route(
        "shop/a",
        0,
        vec![
            ("any", on(PathTest::Any)),
            ("regex", on(regex("/v[0-9]+/.*"))),
            ("prefix", on(PathTest::prefix("/v2/"))),
            ("longer", on(PathTest::prefix("/v2/orders"))),
            ("exact", on(PathTest::Exact("/v2/orders/7".to_owned()))),
            ("post", Match { method: Some(Method::POST), ..on(PathTest::prefix("/v2")) }),
            ("user", Match { headers: vec![header("x-user", "ann")], ..on(PathTest::prefix("/v2")) }),
            (
                "query",
                Match {
                    query_parameters: vec![("a".to_owned(), ValueMatch::Exact("1".to_owned()))],
                    ..on(PathTest::prefix("/v2"))
                },
            ),
        ],
    )]);
    for (request, wanted) in [
        (Plain::get("/"), "any"),
        (Plain::get("/v1/x"), "regex"),
        (Plain::get("/v1"), "any"),
        // All of a path has to be like a regular expression.
        (Plain::get("/x/v1/x"), "any"),
        (Plain::get("/v2/x"), "prefix"),
        (Plain::get("/v2"), "prefix"),
        (Plain::get("/v2x"), "any"),
        (Plain::get("/v2/orders"), "longer"),
        (Plain::get("/v2/orders/"), "longer"),
        (Plain::get("/v2/orders/8"), "longer"),
        (Plain::get("/v2/orders/7"), "exact"),
        (Plain::get("//v2/./orders/%37;x"), "exact"),
        (Plain::get("/v2/orders/7/"), "longer"),
        (Plain { method: "POST", ..Plain::get("/v2/x") }, "post"),
        (Plain { method: "POST", ..Plain::get("/v2/x").with("x-user", "ann") }, "post"),
        (Plain::get("/v2/x?a=1").with("x-user", "ann"), "user"),
        (Plain::get("/v2/x?b&a=%31"), "query"),
        (Plain { method: "OPTIONS", ..Plain::get("*") }, "any"),
    ] {
        assert_eq!(found(&routes, &request).as_deref(), Some(wanted), "{request:?}");
    }
    let seen: Vec<_> = routes.rules().map(|rule| &*rule.name).collect();
    assert_eq!(seen, ["exact", "longer", "post", "user", "query", "prefix", "regex", "any"]);
}

#[test]
fn the_prefix_that_was_matched_is_told() {
    let routes = Routes::new(vec![route(
        "shop/a",
        0,
        vec![
            ("two", on(PathTest::prefix("/a/b/"))),
            ("exact", on(PathTest::Exact("/x".to_owned()))),
            ("any", on(PathTest::Any)),
        ],
    )]);
    for (target, wanted) in [("/a/b/c", 2), ("/x", 0), ("/", 0)] {
        assert_eq!(routes.find(&Plain::get(target)).unwrap().prefix, wanted, "{target}");
    }
}

#[test]
fn what_nothing_is_about_gets_nothing() {
    let routes = Routes::new(vec![route("shop/a", 0, vec![("a", on(PathTest::prefix("/a")))])]);
    assert_eq!(found(&routes, &Plain::get("/b")), None);
    assert_eq!(found(&routes, &Plain { method: "OPTIONS", ..Plain::get("*") }), None);
    assert_eq!(found(&Routes::new(Vec::new()), &Plain::get("/")), None);
}

#[test]
fn the_older_route_counts_and_then_the_first_by_name() {
    let one = |name: &'static str, created| route(name, created, vec![(name, on(PathTest::Any))]);
    let undated = Route { age: Age { created: None, name: "a/a".into() }, ..one("a/a", 0) };
    for (routes, wanted) in [
        (vec![one("shop/b", 2), one("shop/a", 3)], "shop/b"),
        (vec![one("shop/b", 2), one("shop/a", 2)], "shop/a"),
        (vec![one("shop/b", 2), one("other/z", 2)], "other/z"),
        (vec![undated, one("shop/b", 2)], "shop/b"),
    ] {
        assert_eq!(found(&Routes::new(routes), &Plain::get("/")).as_deref(), Some(wanted));
    }
    let twice = route("shop/a", 0, vec![("first", on(PathTest::Any)), ("second", on(PathTest::Any))]);
    assert_eq!(found(&Routes::new(vec![twice]), &Plain::get("/")).as_deref(), Some("first"));
}

#[test]
fn methods_of_grpc_are_told_apart() {
    let routes = Routes::new(vec![route(
        "shop/a",
        0,
        vec![
            ("all", on(PathTest::Any)),
            ("method", on(PathTest::Method("Get".to_owned()))),
            ("service", on(PathTest::prefix("/shop.Orders"))),
            ("both", on(PathTest::Exact("/shop.Orders/Get".to_owned()))),
        ],
    )]);
    for (target, wanted) in [
        ("/shop.Orders/Get", "both"),
        ("/shop.Orders/List", "service"),
        ("/shop.Carts/Get", "method"),
        ("/shop.Carts/List", "all"),
        ("/Get", "all"),
        ("/a/b/Get", "all"),
    ] {
        let request = Plain { method: "POST", ..Plain::get(target) };
        assert_eq!(found(&routes, &request).as_deref(), Some(wanted), "{target}");
    }
}

#[test]
fn a_pattern_is_about_all_of_a_value() {
    let is = |text: &str, value: &str| pattern(text).unwrap().0.is_match(value.as_bytes());
    assert!(is("a|b", "a") && is("a|b", "b") && !is("a|b", "ab") && !is("a|b", "xb"));
    assert!(is("/v[12](/.*)?", "/v1/x") && !is("/v[12](/.*)?", "/v3"));
    for wrong in ["(", "a)|(b", "[", "\\y"] {
        assert!(pattern(wrong).is_err(), "{wrong}");
    }
    assert!(pattern("(?:[a-z]{1,1000}){1,1000}").is_err(), "what would take too much memory is none");
}

fn some_path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["a", "b", "ab", "Get", "x1"], 0..4)
        .prop_map(|elements| format!("/{}", elements.join("/")))
}

fn some_test() -> impl Strategy<Value = PathTest> {
    prop_oneof![
        2 => some_path().prop_map(PathTest::Exact),
        4 => (some_path(), any::<bool>())
            .prop_map(|(path, slash)| PathTest::prefix(&if slash { format!("{path}/") } else { path })),
        1 => prop_oneof!["Get", "b"].prop_map(PathTest::Method),
        1 => proptest::sample::select(vec!["/a.*", "/.*", "/[ab]/?", "/x[0-9]"])
            .prop_map(|text| PathTest::Regex(pattern(text).unwrap())),
        1 => Just(PathTest::Any),
    ]
}

fn some_match() -> impl Strategy<Value = Match> {
    let method = prop_oneof![2 => Just(None), 1 => Just(Some(Method::GET)), 1 => Just(Some(Method::POST))];
    let value = || prop_oneof!["1", "2"].prop_map(ValueMatch::Exact);
    let headers = proptest::collection::btree_map(prop_oneof![Just("x-a"), Just("x-b")], value(), 0..3);
    let query = proptest::collection::btree_map(prop_oneof!["p", "q"], value(), 0..3);
    (some_test(), method, headers, query).prop_map(|(path, method, headers, query)| Match {
        path,
        method,
        headers: headers.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)).collect(),
        query_parameters: query.into_iter().collect(),
    })
}

fn some_routes() -> impl Strategy<Value = Vec<Route>> {
    let matches = proptest::collection::vec(some_match(), 1..4);
    let rules = proptest::collection::vec(matches, 0..5);
    let created = prop_oneof![Just(None), (0..3_i64).prop_map(Some)];
    proptest::collection::vec((created, rules), 0..6).prop_map(|routes| {
        let route = |(at, (created, rules)): (usize, (Option<i64>, Vec<Vec<Match>>))| {
            // Not in the order of their names.
            let name = format!("ns/{}", (at * 5 + 3) % 7);
            let numbered = rules.into_iter().enumerate();
            let rules = numbered.map(|(at, matches)| rule(&name, &format!("rules[{at}]"), matches)).collect();
            Route { age: Age { created, name: name.as_str().into() }, rules }
        };
        routes.into_iter().enumerate().map(route).collect()
    })
}

/// A request of an agent that lives as long as the test.
#[derive(Debug)]
struct Asked {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
}

impl Request for Asked {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.target.as_bytes()
    }

    fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| *key == name.as_str()).map(|(_, value)| value.as_bytes())
    }

    fn each_header(&self, name: &HeaderName, each: &mut dyn FnMut(&[u8])) {
        self.header(name).into_iter().for_each(each);
    }
}

fn some_request() -> impl Strategy<Value = Asked> {
    let path = prop_oneof![
        8 => (some_path(), prop_oneof![3 => Just(""), 1 => Just("/")]).prop_map(|(path, end)| path + end),
        1 => some_path().prop_map(|path| format!("/.{path}/../x/..")),
        1 => Just("*".to_owned()),
    ];
    let values = || proptest::option::of(prop_oneof!["1", "2"]);
    let method = prop_oneof![Just("GET"), Just("POST")];
    (method, path, values(), values(), values(), values()).prop_map(|(method, path, a, b, p, q)| {
        let pairs = [("p", p), ("q", q)];
        let query: Vec<_> =
            pairs.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
        let target = if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) };
        let lines = [("x-a", a), ("x-b", b)];
        let headers = lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Asked { method, target, headers }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_compiled_form_finds_what_the_specification_says(
        routes in some_routes(),
        requests in proptest::collection::vec(some_request(), 1..12),
    ) {
        let compiled = Routes::new(routes.clone());
        for request in requests {
            let wanted = reference::find(&routes, &request);
            let found = compiled.find(&request);
            prop_assert_eq!(
                found.map(|found| (&*found.rule.route, &*found.rule.name, found.prefix)),
                wanted.map(|(rule, prefix)| (&*rule.route, &*rule.name, prefix)),
                "{:?}", request
            );
        }
    }

    /// Whatever form a path comes in, what is behind the prefix is behind it in its normal form, too.
    #[test]
    fn what_is_behind_a_prefix_is_in_its_own_form(
        path in "(/|//|\\.|\\.\\.|;|%2e|%61|a|b|c){0,14}", elements in 0_usize..3,
    ) {
        let path = format!("/{path}");
        let normal = path::normal(path.as_bytes()).into_owned();
        let count = normal.split(|byte| *byte == b'/').skip(1).filter(|element| !element.is_empty()).count();
        prop_assume!(elements <= count);
        let rest = path::after(path.as_bytes(), elements);
        let mut wanted = &normal[..];
        for _ in 0..elements {
            let next = wanted[1..].iter().position(|byte| *byte == b'/').map_or(wanted.len(), |at| at + 1);
            wanted = &wanted[next..];
        }
        let got = path::normal(rest).into_owned();
        // Nothing, and a slash that came of nothing but dots, are told apart by whoever sends it on.
        let same = got == wanted || (wanted.is_empty() && rest.is_empty());
        prop_assert!(same, "{}: {:?}, not {:?}", path, String::from_utf8_lossy(&got), String::from_utf8_lossy(wanted));
    }
}
