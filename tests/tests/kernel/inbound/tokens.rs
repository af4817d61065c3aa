//! Tokens: who has a valid one, what applications learn from it, and what clients that have none are told. The issuer is PyJWT.

use std::{fs, net::IpAddr, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::{Value, json};
use sluice_tests::{Capture, Pod, World, eventually, test, test_with_both};

use super::{ANSWER, Got, agent, guarded, policy, urls};
use crate::{clients::grpc_server, python, script};

const HTTPS: u16 = 8443;

/// What an issuer has made.
struct Issued {
    jwks: String,
    tokens: Vec<String>,
}

#[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
fn claims(more: Value) -> Value {
    let mut claims = json!({"iss": "https://login.example.com/", "aud": "orders", "sub": "ann", "exp": 600});
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    claims
}

fn issue(pod: &Pod, keys: &Value, tokens: &Value) -> Result<Issued> {
    let asked = json!({"keys": keys, "tokens": tokens}).to_string();
    let said = pod.run(python(), &[&script("jwt_issuer.py"), &asked])?;
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let tokens = said["tokens"].as_array().context("tokens")?.iter().filter_map(Value::as_str);
    Ok(Issued { jwks: said["jwks"].to_string(), tokens: tokens.map(str::to_owned).collect() })
}

fn provider(issued: &Issued) -> Value {
    json!({
        "name": "login",
        "issuer": "https://login.example.com/",
        "audiences": ["orders"],
        "jwks": {"inline": issued.jwks},
        "claimsToHeaders": [{"header": "x-user", "claim": ["sub"]}],
    })
}

/// As [`super::get`], with these further arguments.
fn ask(client: &Pod, url: &str, more: &[&str]) -> Result<Got> {
    let more = more.iter().flat_map(|header| ["-H", header]);
    let args: Vec<&str> = ANSWER.into_iter().chain(more).chain(["-D", "/dev/stdout", url]).collect();
    Got::of(&client.run("curl", &args)?)
}

#[test]
fn only_those_with_a_token_of_the_issuer_may_call() {
    test("tokens", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let guarded = guarded(world, "::")?;
        let client = world.pod("shop", "client").start()?;
        let algorithms = ["RS256", "PS512", "ES256", "ES384", "EdDSA"];
        let keys: Vec<_> = algorithms.iter().map(|alg| json!({"kid": alg, "alg": alg})).collect();
        let mut tokens: Vec<_> = (0..keys.len())
            .map(|key| json!({"key": key, "claims": claims(json!({"scope": "a orders.read"}))}))
            .collect();
        for (more, kid) in [
            (json!({}), "ES256"),
            (json!({"exp": -600}), "ES256"),
            (json!({"nbf": 600}), "ES256"),
            (json!({"aud": "billing"}), "ES256"),
            (json!({"iss": "https://evil.example.com/"}), "ES256"),
            (json!({}), "other"),
        ] {
            tokens.push(json!({"key": 2, "kid": kid, "claims": claims(more)}));
        }
        let issued = issue(&client, &json!(keys), &json!(tokens))?;
        let (good, bad) = issued.tokens.split_at(algorithms.len());
        let agent = agent(world, &guarded)?;
        let spec = json!({
            "jwt": {"providers": [provider(&issued)]},
            "rules": [{
                "name": "users",
                "from": [{"jwt": {"claims": [{"claim": ["scope"], "values": ["orders.read"]}]}}],
            }],
        });
        policy(world, &spec)?;
        let [url, _] = urls(&guarded.pod);
        eventually("the policy is in force", || {
            let got = ask(&client, &url, &[])?;
            ensure!(got.status == "401", "{} {}", got.status, got.body);
            Ok(())
        })?;
        for url in urls(&guarded.pod) {
            for token in good {
                let spoofed = ["X-User: eve", "x_user: eve", &format!("Authorization: Bearer {token}")];
                let got = ask(&client, &url, &spoofed)?;
                ensure!(got.status == "200", "{} {}", got.status, got.body);
                let (_, answer) = got.body.split_once("\r\n\r\n").context("a head")?;
                let answer: Value = serde_json::from_str(answer)?;
                let headers = &answer["headers"];
                ensure!(headers["x-user"] == "ann" && headers["x_user"].is_null(), "{headers}");
                ensure!(headers["authorization"] == format!("Bearer {token}"), "{headers}");
            }
        }
        // In the order in which they were asked for.
        for (token, (status, told)) in bad.iter().zip([
            ("403", "\"reason\":\"access_denied\""),
            ("401", "the token has expired"),
            ("401", "the token is not valid yet"),
            ("401", "the token is for another audience"),
            ("401", "the token is not from an accepted issuer"),
            ("401", "the token is signed with an unknown key"),
        ]) {
            let got = ask(&client, &url, &[&format!("Authorization: Bearer {token}")])?;
            ensure!(got.status == status && got.body.contains(told), "{told}: {} {}", got.status, got.body);
            let challenge = "www-authenticate: Bearer error=\"invalid_token\", error_description=";
            ensure!(got.body.contains(challenge) == (status == "401"), "{}", got.body);
        }
        let got = ask(&client, &url, &["Authorization: Basic YTpi"])?;
        ensure!(got.status == "401" && got.body.contains("www-authenticate: Bearer\r\n"), "{}", got.body);
        let counted = |result| {
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_tokens_total", &[("result", result)]))
        };
        ensure!(counted("valid")? >= 11.0 && counted("expired")? >= 1.0 && counted("missing")? >= 1.0);
        let request = ["explain", "--pod", "shop/client", "--to", "orders.shop:80", "GET", "/"];
        let (_, explained, _) = agent.sluice(&request)?;
        ensure!(
            explained.contains("there is no token") && explained.contains("rule users of AccessPolicy"),
            "{explained}"
        );

        // Nobody is denied while it is only observed, and claims are put into headers all the same.
        let mut observed = spec.clone();
        observed["mode"] = "Observe".into();
        observed["jwt"]["forwardToken"] = false.into();
        policy(world, &observed)?;
        eventually("nobody is denied", || {
            let got = ask(&client, &url, &["x-user: eve"])?;
            ensure!(got.status == "200" && !got.body.contains("eve"), "{} {}", got.status, got.body);
            Ok(())
        })?;
        let got = ask(&client, &url, &[&format!("Authorization: Bearer {}", good[0])])?;
        ensure!(
            got.body.contains("\"x-user\": \"ann\"") && !got.body.contains("authorization"),
            "{}",
            got.body
        );
        Ok(())
    });
}

#[test]
fn grpc_clients_without_a_token_are_told() {
    test("tokens-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let (_server, pod) = grpc_server(world, "v1")?;
        world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let client = world.pod("shop", "client").start()?;
        let tokens = json!([
            {"key": 0, "claims": claims(json!({}))},
            {"key": 0, "claims": claims(json!({"exp": -600}))},
        ]);
        let issued = issue(&client, &json!([{"kid": "a", "alg": "ES256"}]), &tokens)?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "AccessPolicy",
            "metadata": {"name": "echo", "namespace": "shop"},
            "spec": {
                "targetRefs": [{"name": "echo"}],
                "jwt": {"providers": [provider(&issued)]},
                "rules": [{"name": "users", "from": [{"jwt": {}}]}],
            },
        }))?;
        let target = format!("{}:50051", pod.ipv4());
        let call = |token: Option<&str>| {
            let metadata = token.map(|token| format!("authorization=Bearer {token}"));
            let args = [script("grpc_unary.py"), target.clone()];
            let args: Vec<&str> = args.iter().map(String::as_str).chain(metadata.as_deref()).collect();
            client.run(python(), &args)
        };
        eventually("the policy is in force", || {
            let said = call(None)?;
            ensure!(
                said.starts_with("UNAUTHENTICATED the request needs a valid token: there is no token"),
                "{said}"
            );
            Ok(())
        })?;
        let said = call(Some(&issued.tokens[0]))?;
        ensure!(said.trim() == "OK v1:hello", "{said}");
        let said = call(Some(&issued.tokens[1]))?;
        ensure!(said.starts_with("UNAUTHENTICATED") && said.contains("the token has expired"), "{said}");
        Ok(())
    });
}

/// Writes an authority (`ca.pem`), and a certificate of it with its key (`server.pem`).
fn certify(directory: &Path, address: IpAddr) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::IpAddress(address));
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    fs::write(directory.join("ca.pem"), issuer.pem())?;
    fs::write(directory.join("server.pem"), certificate.pem() + &key.serialize_pem())?;
    Ok(())
}

#[test]
fn keys_are_fetched_and_rotate_while_the_agent_runs() {
    test("jwks", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let guarded = guarded(world, "::")?;
        let client = world.pod("shop", "client").start()?;
        let issuer = world.pod("shop", "issuer").start()?;
        let directory = world.directory().join("jwks");
        fs::create_dir_all(&directory)?;
        certify(&directory, issuer.ipv4().into())?;
        let file = |name: &str| directory.join(name).display().to_string();
        let keys = json!([{"kid": "a", "alg": "ES256"}, {"kid": "b", "alg": "ES256"}]);
        let mut tokens: Vec<_> = (0..2).map(|key| json!({"key": key, "claims": claims(json!({}))})).collect();
        tokens.extend(
            (0..100).map(|n| json!({"key": 0, "kid": format!("no-{n}"), "claims": claims(json!({}))})),
        );
        let issued = issue(&client, &keys, &json!(tokens))?;
        let (known, unknown) = issued.tokens.split_at(2);
        let all: Value = serde_json::from_str(&issued.jwks)?;
        let publish = |key: usize| {
            let set = json!({"keys": [all["keys"][key]]}).to_string();
            // In one go, as the server reads it at any time.
            fs::write(file("next"), set)?;
            fs::rename(file("next"), file("keys"))
        };
        publish(0)?;
        let port = HTTPS.to_string();
        let serve = || {
            let args = [&script("tls_server.py"), &port, &file("server.pem"), &file("keys")];
            let mut server = issuer.spawn("issuer", python(), &args.map(|arg| arg as &str))?;
            server.says("listening")?;
            Ok::<_, anyhow::Error>(server)
        };
        let mut server = serve()?;

        let host = format!("{}:{HTTPS}", issuer.ipv4());
        let agent = world
            .agent()
            .args(&["--jwks-hosts", &format!("login.example.com,{host}"), "--jwks-ca-file", &file("ca.pem")])
            .start()?;
        agent.enrolled(&guarded.pod)?;
        let apply = |uri: &str| {
            let mut provider = provider(&issued);
            provider["jwks"] = json!({"uri": uri});
            let rule = json!({"name": "users", "from": [{"jwt": {}}]});
            policy(world, &json!({"jwt": {"providers": [provider]}, "rules": [rule]}))
        };
        let [url, _] = urls(&guarded.pod);
        let gets = |token: &str, status: &str, told: &str| {
            let got = ask(&client, &url, &[&format!("Authorization: Bearer {token}")])?;
            ensure!(got.status == status && got.body.contains(told), "{} {}", got.status, got.body);
            Ok(())
        };

        // Another port than the operator has named.
        apply(&format!("https://{}:8444/keys", issuer.ipv4()))?;
        eventually("the policy is in force", || gets(&known[0], "401", "the keys of the token's issuer"))?;
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(said.contains("KeysMissing") && said.contains("--jwks-hosts"), "{said}");

        let uri = format!("https://{host}/keys?p=a");
        apply(&uri)?;
        eventually("the keys are fetched", || gets(&known[0], "200", "\"x-user\": \"ann\""))?;
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(!said.contains("KeysMissing"), "{said}");
        let asked = |server: &sluice_tests::Process| server.log().matches("asked /keys?p=a").count();
        ensure!(asked(&server) == 1, "{}", server.log());

        // The issuer is away when somebody comes with a new key.
        server.kill()?;
        // Without the query, which may be secret.
        let shown = uri.replace("?p=a", "?...");
        let fetches = |result: &str| {
            let labels = [("uri", &*shown), ("result", result)];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_jwks_fetches_total", &labels))
        };
        gets(&known[1], "401", "unknown key")?;
        eventually("the agent has noticed it", || {
            let failed = fetches("connect")?;
            ensure!(failed >= 2.0, "{failed}");
            Ok(())
        })?;
        gets(&known[0], "200", "\"x-user\": \"ann\"")?;
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(said.contains(&format!("cannot be fetched from {uri}")), "{said}");

        // It is back, with the new key only.
        publish(1)?;
        let server = serve()?;
        eventually("the new key is known", || gets(&known[1], "200", "\"x-user\": \"ann\""))?;
        gets(&known[0], "401", "unknown key")?;
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(!said.contains("cannot be fetched"), "{said}");

        // Whoever makes keys up does not make the agent ask for each.
        let (before, began) = (asked(&server), Instant::now());
        for token in unknown {
            gets(token, "401", "unknown key")?;
        }
        gets(&known[1], "200", "\"x-user\": \"ann\"")?;
        let (made, bound) = (asked(&server) - before, 1 + began.elapsed().as_secs() as usize / 30);
        ensure!(made <= bound, "{made} fetches, and {bound} are allowed");
        let keys = agent.metrics()?.sum("sluice_jwks_keys", &[("uri", &shown)]);
        ensure!((0.9..1.1).contains(&keys), "{keys}");
        Ok(())
    });
}

/// Keys in a ConfigMap and a Secret: once of a directory of manifests, once of the API server.
fn keys_in_objects(world: &World) -> Result<()> {
    world.namespace("shop", Capture::Enabled)?;
    let guarded = guarded(world, "::")?;
    let client = world.pod("shop", "client").start()?;
    let keys = json!([{"kid": "a", "alg": "ES256"}, {"kid": "b", "alg": "ES256"}]);
    let mut tokens: Vec<_> = (0..2).map(|key| json!({"key": key, "claims": claims(json!({}))})).collect();
    // Made up, and said to be of somebody else.
    tokens.push(json!({"key": 0, "claims": claims(json!({"iss": "https://evil.example.com/"}))}));
    let issued = issue(&client, &keys, &json!(tokens))?;
    let all: Value = serde_json::from_str(&issued.jwks)?;
    let set = |key: usize| json!({"keys": [all["keys"][key]]}).to_string();
    let holder = |kind: &str, field: &str, data: Value| {
        let metadata = json!({"name": "login-keys", "namespace": "shop"});
        world.apply(json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, field: data}))
    };
    let agent = agent(world, &guarded)?;
    let apply = |jwks: Value, on_no_keys: &str| {
        let mut provider = provider(&issued);
        provider["jwks"] = jwks;
        provider["onNoKeys"] = on_no_keys.into();
        let rule = json!({"name": "users", "from": [{"jwt": {}}]});
        policy(world, &json!({"jwt": {"providers": [provider]}, "rules": [rule]}))
    };
    let [url, _] = urls(&guarded.pod);
    let gets = |token: &str, status: &str, told: &str| {
        let got = ask(&client, &url, &[&format!("Authorization: Bearer {token}")])?;
        ensure!(got.status == status && got.body.contains(told), "{} {}", got.status, got.body);
        Ok(())
    };
    let says = |told: &str| {
        eventually("the status says it", || {
            let (_, said, _) = agent.sluice(&["status"])?;
            ensure!(said.contains(told), "{said}");
            Ok(())
        })
    };
    let [first, second, foreign] = [0, 1, 2].map(|at: usize| issued.tokens[at].as_str());

    // While no key was ever read onNoKeys decides, and only of tokens that say they are of this issuer.
    let map = || json!({"configMap": {"name": "login-keys"}});
    apply(map(), "Deny")?;
    eventually("the policy is in force", || gets(first, "401", "the keys of the token's issuer"))?;
    says(
        "KeysMissing: active for Service orders; the keys of provider login are missing: ConfigMap shop/login-keys, key jwks.json: there is no such ConfigMap",
    )?;
    apply(map(), "Allow")?;
    eventually("what cannot be verified is let in", || gets(first, "200", ""))?;
    gets(second, "200", "")?;
    let got = ask(&client, &url, &[&format!("Authorization: Bearer {second}")])?;
    ensure!(!got.body.contains("\"x-user\""), "what nobody has verified is told to nobody: {}", got.body);
    gets(foreign, "401", "not from an accepted issuer")?;
    let got = ask(&client, &url, &[])?;
    ensure!(got.status == "401", "without a token: {}", got.status);

    // They come: from now on they count.
    holder("ConfigMap", "data", json!({"jwks.json": set(0)}))?;
    eventually("the keys are known", || gets(second, "401", "unknown key"))?;
    gets(first, "200", "\"x-user\": \"ann\"")?;
    // They rotate.
    holder("ConfigMap", "data", json!({"jwks.json": set(1)}))?;
    eventually("the new key is known", || gets(second, "200", "\"x-user\": \"ann\""))?;
    gets(first, "401", "unknown key")?;
    let uri = "ConfigMap shop/login-keys, key jwks.json";
    let known = agent.metrics()?.sum("sluice_jwks_keys", &[("uri", uri)]);
    ensure!((0.9..1.1).contains(&known), "{known}");
    // They become bad, and are deleted: the last good ones stay, whatever onNoKeys says.
    holder("ConfigMap", "data", json!({"jwks.json": "none"}))?;
    says("KeysOutdated")?;
    world.delete("ConfigMap", "shop", "login-keys")?;
    says("there is no such ConfigMap")?;
    gets(second, "200", "\"x-user\": \"ann\"")?;
    gets(first, "401", "unknown key")?;
    // Another source, of which nothing was ever read.
    apply(json!({"secret": {"name": "login-keys", "key": "keys"}}), "Deny")?;
    eventually("the policy is in force", || gets(second, "401", "the keys of the token's issuer"))?;
    let encoded = STANDARD.encode(set(0));
    holder("Secret", "data", json!({"keys": encoded}))?;
    eventually("the keys of the Secret are known", || gets(first, "200", "\"x-user\": \"ann\""))?;
    // Keys are in use at once, and told of with the next snapshot.
    eventually("no keys are missing", || {
        let (_, said, _) = agent.sluice(&["status"])?;
        ensure!(!said.contains("KeysMissing") && !said.contains("KeysOutdated"), "{said}");
        Ok(())
    })
}

#[test]
fn keys_in_objects_rotate_while_the_agent_runs() {
    test_with_both("jwks-objects", keys_in_objects);
}
