//! Clients that nobody here wrote, each through the path.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, App, Capture, Pod, Process, Service, World, test};

use crate::{grpc_process, python, script};

/// A service `web` with an instance in the baseline and one in the lane, and a pod that calls it.
struct Web {
    service: Service,
    client: Pod,
    agent: Agent,
    _apps: Vec<App>,
}

fn web(world: &World) -> Result<Web> {
    world.namespace("shop", Capture::Enabled)?;
    let apps = ["v1", "gray"]
        .iter()
        .map(|version| App::start(world, "web", version, None))
        .collect::<Result<_>>()?;
    let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Web { service, client, agent, _apps: apps })
}

/// A client's own report: it asked for `gray`, and sent a body to be echoed.
fn check(web: &Web, program: &str, args: &[&str]) -> Result<()> {
    let said = web.client.run(program, args)?;
    let report: Value = serde_json::from_str(&said).with_context(|| format!("{program} said {said:?}"))?;
    ensure!(report["answer"]["chain"][0]["version"] == "gray", "{report}");
    ensure!(report["echoed"] == true && report["status"] == 200, "{report}");
    ensure!(web.agent.redirected()? > 0, "nothing was redirected");
    Ok(())
}

#[test]
fn curl() {
    test("curl", |world| {
        let web = web(world)?;
        let tagged = ["-sS", "-m", "20", "-H", "x-mse-tag: gray"];
        for (version, expected) in
            [("--http1.0", "1.0"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")]
        {
            for url in [web.service.url(), web.service.url6()] {
                let format = "\n%{http_version} %{remote_ip} %{http_code}";
                let said = web.client.run("curl", &[&tagged[..], &[version, "-w", format, &url]].concat())?;
                let (body, line) = said.rsplit_once('\n').context("two lines")?;
                let answer: Value =
                    serde_json::from_str(body).with_context(|| format!("{version} {url}: {said}"))?;
                ensure!(answer["chain"][0]["version"] == "gray", "{version} {url}: {said}");
                let ip = if url.contains('[') {
                    web.service.ipv6.to_string()
                } else {
                    web.service.ipv4.to_string()
                };
                // An answer to HTTP/1.0 may say 1.1: RFC 9110, 2.5.
                let fits = line == format!("{expected} {ip} 200")
                    || expected == "1.0" && line == format!("1.1 {ip} 200");
                ensure!(fits, "{version} {url}: {line}");
            }
        }
        // A body for which curl asks first (`Expect: 100-continue`), and several requests over one connection.
        let file = world.directory().join("body");
        let body: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        std::fs::write(&file, &body)?;
        let echoed = world.directory().join("echoed");
        let (from, to) = (format!("@{}", file.display()), echoed.display().to_string());
        let url = format!("{}/echo", web.service.url());
        web.client.run("curl", &["-sS", "-m", "20", "--data-binary", &from, "-o", &to, &url])?;
        ensure!(std::fs::read(&echoed)? == body, "a body was changed");
        let url = format!("{}/bytes/[1-20]", web.service.url());
        let said = web.client.run(
            "curl",
            &["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download} %{num_connects},", &url],
        )?;
        let expected: Vec<String> = (1..=20).map(|size| format!("{size} {},", u8::from(size == 1))).collect();
        ensure!(said == expected.concat(), "{said}");
        Ok(())
    });
}

/// Not by curl: 7.88.1, which Debian 12 has, sends a piece again that it has already taken when its socket is full
/// (<https://github.com/curl/curl/issues/10591>), so that more comes than its `content-length` says, with any server.
#[test]
fn nghttps_upload_over_http2() {
    test("nghttp", |world| {
        let web = web(world)?;
        let file = world.directory().join("body");
        let body: String = ('a'..='z').cycle().take(3_000_000).collect();
        std::fs::write(&file, &body)?;
        let url = format!("{}/echo", web.service.url());
        let echoed =
            web.client.run("nghttp", &["--timeout=20", "--data", &file.display().to_string(), &url])?;
        ensure!(echoed == body, "{} of {} bytes came back, or other ones", echoed.len(), body.len());
        ensure!(web.agent.redirected()? > 0, "nothing was redirected");
        Ok(())
    });
}

#[test]
fn pythons_http_client() {
    test("python", |world| {
        let web = web(world)?;
        let (host, port) = (web.service.ipv4.to_string(), web.service.port.to_string());
        check(&web, &python().display().to_string(), &[&script("http_client.py"), &host, &port])
    });
}

#[test]
fn nodes_fetch() {
    test("node", |world| {
        let web = web(world)?;
        let url = web.service.url();
        check(&web, "node", &[&script("fetch.mjs"), &url])
    });
}

#[test]
fn javas_http_client() {
    test("java", |world| {
        let web = web(world)?;
        let url = web.service.url();
        check(&web, "java", &[&script("Client.java"), &url])
    });
}

/// A gRPC server in a pod of its own.
pub(crate) fn grpc_server(world: &World, version: &str) -> Result<(Process, Pod)> {
    let mut pod = world.pod("shop", &format!("echo-{version}")).label("app", "echo");
    if version != "v1" {
        pod = pod.tag(version);
    }
    let pod = pod.start()?;
    Ok((grpc_process(&pod, 50051, version)?, pod))
}

/// What `grpc_client.py` says.
pub(crate) fn seen_by_every_kind_of_call(version: &str) -> Value {
    json!({
        "unary": format!("{version}:hello"),
        "trailer": version,
        "large": 3_000_001 + version.len(),
        "fails": ["FAILED_PRECONDITION", "not today: 100 % sure"],
        "server_stream": format!("{version}:999"),
        "client_stream": format!("{version}:1000000"),
        "both": format!("{version}:19"),
        "both_ended": true,
        "parallel": 100,
    })
}

#[test]
fn grpcio_every_kind_of_call() {
    test("grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let _baseline = grpc_server(world, "v1")?;
        let _lane = grpc_server(world, "gray")?;
        // By its name, and by nothing at all.
        let named = world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let unnamed = world.service("shop", "plain").selector("app", "echo").port("", 80, 50051).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        for service in [&named, &unnamed] {
            for (version, metadata) in [("v1", None), ("gray", Some("x-mse-tag=gray"))] {
                let script = script("grpc_client.py");
                let target = format!("{}:{}", service.ipv4, service.port);
                let args: Vec<&str> = [script.as_str(), &target].into_iter().chain(metadata).collect();
                let said = client.run(python(), &args)?;
                let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
                ensure!(seen == seen_by_every_kind_of_call(version), "{} {version}: {seen}", service.name);
            }
        }
        ensure!(agent.redirected()? >= 4, "nothing was redirected");
        Ok(())
    });
}

/// What a client's own program says that sends streams without end and gives up calls, beside neighbours.
fn expect(client: &Pod, program: &str, args: &[&str], expected: &Value) -> Result<()> {
    let said = client.run(program, args)?;
    let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(seen == *expected, "{args:?}: {seen}");
    Ok(())
}

/// A service `echo` with one instance of this server, asked by `clients`.
fn streams(
    name: &str,
    start: impl Fn(&World) -> Result<(Process, Pod)>,
    clients: impl Fn(&Pod, &str) -> Result<()>,
) {
    test(name, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let _server = start(world)?;
        let service = world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        clients(&client, &format!("{}:{}", service.ipv4, service.port))?;
        ensure!(agent.redirected()? > 0, "nothing was redirected");
        Ok(())
    });
}

fn grpcio_server(world: &World) -> Result<(Process, Pod)> {
    grpc_server(world, "v1")
}

fn grpc_js_server(world: &World) -> Result<(Process, Pod)> {
    let pod = world.pod("shop", "echo-v1").label("app", "echo").start()?;
    let mut server = pod.spawn("server", "node", &[&script("grpc_js_server.mjs"), "50051", "v1"])?;
    server.says("listening")?;
    Ok((server, pod))
}

fn grpcio(client: &Pod, target: &str, rounds: u32, deadlines: u32) -> Result<()> {
    let expected = json!({
        "client_stream": "20000",
        "server_stream": 20_000,
        "both": 20_000,
        "uploads": ["400000"],
        "consumers": [8000],
        "given_up": "the long call goes on",
        "deadlines": {"DEADLINE_EXCEEDED": deadlines},
        "failures": [],
        "enough": true,
    });
    let (rounds, deadlines) = (rounds.to_string(), deadlines.to_string());
    let python = python().display().to_string();
    expect(client, &python, &[&script("grpc_streams.py"), target, &rounds, &deadlines], &expected)
}

fn grpc_js(client: &Pod, target: &str, rounds: u32, deadlines: u32) -> Result<()> {
    let expected = json!({
        "unary": true,
        "fails": [9, "not today: 100 % sure"],
        "client_stream": "20000",
        "server_stream": 30_000,
        "both": 20_000,
        "uploads": ["400000"],
        "consumers": [8000],
        "given_up": "the long call goes on",
        "deadlines": {"DEADLINE_EXCEEDED": deadlines},
        "failures": [],
        "enough": true,
    });
    let (rounds, deadlines) = (rounds.to_string(), deadlines.to_string());
    expect(client, "node", &[&script("grpc_js_streams.mjs"), target, &rounds, &deadlines], &expected)
}

#[test]
fn grpcio_streams_without_end_and_calls_that_are_given_up() {
    streams("grpc-streams", grpcio_server, |client, target| grpcio(client, target, 25, 1000));
}

#[test]
fn grpc_js_streams_without_end_and_calls_that_are_given_up() {
    streams("grpc-js", grpcio_server, |client, target| grpc_js(client, target, 25, 1000));
}

/// Node's server ends a connection on which 1,000 streams and 33 a second more are reset: through the agent, calls that are given
/// up may even be more.
#[test]
fn grpc_js_as_a_server() {
    streams("grpc-js-server", grpc_js_server, |client, target| {
        grpc_js(client, target, 25, 500)?;
        grpcio(client, target, 25, 500)
    });
}

/// Over Node's own HTTP/2, without what grpc-js puts around it.
#[test]
fn node_streams_without_end_and_calls_that_are_given_up() {
    let expected = json!({
        "client_stream": "5000",
        "server_stream": 30_000,
        "both": 3000,
        "long": 25,
        "failures": [],
        "enough": true,
    });
    streams("grpc-node", grpcio_server, |client, target| {
        expect(client, "node", &[&script("grpc_streams.mjs"), target], &expected)
    });
}
