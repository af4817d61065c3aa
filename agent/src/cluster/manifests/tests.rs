//! What files say, and how a directory is followed through everything that editors and mounts do to it.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use tempfile::TempDir;

use super::*;
use crate::cluster::{Cluster, builder::Options, model::Snapshot, problem::Problem};

const NAMESPACE: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}}\n";

fn service(name: &str, ip: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  clusterIP: \
         10.96.0.{ip}\n  ports:\n  - port: 80\n"
    )
}

fn problems(text: &str) -> Vec<String> {
    let (sightings, mut problems) = parse(text);
    problems.extend(sightings.into_iter().flat_map(|sighting| sighting.problems));
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn what_is_wrong_is_named_with_line_and_field() {
    let cases = [
        (
            "kind: Servce\napiVersion: v1\n",
            "test.yaml:1: kind: \"Servce\" is no kind of v1; Sluice reads Namespace, Service, EndpointSlice, Pod, TrafficPolicy, TrafficLane, AccessPolicy, HTTPRoute, GRPCRoute, ReferenceGrant, XMesh and List; it is left out",
        ),
        (
            "kind: service\napiVersion: v1\n",
            "test.yaml:1: kind: \"service\": write \"Service\"; it is left out",
        ),
        (
            "\nkind: EndpointSlice\napiVersion: discovery.k8s.io/v1beta1\n",
            "test.yaml:3: apiVersion: \"discovery.k8s.io/v1beta1\" has no EndpointSlice that Sluice reads: allowed is \"discovery.k8s.io/v1\"; it is left out",
        ),
        ("kind: Pod\n", "test.yaml:1: apiVersion: not set on a Pod; it is left out"),
        ("apiVersion: v1\nkind: [Pod]\n", "test.yaml:2: kind: not a string; it is left out"),
        ("a: 1\n", "test.yaml:1: kind: not set; it is left out"),
        ("- 1\n", "test.yaml:1: a Kubernetes object is a mapping with apiVersion and kind; it is left out"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, uid: u}, spec: {hostNetwork: 1}}",
            "test.yaml:1: Pod default/a: spec.hostNetwork: true or false is needed, not 1; its last good state stays, if there is one",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  uid: u\n",
            "test.yaml:4: Pod default/: metadata.name: not set; the object is left out",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Shop_1\n",
            "test.yaml:4: Namespace Shop_1: metadata.name: \"Shop_1\" is no name: allowed are 1 to 253 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit; the object is left out",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
            "test.yaml:3: Pod default/a: metadata.uid: not set: the pod cannot be found on a node, so it is not enrolled",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, uid: u}\nstatus:\n  podIPs:\n  - ip: 10.0.0.300\n",
            "test.yaml:6: Pod default/a: status.podIPs[0].ip: \"10.0.0.300\" is no IP address; it is left out",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn of_a_service_only_the_part_that_is_wrong_is_left_out() {
    let text = "\
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec:
  clusterIPs: [10.96.0.1, 10.96.0.2, nowhere, 127.0.0.1]
  sessionAffinity: Sometimes
  trafficDistribution: PreferFar
  ports:
  - {name: a, port: 0}
  - {name: b, port: 65536}
  - {name: c, port: -1}
  - {name: d, port: 80}
  - {name: e, port: 80}
  - {name: d, port: 81}
  - {name: f, port: 82, protocol: TPC}
  - {port: 65535}
  - {port: 83}
";
    let start = "Service shop/a: spec.";
    let expected = [
        (9, "ports[0].port: 0 is no port: allowed are 1 to 65535; it is left out"),
        (10, "ports[1].port: 65536 is no port: allowed are 1 to 65535; it is left out"),
        (11, "ports[2].port: -1 is no port: allowed are 1 to 65535; it is left out"),
        (13, "ports[4].port: 80 is there already; this one is left out"),
        (14, "ports[5].name: \"d\" is there already; this port is left out"),
        (15, "ports[6].protocol: \"TPC\" is none of \"TCP\", \"UDP\", \"SCTP\"; the port is left out"),
        (17, "ports[8].name: not set on more than one port: each needs a name; this port is left out"),
        (5, "clusterIPs[1]: 10.96.0.2 is a second address of its family; it is left out"),
        (5, "clusterIPs[2]: \"nowhere\" is no IP address; it is left out"),
        (
            5,
            "clusterIPs[3]: 127.0.0.1 cannot be a service's address: not allowed are unspecified, loopback, link-local, multicast, broadcast and IPv4-mapped ones; it is left out",
        ),
        (6, "sessionAffinity: \"Sometimes\" is none of \"None\", \"ClientIP\"; it counts as not set"),
        (
            7,
            "trafficDistribution: \"PreferFar\" is none of \"PreferClose\", \"PreferSameZone\", \"PreferSameNode\"; it counts as not set",
        ),
    ];
    assert_eq!(problems(text), expected.map(|(line, what)| format!("test.yaml:{line}: {start}{what}")));
    let (sightings, _) = parse(text);
    let crate::cluster::object::Object::Service(service) = &sightings[0].object else { panic!("a Service") };
    assert_eq!(service.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 65535]);
}

#[test]
fn of_a_slice_only_the_part_that_is_wrong_is_left_out() {
    let text = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, namespace: shop}
addressType: IPv4
ports:
- {name: a, port: 70000}
- {name: b}
- {name: c, port: 80}
endpoints:
- addresses: [10.0.0.1, 10.0.0.2]
- addresses: []
- addresses: [10.0.0]
- addresses: ['fd00::1']
- addresses: [169.254.169.254]
- addresses: [10.0.0.3]
";
    let expected = [
        (
            3,
            "metadata.labels[\"kubernetes.io/service-name\"]: not set: the slice belongs to no Service and is not used",
        ),
        (6, "ports[0].port: 70000 is no port: allowed are 1 to 65535; it is left out"),
        (7, "ports[1].port: not set; it is left out"),
        (
            10,
            "endpoints[0].addresses: only the first of 2 is used, as Kubernetes does: give each its own endpoint",
        ),
        (11, "endpoints[1].addresses: empty; the endpoint is left out"),
        (12, "endpoints[2].addresses[0]: \"10.0.0\" is no IP address; it is left out"),
        (13, "endpoints[3].addresses[0]: fd00::1 is not of addressType \"IPv4\"; it is left out"),
        (
            14,
            "endpoints[4].addresses[0]: 169.254.169.254 cannot be a service's address: not allowed are unspecified, loopback, link-local, multicast, broadcast and IPv4-mapped ones; it is left out",
        ),
    ];
    assert_eq!(
        problems(text),
        expected.map(|(line, what)| format!("test.yaml:{line}: EndpointSlice shop/a: {what}"))
    );
    let (sightings, _) = parse(text);
    let crate::cluster::object::Object::EndpointSlice(slice) = &sightings[0].object else {
        panic!("a slice")
    };
    let ips: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.ip.to_string()).collect();
    assert_eq!((ips, slice.ports.len()), (vec!["10.0.0.1".to_owned(), "10.0.0.3".to_owned()], 1));

    let named = text.replace("addressType: IPv4", "addressType: FQDN");
    assert!(problems(&named).iter().any(|problem| problem.contains(
        ":4: EndpointSlice shop/a: addressType: \"FQDN\" is not used: allowed are \"IPv4\" and \"IPv6\""
    )));
}

#[test]
fn other_kinds_are_passed_over_and_lists_are_opened() {
    let text = "\
{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}
---
{apiVersion: v1, kind: ConfigMap, data: {a: b}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, spec: {template: {}}}
---
{apiVersion: v1, kind: SecretList, items: [{data: 1}]}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Secret}
---
{apiVersion: v1, kind: NamespaceList, items: [{metadata: {name: b}}, {apiVersion: v1, kind: Namespace, metadata: {name: c}}]}
";
    let (sightings, problems) = parse(text);
    assert_eq!(problems, []);
    let keys: Vec<_> = sightings.iter().map(|sighting| sighting.object.key().to_string()).collect();
    assert_eq!(keys, ["Namespace a", "Namespace b", "Namespace c"]);
}

#[tokio::test]
async fn a_directory_that_is_none_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("nowhere");
    let error = open(&missing).unwrap_err();
    assert_eq!(error.to_string(), format!("the manifests directory {} does not exist", missing.display()));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(open(&file).unwrap_err().to_string().contains("is not a directory"));
}

/// A directory, and the cluster made of it.
struct Followed {
    dir: TempDir,
    cluster: Cluster,
}

impl Followed {
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("manifests");
        fs::create_dir(&root).unwrap();
        prepare(&root);
        let cluster = Cluster::start(open(&root).unwrap(), Options::default());
        cluster.synced().await.expect("a snapshot");
        Self { dir, cluster }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.root().join(name), text).unwrap();
    }

    fn services(&self) -> Vec<String> {
        services(&self.cluster.current().load())
    }

    /// Waits until these services are in force.
    async fn until(&self, expected: &[&str]) {
        let mut snapshots = self.cluster.snapshots();
        let wait = snapshots.wait_for(|snapshot| services(snapshot) == expected);
        assert!(
            tokio::time::timeout(Duration::from_secs(60), wait).await.is_ok(),
            "{expected:?} expected, {:?} in force, {:?}",
            self.services(),
            self.cluster.status().problems
        );
    }

    /// Waits until the problems are these, as far as they are given.
    async fn until_problems(&self, expected: &[&str]) {
        let mut report = self.cluster.report.clone();
        let wait = report.wait_for(|report| {
            report.problems.len() == expected.len()
                && report.problems.iter().zip(expected).all(|(found, part)| found.to_string().contains(part))
        });
        assert!(
            tokio::time::timeout(Duration::from_secs(60), wait).await.is_ok(),
            "{expected:?} expected, {:#?}",
            self.cluster.status().problems
        );
    }
}

fn services(snapshot: &Snapshot) -> Vec<String> {
    let mut services: Vec<_> = snapshot
        .destinations
        .iter()
        .map(|(address, destination)| format!("{} {}", destination.service.name, address.ip()))
        .collect();
    services.sort();
    services
}

#[tokio::test]
async fn the_whole_directory_is_in_the_first_snapshot() {
    let followed = Followed::new(|root| {
        fs::create_dir_all(root.join("deep/deeper")).unwrap();
        fs::write(root.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(root.join("deep/deeper/a.yml"), service("a", 1)).unwrap();
        fs::write(root.join("deep/b.json"), r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"b","namespace":"shop"},"spec":{"clusterIP":"10.96.0.2","ports":[{"port":80}]}}"#).unwrap();
        fs::write(root.join(".hidden.yaml"), service("hidden", 3)).unwrap();
        fs::write(root.join("c.yaml~"), service("backup", 4)).unwrap();
        fs::write(root.join("README.md"), "{{ no yaml").unwrap();
        // It contains itself.
        symlink(root, root.join("deep/again")).unwrap();
    })
    .await;
    let first = followed.cluster.synced().await.unwrap();
    assert_eq!((services(&first), first.generation), (vec!["a 10.96.0.1".into(), "b 10.96.0.2".into()], 1));
    assert_eq!(followed.cluster.status().problems, []);
}

#[tokio::test]
async fn edits_are_followed_however_they_are_made() {
    let followed = Followed::new(|root| fs::write(root.join("ns.yaml"), NAMESPACE).unwrap()).await;
    let root = followed.root();
    // Written, written in place with the same length, appended to.
    followed.write("a.yaml", &service("a", 1));
    followed.until(&["a 10.96.0.1"]).await;
    followed.write("a.yaml", &service("a", 2));
    followed.until(&["a 10.96.0.2"]).await;
    followed.write("a.yaml", &format!("{}---\n{}", service("a", 2), service("b", 3)));
    followed.until(&["a 10.96.0.2", "b 10.96.0.3"]).await;
    // Renamed over, as editors do.
    followed.write(".a.yaml.swp", &service("a", 4));
    fs::rename(root.join(".a.yaml.swp"), root.join("a.yaml")).unwrap();
    followed.until(&["a 10.96.0.4"]).await;
    // Renamed, linked, moved away, in a new directory, with the directory removed.
    fs::rename(root.join("a.yaml"), root.join("z.yaml")).unwrap();
    followed.write("b.yaml", &service("b", 5));
    followed.until(&["a 10.96.0.4", "b 10.96.0.5"]).await;
    fs::create_dir_all(root.join("one/two")).unwrap();
    fs::write(root.join("one/two/c.yaml"), service("c", 6)).unwrap();
    followed.until(&["a 10.96.0.4", "b 10.96.0.5", "c 10.96.0.6"]).await;
    fs::write(root.join("one/two/c.yaml"), service("c", 7)).unwrap();
    followed.until(&["a 10.96.0.4", "b 10.96.0.5", "c 10.96.0.7"]).await;
    fs::remove_dir_all(root.join("one")).unwrap();
    fs::rename(root.join("z.yaml"), followed.dir.path().join("z.yaml")).unwrap();
    followed.until(&["b 10.96.0.5"]).await;
    fs::remove_file(root.join("b.yaml")).unwrap();
    followed.until(&[]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_as_a_whole() {
    let fill = |root: &Path, version: &str, ip: u8| {
        let data = root.join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(data.join("a.yaml"), service("a", ip)).unwrap();
        fs::write(data.join("b.yaml"), service("b", ip + 1)).unwrap();
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    let followed = Followed::new(|root| {
        fill(root, "..2026_1", 1);
        for name in ["ns.yaml", "a.yaml", "b.yaml"] {
            symlink(Path::new("..data").join(name), root.join(name)).unwrap();
        }
    })
    .await;
    followed.until(&["a 10.96.0.1", "b 10.96.0.2"]).await;
    fill(&followed.root(), "..2026_2", 3);
    fs::remove_dir_all(followed.root().join("..2026_1")).unwrap();
    let mut snapshots = followed.cluster.snapshots();
    snapshots.mark_unchanged();
    followed.until(&["a 10.96.0.3", "b 10.96.0.4"]).await;
    assert_eq!(snapshots.borrow_and_update().generation, 2, "no state in between");
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_state_and_hinders_nobody() {
    let followed = Followed::new(|root| {
        fs::write(root.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(root.join("a.yaml"), format!("{}---\n{}", service("a", 1), service("b", 2))).unwrap();
    })
    .await;
    followed.write("a.yaml", &(service("a", 3) + "  - port: [\n"));
    followed.until_problems(&["a.yaml:10: no valid YAML: "]).await;
    followed.write("c.yaml", &service("c", 4));
    followed.until(&["a 10.96.0.1", "b 10.96.0.2", "c 10.96.0.4"]).await;

    // One object of the file cannot be taken: it stays as it was, the others change.
    let broken = service("a", 5).replace("port: 80", "port: eighty");
    followed.write("a.yaml", &format!("{broken}---\n{}", service("b", 6)));
    followed.until(&["a 10.96.0.1", "b 10.96.0.6", "c 10.96.0.4"]).await;
    followed
        .until_problems(&[
            "a.yaml:9: Service shop/a: spec.ports[0].port: a whole number is needed, not the string \"eighty\"",
        ])
        .await;

    fs::write(followed.root().join("a.yaml"), b"kind: \xff\n").unwrap();
    followed.until_problems(&["a.yaml:1: is not UTF-8; the last good state of this file stays"]).await;
    assert_eq!(followed.services(), ["a 10.96.0.1", "b 10.96.0.6", "c 10.96.0.4"]);

    followed.write("a.yaml", &service("a", 7));
    followed.until(&["a 10.96.0.7", "c 10.96.0.4"]).await;
    fs::write(followed.root().join("d.yaml"), b"kind: \xff\n").unwrap();
    followed.until_problems(&["d.yaml:1: is not UTF-8; nothing of this file is in force"]).await;
    followed.write("d.yaml", "{{{");
    followed.until_problems(&["no valid YAML: "]).await;
    followed.until_problems(&["; nothing of this file is in force"]).await;
    fs::remove_file(followed.root().join("d.yaml")).unwrap();
    followed.until_problems(&[]).await;
    followed.until_problems(&[]).await;
}

#[tokio::test]
async fn of_two_objects_of_one_name_the_first_by_path_counts() {
    let followed = Followed::new(|root| {
        fs::write(root.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(root.join("b.yaml"), format!("# here\n{}", service("a", 1))).unwrap();
        fs::write(root.join("c.yaml"), format!("{}---\n{}", service("a", 2), service("a", 3))).unwrap();
    })
    .await;
    let left_out = "Service shop/a: metadata.name: is in b.yaml:2 already; this one is left out";
    followed.until_problems(&[&format!("c.yaml:1: {left_out}"), &format!("c.yaml:11: {left_out}")]).await;
    assert_eq!(followed.services(), ["a 10.96.0.1"]);
    fs::remove_file(followed.root().join("b.yaml")).unwrap();
    followed.until(&["a 10.96.0.2"]).await;
    followed.until_problems(&["c.yaml:11: Service shop/a: metadata.name: is in c.yaml:1 already"]).await;
}

#[tokio::test]
async fn the_directory_may_go_and_come_back() {
    let followed = Followed::new(|root| {
        fs::write(root.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(root.join("a.yaml"), service("a", 1)).unwrap();
    })
    .await;
    let (root, away) = (followed.root(), followed.dir.path().join("away"));
    fs::rename(&root, &away).unwrap();
    followed.until_problems(&["the directory is gone; the last good state stays"]).await;
    fs::create_dir(&root).unwrap();
    followed.until_problems(&["was replaced by one without manifests; the last good state stays"]).await;
    assert_eq!(followed.services(), ["a 10.96.0.1"]);
    fs::write(root.join("all.yaml"), format!("{NAMESPACE}---\n{}", service("b", 2))).unwrap();
    followed.until(&["b 10.96.0.2"]).await;
    followed.until_problems(&[]).await;
    // The new one is followed like the old one.
    fs::write(root.join("c.yaml"), service("c", 3)).unwrap();
    followed.until(&["b 10.96.0.2", "c 10.96.0.3"]).await;
    // Swapped under a symbolic link, which no event tells.
    fs::rename(&root, followed.dir.path().join("second")).unwrap();
    symlink("second", &root).unwrap();
    symlink("away", followed.dir.path().join("link")).unwrap();
    followed.until(&["b 10.96.0.2", "c 10.96.0.3"]).await;
    fs::rename(followed.dir.path().join("link"), &root).unwrap();
    followed.until(&["a 10.96.0.1"]).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone() {
    use std::io::Write as _;
    let followed = Followed::new(|root| {
        fs::write(root.join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(root.join("a.yaml"), service("a", 1)).unwrap();
    })
    .await;
    let mut snapshots = followed.cluster.snapshots();
    let generation = snapshots.borrow_and_update().generation;
    // Cut short, but not closed yet; something else happens meanwhile.
    let mut file = fs::File::create(followed.root().join("a.yaml")).unwrap();
    file.write_all(b"# about to be filled\n").unwrap();
    followed.write("b.yaml", &service("b", 2));
    snapshots.wait_for(|snapshot| snapshot.generation > generation).await.unwrap();
    let between = followed.services();
    assert_eq!(between, ["a 10.96.0.1", "b 10.96.0.2"]);
    file.write_all(service("a", 3).as_bytes()).unwrap();
    drop(file);
    followed.until(&["a 10.96.0.3", "b 10.96.0.2"]).await;
}

#[tokio::test]
async fn without_inotify_changes_are_found_by_looking() {
    let dir = TempDir::new().unwrap();
    let unavailable = io::Error::from(io::ErrorKind::QuotaExceeded);
    let mut watches = Watches::new(Err(&unavailable));
    let mut directory = Directory::open(dir.path()).unwrap();
    let outcome = directory.scan(&mut watches, &std::collections::HashSet::new());
    assert!(!watches.is_complete());
    assert!(outcome.problems[0].message.contains("inotify is not available"), "{:?}", outcome.problems);
    fs::write(dir.path().join("ns.yaml"), NAMESPACE).unwrap();
    assert_eq!(directory.scan(&mut watches, &std::collections::HashSet::new()).batch.len(), 1);
    assert!(directory.scan(&mut watches, &std::collections::HashSet::new()).batch.is_empty());
}

#[tokio::test]
async fn keys_of_tokens_come_from_documents_of_the_directory() {
    use crate::{cluster::jwks::Outcome, govern::jwt::testing::Signer};
    use serde_json::json;

    let set = |count: usize| {
        let keys: Vec<_> = (0..count).map(|_| Signer::p256().jwk(json!({}))).collect();
        json!({ "keys": keys }).to_string()
    };
    let provider = |name: &str, jwks: &str| {
        format!("{{name: {name}, issuer: {name}, audiences: [a], jwks: {{{jwks}}}}}")
    };
    let policy = format!(
        "apiVersion: sluice.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  \
         targetRefs: [{{name: a}}]\n  jwt: {{providers: [{}, {}]}}\n  rules: [{{name: users, from: [{{jwt: {{}}}}]}}]\n",
        provider("one", "configMap: {name: keys}"),
        provider("two", "secret: {name: keys, key: b}"),
    );
    let holder = |kind: &str, field: &str, key: &str, value: &str| {
        json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": "keys", "namespace": "shop"}, field: {key: value},
        })
        .to_string()
    };
    let followed = Followed::new(|root| {
        fs::write(root.join("ns.yaml"), format!("{NAMESPACE}---\n{}---\n{policy}", service("a", 1))).unwrap();
        fs::write(root.join("map.json"), holder("ConfigMap", "data", "jwks.json", &set(1))).unwrap();
    })
    .await;
    let until = async |what: &str, so: &dyn Fn(&[crate::cluster::jwks::State]) -> bool| {
        let waiting = async {
            while !so(&followed.cluster.status().jwks) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let came = tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok();
        assert!(came, "{what}: {:#?}", followed.cluster.status().jwks);
    };
    let has = |states: &[crate::cluster::jwks::State], keys: [usize; 2]| {
        states.iter().map(|state| state.keys).eq(keys)
    };
    until("what is there, and what is not", &|states| has(states, [1, 0]) && states[1].trouble.is_some())
        .await;
    followed.until_problems(&["KeysMissing"]).await;
    followed.write("secret.json", &holder("Secret", "stringData", "b", &set(2)));
    until("what comes", &|states| has(states, [1, 2])).await;
    followed.until_problems(&[]).await;
    followed.write("map.json", &holder("ConfigMap", "data", "jwks.json", &set(3)));
    until("what changes", &|states| has(states, [3, 2])).await;
    // What is no base64, and what is there twice.
    followed.write("secret.json", &holder("Secret", "data", "b", "?"));
    followed.write("map2.json", &holder("ConfigMap", "data", "jwks.json", &set(4)));
    until("what is bad", &|states| states.iter().all(|state| state.trouble.is_some())).await;
    let states = followed.cluster.status().jwks;
    assert!(has(&states, [3, 2]), "the last good ones stay: {states:#?}");
    let why = |at: usize| states[at].trouble.as_ref().unwrap().to_string();
    assert!(
        why(0).contains("it is in map.json:1 and in map2.json:1: which one counts is not known"),
        "{}",
        why(0)
    );
    assert!(why(1).contains("Secret shop/keys, key b: it cannot be read: data"), "{}", why(1));
    assert_eq!(states[1].counts[Outcome::Invalid as usize], 1, "it is looked at once");
    followed.until_problems(&["KeysOutdated"]).await;
    fs::remove_file(followed.root().join("map.json")).unwrap();
    until("the one that is left", &|states| has(states, [4, 2])).await;
}
