//! The command line, against an agent that governs: why a request went where it went, how things stand, test requests.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Capture, Shop, World, ask, eventually, test};

fn open(world: &World) -> Result<(Shop, Agent)> {
    let shop = Shop::open(world, Capture::Enabled)?;
    let agent = world.agent().start()?;
    for pod in shop.pods() {
        agent.enrolled(pod)?;
    }
    Ok((shop, agent))
}

/// What a command says that is to go well.
fn said(agent: &Agent, args: &[&str]) -> Result<String> {
    let (status, said, complaint) = agent.sluice(args)?;
    ensure!(status == 0, "sluice {args:?} exits with {status}: {complaint}{said}");
    Ok(said)
}

fn contains(said: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(said.contains(part), "no {part:?} in:\n{said}");
    }
    Ok(())
}

#[test]
fn a_request_that_fell_back_is_explained_before_and_after() {
    test("explain-lane", |world| {
        let (shop, agent) = open(world)?;
        let request = ["explain", "--pod", "shop/client", "--to", "pricing.shop:80"];
        let text = said(&agent, &[&request[..], &["-H", "x-mse-tag: gray", "GET", "/"]].concat())?;
        println!("{text}");
        contains(
            &text,
            &["has no endpoint in lane gray", "falls back to the baseline", "pricing-v1", "100 %"],
        )?;
        let headers = ["x-mse-tag: gray", "x-request-id: fell-back"];
        ensure!(ask(&shop.client, &shop.services[2].url(), &headers)?.versions() == "v1 gray");
        let text = said(&agent, &["explain", "--request-id", "fell-back"])?;
        println!("{text}");
        contains(
            &text,
            &["no usable endpoint in lane gray", "fell back to the baseline", "pricing-v1", "responded 200"],
        )?;
        let past: Value =
            serde_json::from_str(&said(&agent, &["explain", "--request-id", "fell-back", "-o", "json"])?)?;
        ensure!(past[0]["outcome"]["pod"] == "pricing-v1" && past[0]["caller"] == "shop/client", "{past:#}");
        let (status, _, complaint) = agent.sluice(&["explain", "--request-id", "never-sent"])?;
        ensure!(status == 1 && complaint.contains("no such request is kept"), "{status} {complaint}");
        Ok(())
    });
}

#[test]
fn a_throttled_request_is_explained_with_its_rule() {
    test("explain-limit", |world| {
        let (shop, agent) = open(world)?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "stock"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "stock"}],
                "rateLimits": [{"name": "burst", "requests": 2, "interval": "1h"}],
            },
        }))?;
        let request = ["explain", "--pod", "shop/client", "--to", "stock:80", "GET", "/"];
        eventually("the policy is in force", || contains(&said(&agent, &request)?, &["rule burst"]))?;
        // Asking takes nothing from the bucket.
        for _ in 0..5 {
            contains(&said(&agent, &request)?, &["admits it at once"])?;
        }
        let url = shop.services[3].url();
        for _ in 0..2 {
            ask(&shop.client, &url, &[])?;
        }
        let text = said(&agent, &request)?;
        println!("{text}");
        contains(&text, &["rejects it", "rule burst of TrafficPolicy shop/stock", "429"])?;
        let refused = shop.client.run("curl", &["-sS", "-i", "-H", "x-request-id: one-too-many", &url])?;
        ensure!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
        let text = said(&agent, &["explain", "--request-id", "one-too-many"])?;
        println!("{text}");
        contains(&text, &["rule burst of TrafficPolicy shop/stock", "Sluice responded 429 itself"])?;
        contains(&said(&agent, &["explain", "--last", "5"])?, &["rate_limited", "stock.shop:80"])?;
        Ok(())
    });
}

#[test]
fn a_test_request_goes_the_way_of_the_pods_own() {
    test("call", |world| {
        let (shop, agent) = open(world)?;
        let call = ["call", "--pod", "shop/client", "--to", "stock.shop:80", "-o", "json"];
        for (more, version) in [(&[][..], "v1"), (&["--lane", "gray"], "gray"), (&["--lane", "blue"], "v1")] {
            let answer: Value = serde_json::from_str(&said(&agent, &[&call[..], more].concat())?)?;
            let body = answer["body"].as_str().context("a body")?;
            ensure!(answer["status"] == 200 && body.contains(&format!("\"{version}\"")), "{answer:#}");
            ensure!(answer["decision"]["outcome"]["pod"] == format!("stock-{version}"), "{answer:#}");
        }
        let exact = format!("{}:8080", shop.app("stock-gray")?.pod.ipv4());
        let answer: Value =
            serde_json::from_str(&said(&agent, &[&call[..], &["--endpoint", &exact]].concat())?)?;
        ensure!(answer["status"] == 200 && answer["decision"].is_null(), "{answer:#}");
        ensure!(answer["body"].as_str().is_some_and(|body| body.contains("\"gray\"")), "{answer:#}");
        let text = said(&agent, &["call", "--pod", "shop/client", "--to", "stock.shop:80"])?;
        contains(&text, &["200 after", "stock-v1", "content-type"])?;
        for (args, part) in [
            (&["call", "--pod", "shop/nobody", "--to", "stock.shop:80"][..], "no pod"),
            (&["call", "--pod", "shop/client", "--to", "nothing.shop:80"], "no service nothing is managed"),
        ] {
            let (status, _, complaint) = agent.sluice(args)?;
            ensure!(status == 1 && complaint.contains(part), "{status} {complaint}");
        }
        let (status, _, complaint) = agent.sluice(&["call", "--pod", "client", "--to", "stock.shop:80"])?;
        ensure!(status == 2 && complaint.contains("as in shop/client"), "{status} {complaint}");
        Ok(())
    });
}

#[test]
fn status_says_how_things_stand_and_what_is_wrong() {
    test("status", |world| {
        let (shop, agent) = open(world)?;
        let text = eventually("nothing is wrong", || said(&agent, &["status"]))?;
        println!("{text}");
        contains(
            &text,
            &[
                ", ready",
                "7 enrolled, 0 pending",
                "4 ports managed, 6 of 6 endpoints ready",
                "nothing is wrong",
            ],
        )?;
        shop.app("pricing-v1")?.pod.set_ready(false)?;
        eventually("it says what is wrong", || {
            let (status, text, _) = agent.sluice(&["status"])?;
            ensure!(status == 1, "{status}");
            contains(&text, &["pricing.shop:80 has no ready endpoint", "503 no_endpoint"])
        })?;
        let dump: Value = serde_json::from_str(&said(&agent, &["dump"])?)?;
        ensure!(dump["destinations"].as_array().is_some_and(|all| all.len() >= 4), "{dump:#}");
        let text = said(&agent, &["top", "--times", "1"])?;
        contains(&text, &["req/s", "pricing.shop:80"])?;
        ensure!(!text.contains('\u{1b}'), "{text:?}");
        Ok(())
    });
}

#[test]
fn nobody_but_root_gets_an_answer_from_the_socket() {
    test("socket", |world| {
        let (_shop, agent) = open(world)?;
        let socket = agent.socket().display().to_string();
        // Even where the directory and the file would let them.
        for path in agent.socket().ancestors().take(3) {
            Command::new("chmod").args(["a+rwx"]).arg(path).status()?;
        }
        let python = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
            s.sendall(b'GET /healthz HTTP/1.0\\r\\n\\r\\n')\nprint(s.recv(100))\n";
        let asked = Command::new("setpriv")
            .args([
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "python3",
                "-c",
                python,
                &socket,
            ])
            .output()?;
        let said = String::from_utf8_lossy(&asked.stdout);
        ensure!(!said.contains("200"), "{said}");
        let log = || agent.log().contains("its user is not root");
        eventually("the agent says so", || {
            ensure!(log() || !asked.status.success());
            Ok(())
        })?;
        ensure!(agent.get("/healthz")?.0 == 200);
        Ok(())
    });
}

/// A port that is declared to speak HTTP/2 or gRPC is asked in that, and its trailers are shown.
#[test]
fn a_test_request_speaks_what_the_port_does() {
    test("call-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let pod = world.pod("shop", "echo-1").label("app", "echo").start()?;
        let _server = crate::grpc_process(&pod, 50051, "v1")?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let call = |more: &[&str], path: &str| {
            let asked = [
                "call",
                "--pod",
                "shop/client",
                "--to",
                "echo.shop:80",
                "-H",
                "content-type: application/grpc",
            ];
            said(&agent, &[&asked, more, &["POST", path]].concat())
        };
        for more in [&[][..], &["--endpoint", &format!("{}:50051", pod.ipv4())]] {
            let text = call(more, "/test.Echo/Unary")?;
            ensure!(text.contains("grpc-status: 0") && text.contains("served-by: v1"), "{more:?}: {text}");
        }
        let text = call(&[], "/test.Echo/None")?;
        ensure!(text.contains("grpc-status: 12"), "{text}");
        let failed = agent.metrics()?.sum("sluice_requests_total", &[("reason", "upstream_protocol")]);
        ensure!(failed == 0.0, "{failed}");
        Ok(())
    });
}
