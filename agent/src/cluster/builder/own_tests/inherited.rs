//! What Services take from policies that are not their own: of their Namespace, of the Service whose route sends to them.

use super::*;

#[test]
fn services_take_from_the_policy_of_their_namespace_what_their_own_does_not_say() {
    let of_namespace = |name: &str, metadata: &str, seconds: u32, more: &str| {
        let spec =
            format!("targetRefs: [{{kind: Namespace, name: shop}}], timeouts: {{request: {seconds}s}}{more}");
        own("TrafficPolicy", name, metadata, &spec)
    };
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let mut builder =
        start(Options::default(), &(shop() + &policy("orders", &created(5), "{name: orders}", 1)));
    next(&mut builder);
    apply(&mut builder, &of_namespace("all", &created(3), 9, ", drain: {timeout: 7s}"));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), Some(9)));
    assert_eq!((drain(&snapshot, ORDERS), drain(&snapshot, USERS)), (Some(7), Some(7)));
    assert_eq!(
        said(&builder, "TrafficPolicy shop/orders"),
        "Accepted=true/Accepted Programmed=true/Programmed active for Service orders, with drain of TrafficPolicy shop/all"
    );
    assert_eq!(
        said(&builder, "TrafficPolicy shop/all"),
        "Accepted=true/Accepted Programmed=true/Programmed active for Namespace shop, where Services do not say otherwise"
    );
    // A Service that comes later has it, too.
    apply(&mut builder, &svc("stock", "10.96.0.3", ""));
    assert_eq!(in_force(&next(&mut builder), "10.96.0.3:80"), Some(9));
    // Of two the older one counts; a change of it reaches everybody.
    apply(&mut builder, &of_namespace("older", &created(1), 8, ""));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), Some(8)));
    assert_eq!((drain(&snapshot, ORDERS), drain(&snapshot, USERS)), (None, None));
    assert!(
        said(&builder, "TrafficPolicy shop/all")
            .ends_with("Namespace shop has TrafficPolicy shop/older already, which is older")
    );
    apply(&mut builder, &of_namespace("older", &created(1), 8, ", drain: {timeout: 2s}"));
    assert_eq!(drain(&next(&mut builder), ORDERS), Some(2));
    // One that makes no sense leaves the last good one in force; one that is gone leaves nothing.
    apply(&mut builder, &of_namespace("older", &created(1), 8, ", drain: {timeout: soon}"));
    assert!(builder.build(Instant::now()).is_none_or(|snapshot| drain(&snapshot, ORDERS) == Some(2)));
    delete(&mut builder, &of_namespace("older", "", 8, ""));
    assert_eq!(drain(&next(&mut builder), ORDERS), Some(7));
    delete(&mut builder, &of_namespace("all", "", 9, ""));
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, USERS)), (Some(1), None));
    assert_eq!(drain(&snapshot, ORDERS), None);
    assert!(said(&builder, "TrafficPolicy shop/orders").ends_with("active for Service orders"));
    // What is no longer wanted is not inherited.
    apply(&mut builder, &of_namespace("all", "", 9, ", drain: {timeout: 7s}"));
    next(&mut builder);
    let alone = "targetRefs: [{name: orders}], timeouts: {request: 1s}, inherit: None";
    apply(&mut builder, &own("TrafficPolicy", "orders", &created(5), alone));
    assert_eq!(drain(&next(&mut builder), ORDERS), None);
}

/// Else a rollout by weight would take the protection of a Service away in the minute in which it begins.
#[test]
fn services_that_a_route_sends_to_take_from_the_policy_of_the_service_that_is_called() {
    const CANARY: &str = "10.96.0.4:80";
    let route = |backends: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: orders}}], rules: [{{backendRefs: [{backends}]}}]}}}}\n"
        )
    };
    let weighted = |canary: u32| {
        route(&format!("{{name: users, port: 80, weight: 90}}, {{name: canary, port: 80, weight: {canary}}}"))
    };
    let all = |snapshot: &Snapshot| [ORDERS, USERS, CANARY].map(|address| in_force(snapshot, address));
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let of_orders = |seconds: u32| policy("orders", &created(5), "{name: orders}", seconds);
    let mut builder = start(Options::default(), &(shop() + &svc("canary", "10.96.0.4", "") + &of_orders(1)));
    assert_eq!(all(&next(&mut builder)), [Some(1), None, None]);
    apply(&mut builder, &weighted(10));
    let snapshot = next(&mut builder);
    assert_eq!(all(&snapshot), [Some(1); 3]);
    // Nothing is lost of what they know when a weight changes.
    let before = governor(&snapshot, CANARY);
    apply(&mut builder, &weighted(20));
    assert!(Arc::ptr_eq(&before, &governor(&next(&mut builder), CANARY)));
    // Whatever changes of the policy, and of the namespace's, reaches them.
    apply(&mut builder, &of_orders(2));
    assert_eq!(all(&next(&mut builder)), [Some(2); 3]);
    let defaults =
        "targetRefs: [{kind: Namespace, name: shop}], timeouts: {request: 9s}, drain: {timeout: 7s}";
    apply(&mut builder, &own("TrafficPolicy", "all", &created(1), defaults));
    let snapshot = next(&mut builder);
    assert_eq!((all(&snapshot), drain(&snapshot, CANARY)), ([Some(2); 3], Some(7)));
    // Their own policy goes before it, in what it says.
    let own_drain = "targetRefs: [{name: canary}], drain: {timeout: 3s}";
    apply(&mut builder, &own("TrafficPolicy", "canary", &created(9), own_drain));
    let snapshot = next(&mut builder);
    assert_eq!(
        (all(&snapshot), drain(&snapshot, CANARY), drain(&snapshot, USERS)),
        ([Some(2); 3], Some(3), Some(7))
    );
    apply(&mut builder, &policy("canary", &created(9), "{name: canary}", 4));
    assert_eq!(all(&next(&mut builder)), [Some(2), Some(2), Some(4)]);
    delete(&mut builder, &policy("canary", "", "{name: canary}", 4));
    assert_eq!(all(&next(&mut builder)), [Some(2); 3]);
    // It holds as long as the route sends there.
    apply(&mut builder, &route("{name: canary, port: 80}"));
    assert_eq!(all(&next(&mut builder)), [Some(2), Some(9), Some(2)]);
    delete(&mut builder, &of_orders(2));
    assert_eq!(all(&next(&mut builder)), [Some(9); 3]);
    apply(&mut builder, &of_orders(1));
    next(&mut builder);
    delete(&mut builder, &route(""));
    assert_eq!(all(&next(&mut builder)), [Some(1), Some(9), Some(9)]);
}

/// Each is asked by itself: what the called Service does not want of its Namespace is no word about others, and of several
/// Services that are called one gives, which is told.
#[test]
fn who_gives_to_a_service_that_routes_send_to_is_told() {
    const CANARY: &str = "10.96.0.4:80";
    let route = |name: &str, parent: &str| {
        format!(
            "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{parentRefs: [{{group: '', kind: Service, name: {parent}}}], rules: [{{backendRefs: [{{name: canary, port: 80}}]}}]}}}}\n"
        )
    };
    let drain = |snapshot: &Snapshot, address: &str| {
        service(snapshot, address).governor.policy().drain.timeout.map(|timeout| timeout.as_secs())
    };
    let defaults = "targetRefs: [{kind: Namespace, name: shop}], drain: {timeout: 7s}";
    let apart = "targetRefs: [{name: orders}], timeouts: {request: 1s}, inherit: None";
    let mut builder = start(
        Options::default(),
        &(shop()
            + &svc("canary", "10.96.0.4", "")
            + &own("TrafficPolicy", "all", &created(1), defaults)
            + &own("TrafficPolicy", "orders", &created(2), apart)
            + &route("r", "orders")),
    );
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, CANARY), drain(&snapshot, CANARY)), (Some(1), Some(7)));
    assert_eq!((in_force(&snapshot, ORDERS), drain(&snapshot, ORDERS)), (Some(1), None));
    // Another one without a policy has nothing to give.
    apply(&mut builder, &route("also", "users"));
    builder.build(Instant::now());
    assert_eq!(messages(&builder), [""; 0]);
    apply(&mut builder, &policy("users", &created(3), "{name: users}", 3));
    assert_eq!(in_force(&next(&mut builder), CANARY), Some(1));
    let said = messages(&builder);
    let wanted = "Services orders and users here, whose TrafficPolicies shop/orders and shop/users differ: it takes from shop/orders alone";
    assert!(said.len() == 1 && said[0].contains(wanted), "{said:?}");
    delete(&mut builder, &route("r", ""));
    assert_eq!(in_force(&next(&mut builder), CANARY), Some(3));
    assert_eq!(messages(&builder), [""; 0]);
}

/// A consumer's route gives the Services of its namespace nothing of another one's.
#[test]
fn policies_do_not_cross_namespaces_by_a_route() {
    let route = "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: next}, \
         spec: {parentRefs: [{group: '', kind: Service, name: orders, namespace: shop}], \
         rules: [{backendRefs: [{name: far, port: 80}]}]}}\n";
    let far = svc("far", "10.96.0.8", "").replace("namespace: shop", "namespace: next");
    let opted = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: next, annotations: {sluice.dev/capture: enabled}}}\n";
    let mut builder = start(
        Options::default(),
        &(shop() + opted + &far + route + &policy("orders", &created(5), "{name: orders}", 1)),
    );
    let snapshot = next(&mut builder);
    assert_eq!((in_force(&snapshot, ORDERS), in_force(&snapshot, "10.96.0.8:80")), (Some(1), None));
}
