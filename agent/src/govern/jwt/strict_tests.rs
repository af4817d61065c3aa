//! Tokens that could be taken for others than those that were verified, and reasons that have to be the true ones.

use http::HeaderName;
use serde_json::{Value, json};

use super::{
    cache::Cache,
    testing::{NOW, Signer, base64url, claims, jwt},
    token::check,
    *,
};
use crate::govern::request::tests::Plain;

/// The code of the failure; `valid`: there is none.
fn code(jwt: &Jwt, token: &str) -> &'static str {
    match check(jwt, token.as_bytes(), NOW) {
        Found::Valid(_) => "valid",
        Found::Invalid(failure) => failure.code(),
        Found::Unverifiable(_) => "no_keys",
    }
}

/// A token of exactly this header and payload.
fn signed(signer: &Signer, header: &[u8], payload: &[u8]) -> String {
    let message = format!("{}.{}", base64url(header), base64url(payload));
    format!("{message}.{}", base64url(signer.sign(signer.algorithm(), message.as_bytes())))
}

#[test]
fn a_key_that_was_not_tried_is_not_said_to_be_wrong() {
    for (make, tried) in [(Signer::p256 as fn() -> Signer, 4), (Signer::p384, 1), (Signer::ed25519, 4)] {
        let signers: Vec<_> = (0..=tried).map(|_| make()).collect();
        let jwks: Vec<_> = signers.iter().map(|one| one.jwk(json!({"kid": "same"}))).collect();
        let (all, few) = (jwt(&jwks), jwt(&jwks[..tried]));
        let last = signers[tried].good(json!({}));
        assert_eq!(code(&all, &signers[0].good(json!({}))), "valid");
        assert_eq!(code(&all, &last), "not_all_tried");
        assert_eq!(code(&few, &last), "signature", "all were tried");
        let known = all.providers[0].keys.known();
        Cache::default().check(&all, last.as_bytes(), NOW);
        assert!(known.take_asked(), "it may be of a key that has come since");
        let named = json!({"alg": signers[tried].algorithm(), "kid": "same"});
        assert_eq!(code(&all, &signers[tried].token(&named, &claims(json!({})))), "not_all_tried");
    }
}

#[test]
fn what_is_wrong_with_a_token_is_said_as_it_is() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({"kid": "7"}))]);
    for (more, wanted) in [
        (json!({"exp": "1900000000"}), "time"),
        (json!({"exp": [NOW]}), "time"),
        (json!({"exp": true}), "time"),
        (json!({"nbf": "now"}), "time"),
        (json!({"nbf": {}}), "time"),
        // A time before 1970 is one.
        (json!({"exp": -5}), "expired"),
        (json!({"exp": -0.5}), "expired"),
        (json!({"exp": NOW as f64 + 3600.5}), "valid"),
        (json!({"nbf": -5}), "valid"),
        (json!({"nbf": NOW as f64 + 59.5}), "valid"),
        (json!({"nbf": NOW as f64 + 60.5}), "not_yet_valid"),
    ] {
        assert_eq!(code(&jwt, &signer.good(more.clone())), wanted, "{more}");
    }
    let good = claims(json!({})).to_string();
    let alg = br#"{"alg":"EdDSA"}"#;
    let marked = |text: &[u8]| [b"\xef\xbb\xbf", text].concat();
    for (header, payload, wanted) in [
        (alg.to_vec(), good.clone().into_bytes(), "valid"),
        (br#"{"alg":"EdDSA","kid":null}"#.to_vec(), good.clone().into_bytes(), "valid"),
        (br#"{"alg":"EdDSA","kid":7}"#.to_vec(), good.clone().into_bytes(), "header"),
        (br#"{"alg":7}"#.to_vec(), good.clone().into_bytes(), "header"),
        (br#"{"typ":"JWT"}"#.to_vec(), good.clone().into_bytes(), "header"),
        (marked(alg), good.clone().into_bytes(), "not_json"),
        (alg.to_vec(), marked(good.as_bytes()), "not_json"),
        (alg.to_vec(), b"[1]".to_vec(), "not_json"),
        (br#"{"alg":"EdDSA","crit":null}"#.to_vec(), good.into_bytes(), "critical_header"),
    ] {
        let token = signed(&signer, &header, &payload);
        assert_eq!(code(&jwt, &token), wanted, "{}", String::from_utf8_lossy(&[header, payload].concat()));
    }
}

#[test]
fn what_is_said_twice_counts_for_nothing() {
    let signer = Signer::ed25519();
    let jwt = jwt(&[signer.jwk(json!({}))]);
    let good = claims(json!({"nbf": NOW, "groups": ["a"]}));
    let members = good.to_string();
    let members = members.trim_start_matches('{').trim_end_matches('}');
    let header = br#"{"alg":"EdDSA"}"#;
    for name in ["iss", "aud", "exp", "nbf", "sub", "groups"] {
        // The same twice, and another first or last.
        for other in [good[name].clone(), json!("other")] {
            for payload in
                [format!("{{\"{name}\":{other},{members}}}"), format!("{{{members},\"{name}\":{other}}}")]
            {
                assert_eq!(code(&jwt, &signed(&signer, header, payload.as_bytes())), "repeated", "{payload}");
            }
        }
    }
    let escaped = format!("{{{members},\"s\\u0075b\":\"eve\"}}");
    assert_eq!(code(&jwt, &signed(&signer, header, escaped.as_bytes())), "repeated");
    // At whatever depth, in objects and in lists.
    for nested in [
        r#"{"b":1,"b":2}"#,
        r#"{"b":{"c":1,"c":1}}"#,
        r#"[{"b":1,"c":2},{"b":1,"b":1}]"#,
        r#"{"roles":["a"],"r\u006fles":["b"]}"#,
        r#"[[[{"":1,"":2}]]]"#,
    ] {
        let payload = format!("{{{members},\"a\":{nested}}}");
        assert_eq!(code(&jwt, &signed(&signer, header, payload.as_bytes())), "repeated", "{payload}");
        let header = format!(r#"{{"alg":"EdDSA","a":{nested}}}"#);
        assert_eq!(
            code(&jwt, &signed(&signer, header.as_bytes(), good.to_string().as_bytes())),
            "repeated",
            "{header}"
        );
    }
    // The same name in two objects is none twice.
    let payload = format!(r#"{{{members},"a":{{"sub":1,"b":{{"b":[{{"b":1}},{{"b":-1.5}},null,true]}}}}}}"#);
    assert_eq!(code(&jwt, &signed(&signer, header, payload.as_bytes())), "valid", "{payload}");
    for header in [r#"{"alg":"EdDSA","alg":"EdDSA"}"#, r#"{"alg":"EdDSA","typ":"JWT","typ":"JWT"}"#] {
        assert_eq!(code(&jwt, &signed(&signer, header.as_bytes(), good.to_string().as_bytes())), "repeated");
    }
}

#[test]
fn numbers_that_lose_digits_are_no_values() {
    let payload: Value = serde_json::from_str(
        r#"{"large": 12345678901234567890123, "next": 12345678901234567890124, "u64": 18446744073709551615,
            "over": 18446744073709551616, "i64": -9223372036854775808, "under": -9223372036854775809,
            "half": 0.5, "whole": 7.0, "power": 1e3, "zero": -0, "list": [1, 0.5]}"#,
    )
    .unwrap();
    let claims = Claims(payload.as_object().unwrap().clone());
    for (name, value) in [("u64", "18446744073709551615"), ("i64", "-9223372036854775808")] {
        let path = ClaimPath(vec![name.into()]);
        assert_eq!(claims.header_value(&path).as_deref(), Some(value));
        assert!(ClaimTest { path, values: vec![value.into()] }.holds(&claims), "{name}");
    }
    for name in ["large", "next", "over", "under", "half", "whole", "power", "zero"] {
        let path = ClaimPath(vec![name.into()]);
        assert_eq!(claims.header_value(&path), None, "{name}");
        let all = [
            "12345678901234567890123",
            "1.2345678901234568e+22",
            "1.8446744073709552e+19",
            "0.5",
            "7.0",
            "7",
        ];
        let values = all.into_iter().chain(["1000.0", "1e3", "-0.0", "0", "-0"]).map(Into::into).collect();
        assert!(!ClaimTest { path, values }.holds(&claims), "{name}");
    }
    let list = ClaimPath(vec!["list".into()]);
    assert_eq!(claims.header_value(&list), None);
    assert!(ClaimTest { path: list, values: vec!["1".into()] }.holds(&claims));
}

#[test]
fn two_tokens_in_one_place_are_none() {
    let mut jwt = jwt(&[Signer::ed25519().jwk(json!({}))]);
    let carried = |jwt: &Jwt, request: &Plain| match jwt.carried(request) {
        Ok(carried) => String::from_utf8(carried.token.to_vec()).unwrap(),
        Err(failure) => failure.code().to_owned(),
    };
    let get = || Plain::get("/");
    for (one, other, wanted) in [
        ("Bearer a", "Bearer b", "several"),
        ("Basic a", "Bearer b", "several_lines"),
        ("Bearer b", "Basic a", "several_lines"),
        ("Bearer b", "", "several_lines"),
        ("Basic a", "Basic b", "missing"),
    ] {
        let request = get().with("authorization", one).with("authorization", other);
        assert_eq!(carried(&jwt, &request), wanted, "{one} {other}");
    }
    jwt.places = vec![Place::Cookie("session".into()), Place::QueryParameter("t".into())];
    for (cookies, wanted) in [
        (&["session=a"][..], "a"),
        (&["b=c; session=a; sessions=b", "d=e"], "a"),
        (&["session=a; session=b"], "several"),
        (&["session=a", "session=b"], "several"),
        (&["session=a; session=a"], "several"),
        // Some servers do not mind blanks.
        (&["session=a; session =b"], "several"),
        (&["session=a; session="], "several"),
        (&["session="], "missing"),
        (&["a=session=b; Session=c"], "missing"),
    ] {
        let request = cookies.iter().fold(get(), |request, line| request.with("cookie", line));
        assert_eq!(carried(&jwt, &request), wanted, "{cookies:?}");
    }
    for (target, wanted) in
        [("/?t=a&tt=b", "a"), ("/?t=a&t=b", "several"), ("/?t=a&%74=b", "several"), ("/?t=", "missing")]
    {
        assert_eq!(carried(&jwt, &Plain::get(target)), wanted, "{target}");
    }
}

#[test]
fn other_spellings_of_the_token_s_header_never_get_through() {
    let signer = Signer::ed25519();
    let mut jwt = jwt(&[signer.jwk(json!({}))]);
    jwt.places = vec![Place::Header { name: HeaderName::from_static("x-my-token"), prefix: "".into() }];
    let Found::Valid(verified) = check(&jwt, signer.good(json!({})).as_bytes(), NOW) else {
        panic!("it is good")
    };
    for forward in [true, false] {
        jwt.forward = forward;
        for found in [None, Some((&*verified, Some(0)))] {
            let mut plan = HeaderPlan::default();
            plan.add(&jwt, found);
            assert!(!plan.is_empty());
            for name in ["x_my_token", "X-My_Token", "x_my-token"] {
                assert!(plan.removes(name.as_bytes()), "{name} {forward}");
            }
            assert_eq!(plan.removes(b"X-My-Token"), !forward && found.is_some());
            for name in ["x_my_token", "X-My-Token"] {
                assert!(plan.removes_trailer(name.as_bytes()), "{name} {forward}");
            }
            assert!(plan.minds_trailers() && !plan.removes_trailer(b"x-my-tokens"));
            assert!(!plan.removes(b"x-my-tokens") && !plan.removes(b"xmytoken"));
        }
    }
    jwt.places = vec![Place::Header { name: http::header::AUTHORIZATION, prefix: "Bearer ".into() }];
    let mut plan = HeaderPlan::default();
    plan.add(&jwt, None);
    assert!(plan.is_empty(), "it has no other spelling");
}

#[test]
fn a_point_that_is_not_on_its_curve_is_no_key() {
    for signer in [Signer::p256(), Signer::p384()] {
        let size = if matches!(signer, Signer::P256(_)) { 32 } else { 48 };
        let read = |jwk: Value| Keys::read(json!({"keys": [jwk]}).to_string().as_bytes());
        assert!(read(signer.jwk(json!({}))).is_ok());
        let error = read(signer.jwk(json!({"y": base64url(vec![7; size])}))).unwrap_err().to_string();
        assert!(error.contains("no point of its curve"), "{error}");
    }
}
