use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use super::*;
use crate::{
    api::TagPropagation,
    capture::PodStatus,
    cluster::{Cluster, builder::Options, cause::Away as How, manifests},
    lease::{self, Away, Counted, Failure, Refused},
};

const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIP: 10.96.0.7, ports: [{name: http, port: 80}]}
";

fn policy(name: &str, service: &str, timeout: &str) -> String {
    format!(
        "
apiVersion: sluice.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop, uid: {name}}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  timeouts: {{request: {timeout}}}
"
    )
}

/// A directory that is watched as an agent does.
struct Watched {
    directory: tempfile::TempDir,
    cluster: Cluster,
}

impl Watched {
    async fn open(files: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), files);
        let cluster = Cluster::start(manifests::open(directory.path()).unwrap(), Options::default());
        cluster.synced().await.unwrap();
        Self { directory, cluster }
    }

    /// The status as soon as it is as wanted.
    async fn status(&self, wanted: impl Fn(&Status) -> bool) -> Status {
        let ask = async {
            loop {
                let status = Status::of(&Look {
                    snapshot: self.cluster.current().load_full(),
                    cluster: Some(self.cluster.status()),
                    verdicts: self.cluster.verdicts().borrow().clone(),
                    ..Look::default()
                });
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ask).await.expect("it comes to that")
    }
}

fn write(directory: &Path, files: &[(&str, String)]) {
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_told_once_and_with_what_follows() {
    let watched = Watched::open(&[
        ("shop.yaml", SHOP.to_owned()),
        ("first.yaml", policy("first", "orders", "1s")),
        ("never.yaml", policy("never", "orders", "soon")),
        ("astray.yaml", policy("astray", "nowhere", "1s")),
    ])
    .await;
    let counts = |status: &Status| {
        let Policies { active, partly_active, earlier_version_active, inactive } = status.policies;
        (active, partly_active, earlier_version_active, inactive)
    };
    let troubles_of = |status: &Status, name: &str| -> Vec<String> {
        status
            .problems
            .iter()
            .map(|problem| problem.message.clone())
            .filter(|what| what.contains(name))
            .collect()
    };
    let status = watched.status(|status| counts(status) == (1, 0, 0, 2)).await;
    assert_eq!(troubles_of(&status, "shop/first"), [""; 0]);
    for (name, part) in [("shop/never", "spec.timeouts.request"), ("shop/astray", "TargetNotFound")] {
        let told = troubles_of(&status, name);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert!(told[0].contains("is not active") && told[0].contains(part), "{told:#?}");
        assert!(!told[0].contains("stays"), "{told:#?}");
    }

    // Its second version is invalid: the first one stays.
    write(watched.directory.path(), &[("first.yaml", policy("first", "orders", "soon"))]);
    let status = watched.status(|status| counts(status) == (0, 0, 1, 2)).await;
    let told = troubles_of(&status, "shop/first");
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("is active in an earlier version: Invalid: spec.timeouts.request"), "{told:#?}");
    assert!(told[0].contains("stays active") && !told[0].contains("not active"), "{told:#?}");
    assert!(
        !status.problems.iter().any(|problem| problem.action.contains("stays")),
        "{:#?}",
        status.problems
    );
}

#[tokio::test]
async fn a_policy_in_a_namespace_that_is_not_enrolled_is_told_with_what_to_do() {
    let bank = "apiVersion: v1\nkind: Namespace\nmetadata: {name: bank}\n---\n".to_owned();
    let policy = policy("p", "orders", "1s").replace("namespace: shop", "namespace: bank");
    let watched = Watched::open(&[("shop.yaml", SHOP.to_owned()), ("bank.yaml", bank + &policy)]).await;
    let status = watched.status(|status| status.policies.inactive == 1).await;
    let [one] = &status.problems[..] else { panic!("{:#?}", status.problems) };
    assert!(
        one.message.starts_with(
            "TrafficPolicy bank/p is not active: NamespaceNotEnrolled: namespace bank is not enrolled"
        ),
        "{one:?}"
    );
    assert_eq!(one.action, "Enroll the namespace, or delete the object.");
}

/// The status of a node of which only this is known.
fn status_of(change: impl FnOnce(&mut Look, &mut cluster::Status)) -> Status {
    let mut cluster = cluster::Status {
        jwks: Vec::new(),
        state_file_trouble: None,
        generation: 1,
        heard: tokio::time::Instant::now(),
        restored: false,
        counts: cluster::builder::Counts::default(),
        problems: Vec::new(),
        troubles: Vec::new(),
        unread: Vec::new(),
        watches: BTreeMap::new(),
    };
    let mut look = Look::default();
    change(&mut look, &mut cluster);
    Status::of(&Look { cluster: Some(cluster), ..look })
}

fn of_source(message: &str) -> cluster::problem::Problem {
    cluster::problem::Problem::with_source(message, Cause::Away(How::Otherwise))
}

#[tokio::test(start_paused = true)]
async fn a_state_file_is_told_with_its_age_once() {
    let heard = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_secs(300)).await;
    let status = status_of(|look, cluster| {
        (cluster.heard, cluster.restored) = (heard, true);
        let message = "the API server has not answered since the start".to_owned();
        look.missing.push(crate::admin::view::Missing { message, action: "".into(), elsewhere: true });
    });
    let [one] = &*status.problems else { panic!("{:#?}", status.problems) };
    assert!(one.message.contains("runs on the state file, which is 300 s old"), "{one:?}");
    assert!(status.snapshot_restored && status.snapshot_age_seconds >= Some(300.0));
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_told() {
    let status =
        status_of(|_, cluster| cluster.state_file_trouble = Some("/s/state.gz: no space left".into()));
    let [one] = &*status.problems else { panic!("{:#?}", status.problems) };
    assert!(
        one.message.starts_with("The state file cannot be written: /s/state.gz: no space left. "),
        "{one:?}"
    );
    assert!(status.ready);
}

#[tokio::test(start_paused = true)]
async fn an_idle_cluster_is_nothing_to_worry_about() {
    for (seconds, problems) in [(0, 0), (61, 0), (150, 0), (181, 1)] {
        let heard = tokio::time::Instant::now();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let status = status_of(|_, cluster| cluster.heard = heard);
        assert_eq!(status.problems.len(), problems, "{seconds} s: {:#?}", status.problems);
    }
}

#[tokio::test(start_paused = true)]
async fn the_cause_is_told_first_and_its_consequences_once() {
    let heard = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_secs(600)).await;
    let missing = |message: &str, elsewhere| crate::admin::view::Missing {
        message: message.to_owned(),
        action: "Wait.".into(),
        elsewhere,
    };
    let status = status_of(|look, cluster| {
        cluster.heard = heard;
        cluster.problems =
            vec![of_source("the API server does not respond as it should (x): the last stays")];
        look.missing =
            vec![missing("namespace shop has never been read", true), missing("a worker is silent", false)];
    });
    let told: Vec<_> = status.problems.iter().map(|problem| &*problem.message).collect();
    assert_eq!(
        told,
        [
            "The API server does not respond as it should (x): the last stays.",
            "The agent is not ready: a worker is silent."
        ]
    );
    assert!(!status.ready);
    assert!(!status.problems[0].action.contains("Correct"), "{:?}", status.problems[0]);
}

#[tokio::test]
async fn each_trouble_with_the_api_server_comes_with_what_to_do_about_it() {
    use cluster::{cause::Grant, problem::Problem};

    let of = |message: &str, cause| Problem::with_source(message, cause);
    let forbidden = Cause::Forbidden(Grant::new("list", "pods", "shop"));
    let status = status_of(|look, cluster| {
        cluster.restored = true;
        cluster.problems = vec![of("pods may not be read", forbidden.clone())];
        let may_not = Cause::Forbidden(Grant::own("create", "leases.coordination.k8s.io"));
        cluster.troubles = vec![of("cannot create leases", may_not)];
        let message = "a worker is silent".to_owned();
        look.missing =
            vec![crate::admin::view::Missing { message, action: "Wait.".into(), elsewhere: false }];
    });
    let told: Vec<_> = status.problems.iter().map(|one| (&*one.message, &*one.action)).collect();
    let [restored, pods, not_ready, leases] = told[..] else { panic!("{told:#?}") };
    assert!(restored.0.contains("runs on the state file"), "{restored:?}");
    assert_eq!(restored.1, forbidden.action(), "what is in the way of one is in the way of the other");
    assert_eq!(pods, ("Pods may not be read.", &*forbidden.action()));
    assert_eq!(not_ready.1, "Wait.");
    assert_eq!(leases.0, "Cannot create leases.");
    assert!(leases.1.contains("apply the Role in deploy/base/rbac.yaml"), "{leases:?}");
}

#[tokio::test(start_paused = true)]
async fn a_permission_to_write_says_nothing_of_an_old_snapshot() {
    let heard = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_secs(600)).await;
    let status = status_of(|_, cluster| {
        cluster.heard = heard;
        cluster.troubles = vec![cluster::problem::Problem::with_source("x", Cause::Rejected)];
    });
    let told: Vec<_> = status.problems.iter().map(|problem| &*problem.message).collect();
    assert!(told.len() == 2 && told[0].starts_with("The snapshot of the cluster is more than"), "{told:?}");
}

#[tokio::test]
async fn a_policy_that_is_there_twice_is_told_though_one_of_the_two_is_active() {
    let watched = Watched::open(&[
        ("shop.yaml", SHOP.to_owned()),
        ("first.yaml", policy("first", "orders", "1s")),
        ("second.yaml", policy("first", "orders", "2s")),
        ("torn.yaml", policy("torn", "orders", "1s").replace("name: torn,", "name: [torn],")),
    ])
    .await;
    let status = watched.status(|status| status.policies.active == 1).await;
    let told: Vec<_> = status.problems.iter().map(|one| (&*one.message, &*one.action)).collect();
    let [twice, torn] = told[..] else { panic!("{told:#?}") };
    let first = "TrafficPolicy shop/first: metadata.name: is in first.yaml:2 already; this one is left out";
    assert_eq!(twice.0, format!("second.yaml:2: {first}"));
    assert!(twice.1.contains("out of one of the two"), "{twice:?}");
    assert!(torn.0.starts_with("torn.yaml:"), "{torn:?}");
    assert_eq!(torn.1, "Correct the file.");
}

#[tokio::test]
async fn an_access_log_that_is_asked_for_and_off_is_told() {
    let shop = SHOP.replace("name: orders,", "name: orders, annotations: {sluice.dev/access-log: '0.5'},");
    assert!(shop.contains("access-log"));
    let watched = Watched::open(&[("shop.yaml", shop)]).await;
    let status = |without_access_log| {
        Status::of(&Look {
            snapshot: watched.cluster.current().load_full(),
            without_access_log,
            ..Look::default()
        })
    };
    assert_eq!(status(false).problems, []);
    let [one] = &status(true).problems[..] else { panic!("it is told once") };
    assert!(one.message.contains("sluice.dev/access-log has no effect on shop/orders:"), "{one:?}");
}

#[tokio::test]
async fn connections_that_are_older_than_the_enrolment_are_named() {
    let watched = Watched::open(&[("shop.yaml", SHOP.to_owned())]).await;
    let workload = Arc::new(cluster::model::Workload::new("a", "shop", "client"));
    let older = ["10.96.0.7:80", "10.96.0.7:80", "10.9.9.9:1"].map(|to| to.parse().unwrap());
    let pod = PodStatus { older: older.into(), ..PodStatus::enrolled(workload) };
    let snapshot = watched.cluster.current().load_full();
    let status = Status::of(&Look { snapshot, pods: [pod].into(), ..Look::default() });
    let told: Vec<_> = status.problems.iter().map(|problem| &*problem.message).collect();
    assert_eq!(
        told,
        [
            "Pod shop/client has 1 connection that is older than its enrolment, to 10.9.9.9:1: what it sends there bypasses the agent.",
            "Pod shop/client has 2 connections that are older than its enrolment, to orders.shop:80: what it sends there bypasses the agent.",
        ]
    );
    assert_eq!(status.pods.enrolled, 1);
    assert!(status.problems[1].action.contains("annotate the Service"), "{:?}", status.problems[1]);
}

#[tokio::test]
async fn connections_that_are_older_than_what_is_asked_for_at_a_pod_are_named() {
    let workload = Arc::new(cluster::model::Workload::new("a", "shop", "orders-1"));
    let older = ["10.0.0.1:8080", "[fd00::1]:8080", "10.0.0.1:9000"].map(|to| to.parse().unwrap());
    let steered = crate::capture::Steered { older: older.into(), ..Default::default() };
    let pod = PodStatus { steered, ..PodStatus::enrolled(workload) };
    let status = Status::of(&Look { pods: [pod].into(), ..Look::default() });
    let told: Vec<_> = status.problems.iter().map(|problem| &*problem.message).collect();
    assert_eq!(
        told,
        [
            "Pod shop/orders-1 has 2 connections that are older than what policies ask for at its port 8080: AccessPolicies, limits with scope: Endpoint and sluice.dev/propagation do not apply to them.",
            "Pod shop/orders-1 has 1 connection that is older than what policies ask for at its port 9000: AccessPolicies, limits with scope: Endpoint and sluice.dev/propagation do not apply to it.",
        ]
    );
}

#[tokio::test]
async fn connections_that_are_ended_by_and_by_ask_for_nothing() {
    let shop = SHOP.replace("name: orders,", "name: orders, annotations: {sluice.dev/reclaim: enabled},");
    let watched = Watched::open(&[("shop.yaml", shop)]).await;
    let workload = Arc::new(cluster::model::Workload::new("a", "shop", "client"));
    let older = ["10.96.0.7:80", "10.9.9.9:1"].map(|to| to.parse().unwrap());
    let pod = PodStatus { older: older.into(), ..PodStatus::enrolled(workload) };
    let look = Look {
        snapshot: watched.cluster.current().load_full(),
        pods: [pod].into(),
        reclaim: true,
        ..Look::default()
    };
    let actions = |look: &Look| -> Vec<String> {
        Status::of(look).problems.into_iter().map(|problem| problem.action).collect()
    };
    let [other, orders] = &actions(&look)[..] else { panic!("two services") };
    assert!(other.starts_with("Restart the pod"), "{other}");
    assert!(orders.starts_with("The agent ends them when they are idle"), "{orders}");
    // --reclaim-rate 0.
    let [_, orders] = &actions(&Look { reclaim: false, ..look.clone() })[..] else { panic!("two services") };
    assert!(orders.starts_with("Restart the pod"), "{orders}");
    let trouble = Look { reclaim_trouble: Some(Arc::new("Operation not permitted".to_owned())), ..look };
    let told = Status::of(&trouble).problems.pop().unwrap();
    assert!(
        told.message.contains("cannot be ended (sluice.dev/reclaim): Operation not permitted"),
        "{told:?}"
    );
}

#[test]
fn an_access_log_that_cannot_be_written_is_told() {
    let trouble = Some(Arc::new("No space left on device".to_owned()));
    let status = Status::of(&Look { access_log_trouble: trouble, ..Look::default() });
    let [one] = &status.problems[..] else { panic!("{:?}", status.problems) };
    assert_eq!(
        one.message,
        "The access log cannot be written, and its lines are lost: No space left on device."
    );
}

#[test]
fn a_store_of_limits_that_does_not_answer_is_told_where_there_are_limits() {
    let since = std::time::Instant::now();
    let status = |limits: &[(&str, Counted)]| {
        let limits = limits.iter().map(|(name, by)| (Arc::from(*name), *by)).collect();
        let leases = lease::Status {
            store: Some("redis://valkey:6379".into()),
            trouble: Some(Away {
                failure: Failure::Unreachable,
                why: "cannot connect: refused".into(),
                since,
            }),
            limits: Arc::new(limits),
            ..lease::Status::default()
        };
        Status::of(&Look { leases, ..Look::default() }).problems
    };
    assert_eq!(status(&[]), []);
    let [one] = &status(&[("web.shop:80 all", Counted::LastShare)])[..] else { panic!("one problem") };
    assert!(one.message.contains("redis://valkey:6379, has not answered as it should for"), "{one:?}");
    assert!(one.message.ends_with("cannot connect: refused. The agent goes on with its last share of them."));
    let [one] = &status(&[("web.shop:80 all", Counted::Node)])[..] else { panic!("one problem") };
    assert!(one.message.contains("none of web.shop:80 all, which it counts by itself"), "{one:?}");
}

#[test]
fn errors_of_the_store_about_one_limit_are_told_with_what_to_do() {
    let status = |failure, is_leased, by| {
        let name: Arc<str> = "web.shop:80 all".into();
        let refused = Refused { failure, why: "it says: no".into(), is_leased };
        let leases = lease::Status {
            store: Some("redis://valkey:6379".into()),
            answers: true,
            limits: Arc::new([(name.clone(), by)].into()),
            refused: [(name, refused)].into(),
            ..lease::Status::default()
        };
        assert_eq!((leases.failing(failure), leases.failing(Failure::Timeout)), (1, 0));
        let [one] = &Status::of(&Look { leases, ..Look::default() }).problems[..] else {
            panic!("one problem")
        };
        assert!(one.message.ends_with("The error about web.shop:80 all: it says: no."), "{one:?}");
        format!("{one:?}")
    };
    let said = status(Failure::WrongType, true, Counted::Leased);
    assert!(said.contains(":instead") && said.contains("delete the key"), "{said}");
    let said = status(Failure::Permission, false, Counted::LastShare);
    assert!(said.contains("an even one") && said.contains("ACL SETUSER"), "{said}");
    let said = status(Failure::Permission, false, Counted::Node);
    assert!(said.contains("counts by itself there"), "{said}");
}

const GUARDED: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: orders-1, namespace: shop, uid: 6f3d1a52-9c1e-4d7a-8b55-0a2f3c4d5e6f}
spec: {nodeName: node-1, containers: [{name: app, image: app}]}
status: {phase: Running, podIP: 10.244.0.9, podIPs: [{ip: 10.244.0.9}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-x, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}, targetRef: {kind: Pod, name: orders-1, namespace: shop}}]
---
apiVersion: sluice.dev/v1alpha1
kind: AccessPolicy
metadata: {name: ours, namespace: shop}
spec: {targetRefs: [{name: orders}], rules: [{name: ours, from: [{namespace: shop}]}]}
";

#[tokio::test]
async fn access_policies_that_are_not_enforced_are_told_with_the_pod() {
    let watched = Watched::open(&[("shop.yaml", format!("{SHOP}{GUARDED}"))]).await;
    let snapshot = watched.cluster.current().load_full();
    let workload = snapshot.pods.values().next().expect("one pod").clone();
    let told = |pods: Vec<PodStatus>, trouble: Option<&str>| {
        let steering_trouble = trouble.map(|why| Arc::new(why.to_owned()));
        let status = Status::of(&Look {
            snapshot: snapshot.clone(),
            pods: pods.into(),
            steering_trouble,
            ..Look::default()
        });
        let of_access = |problem: &Problem| problem.message.starts_with("AccessPolicy");
        let told = status.problems.into_iter().filter(of_access);
        told.map(|Problem { message, action }| (message, action)).collect::<Vec<_>>()
    };
    let enrolled = || PodStatus::enrolled(workload.clone());
    let with = |addresses: &[&str], trouble: Option<&str>| PodStatus {
        steered: crate::capture::Steered {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            trouble: trouble.map(str::to_owned),
            ..Default::default()
        },
        ..enrolled()
    };
    let begin = "AccessPolicy shop/ours is not enforced for Service shop/orders at Pod shop/orders-1, which clients reach directly: ";
    assert_eq!(told(vec![with(&["10.244.0.9:8080"], None)], None), []);
    for (pods, trouble, why, action) in [
        (vec![enrolled()], None, "its connections are not steered yet.", "The agent retries."),
        (vec![with(&["10.244.0.9:81"], Some("no room"))], None, "no room.", "The agent retries."),
        (vec![enrolled()], Some("no map of sockets"), "no map of sockets.", "Use a newer kernel"),
        (
            vec![PodStatus { own_proxy: Some("Istio"), ..enrolled() }],
            None,
            "it is not enrolled: the proxy of Istio redirects its connections already.",
            "Have the pod enrolled.",
        ),
        (
            vec![],
            None,
            "it is not enrolled: its cgroup is not on this node, or not yet.",
            "Have the pod enrolled.",
        ),
    ] {
        let [(message, what_to_do)] = &told(pods, trouble)[..] else { panic!("{why}") };
        assert_eq!(message, &format!("{begin}{why}"));
        assert!(what_to_do.starts_with(action), "{what_to_do}");
    }
}

#[tokio::test]
async fn pods_that_stay_open_without_an_agent_are_told_where_they_must_not() {
    use crate::capture::{PodStatus, Steered};
    let closed = GUARDED.replace("targetRefs:", "whenUnattended: Refuse, targetRefs:");
    let watched = Watched::open(&[("shop.yaml", format!("{SHOP}{closed}"))]).await;
    let snapshot = watched.cluster.current().load_full();
    let workload = snapshot.pods.values().next().expect("one pod").clone();
    let told = |steered: Steered| {
        let pods = [PodStatus { steered, ..PodStatus::enrolled(workload.clone()) }].into();
        let status = Status::of(&Look { snapshot: snapshot.clone(), pods, ..Look::default() });
        let problems = status.problems.into_iter().map(|problem| problem.message);
        problems.filter(|what| what.starts_with("whenUnattended")).collect::<Vec<_>>()
    };
    let address: Arc<[_]> = ["10.244.0.9:8080".parse().unwrap()].into();
    let steered = Steered { addresses: address.clone(), ..Steered::default() };
    let begin = "whenUnattended: Refuse of AccessPolicy shop/ours is not active for Service shop/orders at Pod shop/orders-1, which clients reach directly while no agent is there: ";
    assert_eq!(told(Steered { closed: address, ..steered.clone() }), [""; 0]);
    let why = "/sys/fs/bpf is no BPF file system: mount one there (mount -t bpf bpf /sys/fs/bpf)";
    let open = Steered { unclosed: Some(why.to_owned()), ..steered.clone() };
    assert_eq!(told(open), [format!("{begin}{why}.")]);
    assert_eq!(told(steered), [format!("{begin}the agent does not attend it, or not yet.")]);
}

#[test]
fn pods_that_lose_tags_and_those_that_cannot_be_read_are_told() {
    use crate::{
        capture::{PodStatus, Steered},
        cluster::model::Workload,
        govern::lane::TagSource,
        observe::metrics::PodTags,
    };
    let tags = |name: &str, lost: u64, is_losing: bool, carriers: &[TagSource]| PodTags {
        namespace: "shop".into(),
        name: name.into(),
        carriers: carriers.into(),
        lost,
        is_losing,
    };
    let pod = |name: &str, propagation: TagPropagation, trouble: Option<&str>| PodStatus {
        steered: Steered { trouble: trouble.map(str::to_owned), ..Steered::default() },
        ..PodStatus::enrolled(Arc::new(Workload { propagation, ..Workload::new(name, "shop", name) }))
    };
    let told = |look: &Look| {
        let of = |problem: Problem| (problem.message, problem.action);
        propagation(look).into_iter().map(of).collect::<Vec<_>>()
    };
    let look = Look {
        tags: vec![
            tags("losing", 7, true, &[]),
            tags("partly", 1, true, &[TagSource::Header, TagSource::Trace]),
            tags("once", 3, false, &[]),
            tags("good", 0, false, &[TagSource::Trace]),
        ],
        pods: [
            pod("read", TagPropagation::Trace, None),
            pod("full", TagPropagation::Trace, Some("no room.")),
            pod("guarded", TagPropagation::Headers, Some("no room")),
        ]
        .into(),
        ..Look::default()
    };
    let [(losing, pass), (partly, _), (full, retries)] = &told(&look)[..] else {
        panic!("{:?}", told(&look))
    };
    assert_eq!(
        losing,
        "Pod shop/losing loses tags: it sent 7 requests without one while all that it was answering had one, some of them in the last five minutes. No other request of it had one."
    );
    assert!(partly.ends_with("had theirs by header, trace_id."), "{partly}");
    assert!(pass.starts_with("Have the application pass on"), "{pass}");
    assert_eq!(full, "The annotation sluice.dev/propagation: trace has no effect on Pod shop/full: no room.");
    assert!(retries.starts_with("The agent retries."), "{retries}");
    // The kernel has it for nobody.
    let look = Look {
        pods: [pod("read", TagPropagation::Trace, None), pod("plain", TagPropagation::Headers, None)].into(),
        steering_trouble: Some(Arc::new("no map of sockets".to_owned())),
        ..Look::default()
    };
    let [(read, newer)] = &told(&look)[..] else { panic!("{:?}", told(&look)) };
    assert!(read.ends_with("Pod shop/read: no map of sockets."), "{read}");
    assert!(newer.starts_with("Use a newer kernel"), "{newer}");
}

#[test]
fn servers_whose_threads_say_nothing_are_told() {
    use crate::{
        capture::{Followed, Handling, Steered},
        cluster::model::Workload,
        proxy::PodUse,
    };
    let followed = |port, handling| Followed { port, process: 7, handling };
    let pod = |name: &str, followed: Vec<Followed>| PodStatus {
        steered: Steered { followed: followed.into(), ..Steered::default() },
        ..PodStatus::enrolled(Arc::new(Workload {
            propagation: TagPropagation::Thread,
            ..Workload::new(name, "shop", name)
        }))
    };
    let told = |look: &Look| propagation(look).into_iter().map(|told| told.message).collect::<Vec<_>>();
    let good = vec![followed(80, Handling::ByThread), followed(81, Handling::OnTrial { shown: 7 })];
    let node = Handling::Multiplexes { thread: "node".to_owned() };
    let pool = Handling::HandsOver { thread: "pool-1".to_owned() };
    let look = Look {
        pods: [pod("good", good), pod("bad", vec![followed(8080, node), followed(8081, pool)])].into(),
        ..Look::default()
    };
    let begins = |port: u16| {
        format!(
            "The annotation sluice.dev/propagation: thread has no effect on requests to port {port} of Pod shop/bad: "
        )
    };
    assert_eq!(
        told(&look),
        [
            begins(8080) + "its thread \"node\" has read a request while it had not answered another one.",
            begins(8081)
                + "its thread \"pool-1\" has answered, or read on, a request that another thread had read.",
        ]
    );
    let look = Look {
        threads_trouble: Some(Arc::new("the kernel refused it".to_owned())),
        pods: [pod("one", Vec::new()), pod("two", Vec::new())].into(),
        ..Look::default()
    };
    assert_eq!(
        told(&look),
        [
            "The annotation sluice.dev/propagation: thread is as trace on this node, for 2 pods: the kernel refused it."
        ]
    );
    // Where nobody asks for it nothing is missed.
    assert!(told(&Look { pods: Arc::default(), ..look }).is_empty());
    let uses = |name: &str, pipelines| PodUse {
        namespace: "shop".into(),
        name: name.into(),
        connections: 1,
        bytes: 0,
        client: None,
        direct: None,
        over: None,
        pipelines,
        direct_for: Default::default(),
    };
    let look = Look {
        uses: vec![uses("waits", false), uses("hurries", true), uses("asks-no-more", true)],
        pods: [pod("waits", Vec::new()), pod("hurries", Vec::new())].into(),
        ..Look::default()
    };
    let [hurries] = &told(&look)[..] else { panic!("{:?}", told(&look)) };
    assert!(hurries.contains("thread has no effect on Pod shop/hurries: a client in it"), "{hurries}");
}

#[test]
fn a_pod_is_over_its_budget_only_while_it_has_too_much() {
    use crate::proxy::{Cause, PodUse};
    let told = |over| {
        let pod = PodUse {
            namespace: "shop".into(),
            name: "greedy".into(),
            connections: 0,
            bytes: 0,
            client: None,
            direct: Some(Cause::Memory),
            over,
            pipelines: false,
            direct_for: Default::default(),
        };
        Status::of(&Look { uses: vec![pod], ..Look::default() }).problems
    };
    assert_eq!(told(None), []);
    let [problem] = &told(Some(Cause::Memory))[..] else { panic!("one problem") };
    assert!(problem.message.starts_with("Pod shop/greedy has 0 connections"), "{problem:?}");
}

#[tokio::test]
async fn an_agent_that_drains_warns_of_nothing_that_the_next_one_does() {
    let closed = GUARDED.replace("targetRefs:", "whenUnattended: Refuse, targetRefs:");
    let wrong = policy("never", "orders", "soon");
    let watched = Watched::open(&[("shop.yaml", format!("{SHOP}{closed}")), ("wrong.yaml", wrong)]).await;
    watched.status(|status| status.policies.inactive == 1).await;
    let look = Look {
        draining: true,
        missing: vec![crate::admin::view::Missing {
            message: "the agent is draining: what is open goes on".to_owned(),
            action: "".into(),
            elsewhere: false,
        }],
        snapshot: watched.cluster.current().load_full(),
        cluster: Some(watched.cluster.status()),
        verdicts: watched.cluster.verdicts().borrow().clone(),
        ..Look::default()
    };
    let status = Status::of(&look);
    assert!(status.draining && !status.ready);
    let [problem] = &status.problems[..] else { panic!("{:#?}", status.problems) };
    assert!(problem.message.starts_with("The agent is draining:"), "{problem:?}");
    assert_eq!((status.policies.inactive, status.services.managed), (1, 1));
    // Nor do its metrics.
    assert!(crate::admin::view::unenforced::guarded(&look).is_empty());
    assert!(crate::admin::view::unattended::closing(&look).is_empty());
}
