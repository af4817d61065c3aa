//! Keys of tokens in ConfigMaps and Secrets: what is asked of the API server, and what is said when it does not give it.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use serde_json::{Value, json};
use sluice::cluster::{
    Cluster,
    builder::Options,
    jwks::{Sources, State},
    kubernetes,
};
use sluice_tests::api_server::{Break, Fault};
use tokio_util::task::AbortOnDropHandle;

use crate::rig::{PATIENCE, Server, eventually, fill, namespace};

/// The public key of RFC 8037, appendix A.2.
const ED25519: &str =
    r#"{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
/// That of RFC 7515, appendix A.3.
const P256: &str = r#"{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

/// An agent, as far as keys are concerned.
struct Agent {
    cluster: Cluster,
    _following: AbortOnDropHandle<()>,
}

impl Agent {
    async fn start(server: &Server) -> Self {
        let client = server.client().await;
        let sources = Arc::new(Sources::default());
        let following = kubernetes::follow_keys(client.clone(), sources.clone(), PATIENCE);
        let following = AbortOnDropHandle::new(tokio::spawn(following));
        let options = Options { jwks: sources, ..Options::default() };
        let cluster = Cluster::start(kubernetes::open_with(client, PATIENCE), options);
        cluster.synced().await.unwrap();
        Self { cluster, _following: following }
    }

    fn keys(&self) -> Vec<(String, usize)> {
        let state = |state: State| (state.origin.to_string(), state.keys);
        self.cluster.status().jwks.into_iter().map(state).collect()
    }

    /// `KeysMissing: the keys of...`
    fn said(&self, policy: &str) -> String {
        let verdicts = self.cluster.verdicts();
        let verdicts = verdicts.borrow();
        let judged = verdicts.iter().find(|(key, _)| *key.name.name == *policy);
        judged.map_or_else(String::new, |(_, judged)| {
            let programmed = &judged.verdict.programmed;
            format!("{}: {}", programmed.reason.as_str(), programmed.message)
        })
    }

    async fn says(&self, policy: &str, reason: &str, why: &str) {
        let so = || {
            let said = self.said(policy);
            said.starts_with(&format!("{reason}: ")) && said.contains(why)
        };
        eventually(&format!("{reason}: ...{why}"), so).await;
    }
}

fn policy(namespace: &str, name: &str, jwks: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": { "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": 1 },
        "spec": {
            "targetRefs": [{ "name": "orders" }],
            "jwt": { "providers": [{ "name": "login", "issuer": "i", "audiences": ["a"], "jwks": jwks }] },
            "rules": [{ "name": "users", "from": [{ "jwt": {} }] }],
        },
    })
}

fn set(keys: &[&str]) -> String {
    format!("{{\"keys\": [{}]}}", keys.join(", "))
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({ "metadata": { "name": name, "namespace": "shop" }, "data": data })
}

fn watches(server: &Server, resource: &str) -> usize {
    server.open().iter().filter(|(of, namespace)| of == resource && namespace == "shop").count()
}

#[tokio::test]
async fn only_what_policies_of_enrolled_namespaces_name_is_watched_and_once() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply("namespaces", namespace("bank", None));
    for (in_namespace, name, jwks) in [
        ("shop", "a", json!({ "configMap": { "name": "keys" } })),
        ("shop", "b", json!({ "configMap": { "name": "keys" } })),
        ("shop", "c", json!({ "secret": { "name": "keys", "key": "a" } })),
        ("bank", "d", json!({ "configMap": { "name": "keys" } })),
    ] {
        server.apply("accesspolicies", policy(in_namespace, name, &jwks));
    }
    server.apply("configmaps", config_map("keys", &json!({ "jwks.json": set(&[ED25519]) })));
    // Another one, whose watch would be told of it if it were not on one name.
    server.apply("configmaps", config_map("other", &json!({ "jwks.json": set(&[P256, ED25519]) })));
    let agent = Agent::start(&server).await;
    let [map, secret] = ["ConfigMap shop/keys, key jwks.json", "Secret shop/keys, key a"].map(str::to_owned);
    eventually("the keys", || agent.keys() == [(map.clone(), 1), (secret.clone(), 0)]).await;
    let data = json!({ "a": "eyJrZXlzIjogW3sia3R5IjogIk9LUCIsICJjcnYiOiAiRWQyNTUxOSIsICJ4IjogIjExcVlBWUt4Q3JmVlNfN1R5V1FIT2c3aGN2UGFwaU1scndJYWFQY0hVUm8ifV19" });
    server.apply("secrets", json!({ "metadata": { "name": "keys", "namespace": "shop" }, "data": data }));
    eventually("the secret's", || agent.keys() == [(map.clone(), 1), (secret.clone(), 1)]).await;
    server.apply("configmaps", config_map("other", &json!({ "jwks.json": set(&[P256]) })));
    assert_eq!((watches(&server, "configmaps"), watches(&server, "secrets")), (1, 1));
    assert_eq!(
        (server.count("watch", "configmaps", ""), server.count("watch", "configmaps", "bank")),
        (0, 0)
    );
    assert_eq!(server.count("watch", "configmaps", "shop"), 1, "however many policies name it");
    // It ends with the last policy that names it.
    server.delete("accesspolicies", "shop", "a");
    server.delete("accesspolicies", "shop", "c");
    eventually("no secret is watched", || watches(&server, "secrets") == 0).await;
    assert_eq!((watches(&server, "configmaps"), agent.keys()), (1, vec![(map, 1)]));
    server.delete("accesspolicies", "shop", "b");
    eventually("nothing is watched", || watches(&server, "configmaps") == 0).await;
    assert_eq!(agent.keys(), []);
}

#[tokio::test]
async fn each_thing_that_is_missing_is_said_and_the_last_good_keys_stay() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply("accesspolicies", policy("shop", "a", &json!({ "configMap": { "name": "keys" } })));
    let forbid = |fault: Option<Fault>| {
        server.fault("watch", "configmaps", fault);
        server.fault("list", "configmaps", fault);
    };
    forbid(Some(Fault::Status(403)));
    let agent = Agent::start(&server).await;
    let at = "ConfigMap shop/keys, key jwks.json: ";
    let why = format!("{at}the agents may not list it (403: ");
    agent.says("a", "KeysMissing", &why).await;
    assert!(agent.said("a").contains("apply deploy/overlays/token-keys"), "{}", agent.said("a"));
    forbid(None);
    agent.says("a", "KeysMissing", &format!("{at}there is no such ConfigMap")).await;
    let apply = |data: Value| server.apply("configmaps", config_map("keys", &data));
    apply(json!({ "jwks": "{}" }));
    agent.says("a", "KeysMissing", &format!("{at}it has no such key in its data: it has jwks")).await;
    apply(json!({ "jwks.json": set(&[ED25519]) }));
    agent.says("a", "Programmed", "active for Service orders").await;
    let keys = |count: usize| agent.keys() == [("ConfigMap shop/keys, key jwks.json".to_owned(), count)];
    assert!(keys(1));
    apply(json!({ "jwks.json": set(&[ED25519, P256]) }));
    eventually("the new keys", || keys(2)).await;
    for (data, why) in [
        (json!({ "jwks.json": "none" }), "no set of keys: not JSON"),
        (
            json!({ "jwks.json": "a".repeat(256 * 1024 + 1) }),
            "the value has 262145 bytes, and may have 262144",
        ),
        (
            json!({ "jwks.json": set(&[r#"{"kty": "oct", "k": "c2VjcmV0"}"#]) }),
            "keys[0] has k, which is secret",
        ),
    ] {
        apply(data);
        agent.says("a", "KeysOutdated", why).await;
        assert!(keys(2));
    }
    server.delete("configmaps", "shop", "keys");
    agent.says("a", "KeysOutdated", "there is no such ConfigMap").await;
    assert!(keys(2), "the last good ones stay");
    apply(json!({ "jwks.json": set(&[ED25519, P256]) }));
    agent.says("a", "Programmed", "active for Service orders").await;
    // The permission is taken away while it is watched, and given back while nothing changes.
    forbid(Some(Fault::Status(403)));
    server.interrupt(Break::Cut);
    agent.says("a", "KeysOutdated", &format!("{at}the agents may not ")).await;
    assert!(keys(2));
    forbid(None);
    agent.says("a", "Programmed", "active for Service orders").await;
    apply(json!({ "jwks.json": set(&[P256]) }));
    eventually("the key that is left", || keys(1)).await;
    assert!(agent.said("a").starts_with("Programmed: "), "{}", agent.said("a"));
}

#[tokio::test]
async fn without_the_api_server_the_keys_stay() {
    let mut server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.apply("accesspolicies", policy("shop", "a", &json!({ "configMap": { "name": "keys" } })));
    server.apply("configmaps", config_map("keys", &json!({ "jwks.json": set(&[ED25519]) })));
    let agent = Agent::start(&server).await;
    let keys = |count: usize| agent.keys() == [("ConfigMap shop/keys, key jwks.json".to_owned(), count)];
    eventually("the keys", || keys(1)).await;
    server.go().unwrap();
    tokio::time::sleep(PATIENCE.quiet).await;
    assert!(keys(1) && agent.said("a").starts_with("Programmed: "), "{}", agent.said("a"));
    server.apply("configmaps", config_map("keys", &json!({ "jwks.json": set(&[ED25519, P256]) })));
    server.come().unwrap();
    eventually("what came meanwhile", || keys(2)).await;
}

/// What is granted there, by resource.
fn granted(overlay: &str) -> BTreeSet<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/overlays/{overlay}/role.yaml"));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap();
    let role = documents.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let rules = role["rules"].as_array().unwrap().iter();
    rules
        .flat_map(|rule| {
            assert_eq!(rule["apiGroups"], json!([""]));
            let verbs = texts(&rule["verbs"]);
            let each = |resource: String| verbs.iter().map(move |verb| (verb.clone(), resource.clone()));
            texts(&rule["resources"]).into_iter().flat_map(each).collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test]
async fn the_overlays_allow_what_is_asked_and_no_more() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    // Servers that have streaming lists are asked to watch only, others to list, too.
    server.set_streaming(false);
    server.apply("accesspolicies", policy("shop", "a", &json!({ "configMap": { "name": "keys" } })));
    server.apply("accesspolicies", policy("shop", "b", &json!({ "secret": { "name": "keys" } })));
    let _agent = Agent::start(&server).await;
    for (overlay, resource) in [("token-keys", "configmaps"), ("token-keys-secrets", "secrets")] {
        let asked = || -> BTreeSet<_> {
            let all = server.asked().into_iter().filter(|(_, of)| of == resource);
            all.map(|(verb, of)| (verb.to_owned(), of)).collect()
        };
        eventually(overlay, || asked() == granted(overlay)).await;
    }
}
