//! Keys in ConfigMaps and Secrets: what is in them, who asks for it, and what is said when it is not there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    MOST_ENTRIES, MOST_SOURCES, Origin, Outcome, Sources, Wanted,
    objects::{self, AllHeld, Held, Id},
};
use crate::{
    clock::Nanos,
    cluster::object::Name,
    govern::jwt::{Holder, Known, Location, keys::MAX_BYTES, testing::Signer},
};

fn at(seconds: u64) -> Nanos {
    Nanos::of(Duration::from_secs(seconds))
}

fn id(of: Holder, name: &str) -> Id {
    Id { of, name: Name { namespace: "shop".into(), name: name.into() } }
}

fn entry(name: &str, key: &str) -> Origin {
    Origin::Entry(id(Holder::ConfigMap, name), key.into())
}

fn want(sources: &Sources, all: &[(Origin, &Arc<Known>)], now: Nanos) {
    let wanted = |origin: &Origin, known: &Arc<Known>| {
        let namespace = match origin {
            Origin::Entry(object, _) => object.name.namespace.clone(),
            // The first label of its host, so that a test can say it.
            Origin::Uri(location) => location.host.split('.').next().unwrap().into(),
        };
        Wanted { known: known.clone(), every: Duration::from_secs(300), namespaces: [namespace].into() }
    };
    sources.want(all.iter().map(|(origin, known)| (origin.clone(), wanted(origin, known))).collect(), now);
}

fn set(signer: &Signer) -> String {
    json!({"keys": [signer.jwk(json!({}))]}).to_string()
}

fn config_map(fields: Value) -> Held {
    Held::of_config_map(&serde_json::from_value::<core::ConfigMap>(fields).unwrap())
}

fn secret(fields: Value) -> Held {
    Held::of_secret(&serde_json::from_value::<core::Secret>(fields).unwrap())
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn keys_are_read_from_all_kinds_of_data() {
    let (one, other) = (set(&Signer::p256()), set(&Signer::p384()));
    for held in [
        config_map(json!({"data": {"a": one}})),
        config_map(json!({"binaryData": {"a": base64(&one)}})),
        secret(json!({"data": {"a": base64(&one)}})),
        secret(json!({"stringData": {"a": one}})),
        secret(json!({"data": {"a": base64(&other)}, "stringData": {"a": one}})),
    ] {
        assert_eq!(held.keys("a").unwrap(), crate::govern::jwt::Keys::read(one.as_bytes()).unwrap());
        assert!(!format!("{held:?}").contains("kty"), "values are not shown");
    }
}

#[test]
fn what_is_wrong_with_an_object_is_said_with_what_is_allowed() {
    let large = "a".repeat(MAX_BYTES + 1);
    let private = json!({"keys": [Signer::p256().jwk(json!({"d": "AA"}))]}).to_string();
    let symmetric = json!({"keys": [{"kty": "oct", "k": "AA"}]}).to_string();
    let many: BTreeMap<_, _> = (0..7).map(|n| (format!("k{n}"), "")).collect();
    for (data, outcome, why) in [
        (json!({}), Outcome::Missing, "it has no such key in its data: it has none at all"),
        (json!(many), Outcome::Missing, "it has k0, k1, k2, k3, k4 and others"),
        (json!({"a": large}), Outcome::TooLarge, "the value has 262145 bytes, and may have 262144"),
        (json!({"a": "{}"}), Outcome::Invalid, "not a JSON Web Key Set"),
        (json!({"a": private}), Outcome::Invalid, "keys[0] has d, which is secret"),
        (json!({"a": symmetric}), Outcome::Invalid, "keys[0] has k, which is secret"),
    ] {
        let error = config_map(json!({"data": data})).keys("a").unwrap_err();
        assert_eq!(error.outcome(), outcome, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(Held::unreadable("why".to_owned()).keys("a").unwrap_err().to_string().contains("why"));
}

#[test]
fn the_last_good_keys_stay_and_policies_are_told_of_each_change() {
    let (sources, known) = (Sources::default(), Arc::<Known>::default());
    let mut changes = sources.changes();
    let object = id(Holder::ConfigMap, "keys");
    want(&sources, &[(entry("keys", "a"), &known)], at(0));
    let asked = sources.asked().borrow()[&object].clone();
    let mut read = |held: Option<Held>, seconds| {
        sources.read_object(&object, &asked, held.as_ref(), at(seconds));
        let is_news = changes.has_changed().unwrap();
        changes.mark_unchanged();
        let trouble = known.trouble().map(|trouble| trouble.to_string()).unwrap_or_default();
        (is_news, known.keys().map_or(0, |keys| keys.len()), trouble)
    };
    let missing =
        "ConfigMap shop/keys, key a: there is no such ConfigMap: it has to be in the namespace of the policy";
    assert_eq!(read(None, 1), (true, 0, missing.to_owned()));
    assert!(!read(None, 2).0, "it is told once");
    let good = |signer: &Signer| Some(config_map(json!({"data": {"a": set(signer)}})));
    let signer = Signer::p256();
    assert_eq!(read(good(&signer), 3), (true, 1, String::new()));
    let first = known.keys().unwrap();
    assert_eq!(read(good(&signer), 4), (false, 1, String::new()));
    assert!(Arc::ptr_eq(&first, &known.keys().unwrap()), "the same again is the same");
    assert_eq!(read(None, 5), (true, 1, missing.to_owned()));
    assert!(Arc::ptr_eq(&first, &known.keys().unwrap()));
    sources.confirm(&object, at(8));
    let state = |now| sources.states(now).into_iter().next().unwrap();
    assert_eq!(state(at(9)).age, Duration::from_secs(5), "what is not read is not confirmed");
    assert_eq!(read(good(&Signer::p384()), 10), (true, 1, String::new()));
    assert!(!Arc::ptr_eq(&first, &known.keys().unwrap()));
    sources.confirm(&object, at(12));
    let state = state(at(13));
    assert_eq!(
        (state.age, state.origin.to_string()),
        (Duration::from_secs(1), "ConfigMap shop/keys, key a".into())
    );
    assert_eq!((state.counts[Outcome::Ok as usize], state.counts[Outcome::Missing as usize]), (3, 3));
}

#[test]
fn objects_are_shared_and_there_is_an_end_to_them() {
    let sources = Sources::default();
    let known: Vec<Arc<Known>> = (0..MOST_ENTRIES + 3).map(|_| Arc::default()).collect();
    let asked = sources.asked();
    let of = |name: &str| asked.borrow().get(&id(Holder::ConfigMap, name)).cloned();
    want(&sources, &[(entry("keys", "a"), &known[0]), (entry("keys", "b"), &known[1])], at(0));
    let both = of("keys").unwrap();
    assert_eq!((asked.borrow().len(), both.keys.len()), (1, 2), "one object, two entries of it");
    // Nothing is asked for anew because somebody wants something else.
    want(
        &sources,
        &[(entry("keys", "a"), &known[0]), (entry("keys", "b"), &known[1]), (entry("other", "a"), &known[2])],
        at(1),
    );
    assert_eq!(of("keys").unwrap(), both);
    let mut news = sources.asked();
    for (origin, is_news) in [(entry("other", "a"), false), (entry("other", "b"), true)] {
        want(
            &sources,
            &[(entry("keys", "a"), &known[0]), (entry("keys", "b"), &known[1]), (origin, &known[2])],
            at(1),
        );
        assert_eq!(news.has_changed().unwrap(), is_news, "whoever reads objects is told of changes only");
        news.borrow_and_update();
    }
    // Of a policy that was written anew nobody has told the new one what was read for the old.
    want(&sources, &[(entry("keys", "a"), &known[0]), (entry("keys", "b"), &known[3])], at(2));
    assert!(of("keys").unwrap() != both && of("other").is_none());
    want(&sources, &[], at(3));
    assert!(asked.borrow().is_empty());
    let all: Vec<_> = (0..=MOST_ENTRIES).map(|n| (entry(&format!("k{n:03}"), "a"), &known[n])).collect();
    want(&sources, &all, at(4));
    assert_eq!(asked.borrow().len(), MOST_ENTRIES);
    let trouble = known[MOST_ENTRIES].trouble().unwrap();
    assert!(
        trouble.contains("128 entries") && trouble.starts_with("ConfigMap shop/k128, key a: "),
        "{trouble}"
    );
    // They take nothing from URIs.
    const { assert!(MOST_ENTRIES < MOST_SOURCES) };
    want(&sources, &all[1..], at(5));
    assert!(of("k128").is_some() && known[MOST_ENTRIES].trouble().is_none());
}

#[test]
fn no_namespace_takes_the_keys_of_another_away() {
    let sources = Sources::default();
    let known: Vec<Arc<Known>> = (0..MOST_ENTRIES + 9).map(|_| Arc::default()).collect();
    let of = |namespace: &str, key: usize| {
        let name = Name { namespace: namespace.into(), name: "k".into() };
        Origin::Entry(Id { of: Holder::ConfigMap, name }, format!("k{key:03}").into())
    };
    // Of objects that need not be there.
    let mut all: Vec<_> = (0..MOST_ENTRIES + 8).map(|n| (of("aaa", n), &known[n])).collect();
    want(&sources, &all, at(0));
    all.push((of("shop", 0), &known[MOST_ENTRIES + 8]));
    for sources in [sources, Sources::default()] {
        want(&sources, &all, at(1));
        assert!(known[MOST_ENTRIES + 8].trouble().is_none(), "it has a place, also of one who came later");
        let waiting = known.iter().filter(|known| known.trouble().is_some()).count();
        assert_eq!(waiting, 9);
        assert!(known[0].trouble().is_none() && known[MOST_ENTRIES - 1].trouble().is_some());
        let asked = sources.asked();
        let entries: usize = asked.borrow().values().map(|asked| asked.keys.len()).sum();
        assert_eq!(entries, MOST_ENTRIES);
    }
}

#[test]
fn no_namespace_takes_the_uris_of_another_away() {
    let sources = Sources::new(vec!["*.example.com".parse().unwrap()]);
    let known: Vec<Arc<Known>> = (0..MOST_SOURCES + 9).map(|_| Arc::default()).collect();
    let of = |namespace: &str, key: usize| {
        Origin::from(format!("https://{namespace}.example.com/{key:03}").parse::<Location>().unwrap())
    };
    let mut all: Vec<_> = (0..MOST_SOURCES + 8).map(|n| (of("aaa", n), &known[n])).collect();
    want(&sources, &all, at(0));
    all.push((of("shop", 0), &known[MOST_SOURCES + 8]));
    want(&sources, &all, at(1));
    assert!(known[MOST_SOURCES + 8].trouble().is_none(), "it has a place");
    assert_eq!(known.iter().filter(|known| known.trouble().is_some()).count(), 9);
    // What may not be fetched at all takes no place.
    let barred: Arc<Known> = Arc::default();
    let elsewhere: Location = "https://other.test/keys".parse().unwrap();
    want(&sources, &[(elsewhere.into(), &barred), (of("shop", 0), &known[MOST_SOURCES + 8])], at(2));
    assert!(barred.trouble().unwrap().contains("--jwks-hosts"));
}

#[tokio::test]
async fn a_directory_s_objects_are_followed() {
    let (sources, known) = (Arc::new(Sources::default()), Arc::<Known>::default());
    let (held, all) = watch::channel(Arc::new(AllHeld::new()));
    let following = tokio::spawn(objects::follow(all, sources.clone()));
    let eventually = async |so: &dyn Fn() -> bool| {
        let waiting = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(60), waiting).await.is_ok());
    };
    want(&sources, &[(entry("keys", "a"), &known)], Nanos::now());
    eventually(&|| known.trouble().is_some()).await;
    let publish = |signer: &Signer| {
        let object = config_map(json!({"data": {"a": set(signer)}}));
        held.send_replace(Arc::new([(id(Holder::ConfigMap, "keys"), object)].into()));
    };
    publish(&Signer::p256());
    eventually(&|| known.keys().is_some() && known.trouble().is_none()).await;
    let first = known.keys().unwrap();
    publish(&Signer::p256());
    eventually(&|| !Arc::ptr_eq(&first, &known.keys().unwrap())).await;
    // Another policy that wants the same gets it without a change of the object.
    let other = Arc::<Known>::default();
    want(&sources, &[(entry("keys", "a"), &other)], Nanos::now());
    eventually(&|| other.keys().is_some()).await;
    following.abort();
}
