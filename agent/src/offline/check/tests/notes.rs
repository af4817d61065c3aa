//! What makes sense by itself, and can never act or says something else than was meant.

use super::{check, policy};

#[test]
fn rules_that_can_never_act_are_noted() {
    let notes = |spec: &str| {
        let (good, _, notes) = check(&policy("orders", spec), &["-"]);
        assert!(good, "{spec}: {notes}");
        notes
    };
    let target = "  targetRefs: [{name: orders}]\n";
    for (spec, wanted) in [
        ("  retry: {conditions: [Timeout]}\n", "spec.retry.conditions: note: Timeout never happens"),
        ("  retry: {grpcCodes: [UNAVAILABLE]}\n", "spec.retry.grpcCodes: note: no gRPC call is retried"),
        (
            "  retry: {budget: {percent: 0, minRetriesPerSecond: 0}}\n",
            "spec.retry.budget: note: both are 0: nothing is retried",
        ),
        (
            "  fallbacks: [{name: a, conditions: [ServerError, CircuitOpen], type: Stale, stale: {shared: true}}]\n",
            "spec.fallbacks[0].conditions[1]: note: CircuitOpen never happens: circuitBreaker is not set",
        ),
        (
            "  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
            "spec.fallbacks[0].conditions[0]: note: Timeout never happens: timeouts sets neither request nor backendRequest",
        ),
        (
            "  fallbacks: [{name: a, conditions: [LimitExceeded], type: Static, static: {status: 200}}]\n",
            "spec.fallbacks[0].conditions[0]: note: LimitExceeded never happens",
        ),
        (
            "  fallbacks: [{name: a, conditions: [ServerError], type: Static, static: {status: 200}}, \
             {name: b, conditions: [ServerError], type: Stale, stale: {shared: true}}]\n",
            "spec.fallbacks[1]: note: b is never used: a before it always has a response",
        ),
        (
            "  timeouts: {request: 1s}\n  circuitBreaker: {slowRequest: {threshold: 2s, percent: 50}}\n",
            "spec.circuitBreaker.slowRequest.threshold: note: 2s is no less than the timeout, 1s",
        ),
        (
            "  timeouts: {request: 1s}\n  rateLimits: [{name: a, requests: 1, type: Queue, queue: {timeout: 2s}}]\n",
            "spec.rateLimits[0].queue.timeout: note: 2s is no less than timeouts.request, 1s",
        ),
        (
            "  rateLimits: [{name: a, requests: 1, type: Queue}]\n",
            "spec.rateLimits[0]: note: type Queue without queue: a request waits for its turn for up to 500ms",
        ),
        ("  circuitBreaker: {errorPercent: 0.5}\n", "note: 0.5 is less than one percent: 50 is 50 %"),
        ("  circuitBreaker: {errorCount: 5}\n", "note: 5 errors open it only once there are 20 requests"),
        (
            "  loadBalancer: {warmUp: {delay: 5s}}\n",
            "note: in a rollout the old pods carry what new ones do not take yet: minReadySeconds: 125",
        ),
        ("  drain: {}\n", "spec.drain: note: without a timeout it changes nothing"),
        (
            "  rules: [{name: a}, {name: b, timeouts: {request: 1s}}]\n",
            "spec.rules[1]: note: rule b is never used: rule a before it matches all of its requests",
        ),
        (
            "  rules: [{name: a, retry: {conditions: [Timeout]}}]\n",
            "spec.rules[0].retry.conditions: note: Timeout never happens",
        ),
    ] {
        let said = notes(&format!("{target}{spec}"));
        assert!(said.contains(wanted), "{spec}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for spec in [
        "  retry: {conditions: [Timeout]}\n  timeouts: {backendRequest: 1s}\n",
        "  timeouts: {request: 1s}\n  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
        "  timeouts: {backendRequest: 1s}\n  fallbacks: [{name: a, conditions: [Timeout], type: Static, static: {status: 200}}]\n",
        "  concurrency: {maxRequests: 1}\n  fallbacks: [{name: a, conditions: [LimitExceeded], type: Static, static: {status: 200}}]\n",
        "  circuitBreaker: {errorPercent: 50}\n  fallbacks: [{name: a, conditions: [CircuitOpen], type: Static, static: {status: 200}}]\n",
        "  rules: [{name: a, circuitBreaker: {}}]\n  fallbacks: [{name: a, conditions: [CircuitOpen], type: Static, static: {status: 200}}]\n",
        "  fallbacks: [{name: a, conditions: [ServerError], type: Stale, stale: {shared: true}}, \
         {name: b, conditions: [ServerError], type: Static, static: {status: 200}}]\n",
    ] {
        assert_eq!(notes(&format!("{target}{spec}")), "", "{spec}");
    }
    // What is inherited is there.
    let own = format!("{target}  retry: {{conditions: [Timeout]}}\n");
    let defaults = "  targetRefs: [{kind: Namespace, name: shop}]\n  timeouts: {backendRequest: 1s}\n";
    let both = policy("orders", &own) + &policy("defaults", defaults);
    assert_eq!(check(&both, &["-"]).2, "");
    let alone = policy("orders", &format!("{own}  inherit: None\n")) + &policy("defaults", defaults);
    assert!(check(&alone, &["-"]).2.contains("Timeout never happens"));
    // A Deployment that waits keeps the old pods.
    let warm = policy("orders", &format!("{target}  loadBalancer: {{warmUp: {{}}}}\n"));
    let deployment = |seconds: u32| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: orders, namespace: shop}}\nspec: {{minReadySeconds: {seconds}}}\n"
        )
    };
    assert!(check(&(warm.clone() + &deployment(30)), &["-"]).2.contains("minReadySeconds: 120"));
    assert_eq!(check(&(warm + &deployment(120)), &["-"]).2, "");
}

#[test]
fn lanes_are_noted_too() {
    let lane = |spec: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: TrafficLane\nmetadata: {{name: gray, namespace: shop}}\nspec: {{tag: gray, {spec}}}\n---\n"
        )
    };
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\n";
    let beta = "match: {headers: [{name: x-beta, value: 'yes'}]}";
    let key = "key: {type: Header, name: x-user-id}";
    for (spec, wanted) in [
        (
            format!("entry: [{{{beta}}}]"),
            "spec.entry: note: without targetRefs requests enter the lane at every Service of the namespace",
        ),
        (
            "targetRefs: [{name: orders}], trustIncomingTag: false".to_owned(),
            "spec.trustIncomingTag: note: false has no effect without entry",
        ),
        (
            format!("targetRefs: [{{name: orders}}], entry: [{{percentage: {{percent: 0, {key}}}}}]"),
            "spec.entry[0].percentage.percent: note: 0: no request enters",
        ),
        (
            format!("targetRefs: [{{name: orders}}], entry: [{{percentage: {{percent: 0.2, {key}}}}}]"),
            "spec.entry[0].percentage.percent: note: 0.2 is less than one percent: 20 is 20 %",
        ),
        (
            format!(
                "targetRefs: [{{name: orders}}], entry: [{{{beta}}}, {{{beta}, percentage: {{percent: 5, {key}}}}}]"
            ),
            "spec.entry[1]: note: it adds nothing",
        ),
        ("targetRefs: [{name: order}]".to_owned(), "there is no Service order in these files"),
        (
            "serviceFallbacks: [{name: stock, fallback: Fail}]".to_owned(),
            "spec.serviceFallbacks: note: there is no Service stock in these files",
        ),
        (
            "fallbackLanes: [staging]".to_owned(),
            "there is no TrafficLane with the tag staging in these files",
        ),
    ] {
        let (good, _, notes) = check(&format!("{service}{}", lane(&spec)), &["-"]);
        assert!(good && notes.contains(wanted), "{spec}: {notes}");
        assert_eq!(notes.lines().count(), 1, "{notes}");
    }
    let (_, _, notes) = check(&format!("{service}{}", lane("targetRefs: [{name: orders}]")), &["-"]);
    assert_eq!(notes, "");
}

#[test]
fn slips_are_noted() {
    let service = |name: &str, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{port}]}}\n---\n"
        )
    };
    let notes = |text: String| {
        let (good, out, complaints) = check(&text, &["-"]);
        assert!(good, "{complaints}");
        format!("{out}{complaints}")
    };
    for (spec, field) in [
        ("  circuitBreaker:\n", "spec.circuitBreaker"),
        ("  outlierDetection:\n", "spec.outlierDetection"),
        ("  concurrency: {maxRequests: 5, adaptive: }\n", "spec.concurrency.adaptive"),
    ] {
        let said = notes(policy("a", &format!("  targetRefs: [{{name: x}}]\n{spec}")));
        let wanted = format!("{field}: note: null: it is not set, and off; ");
        assert!(said.contains(&wanted), "{said}");
    }
    assert!(!notes(policy("a", "  targetRefs: [{name: x}]\n  circuitBreaker: {}\n")).contains("null"));

    // An object whose namespace was forgotten.
    let forgotten = policy("a", "  targetRefs: [{name: x}]\n").replace("  namespace: shop\n", "");
    let said = notes(format!("{}{forgotten}", service("x", "{name: http, port: 80}")));
    assert!(
        said.contains("TrafficPolicy default/a: metadata.namespace: note: not set, so it is in default")
            && said.contains("are in shop"),
        "{said}"
    );
    assert!(!notes(forgotten.clone()).contains("metadata.namespace"), "there are no others");
    let there =
        check(&format!("{}{forgotten}", service("x", "{name: http, port: 80}")), &["-n", "shop", "-"]);
    assert!(!there.1.contains("metadata.namespace"), "it is told where: {}", there.1);

    // Rules about requests where there are none.
    let timeouts = policy("a", "  targetRefs: [{name: db}]\n  timeouts: {request: 1s}\n");
    for (port, noted) in [
        ("{name: redis, port: 6379}", true),
        ("{port: 6379, appProtocol: redis}", true),
        ("{name: redis, port: 6379}, {name: http, port: 80}", false),
        ("{name: db, port: 6379}", false),
    ] {
        let said = notes(format!("{}{timeouts}", service("db", port)));
        let note =
            "all ports of Service db are declared not to speak HTTP, so timeouts.request has no effect on it";
        assert_eq!(said.contains(note), noted, "{port}: {said}");
    }

    // A workload that nobody has.
    let from = |workload: &str| {
        let limit = format!(
            "  targetRefs: [{{name: x}}]\n  rateLimits: [{{name: a, requests: 1, match: {{from: [{{workload: {workload}}}]}}}}]\n"
        );
        let deployment =
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: checkout, namespace: shop}\n---\n";
        notes(format!("{deployment}{}", policy("a", &limit)))
    };
    assert!(!from("checkout").contains("there is no workload"));
    let said = from("chekout");
    assert!(
        said.contains("spec.rateLimits[0].match.from[0].workload: note: there is no workload chekout in these files: did you mean checkout?"),
        "{said}"
    );
}
