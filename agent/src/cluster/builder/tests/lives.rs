//! Pods at every point of their lives, as kubelets report them: who is captured, and who is called.

use super::*;

/// What is known of a pod.
#[derive(Debug, PartialEq)]
struct Known {
    /// Its own connections are taken.
    captured: bool,
    /// It is a ready endpoint for others, where its slice says so too.
    called: bool,
}

const CAPTURED: Known = Known { captured: true, called: false };
const BOTH: Known = Known { captured: true, called: true };
const NEITHER: Known = Known { captured: false, called: false };

/// The pod's spec beside its node, its status, whether its EndpointSlice has it ready, and what follows.
const LIVES: &[(&str, &str, &str, bool, Known)] = &[
    (
        "its sandbox is being made",
        "containers: [{name: app}]",
        "phase: Pending, conditions: [{type: PodScheduled, status: 'True'}]",
        false,
        CAPTURED,
    ),
    (
        "an init container runs",
        "initContainers: [{name: migrate}], containers: [{name: app}]",
        "phase: Pending, podIP: 10.0.0.1, \
         conditions: [{type: Initialized, status: 'False', reason: ContainersNotInitialized}], \
         initContainerStatuses: [{name: migrate, ready: false, started: true, restartCount: 0, image: i, imageID: i, \
                                  state: {running: {startedAt: '2026-01-01T00:00:00Z'}}}]",
        false,
        CAPTURED,
    ),
    (
        "an init container fails again and again",
        "initContainers: [{name: migrate}], containers: [{name: app}]",
        "phase: Pending, podIP: 10.0.0.1, \
         initContainerStatuses: [{name: migrate, ready: false, restartCount: 7, image: i, imageID: i, \
                                  state: {waiting: {reason: CrashLoopBackOff}}}]",
        false,
        CAPTURED,
    ),
    (
        "its native sidecar runs, its application does not yet",
        "initContainers: [{name: cache, restartPolicy: Always}], containers: [{name: app}]",
        "phase: Pending, podIP: 10.0.0.1, \
         initContainerStatuses: [{name: cache, ready: true, started: true, restartCount: 0, image: i, imageID: i, \
                                  state: {running: {}}}]",
        false,
        CAPTURED,
    ),
    (
        "it runs and is ready",
        "containers: [{name: app}]",
        "phase: Running, podIP: 10.0.0.1, \
         conditions: [{type: Ready, status: 'True', lastTransitionTime: '2026-01-01T00:00:00Z'}]",
        true,
        BOTH,
    ),
    (
        "one of its containers restarts",
        "containers: [{name: app}]",
        "phase: Running, podIP: 10.0.0.1, \
         conditions: [{type: Ready, status: 'False', reason: ContainersNotReady}], \
         containerStatuses: [{name: app, ready: false, restartCount: 3, image: i, imageID: i, \
                              state: {waiting: {reason: CrashLoopBackOff}}}]",
        false,
        CAPTURED,
    ),
    (
        "a job's container is done, its native sidecar not yet",
        "restartPolicy: Never, initContainers: [{name: cache, restartPolicy: Always}], containers: [{name: job}]",
        "phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False', reason: PodCompleted}], \
         containerStatuses: [{name: job, ready: false, restartCount: 0, image: i, imageID: i, \
                              state: {terminated: {exitCode: 0, reason: Completed}}}]",
        false,
        CAPTURED,
    ),
    (
        "a job is done",
        "restartPolicy: Never, containers: [{name: job}]",
        "phase: Succeeded, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False', reason: PodCompleted}]",
        false,
        NEITHER,
    ),
    (
        "a job has failed",
        "restartPolicy: Never, containers: [{name: job}]",
        "phase: Failed, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False', reason: PodFailed}]",
        false,
        NEITHER,
    ),
    (
        "it was evicted",
        "containers: [{name: app}]",
        "phase: Failed, reason: Evicted, message: 'The node was low on resource: memory.'",
        false,
        NEITHER,
    ),
    (
        // The EndpointSlice's controller is late, or does not run.
        "it was evicted, and its slice does not know yet",
        "containers: [{name: app}]",
        "phase: Failed, reason: Evicted, podIP: 10.0.0.1",
        true,
        NEITHER,
    ),
    (
        "its node does not answer",
        "containers: [{name: app}]",
        "phase: Running, reason: NodeLost, podIP: 10.0.0.1, conditions: [{type: Ready, status: Unknown}]",
        false,
        CAPTURED,
    ),
    (
        "it is on its node's network",
        "hostNetwork: true, containers: [{name: app}]",
        "phase: Running, podIP: 10.0.0.1, hostIP: 10.0.0.1",
        true,
        Known { captured: false, called: true },
    ),
];

#[test]
fn pods_at_every_point_of_their_lives() {
    for (what, spec, status, ready, expected) in LIVES {
        let pod = format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, uid: uid-a}}, \
             spec: {{nodeName: n1, {spec}}}, status: {{{status}}}}}\n"
        );
        let endpoint = format!(
            "{{addresses: [10.0.0.1], conditions: {{ready: {ready}}}, \
             targetRef: {{kind: Pod, name: a, namespace: shop, uid: uid-a}}}}"
        );
        let service = svc("orders", "10.96.0.1", "") + &slice("s", "orders", &endpoint);
        let snapshot = snapshot_of(&format!("{SHOP}{service}{pod}"));
        let workload = snapshot.pods.get("uid-a").unwrap_or_else(|| panic!("{what}: it is not known"));
        let endpoints = &destination(&snapshot, "10.96.0.1:80").service.endpoints;
        let known = Known {
            captured: workload.capture && !workload.finished && workload.own_proxy.is_none(),
            called: endpoints.iter().any(|endpoint| endpoint.is_usable()),
        };
        assert_eq!(known, *expected, "{what}");
    }
}
