//! Whatever the order of changes, what is decided is what the objects that are left say.

use proptest::prelude::*;

use super::*;

/// Everything that policies and lanes decide, in words.
fn decided(builder: &Builder, snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (address, destination) in snapshot.destinations.iter() {
        let service = &destination.service;
        let policy = service.governor.policy();
        all.push(format!("{address}: {:?} {:?} {:?}", policy.name, policy.timeouts.request, service.detours));
        for user in ["ann", "bob"] {
            let coloured =
                service.entry.colour(&Plain::get("/").with("x-user", user), "10.0.0.9".parse().unwrap());
            all.push(format!("{address}, {user}: {coloured:?}"));
        }
        let tags = service.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.tag.clone()));
        all.push(format!("{address}: {:?}", tags.collect::<Vec<_>>()));
    }
    all.extend(tags(snapshot).into_iter().map(|(pod, tag)| format!("{pod}: {tag:?}")));
    all.extend(builder.verdicts().iter().map(|(key, judged)| format!("{key}: {:?}", judged.verdict)));
    all.sort();
    all
}

/// An object in one of its versions, and its name.
fn version() -> impl Strategy<Value = (String, Option<String>)> {
    let number = 0..3_u32;
    let some = |text: String, there: bool| there.then_some(text);
    let service = prop::sample::select(vec!["orders", "users", "stock"]);
    let policy = (number.clone(), number.clone(), service.clone(), 1..4_u32, any::<bool>(), any::<bool>())
        .prop_map(move |(n, age, target, seconds, port, there)| {
            let port = if port { ", sectionName: http" } else { "" };
            let text = policy(&format!("p{n}"), &created(age), &format!("{{name: {target}{port}}}"), seconds);
            (format!("policy {n}"), some(text, there))
        });
    let lane = (number.clone(), number.clone(), service, number, any::<bool>(), any::<bool>()).prop_map(
        move |(n, age, app, tag, strict, there)| {
            let fallback = if strict { "Fail" } else { "Baseline" };
            let spec = format!(
                "tag: t{tag}, fallback: {fallback}, workloadSelector: {{matchLabels: {{app: {app}}}}}, \
                 targetRefs: [{{name: {app}}}], entry: [{{match: {{headers: [{{name: x-user, value: ann}}]}}}}]"
            );
            (format!("lane {n}"), some(lane(&format!("l{n}"), &created(age), &spec), there))
        },
    );
    let pods = (prop::sample::select(vec!["orders", "users"]), 0..3_usize, any::<bool>()).prop_map(
        move |(name, label, there)| {
            let label = ["app: orders", "app: users", "sluice.dev/tag: own"][label];
            let ip = if name == "orders" { "10.0.0.1" } else { "10.0.0.2" };
            (format!("pod {name}"), some(pod(name, ip, &format!(", labels: {{{label}}}")), there))
        },
    );
    let stock =
        any::<bool>().prop_map(move |there| ("stock".to_owned(), some(svc("stock", "10.96.0.3", ""), there)));
    prop_oneof![3 => policy, 3 => lane, 2 => pods, 1 => stock]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What there is decides, not the way there.
    #[test]
    fn the_order_of_events_makes_no_difference(events in prop::collection::vec(version(), 1..30)) {
        let base = shop();
        let mut builder = start(Options::default(), &base);
        let mut last = next(&mut builder);
        let mut there: BTreeMap<String, Option<String>> = BTreeMap::new();
        for (name, text) in events {
            let before = there.insert(name.clone(), text.clone());
            // One pod of each name is there from the start.
            let built_in = name.strip_prefix("pod ").map(|name| pod(name, "10.0.0.1", ""));
            if let Some(text) = &text {
                apply(&mut builder, text);
            } else if let Some(text) = before.flatten().or(built_in) {
                delete(&mut builder, &text);
            }
            last = builder.build(Instant::now()).unwrap_or(last);
        }
        // The same from nothing.
        let mut whole = base;
        for (name, text) in &there {
            if let Some(pod_name) = name.strip_prefix("pod ") {
                let ip = if pod_name == "orders" { "10.0.0.1" } else { "10.0.0.2" };
                whole = whole.replace(&pod(pod_name, ip, &format!(", labels: {{app: {pod_name}}}")), "");
            }
            whole += text.as_deref().unwrap_or_default();
        }
        let mut fresh = start(Options::default(), &whole);
        let first = next(&mut fresh);
        prop_assert_eq!(decided(&builder, &last), decided(&fresh, &first));
    }
}
