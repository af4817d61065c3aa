//! What is compared: nothing at all, Sluice, Sluice with every rule of a TrafficPolicy on, Sluice that tells all it can, Sluice at
//! the endpoint alone and on both sides, the same with threads followed, nginx, haproxy and nghttpx, each with one worker.

use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{Agent, AgentBuilder, Pod, Process, Service, World, collector::Collector, eventually};

/// Where the other proxies listen, on the loopback interface of pod A.
const HTTP: u16 = 18080;
const BULK: u16 = 18081;
const HTTP2: u16 = 18082;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    Direct,
    Sluice,
    /// Sluice with every rule on, none of which refuses anything.
    Rules,
    /// Sluice with its history, every request in the access log, and a trace of one in a hundred.
    Observed,
    /// Sluice at the endpoint: an AccessPolicy that allows the client, which dials the pod's own address.
    Inbound,
    /// The same, and the client dials the Service: one agent carries each request twice.
    Both,
    /// On both sides, where nothing is asked at the endpoint but what the application's threads handle.
    Threads,
    Nginx,
    Haproxy,
    /// For HTTP/2 alone.
    Nghttpx,
}

impl ProxyKind {
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::Sluice,
        Self::Rules,
        Self::Observed,
        Self::Inbound,
        Self::Both,
        Self::Threads,
        Self::Nginx,
        Self::Haproxy,
        Self::Nghttpx,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Sluice => "sluice",
            Self::Rules => "rules",
            Self::Observed => "observed",
            Self::Inbound => "inbound",
            Self::Both => "both",
            Self::Threads => "threads",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Nghttpx => "nghttpx",
        }
    }
}

impl fmt::Display for ProxyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ProxyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|proxy| proxy.name() == name);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// The origin: its pod's address, and the service that leads to it.
#[derive(Debug)]
pub struct Origin<'a> {
    pub pod: &'a Pod,
    pub service: &'a Service,
    pub http: u16,
    pub http2: u16,
    pub bulk: u16,
}

/// A proxy that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    /// What the client dials.
    pub http: SocketAddr,
    pub http2: SocketAddr,
    pub bulk: SocketAddr,
    process: Option<Handle>,
    /// Held as long as the process sends to it.
    _collector: Option<Collector>,
}

#[derive(Debug)]
enum Handle {
    Agent(Agent),
    Process(Process),
}

impl Running {
    /// The proxy's process; there is none without a proxy.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| match process {
            Handle::Agent(agent) => agent.pid(),
            Handle::Process(process) => process.pid(),
        })
    }

    /// Starts a proxy afresh, so that its peak memory is that of the load to come.
    pub fn start(kind: ProxyKind, world: &World, client: &Pod, origin: &Origin<'_>) -> Result<Self> {
        let address = origin.pod.ipv4();
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let at = |[http, http2, bulk]: [SocketAddr; 3], process| Self {
            http,
            http2,
            bulk,
            process,
            _collector: None,
        };
        let ports = [origin.http, origin.http2, origin.bulk];
        let on_loopback = [HTTP, HTTP2, BULK].map(loopback);
        Ok(match kind {
            ProxyKind::Direct => at(ports.map(|port| (address, port).into()), None),
            ProxyKind::Sluice
            | ProxyKind::Rules
            | ProxyKind::Observed
            | ProxyKind::Inbound
            | ProxyKind::Both
            | ProxyKind::Threads => {
                let is_allowed = matches!(kind, ProxyKind::Inbound | ProxyKind::Both);
                let follows = kind == ProxyKind::Threads;
                let propagation = if follows { "thread" } else { "headers" };
                origin.pod.edit(|pod| {
                    pod["metadata"]["annotations"] = json!({ "sluice.dev/propagation": propagation });
                })?;
                if is_allowed {
                    world.apply(allows_clients(origin.service))?;
                } else {
                    world.delete("AccessPolicy", &origin.service.namespace, ALLOWS_CLIENTS)?;
                }
                if kind == ProxyKind::Rules {
                    world.apply(every_rule(origin.service))?;
                } else {
                    world.delete("TrafficPolicy", &origin.service.namespace, EVERY_RULE)?;
                }
                let agent = world.agent().args(&["--workers", "1", "--log", "warn"]);
                let (agent, collector) = if kind == ProxyKind::Observed {
                    let (agent, collector) = observed(agent, world)?;
                    (agent, Some(collector))
                } else {
                    (agent.args(&["--history-series", "0"]), None)
                };
                let service = origin.service;
                let dialled = if kind == ProxyKind::Inbound { address } else { service.ipv4 };
                let agent = agent.start()?;
                if is_allowed || follows {
                    is_steered(&agent, client, (address, origin.http).into())?;
                }
                let process = Some(Handle::Agent(agent));
                let addresses = ports.map(|port| SocketAddr::from((dialled, port)));
                Self { _collector: collector, ..at(addresses, process) }
            }
            ProxyKind::Nginx => {
                let folder = world.directory().join("nginx");
                fs::create_dir_all(&folder)?;
                let file = write(&folder, "nginx.conf", &nginx(&folder, address, origin))?;
                let (file, folder) = (file.display().to_string(), folder.display().to_string());
                let arguments = ["-e", "stderr", "-p", &folder, "-c", &file];
                let process = client.spawn("nginx", program("nginx")?, &arguments)?;
                at(on_loopback, Some(Handle::Process(process)))
            }
            ProxyKind::Haproxy => {
                let file = write(world.directory(), "haproxy.cfg", &haproxy(address, origin))?;
                let arguments = ["-db", "-f", &file.display().to_string()];
                let process = client.spawn("haproxy", program("haproxy")?, &arguments)?;
                at(on_loopback, Some(Handle::Process(process)))
            }
            ProxyKind::Nghttpx => {
                let folder = world.directory().display();
                let (front, back) =
                    (format!("127.0.0.1,{HTTP2};no-tls"), format!("{address},{};;proto=h2", origin.http2));
                // An empty one, so that none of the system is read.
                let conf = write(world.directory(), "nghttpx.conf", "")?.display().to_string();
                let pid_file = format!("{folder}/nghttpx.pid");
                let arguments = [
                    &["--conf", &conf, "--pid-file", &pid_file, "--frontend", &front, "--backend", &back][..],
                    &["--single-process", "--workers", "1", "--log-level", "ERROR", "--no-via"],
                ]
                .concat();
                let process = client.spawn("nghttpx", program("nghttpx")?, &arguments)?;
                at(on_loopback, Some(Handle::Process(process)))
            }
        })
    }
}

/// An agent that tells all it can, and a collector that takes its spans and forgets them.
fn observed(agent: AgentBuilder, world: &World) -> Result<(AgentBuilder, Collector)> {
    let collector = Collector::start_in(&world.node().netns)?;
    collector.swallow();
    let log = world.directory().join("access.log");
    // Each round writes some megabytes.
    if let Err(error) = fs::remove_file(&log)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", log.display()));
    }
    let agent = agent
        .args(&["--access-log", "json", "--access-log-file", &log.display().to_string()])
        .args(&["--otlp-traces", &collector.endpoint(), "--trace-sampling-ratio", "0.01"]);
    Ok((agent, collector))
}

/// Waits until connections to this address of a pod come to the agent.
fn is_steered(agent: &Agent, client: &Pod, address: SocketAddr) -> Result<()> {
    eventually("connections to the endpoint are steered", || {
        client.run("curl", &["-sS", "-m", "5", "-o", "/dev/null", &format!("http://{address}/")])?;
        ensure!(agent.connects("inbound_steered_v4")? > 0);
        Ok(())
    })
}

/// The name of [`allows_clients`].
const ALLOWS_CLIENTS: &str = "allows-clients";

/// A policy at the endpoint, which allows what the bench does.
fn allows_clients(service: &Service) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": {"name": ALLOWS_CLIENTS, "namespace": service.namespace},
        "spec": {
            "targetRefs": [{"name": service.name}],
            "rules": [{"name": "clients", "from": [{"namespace": service.namespace}]}],
        },
    })
}

/// The name of [`every_rule`].
const EVERY_RULE: &str = "every-rule";

/// A policy with every rule there is, whose limits are too high to be reached: what is measured is what asking them costs.
fn every_rule(service: &Service) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": EVERY_RULE, "namespace": service.namespace},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": service.name}],
            "loadBalancer": {"type": "LeastTime", "warmUp": {"duration": "60s"}},
            "drain": {"timeout": "60s"},
            "rateLimits": [
                {"name": "all", "requests": 10_000_000},
                {"name": "caller", "requests": 10_000_000, "scope": "Caller"},
                {"name": "user", "requests": 10_000_000, "key": {"type": "Header", "name": "x-user"}},
            ],
            "concurrency": {"maxRequests": 10_000, "adaptive": {"minRequests": 5000}},
            "circuitBreaker": {"slowRequest": {"threshold": "10s", "percent": 50}},
            "outlierDetection": {"successRate": {}},
            "timeouts": {"request": "60s", "backendRequest": "30s"},
            "retry": {"attempts": 2},
            "fallbacks": [
                {"name": "static", "conditions": ["CircuitOpen", "Timeout"], "type": "Static", "static": {"status": 200}},
            ],
        },
    })
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// A program that Debian keeps where not every `PATH` leads.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = places.map(|place| place.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed: `cargo xtask setup proxies` installs it"))
}

/// One process, kept-alive connections on both sides, no log: what somebody who tunes nginx for this would write. A
/// caller's `connection: close` is passed on, as Sluice does.
fn nginx(folder: &Path, address: Ipv4Addr, origin: &Origin<'_>) -> String {
    let Origin { http, bulk, .. } = origin;
    let folder = folder.display();
    // Debian builds the stream module apart; elsewhere it may be part of nginx.
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let module = if module.exists() { format!("load_module {};", module.display()) } else { String::new() };
    format!(
        "{module}
daemon off;
master_process off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  map $http_connection $origin_connection {{
    close close;
    default \"\";
  }}
  upstream origin {{
    server {address}:{http};
    keepalive 2048;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{HTTP} backlog=4096;
    location / {{
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Connection $origin_connection;
    }}
  }}
}}
stream {{
  server {{
    listen 127.0.0.1:{BULK};
    proxy_pass {address}:{bulk};
  }}
}}
"
    )
}

/// One thread, kept-alive connections on both sides, no log. A caller's `connection: close` ends at haproxy: it
/// keeps its own connection whatever the caller asks.
fn haproxy(address: Ipv4Addr, origin: &Origin<'_>) -> String {
    let Origin { http, http2, bulk, .. } = origin;
    format!(
        "global
  nbthread 1
  maxconn 8192
defaults
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend http
  mode http
  bind 127.0.0.1:{HTTP} backlog 4096
  default_backend http
backend http
backend close
  mode http
  option http-server-close
  http-reuse never
  server origin {address}:{http}
backend http
  mode http
  http-reuse always
  server origin {address}:{http}
frontend http2
  mode http
  bind 127.0.0.1:{HTTP2} backlog 4096 proto h2
  default_backend http2
backend http2
  mode http
  http-reuse always
  server origin {address}:{http2} proto h2
listen bulk
  mode tcp
  bind 127.0.0.1:{BULK}
  server origin {address}:{bulk}
"
    )
}

#[cfg(test)]
mod tests {
    use super::ProxyKind;

    #[test]
    fn proxies_are_known_by_name() {
        for proxy in ProxyKind::ALL {
            assert_eq!(proxy.to_string().parse(), Ok(proxy));
        }
        assert_eq!(
            "envoy".parse::<ProxyKind>(),
            Err("one of direct, sluice, rules, observed, inbound, both, threads, nginx, haproxy, nghttpx"
                .to_owned())
        );
    }
}
