//! Tokens of all kinds that should not be believed, and those that should.

use http::HeaderName;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    cache::Cache,
    keys::{Algorithm, KeysError, MAX_BYTES, Unfit},
    testing::{NOW, Signer, base64url, claims, jwt, of, provider, set},
    token::check,
    *,
};
use crate::govern::request::tests::Plain;

fn found(jwt: &Jwt, token: &str) -> Result<Claims, Failure> {
    at(jwt, token, NOW)
}

fn at(jwt: &Jwt, token: &str, now: u64) -> Result<Claims, Failure> {
    match check(jwt, token.as_bytes(), now) {
        Found::Valid(verified) => Ok(verified.claims.clone()),
        Found::Invalid(failure) => Err(failure),
        Found::Unverifiable(_) => Err(Failure::NoKeys),
    }
}

#[test]
fn every_algorithm_verifies_what_it_has_signed_and_nothing_else() {
    let signers = [Signer::rsa(), Signer::p256(), Signer::p384(), Signer::ed25519()];
    for (i, signer) in signers.iter().enumerate() {
        let rsa = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
        let one = [signer.algorithm()];
        for algorithm in if i == 0 { &rsa[..] } else { &one[..] } {
            assert!(Algorithm::named(algorithm).is_some());
            let jwt = jwt(&[signer.jwk(json!({}))]);
            let token = signer.token(&json!({"alg": algorithm}), &claims(json!({})));
            assert_eq!(found(&jwt, &token).unwrap().text("sub"), Some("ann"), "{algorithm}");
            let (message, signature) = token.rsplit_once('.').unwrap();
            let other = signer.token(&json!({"alg": algorithm}), &claims(json!({"sub": "eve"})));
            let (theirs, _) = other.rsplit_once('.').unwrap();
            assert_eq!(found(&jwt, &format!("{theirs}.{signature}")), Err(Failure::Signature), "{algorithm}");
            assert_eq!(found(&jwt, &format!("{message}.")), Err(Failure::Signature), "{algorithm}");
        }
        for other in signers.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, other)| other) {
            let jwt = jwt(&[other.jwk(json!({}))]);
            assert_eq!(found(&jwt, &signer.good(json!({}))), Err(Failure::UnknownKey));
        }
    }
}

#[test]
fn no_algorithm_without_a_public_key_is_accepted() {
    let signer = Signer::rsa();
    let jwk = signer.jwk(json!({"kid": "a"}));
    let jwt = jwt(std::slice::from_ref(&jwk));
    for (algorithm, failure) in [
        ("none", Failure::Unsigned),
        ("None", Failure::Unsigned),
        ("NONE", Failure::Unsigned),
        ("", Failure::Algorithm),
        ("HS256", Failure::SharedSecret),
        ("HS384", Failure::SharedSecret),
        ("HS512", Failure::SharedSecret),
        ("RS1", Failure::Algorithm),
        ("ES512", Failure::Curve),
        ("ES256K", Failure::Curve),
        ("Ed448", Failure::Curve),
        ("dir", Failure::Algorithm),
        ("rs256", Failure::Algorithm),
    ] {
        let header = json!({"alg": algorithm, "kid": "a"});
        let message =
            format!("{}.{}", base64url(header.to_string()), base64url(claims(json!({})).to_string()));
        // What those sign who take the public key for a secret that is shared.
        for secret in [jwk["n"].as_str().unwrap(), &jwk.to_string()] {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
            let signature = base64url(ring::hmac::sign(&key, message.as_bytes()));
            assert_eq!(found(&jwt, &format!("{message}.{signature}")), Err(failure), "{algorithm}");
        }
        assert_eq!(found(&jwt, &format!("{message}.")), Err(failure), "{algorithm}");
    }
}

#[test]
fn what_a_token_says_of_keys_itself_is_not_looked_at() {
    let (signer, attacker) = (Signer::p256(), Signer::p256());
    let jwt = jwt(&[signer.jwk(json!({"kid": "a"}))]);
    let own = attacker.jwk(json!({"kid": "a"}));
    for header in [
        json!({"alg": "ES256", "kid": "a", "jwk": own}),
        json!({"alg": "ES256", "kid": "a", "jku": "https://evil.example/keys", "x5u": "https://evil.example"}),
        json!({"alg": "ES256", "jwk": own}),
    ] {
        assert_eq!(found(&jwt, &attacker.token(&header, &claims(json!({})))), Err(Failure::Signature));
        assert!(found(&jwt, &signer.token(&header, &claims(json!({})))).is_ok());
    }
    // What must be understood is not.
    for crit in [json!(["b64"]), json!([]), json!("exp"), json!(["exp"])] {
        let header = json!({"alg": "ES256", "kid": "a", "crit": crit, "b64": false});
        assert_eq!(found(&jwt, &signer.token(&header, &claims(json!({})))), Err(Failure::Critical));
    }
}

#[test]
fn a_token_counts_in_its_time_only() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({}))]);
    let verdict = |more: Value, now: u64| at(&jwt, &signer.good(more), now).err();
    for (more, now, wanted) in [
        (json!({"exp": NOW}), NOW + 59, None),
        (json!({"exp": NOW}), NOW + 60, Some(Failure::Expired)),
        (json!({"exp": NOW as f64 + 0.5}), NOW, None),
        (json!({"exp": 0}), NOW, Some(Failure::Expired)),
        (json!({"exp": 1e300}), NOW, None),
        (json!({"exp": null}), NOW, Some(Failure::NoExpiry)),
        (json!({"exp": "1900000000"}), NOW, Some(Failure::Time)),
        (json!({"exp": -5}), NOW, Some(Failure::Expired)),
        (json!({"exp": u64::MAX}), NOW, None),
        (json!({"nbf": NOW + 60}), NOW, None),
        (json!({"nbf": NOW + 61}), NOW, Some(Failure::NotYetValid)),
        (json!({"nbf": "now"}), NOW, Some(Failure::Time)),
        (json!({"iat": NOW + 100_000}), NOW, None),
    ] {
        assert_eq!(verdict(more.clone(), now), wanted, "{more}");
    }
}

#[test]
fn a_token_is_from_its_issuer_and_for_its_audience() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({}))]);
    let verdict = |more: Value| found(&jwt, &signer.good(more)).err();
    for (more, wanted) in [
        (json!({"aud": ["a", "orders"]}), None),
        (json!({"aud": "Orders"}), Some(Failure::Audience)),
        (json!({"aud": []}), Some(Failure::Audience)),
        (json!({"aud": [["orders"]]}), Some(Failure::Audience)),
        (json!({"aud": null}), Some(Failure::Audience)),
        (json!({"aud": {"orders": true}}), Some(Failure::Audience)),
        (json!({"iss": "https://login.example.com"}), Some(Failure::Issuer)),
        (json!({"iss": null}), Some(Failure::Issuer)),
        (json!({"iss": ["https://login.example.com/"]}), Some(Failure::Issuer)),
    ] {
        assert_eq!(verdict(more.clone()), wanted, "{more}");
    }
}

#[test]
fn a_key_is_that_of_its_provider_and_of_its_id() {
    let (ours, theirs) = (Signer::p256(), Signer::p256());
    let jwt = of(vec![
        provider("login", "https://login.example.com/", set(&[ours.jwk(json!({"kid": "a"}))])),
        provider("other", "https://other.example.com/", set(&[theirs.jwk(json!({"kid": "b"}))])),
    ]);
    let header = |kid: &str| json!({"alg": "ES256", "kid": kid});
    let other = claims(json!({"iss": "https://other.example.com/"}));
    assert!(found(&jwt, &ours.token(&header("a"), &claims(json!({})))).is_ok());
    assert!(found(&jwt, &theirs.token(&header("b"), &other)).is_ok());
    // The key of one provider signs nothing in the name of another.
    assert_eq!(found(&jwt, &theirs.token(&header("b"), &claims(json!({})))), Err(Failure::UnknownKey));
    assert_eq!(found(&jwt, &theirs.token(&header("a"), &claims(json!({})))), Err(Failure::Signature));
    assert_eq!(found(&jwt, &ours.token(&header("a"), &other)), Err(Failure::UnknownKey));
}

#[test]
fn without_an_id_and_with_one_twice_the_keys_that_fit_are_tried() {
    let signers: Vec<_> = (0..6).map(|_| Signer::p256()).collect();
    let jwks: Vec<_> =
        signers.iter().enumerate().map(|(i, one)| one.jwk(json!({"kid": i.to_string()}))).collect();
    let few = jwt(&jwks[..3]);
    for signer in &signers[..3] {
        assert!(found(&few, &signer.good(json!({}))).is_ok());
    }
    assert_eq!(found(&few, &signers[3].good(json!({}))), Err(Failure::Signature));
    let known = few.providers[0].keys.known();
    assert!(!known.take_asked(), "to look changes nothing");
    Cache::default().check(&few, signers[3].good(json!({})).as_bytes(), NOW);
    assert!(known.take_asked(), "it may be of a key that has come since");
    let many = jwt(&jwks);
    assert!(found(&many, &signers[3].good(json!({}))).is_ok());
    assert_eq!(
        found(&many, &signers[5].good(json!({}))),
        Err(Failure::NotAllTried),
        "no more than four are tried"
    );
    let named = signers[5].token(&json!({"alg": "ES256", "kid": "5"}), &claims(json!({})));
    assert!(found(&many, &named).is_ok());
    let twice = jwt(&[signers[0].jwk(json!({"kid": "a"})), signers[1].jwk(json!({"kid": "a"}))]);
    for signer in &signers[..2] {
        assert!(
            found(&twice, &signer.token(&json!({"alg": "ES256", "kid": "a"}), &claims(json!({})))).is_ok()
        );
    }
}

#[test]
fn an_unknown_key_is_asked_for_and_a_wrong_signature_is_not() {
    let signer = Signer::p256();
    let jwt = jwt(&[signer.jwk(json!({"kid": "a"}))]);
    let slot = jwt.providers[0].keys.known();
    let mut cache = Cache::default();
    let mut found = |jwt: &Jwt, token: &str| match cache.check(jwt, token.as_bytes(), NOW) {
        Found::Invalid(failure) => failure,
        found => panic!("{found:?}"),
    };
    let of = |kid: &str, by: &Signer| by.token(&json!({"alg": "ES256", "kid": kid}), &claims(json!({})));
    assert_eq!(found(&jwt, &of("a", &Signer::p256())), Failure::Signature);
    assert!(!slot.take_asked());
    assert_eq!(found(&jwt, &of("b", &signer)), Failure::UnknownKey);
    assert!(slot.take_asked() && !slot.take_asked());
}

#[test]
fn a_key_that_says_what_it_is_for_is_for_nothing_else() {
    let (rsa, p256) = (Signer::rsa(), Signer::p256());
    let only = jwt(&[rsa.jwk(json!({"kid": "a", "alg": "RS256"}))]);
    let token = |algorithm: &str| rsa.token(&json!({"alg": algorithm, "kid": "a"}), &claims(json!({})));
    assert!(found(&only, &token("RS256")).is_ok());
    for other in ["RS512", "PS256"] {
        assert_eq!(found(&only, &token(other)), Err(Failure::KeyAlgorithm));
    }
    // An elliptic curve for RSA's name.
    let confused = p256.token(&json!({"alg": "RS256", "kid": "a"}), &claims(json!({})));
    assert_eq!(found(&jwt(&[p256.jwk(json!({"kid": "a"}))]), &confused), Err(Failure::KeyAlgorithm));
    // A key that is in the set and not used is said to be that, if the token names it.
    for (unused, failure) in [
        (p256.jwk(json!({"kid": "b", "crv": "P-521"})), Failure::KeyCurve),
        (p256.jwk(json!({"kid": "b", "kty": "AKP"})), Failure::KeyKind),
        (p256.jwk(json!({"kid": "b", "kty": "oct"})), Failure::KeyKind),
        (p256.jwk(json!({"kid": "b", "use": "enc"})), Failure::KeyUnfit),
        (p256.jwk(json!({"kid": "b", "y": "AA"})), Failure::KeyUnfit),
        (p256.jwk(json!({"kid": "c", "crv": "P-521"})), Failure::UnknownKey),
    ] {
        let both = jwt(&[rsa.jwk(json!({"kid": "a"})), unused.clone()]);
        let token = p256.token(&json!({"alg": "ES256", "kid": "b"}), &claims(json!({})));
        assert_eq!(found(&both, &token), Err(failure), "{unused}");
        let without = p256.token(&json!({"alg": "ES256"}), &claims(json!({})));
        assert_eq!(found(&both, &without), Err(Failure::UnknownKey), "{unused}");
    }
    let keys = |jwk: Value| Keys::read(json!({"keys": [jwk]}).to_string().as_bytes());
    let unfit = |jwk: Value| match keys(jwk) {
        Err(KeysError::NoneFits(one)) => one.why,
        other => panic!("{other:?}"),
    };
    assert_eq!(unfit(rsa.jwk(json!({"use": "enc"}))), Unfit::Use);
    assert_eq!(unfit(rsa.jwk(json!({"key_ops": ["encrypt"]}))), Unfit::Use);
    assert_eq!(unfit(rsa.jwk(json!({"alg": "ES256"}))), Unfit::Algorithm);
    assert_eq!(unfit(rsa.jwk(json!({"alg": "HS256"}))), Unfit::Algorithm);
    assert_eq!(unfit(rsa.jwk(json!({"alg": "RSA-OAEP"}))), Unfit::Algorithm);
    assert_eq!(unfit(rsa.jwk(json!({"kty": "oct", "k": "c2VjcmV0"}))), Unfit::Symmetric);
    assert_eq!(unfit(rsa.jwk(json!({"kty": "rsa"}))), Unfit::Kind);
    assert_eq!(unfit(rsa.jwk(json!({"n": "AQAB"}))), Unfit::Weak);
    assert_eq!(unfit(rsa.jwk(json!({"n": "/+=="}))), Unfit::Parameter);
    assert_eq!(unfit(rsa.jwk(json!({"e": "AQ"}))), Unfit::Weak);
    assert_eq!(unfit(rsa.jwk(json!({"e": "AAAC"}))), Unfit::Weak);
    assert_eq!(unfit(rsa.jwk(json!({"n": null}))), Unfit::Parameter);
    assert_eq!(unfit(p256.jwk(json!({"crv": "P-521"}))), Unfit::Curve);
    assert_eq!(unfit(p256.jwk(json!({"crv": "P-384"}))), Unfit::Parameter);
    assert_eq!(unfit(p256.jwk(json!({"x": 7}))), Unfit::Parameter);
    assert!(keys(rsa.jwk(json!({"use": "sig", "key_ops": ["verify"], "x5c": ["x"], "kid": "a"}))).is_ok());
    // Those that write a zero before the number.
    let n = [
        &[0][..],
        &base64::Engine::decode(
            &base64::prelude::BASE64_URL_SAFE_NO_PAD,
            rsa.jwk(json!({}))["n"].as_str().unwrap(),
        )
        .unwrap(),
    ]
    .concat();
    assert!(found(&jwt(&[rsa.jwk(json!({"n": base64url(n)}))]), &rsa.good(json!({}))).is_ok());
}

#[test]
fn a_set_says_what_is_wrong_with_it() {
    let signer = Signer::p256();
    let read = |text: &str| Keys::read(text.as_bytes());
    assert!(matches!(read("<html>"), Err(KeysError::Json(_))));
    for shape in ["[]", "{}", "{\"keys\": {}}", "7"] {
        assert_eq!(read(shape), Err(KeysError::Shape), "{shape}");
    }
    assert_eq!(read("{\"keys\": []}"), Err(KeysError::Empty));
    let many = json!({"keys": vec![signer.jwk(json!({})); 101]}).to_string();
    assert_eq!(read(&many), Err(KeysError::TooMany(101)));
    let huge = format!("{{\"keys\": [], \"x\": \"{}\"}}", "a".repeat(MAX_BYTES));
    assert_eq!(read(&huge), Err(KeysError::TooLarge(huge.len())));
    let mixed = json!({"keys": [7, {"kty": "EC"}, signer.jwk(json!({"use": "enc"})), signer.jwk(json!({}))]});
    let keys = read(&mixed.to_string()).unwrap();
    assert_eq!((keys.len(), keys.passed_over.len()), (1, 3));
    assert!(
        keys != read(&json!({"keys": [signer.jwk(json!({}))]}).to_string()).unwrap(),
        "others are unused"
    );
    let private = json!({"keys": [signer.jwk(json!({})), signer.jwk(json!({"d": "c2VjcmV0"}))]}).to_string();
    assert_eq!(Keys::private(private.as_bytes()), Some((1, "d")));
    assert_eq!(Keys::private(mixed.to_string().as_bytes()), None);
}

#[test]
fn what_is_no_token_is_none() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({}))]);
    let good = signer.good(json!({}));
    let (header, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    for bad in [
        String::new(),
        "a".to_owned(),
        "..".to_owned(),
        format!("{header}.{payload}"),
        format!("{good}."),
        format!("{good}.x.y"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}="),
        format!("{header}.{payload}.{signature}\n"),
        format!("{header}.{payload}.{}", signature.replace(['-', '_'], "+") + "+"),
        format!("{}.{payload}.{signature}", base64url("[]")),
        format!("{}.{payload}.{signature}", base64url("{\"kid\": \"a\"}")),
        format!("{}.{payload}.{signature}", base64url("{\"alg\": 7}")),
        format!("{header}.{}.{signature}", base64url("not JSON")),
        format!("{header}.{}.{signature}", base64url("[1]")),
        format!("{header}.{}.{signature}", base64url("[".repeat(8000))),
        format!("{header}.{}.{signature}", base64url([0xff, 0xfe])),
    ] {
        let failure = found(&jwt, &bad).unwrap_err();
        assert!(
            matches!(failure, Failure::Malformed | Failure::NotJson | Failure::Header),
            "{bad}: {failure:?}"
        );
    }
    let huge = signer.good(json!({"sub": "a".repeat(MAX_TOKEN)}));
    assert_eq!(found(&jwt, &huge), Err(Failure::TooLarge));
}

#[test]
fn a_token_is_looked_for_where_the_policy_says() {
    let mut jwt = jwt(&[Signer::ed25519().jwk(json!({}))]);
    let carried = |jwt: &Jwt, request: &Plain| {
        jwt.carried(request)
            .map(|carried| (String::from_utf8(carried.token.to_vec()).unwrap(), carried.place))
    };
    let get = || Plain::get("/a?access_token=q%2Eq&x=1");
    let said = |value: &'static str| carried(&jwt, &get().with("authorization", value));
    assert_eq!(said("Bearer abc"), Ok(("abc".into(), 0)));
    assert_eq!(said("bEARER   abc "), Ok(("abc".into(), 0)));
    for none in ["Basic abc", "Bearer", "Bearer ", "Bearerabc", "", "DPoP abc"] {
        assert_eq!(said(none), Err(Failure::Missing), "{none}");
    }
    let twice = get().with("authorization", "Bearer a").with("authorization", "Bearer b");
    assert_eq!(carried(&jwt, &twice), Err(Failure::Several));
    let long: &'static str = Box::leak(format!("Bearer {}", "a".repeat(MAX_TOKEN + 1)).into_boxed_str());
    assert_eq!(carried(&jwt, &get().with("authorization", long)), Err(Failure::TooLarge));
    assert_eq!(
        carried(&jwt, &get()),
        Err(Failure::Missing),
        "a query is not looked at unless the policy says so"
    );

    jwt.places = vec![
        Place::Header { name: HeaderName::from_static("x-token"), prefix: "".into() },
        Place::Cookie("session".into()),
        Place::QueryParameter("access_token".into()),
    ];
    assert_eq!(carried(&jwt, &get()), Ok(("q.q".into(), 2)));
    assert_eq!(carried(&jwt, &get().with("cookie", "a=b; session=c")), Ok(("c".into(), 1)));
    assert_eq!(carried(&jwt, &get().with("cookie", "session=c").with("x-token", "h")), Ok(("h".into(), 0)));
}

#[test]
fn claims_are_compared_as_they_are() {
    let claims = Claims(
        json!({
            "scope": "orders.read orders.write",
            "title": "orders.read chief",
            "roles": ["admin", 7, true, null, ["nested"]],
            "realm_access": {"roles": ["user"]},
            "https://example.com/level": 3,
            "a.b": "dotted",
            "active": false,
            "nothing": null,
            "ratio": 0.5,
        })
        .as_object()
        .unwrap()
        .clone(),
    );
    let path = |names: &[&str]| ClaimPath(names.iter().map(|name| (*name).into()).collect());
    let holds = |names: &[&str], value: &str| {
        ClaimTest { path: path(names), values: vec!["x".into(), value.into()] }.holds(&claims)
    };
    for (names, value) in [
        (&["scope"][..], "orders.write"),
        (&["title"], "orders.read chief"),
        (&["roles"], "admin"),
        (&["roles"], "7"),
        (&["roles"], "true"),
        (&["realm_access", "roles"], "user"),
        (&["https://example.com/level"], "3"),
        (&["a.b"], "dotted"),
        (&["active"], "false"),
    ] {
        assert!(holds(names, value), "{names:?} {value}");
    }
    for (names, value) in [
        (&["scope"][..], "orders"),
        (&["scope"], "orders.read orders.write"),
        (&["title"], "chief"),
        (&["roles"], "null"),
        (&["roles"], "nested"),
        (&["roles"], "Admin"),
        (&["realm_access"], "user"),
        (&["realm_access", "roles", "user"], "user"),
        (&["a", "b"], "dotted"),
        (&["nothing"], "null"),
        (&["ratio"], "0.5"),
        (&["missing"], ""),
    ] {
        assert!(!holds(names, value), "{names:?} {value}");
    }
}

#[test]
fn claims_become_headers_that_cannot_be_taken_for_others() {
    let claims = Claims(
        json!({
            "sub": "ann", "roles": ["a", "b", 7], "odd": ["a,b"], "name": "Jörg\r\nx-admin: 1", "percent": "100%",
            "empty": "", "blank": " a ", "object": {"a": 1}, "long": "a".repeat(5000), "is": true,
        })
        .as_object()
        .unwrap()
        .clone(),
    );
    let value = |name: &str| claims.header_value(&ClaimPath(vec![name.into()]));
    assert_eq!(value("sub").as_deref(), Some("ann"));
    assert_eq!(value("roles").as_deref(), Some("a,b,7"));
    assert_eq!(value("is").as_deref(), Some("true"));
    assert_eq!(value("name").as_deref(), Some("J%C3%B6rg%0D%0Ax-admin: 1"));
    assert_eq!(value("percent").as_deref(), Some("100%25"));
    for none in ["odd", "empty", "blank", "object", "long", "missing"] {
        assert_eq!(value(none), None, "{none}");
    }
}

#[test]
fn what_clients_send_under_names_of_the_policy_never_gets_through() {
    let signer = Signer::ed25519();
    let mut one = provider("login", "https://login.example.com/", set(&[signer.jwk(json!({}))]));
    let user = HeaderName::from_static("x-user-id");
    one.to_headers = vec![
        (user.clone(), ClaimPath(vec!["sub".into()])),
        (HeaderName::from_static("x-roles"), ClaimPath(vec!["roles".into()])),
    ];
    let mut jwt = of(vec![one]);
    let Found::Valid(verified) = check(&jwt, signer.good(json!({})).as_bytes(), NOW) else {
        panic!("it is good")
    };
    let mut without = HeaderPlan::default();
    without.add(&jwt, None);
    let mut with = HeaderPlan::default();
    with.add(&jwt, Some((&verified, Some(0))));
    for plan in [&without, &with] {
        for name in ["x-user-id", "X-User-Id", "x_user_id", "X_User-ID", "x-roles", "x_roles"] {
            assert!(plan.removes(name.as_bytes()), "{name}");
        }
        for name in ["x-user-i", "x-user-id2", "x-role", "authorization", ""] {
            assert!(!plan.removes(name.as_bytes()), "{name}");
        }
    }
    assert!(without.set.is_empty());
    assert_eq!(with.set, [(user, "ann".parse().unwrap())]);
    jwt.forward = false;
    let mut gone = HeaderPlan::default();
    gone.add(&jwt, Some((&verified, Some(0))));
    assert!(gone.removes(b"Authorization"));
}

#[test]
fn what_was_found_is_kept_until_the_keys_change() {
    let (old, new) = (Signer::p256(), Signer::p256());
    let jwt = jwt(&[old.jwk(json!({"kid": "a"}))]);
    let mut cache = Cache::default();
    let token = old.token(&json!({"alg": "ES256", "kid": "a"}), &claims(json!({})));
    let asked = |cache: &mut Cache, token: &str, now: u64| match cache.check(&jwt, token.as_bytes(), now) {
        Found::Valid(_) => None,
        Found::Invalid(failure) => Some(failure),
        Found::Unverifiable(_) => Some(Failure::NoKeys),
    };
    for _ in 0..3 {
        assert_eq!(asked(&mut cache, &token, NOW), None);
    }
    assert_eq!((cache.checked, cache.len()), (1, 1));
    assert_eq!(
        asked(&mut cache, &token, NOW + 3660),
        Some(Failure::Expired),
        "its time is looked at each time"
    );
    assert_eq!(cache.checked, 1);
    // Of the same length, in another place: each is a token of its own.
    let (message, _) = token.rsplit_once('.').unwrap();
    let bad = format!("{message}.{}", base64url([7; 64]));
    for _ in 0..3 {
        assert_eq!(asked(&mut cache, &bad, NOW), Some(Failure::Signature));
    }
    assert_eq!((cache.checked, cache.len()), (2, 1));

    jwt.providers[0].keys.known().put(Some(set(&[new.jwk(json!({"kid": "b"}))])));
    assert_eq!(asked(&mut cache, &token, NOW), Some(Failure::UnknownKey), "its key has been withdrawn");
    let next = new.token(&json!({"alg": "ES256", "kid": "b"}), &claims(json!({})));
    assert_eq!(asked(&mut cache, &next, NOW), None);
    jwt.providers[0].keys.known().put(None);
    assert_eq!(asked(&mut cache, &next, NOW), Some(Failure::NoKeys));
}

#[test]
fn what_is_kept_is_bounded() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({}))]);
    let mut cache = Cache::default();
    let large = "a".repeat(10_000);
    for n in 0..400 {
        let token = signer.good(json!({"sub": format!("{n}{large}")}));
        assert!(matches!(cache.check(&jwt, token.as_bytes(), NOW), Found::Valid(_)));
    }
    assert!((100..200).contains(&cache.len()), "{}", cache.len());
}

#[test]
fn policies_do_not_share_what_was_found() {
    let signer = Signer::ed25519();
    let keys = set(&[signer.jwk(json!({}))]);
    let ours = of(vec![provider("login", "https://login.example.com/", keys.clone())]);
    let mut other = provider("login", "https://login.example.com/", keys);
    other.audiences = vec!["billing".into()];
    let theirs = of(vec![other]);
    let (mut cache, token) = (Cache::default(), signer.good(json!({})));
    assert!(matches!(cache.check(&ours, token.as_bytes(), NOW), Found::Valid(_)));
    assert!(matches!(cache.check(&theirs, token.as_bytes(), NOW), Found::Invalid(Failure::Audience)));
}

#[test]
fn failures_are_told_in_plain_words() {
    for (at, failure) in Failure::ALL.into_iter().enumerate() {
        assert_eq!(failure.index(), at);
        let message = failure.message();
        assert!(
            message.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'),
            "{message}"
        );
    }
}

proptest! {
    /// Whatever is done to a token, it is not another one that is good.
    #[test]
    fn no_byte_of_a_token_can_be_changed(at in 0usize..400, to: u8) {
        let signer = Signer::ed25519();
        let jwt = jwt(&[signer.jwk(json!({}))]);
        let good = signer.good(json!({}));
        let mut bad = good.clone().into_bytes();
        let at = at % bad.len();
        bad[at] = to;
        let valid = matches!(check(&jwt, &bad, NOW), Found::Valid(_));
        prop_assert_eq!(valid, bad == good.as_bytes());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let jwt = jwt(&[Signer::ed25519().jwk(json!({}))]);
        let invalid = matches!(check(&jwt, &bytes, NOW), Found::Invalid(_));
        prop_assert!(invalid);
        prop_assert!(Keys::read(&bytes).is_err());
    }
}
