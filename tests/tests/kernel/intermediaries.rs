//! Proxies that others wrote on either side of the agent: between a client and it, and as endpoints.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{Capture, Pod, Process, World, bench::proxies::program, eventually, test};

use crate::{
    clients::{grpc_server, seen_by_every_kind_of_call},
    python, script,
};

const PORT: u16 = 7000;

/// What a proxy speaks HTTP/2 to.
#[derive(Clone, Copy)]
enum Behind {
    Grpc(Ipv4Addr),
    /// Nothing: it answers by itself.
    Itself,
}

/// nginx with all that it limits as it is by default, such as 1,000 requests a connection.
fn nginx(world: &World, pod: &Pod, behind: Behind) -> Result<Process> {
    let location = match behind {
        Behind::Grpc(to) => format!("client_max_body_size 0; grpc_pass grpc://{to}:80;"),
        Behind::Itself => "return 200 'nginx';".to_owned(),
    };
    nginx_with(world, pod, &format!("server {{ listen {PORT} http2; location / {{ {location} }} }}"))
}

/// nginx with this in its block `http`.
pub(crate) fn nginx_with(world: &World, pod: &Pod, http: &str) -> Result<Process> {
    let folder = world.directory().join(format!("nginx-{}", pod.name));
    fs::create_dir_all(&folder)?;
    let folder = folder.display();
    let conf = format!(
        "daemon off;
master_process off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
}}
"
    );
    let file = format!("{folder}/nginx.conf");
    fs::write(&file, conf)?;
    pod.spawn("nginx", program("nginx")?, &["-e", "stderr", "-p", &folder.to_string(), "-c", &file])
}

fn haproxy(world: &World, pod: &Pod, behind: Behind) -> Result<Process> {
    let (answer, backend) = match behind {
        Behind::Grpc(to) => ("default_backend grpc".to_owned(), format!("server one {to}:80 proto h2")),
        Behind::Itself => ("http-request return status 200".to_owned(), String::new()),
    };
    let conf = format!(
        "defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind :{PORT} proto h2
  {answer}
backend grpc
  {backend}
"
    );
    let file = world.directory().join(format!("haproxy-{}.cfg", pod.name));
    fs::write(&file, conf)?;
    pod.spawn("haproxy", program("haproxy")?, &["-db", "-f", &file.display().to_string()])
}

fn nghttpx(world: &World, pod: &Pod, backend: &str) -> Result<Process> {
    let folder = world.directory();
    // An empty one, so that none of the system is read.
    let conf = folder.join("nghttpx.conf");
    fs::write(&conf, "")?;
    let front = format!("0.0.0.0,{PORT};no-tls");
    let pid = folder.join("nghttpx.pid").display().to_string();
    let arguments = ["--conf", &conf.display().to_string(), "--pid-file", &pid, "--frontend", &front];
    let more = ["--backend", backend, "--single-process", "--workers", "1", "--log-level", "ERROR"];
    pod.spawn("nghttpx", program("nghttpx")?, &[&arguments[..], &more].concat())
}

/// Requests by h2load, all of which have to succeed.
fn h2load(client: &Pod, url: &str, requests: u32, connections: u32, streams: u32) -> Result<()> {
    let [requests, connections, streams] = [requests, connections, streams].map(|number| number.to_string());
    let arguments = ["-n", &requests, "-c", &connections, "-m", &streams, "-t", "1", url];
    let said = client.run(program("h2load")?, &arguments)?;
    let line = said.lines().find(|line| line.starts_with("requests: ")).with_context(|| said.clone())?;
    let wanted = format!("{requests} succeeded, 0 failed, 0 errored, 0 timeout");
    ensure!(line.ends_with(&wanted), "{said}");
    ensure!(said.contains(&format!("status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{said}");
    Ok(())
}

#[test]
fn grpc_proxies_between_a_client_and_the_agent() {
    test("before", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let _server = grpc_server(world, "v1")?;
        let service = world.service("shop", "echo").port("grpc", 80, 50051).apply()?;
        let proxies = ["nginx", "haproxy", "nghttpx"];
        let pods = proxies.iter().map(|name| world.pod("shop", name).start()).collect::<Result<Vec<_>>>()?;
        let agent = world.agent().start()?;
        for (name, pod) in proxies.iter().zip(&pods) {
            agent.enrolled(pod)?;
            let before = agent.redirected()?;
            let behind = Behind::Grpc(service.ipv4);
            let _proxy = match *name {
                "nginx" => nginx(world, pod, behind)?,
                "haproxy" => haproxy(world, pod, behind)?,
                _ => nghttpx(world, pod, &format!("{},80;;proto=h2", service.ipv4))?,
            };
            let (script, target) = (script("grpc_client.py"), format!("127.0.0.1:{PORT}"));
            eventually(&format!("{name} answers"), || {
                let said = pod.run(python(), &[&script, &target])?;
                let seen: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
                ensure!(seen == seen_by_every_kind_of_call("v1"), "{name}: {seen}");
                Ok(())
            })?;
            ensure!(agent.redirected()? > before, "{name}: nothing was redirected");
        }
        Ok(())
    });
}

/// nginx sends GOAWAY after 1,000 requests of a connection: none of them is lost.
#[test]
fn proxies_as_endpoints_lose_no_request() {
    test("endpoints", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        let proxies = ["nginx", "haproxy"];
        let mut services = Vec::new();
        let mut running = Vec::new();
        for name in proxies {
            let pod = world.pod("shop", name).label("app", name).start()?;
            let process = match name {
                "nginx" => nginx(world, &pod, Behind::Itself)?,
                _ => haproxy(world, &pod, Behind::Itself)?,
            };
            services.push(world.service("shop", name).port("http2", 80, PORT).apply()?);
            running.push((process, pod));
        }
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        for (name, service) in proxies.iter().zip(&services) {
            let url = format!("{}/", service.url());
            eventually(&format!("{name} answers"), || h2load(&client, &url, 1, 1, 1))?;
            for (connections, streams) in [(1, 100), (8, 50), (50, 1)] {
                h2load(&client, &url, 10_000, connections, streams)
                    .with_context(|| format!("{name}, {connections} x {streams}"))?;
            }
        }
        let failed = agent.metrics()?.sum("sluice_attempts_total", &[("outcome", "failed")]);
        ensure!(failed < 1.0, "{failed} attempts have failed");
        Ok(())
    });
}

/// Clients that ask a server for an upgrade from HTTP/1.1 to HTTP/2 get it without an agent. With one they get HTTP/1.1, as from
/// servers that have none, and every call works.
#[test]
fn clients_that_offer_h2c_do_without_it() {
    test("h2c", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "upgrading-0").label("app", "upgrading").start()?;
        let _service = pod.serve(&["--name", "upgrading"])?;
        let _front = nghttpx(world, &pod, "127.0.0.1,8080")?;
        let service = world.service("shop", "upgrading").port("http", 80, PORT).apply()?;
        world.kube_proxy()?;
        let client = world.pod("shop", "client").start()?;
        let url = service.url();
        // A request without a body, one that is sent on with the request, and one whose body is long.
        let curl = |more: &[&str]| {
            let args =
                ["-sS", "-m", "20", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
            client.run("curl", &[&args[..], more].concat())
        };
        let calls = |version: [&str; 2]| {
            let echo = format!("{url}/echo");
            for more in [&[&*url][..], &["-d", "a=b", &echo], &["-d", &"x".repeat(100_000), &echo]] {
                let said = curl(more)?;
                ensure!(said == format!("{} 200", version[0]), "curl {}: {said}", more.len());
            }
            let said = client.run("java", &[&script("Client.java"), &url])?;
            let report: Value = serde_json::from_str(&said).with_context(|| format!("java said {said:?}"))?;
            ensure!(report["echoed"] == true && report["status"] == 200, "{report}");
            ensure!(report["version"] == version[1], "{report}");
            Ok(())
        };
        eventually("the server upgrades", || calls(["2", "HTTP_2"]))?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let before = agent.redirected()?;
        calls(["1.1", "HTTP_1_1"])?;
        ensure!(agent.redirected()? > before, "nothing was redirected");
        Ok(())
    });
}
