//! Connections from outside to pods whose policies ask for something at the endpoint: who may call, and what the application
//! sees of it.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_tests::{Agent, Capture, Load, Pod, Process, World, binary, eventually, test};

use crate::{python, script};

const PORT: u16 = 8080;

/// A pod whose application says who called it, behind a Service of its name.
struct Guarded {
    pod: Pod,
    server: Process,
}

fn guarded(world: &World, address: &str) -> Result<Guarded> {
    let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
    let mut server =
        pod.spawn("server", python(), &[&script("peer_server.py"), &PORT.to_string(), address])?;
    server.says("listening")?;
    world.service("shop", "orders").port("http", 80, PORT).apply()?;
    Ok(Guarded { pod, server })
}

fn policy(world: &World, spec: &Value) -> Result<()> {
    let mut whole = json!({"targetRefs": [{"name": "orders"}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    world.apply(json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": whole,
    }))
}

/// Only the pods of this namespace.
fn only(namespace: &str) -> Value {
    json!({"rules": [{"name": "ours", "from": [{"namespace": namespace}]}]})
}

const ANSWER: [&str; 6] = ["-sS", "-m", "10", "-w", "\n%{http_code} %{local_ip} %{local_port}", "-g"];

/// What a client gets: the status, its own address, and the answer.
struct Got {
    status: String,
    own: Value,
    body: String,
}

impl Got {
    fn of(said: &str) -> Result<Self> {
        let (body, line) = said.rsplit_once('\n').context("two lines")?;
        let mut words = line.split(' ');
        let mut next = || words.next().with_context(|| line.to_owned());
        let (status, ip, port) = (next()?.to_owned(), next()?.to_owned(), next()?.parse::<u16>()?);
        Ok(Self { status, own: json!([ip, port]), body: body.to_owned() })
    }

    fn answer(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }
}

fn get(client: &Pod, url: &str) -> Result<Got> {
    Got::of(&client.run("curl", &[&ANSWER[..], &[url]].concat())?)
}

/// The same from the node itself.
fn get_from_node(world: &World, url: &str) -> Result<Got> {
    let output = world.node().command("curl")?.args(ANSWER).arg(url).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Got::of(&String::from_utf8(output.stdout)?)
}

fn urls(pod: &Pod) -> [String; 2] {
    [format!("http://{}:{PORT}", pod.ipv4()), format!("http://[{}]:{PORT}", pod.ipv6())]
}

/// Waits until a policy is in force, by what somebody gets whom it denies.
fn denies(world: &World, url: &str) -> Result<()> {
    eventually("the policy is in force", || {
        let got = get_from_node(world, url)?;
        ensure!(got.status == "403", "{} {}", got.status, got.body);
        Ok(())
    })
}

fn agent(world: &World, guarded: &Guarded) -> Result<Agent> {
    let agent = world.agent().start()?;
    agent.enrolled(&guarded.pod)?;
    Ok(agent)
}

#[test]
fn the_application_sees_its_clients_and_only_those_that_may_call() {
    test("inbound", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("other", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let guarded = guarded(world, "::")?;
        let ours = world.pod("shop", "gateway").start()?;
        let theirs = world.pod("other", "stranger").start()?;
        let nobodys = world.pod("plain", "nobody").start()?;
        let agent = agent(world, &guarded)?;
        for url in urls(&guarded.pod) {
            ensure!(get(&theirs, &url)?.status == "200", "nothing is asked for yet");
        }
        policy(world, &only("shop"))?;
        let [v4, _] = urls(&guarded.pod);
        denies(world, &v4)?;
        for url in urls(&guarded.pod) {
            let got = get(&ours, &format!("{url}/a?b=c"))?;
            ensure!(got.status == "200", "{}", got.body);
            let answer = got.answer()?;
            ensure!(answer["accept"] == got.own && answer["getpeername"] == got.own, "{answer} {}", got.own);
            ensure!(answer["target"] == "/a?b=c", "{answer}");
            let own = answer["getsockname"][0].as_str().unwrap_or_default();
            ensure!(url.contains(own) && answer["getsockname"][1] == PORT, "{answer}");
            let headers = answer["headers"].as_object().context("headers")?;
            ensure!(headers.keys().map(String::as_str).eq(["accept", "host", "user-agent"]), "{answer}");
            for stranger in [&theirs, &nobodys] {
                let got = get(stranger, &url)?;
                ensure!(got.status == "403", "{} {}", got.status, got.body);
                let answer = got.answer()?;
                ensure!(answer["reason"] == "access_denied" && answer["policy"] == "shop/orders", "{answer}");
            }
        }
        let counted = |rule, decision| {
            let labels = [("policy_rule", rule), ("decision", decision), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_requests_total", &labels))
        };
        ensure!(counted("ours", "allowed")? >= 2.0 && counted("no_rule", "denied")? >= 4.0);
        // What the pod sends to itself is nobody's business.
        ensure!(get(&guarded.pod, &v4)?.status == "200");
        // Nothing is denied that is only observed, and nothing at all once the policy is gone.
        let mut observed = only("shop");
        observed["mode"] = "Observe".into();
        policy(world, &observed)?;
        eventually("nothing is denied", || {
            ensure!(get(&theirs, &v4)?.status == "200");
            Ok(())
        })?;
        ensure!(counted("no_rule", "would_deny")? >= 1.0);
        policy(world, &only("shop"))?;
        denies(world, &v4)?;
        world.delete("AccessPolicy", "shop", "orders")?;
        eventually("nothing is denied", || {
            ensure!(get(&theirs, &v4)?.status == "200");
            Ok(())
        })?;
        let steered = agent.connects("inbound_steered_v4")?;
        ensure!(get(&theirs, &v4)?.status == "200");
        ensure!(agent.connects("inbound_steered_v4")? == steered, "nothing is asked for any more");
        Ok(())
    });
}

#[test]
fn paths_are_hidden_and_probes_are_not() {
    test("inbound-hidden", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("monitoring", Capture::Enabled)?;
        let guarded = guarded(world, "0.0.0.0")?;
        guarded.pod.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": PORT, "path": "/actuator/health"}});
        })?;
        let client = world.pod("shop", "client").start()?;
        let prometheus = world.pod("monitoring", "prometheus").start()?;
        let _agent = agent(world, &guarded)?;
        let [url, _] = urls(&guarded.pod);
        policy(
            world,
            &json!({
                "rules": [{"name": "ours", "from": [{"namespace": "shop"}, {"namespace": "monitoring"}]}],
                "hidden": [{
                    "name": "management",
                    "paths": [{"value": "/actuator"}],
                    "from": [{"namespace": "monitoring"}],
                }],
            }),
        )?;
        denies(world, &url)?;
        for path in ["/actuator/env", "/x/..;/actuator", "/%61ctuator", "/actuator%2fenv"] {
            let target = format!("{url}{path}");
            let client_got =
                Got::of(&client.run("curl", &[&ANSWER[..], &["--path-as-is", &target]].concat())?)?;
            ensure!(client_got.status == "404", "{path}: {}", client_got.body);
            ensure!(get(&prometheus, &target)?.status == "200", "{path}");
        }
        ensure!(get(&client, &format!("{url}/orders"))?.status == "200");
        // The kubelet's probe, and what else comes from the node.
        ensure!(get_from_node(world, &format!("{url}/actuator/health"))?.status == "200");
        ensure!(get_from_node(world, &format!("{url}/actuator/env"))?.status == "404");
        ensure!(get_from_node(world, &format!("{url}/orders"))?.status == "403");
        Ok(())
    });
}

/// Keeps a connection after a response, and says when it ends.
const KEEPS: &str = "
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
connection.sendall(b'GET /orders HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n')
said = connection.recv(65536)
print('held' if said.startswith(b'HTTP/1.1 200') else said, flush=True)
while connection.recv(65536):
    pass
print('ended', flush=True)
";

/// It finds its port free, though a client has kept its connection; and the client hears that it has ended.
#[test]
fn an_application_is_started_anew_at_once() {
    test("inbound-restart", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let Guarded { pod, mut server } = guarded(world, "0.0.0.0")?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        policy(world, &only("shop"))?;
        let ip = pod.ipv4().to_string();
        let url = format!("http://{ip}:{PORT}/orders");
        denies(world, &url)?;
        for round in 0..3 {
            let mut keeps = client.spawn("keeps", python(), &["-c", KEEPS, &ip, &PORT.to_string()])?;
            keeps.says("held").with_context(|| format!("round {round}"))?;
            drop(server);
            keeps.says("ended").with_context(|| format!("round {round}"))?;
            server =
                pod.spawn("server", python(), &[&script("peer_server.py"), &PORT.to_string(), "0.0.0.0"])?;
            server.says("listening").with_context(|| format!("round {round}: it cannot listen"))?;
            eventually("it is reached", || {
                let got = get(&client, &url)?;
                ensure!(got.status == "200", "{}", got.body);
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// An HTTP/2 client that keeps its connection after a response, and says when it is told to leave and when it ends.
const KEEPS_HTTP2: &str = "
import socket, struct, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
frame = lambda kind, flags, stream, payload: struct.pack('>I', len(payload))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + payload
text = lambda value: bytes([len(value)]) + value
head = bytes([0x83, 0x86, 0x04]) + text(b'/test.Echo/Unary') + bytes([0x01]) + text(b'a') + b''.join(
    bytes([0]) + text(name) + text(value) for name, value in [(b'content-type', b'application/grpc'), (b'te', b'trailers')])
connection.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + frame(4, 0, 0, b'') + frame(1, 4, 1, head)
    + frame(0, 1, 1, bytes(5)))
lines = connection.makefile('rb')
while start := lines.read(9):
    payload = lines.read(int.from_bytes(start[:3], 'big'))
    kind, flags = start[3], start[4]
    if kind == 4 and not flags & 1:
        connection.sendall(frame(4, 1, 0, b''))
    if kind == 6 and not flags & 1:
        connection.sendall(frame(6, 1, 0, payload))
    if kind in (0, 1) and flags & 1:
        print('held', flush=True)
    if kind == 7:
        print('told to leave', flush=True)
print('ended', flush=True)
";

/// The same over HTTP/2: the client is told, and its connection ends.
#[test]
fn clients_of_http2_hear_that_the_application_has_ended() {
    test("inbound-goaway", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "orders").label("app", "orders").start()?;
        let mut server = pod.spawn("server", python(), &[&script("grpc_server.py"), "8080", "v1"])?;
        server.says("listening")?;
        world.service("shop", "orders").port("grpc", 80, PORT).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        policy(world, &json!({"rules": [{"name": "posts", "to": [{"methods": ["POST"]}]}]}))?;
        let ip = pod.ipv4().to_string();
        denies(world, &format!("http://{ip}:{PORT}/"))?;
        let mut keeps = client.spawn("keeps", python(), &["-c", KEEPS_HTTP2, &ip, &PORT.to_string()])?;
        keeps.says("held")?;
        ensure!(agent.connects("inbound_steered_v4")? > 0);
        server.signal(Signal::SIGKILL)?;
        keeps.says("told to leave")?;
        keeps.says("ended")?;
        Ok(())
    });
}

/// Opens connections, says nothing on them, and prints how many are still there after a while.
const HOGS: &str = "
import select, socket, sys, time
opened = []
for _ in range(int(sys.argv[3])):
    try:
        opened.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5))
    except OSError:
        pass
print('opened', flush=True)
while True:
    gone, _, _ = select.select(opened, [], [], 1)
    for one in gone:
        opened.remove(one)
    print('left', len(opened), flush=True)
    if not gone:
        break
print('stays', len(opened), flush=True)
time.sleep(600)
";

/// Neither who may not call nor who may can use up what the pod has, so that others are let past the policy.
#[test]
fn no_client_turns_a_policy_off_with_its_connections() {
    test("inbound-hog", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("other", Capture::Enabled)?;
        // It never says anything first, and bears any number of connections.
        let guarded = guarded(world, "0.0.0.0")?;
        let ours = world.pod("shop", "gateway").start()?;
        let second = world.pod("shop", "second").start()?;
        let theirs = world.pod("other", "stranger").start()?;
        let agent = world.agent().args(&["--connections-per-pod", "64"]).start()?;
        agent.enrolled(&guarded.pod)?;
        policy(world, &only("shop"))?;
        let [url, _] = urls(&guarded.pod);
        denies(world, &url)?;
        let ip = guarded.pod.ipv4().to_string();
        let hog = |pod: &Pod| -> Result<Process> {
            let mut hog = pod.spawn("hog", python(), &["-c", HOGS, &ip, &PORT.to_string(), "100"])?;
            hog.says("stays")?;
            Ok(hog)
        };
        for client in [&theirs, &ours] {
            let hog = hog(client)?;
            // Denied: with a reset, while too many of its kind are open, or with an answer.
            let denied =
                theirs.run("curl", &["-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", &url]);
            ensure!(denied.as_deref().map_or(true, |status| status == "403"), "{denied:?}");
            ensure!(get(&second, &url)?.status == "200", "another client finds room");
            ensure!(get_from_node(world, &url)?.status == "403", "it is enforced");
            drop(hog);
        }
        ensure!(agent.connects("inbound_bypassed_over_budget")? == 0);
        let reset = |rule| {
            let labels = [("policy_rule", rule), ("decision", "denied"), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_requests_total", &labels))
        };
        ensure!(reset("client_connections")? >= 60.0, "{}", reset("client_connections")?);
        ensure!(reset("no_rule")? >= 80.0, "{}", reset("no_rule")?);
        Ok(())
    });
}

/// Whoever looks why a request was denied finds who made it and the rule; and who calls is known before anybody is denied.
#[test]
fn who_is_denied_is_told() {
    test("inbound-told", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("other", Capture::Enabled)?;
        let guarded = guarded(world, "0.0.0.0")?;
        let theirs = world.pod("other", "stranger").start()?;
        let agent = world.agent().args(&["--access-log", "json"]).start()?;
        agent.enrolled(&guarded.pod)?;
        let mut observed = only("shop");
        observed["mode"] = "Observe".into();
        policy(world, &observed)?;
        let [url, _] = urls(&guarded.pod);
        let of_client = |decision| {
            let labels =
                [("source_namespace", "other"), ("source_workload", "stranger"), ("decision", decision)];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_access_client_requests_total", &labels))
        };
        eventually("it is counted", || {
            ensure!(get(&theirs, &url)?.status == "200");
            ensure!(of_client("would_deny")? >= 1.0);
            Ok(())
        })?;
        policy(world, &only("shop"))?;
        denies(world, &url)?;
        ensure!(get(&theirs, &format!("{url}/orders?secret=1"))?.status == "403");
        ensure!(of_client("denied")? >= 1.0);
        let (status, said, complaint) = agent.sluice(&["explain", "--last", "20", "-o", "json"])?;
        ensure!(status == 0, "{status}: {complaint}");
        for word in
            ["client other/stranger", "\"access\"", "rule no_rule of AccessPolicy shop/orders", "/orders"]
        {
            ensure!(said.contains(word), "{word}: {said}");
        }
        eventually("it is logged", || {
            let log = agent.log();
            let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let is_it = |line: &Value| line["reason"] == "access_denied" && line["path"] == "/orders";
            let line = lines.rfind(is_it).context("no line")?;
            ensure!(line["source_namespace"] == "other" && line["source_pod"] == "stranger", "{line}");
            ensure!(
                line["service"] == "orders.shop:80"
                    && line["status"] == 403
                    && line["policy"] == "shop/orders",
                "{line}"
            );
            Ok(())
        })
    });
}

/// A call on each of many channels, and what became of them.
const CALLS: &str = "
import collections, sys, grpc
said = collections.Counter()
for method in ['/test.Echo/Unary', '/test.Echo/ServerStream'] * 20:
    with grpc.insecure_channel(sys.argv[1], options=[('grpc.enable_retries', 0), ('grpc.use_local_subchannel_pool', 1)]) as channel:
        try:
            if method.endswith('Unary'):
                channel.unary_unary(method)(b'x', timeout=20)
            else:
                list(channel.unary_stream(method)(b'1', timeout=20))
            said[method + ' OK'] += 1
        except grpc.RpcError as error:
            said[method + ' ' + error.code().name] += 1
print(sorted(said.items()))
";

/// A server of HTTP/2 speaks as soon as it is connected to. What is asked for is read all the same.
#[test]
fn servers_of_grpc_are_guarded_by_method() {
    test("inbound-grpc", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "orders").label("app", "orders").start()?;
        let server_script = script("grpc_server.py");
        let mut server = pod.spawn("server", python(), &[&server_script, "8080", "v1"])?;
        server.says("listening")?;
        let client = world.pod("shop", "client").start()?;
        for port in ["grpc", "web"] {
            world.service("shop", "orders").port(port, 80, PORT).apply()?;
            let agent = world.agent().start()?;
            agent.enrolled(&pod)?;
            policy(
                world,
                &json!({"rules": [
                    {"name": "posts", "to": [{"methods": ["POST"]}]},
                    {"name": "no-streams", "action": "Deny", "to": [{"paths": [{"value": "/test.Echo/ServerStream"}]}]},
                ]}),
            )?;
            let target = format!("{}:{PORT}", pod.ipv4());
            let wanted = "[('/test.Echo/ServerStream PERMISSION_DENIED', 20), ('/test.Echo/Unary OK', 20)]";
            eventually("calls are told apart", || {
                let said = client.run(python(), &["-c", CALLS, &target])?;
                ensure!(said.trim() == wanted, "{port}: {said}");
                Ok(())
            })?;
            // And so they stay.
            for _ in 0..3 {
                let said = client.run(python(), &["-c", CALLS, &target])?;
                ensure!(said.trim() == wanted, "{port}: {said}");
            }
            world.delete("AccessPolicy", "shop", "orders")?;
        }
        Ok(())
    });
}

/// Writes its arguments one after the other, with a pause, and prints what comes.
const SLOW: &str = "
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
for part in sys.argv[3:]:
    connection.sendall(part.encode())
    time.sleep(1.5)
said = b''
try:
    while chunk := connection.recv(4096):
        said += chunk
except OSError:
    pass
print(said.decode())
";

/// On a port of which nothing is declared.
#[test]
fn what_is_hidden_is_not_shown_to_who_does_not_look_like_http() {
    test("inbound-disguise", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let guarded = guarded(world, "0.0.0.0")?;
        world.service("shop", "orders").port("web", 80, PORT).apply()?;
        let client = world.pod("shop", "client").start()?;
        let _agent = agent(world, &guarded)?;
        policy(
            world,
            &json!({
                "rules": [{"name": "ours", "from": [{"namespace": "shop"}]}],
                "hidden": [{"name": "management", "paths": [{"value": "/actuator"}]}],
            }),
        )?;
        let [url, _] = urls(&guarded.pod);
        denies(world, &url)?;
        let ip = guarded.pod.ipv4().to_string();
        let ask =
            |parts: &[&str]| client.run(python(), &[&["-c", SLOW, &ip, &PORT.to_string()], parts].concat());
        let request = |path: &str| format!("ET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        // The application answers all of these if it gets them.
        let shown = ask(&["G", &request("/orders")])?;
        ensure!(shown.starts_with("HTTP/1.1 200"), "{shown}");
        for parts in [
            &["G", &request("/actuator/env")][..],
            &[&format!("\r\nG{}", request("/actuator/env"))],
            &["GET /actuator/env\r\n\r\n"],
        ] {
            let said = ask(parts)?;
            ensure!(!said.contains("getpeername"), "{parts:?}: {said}");
        }
        Ok(())
    });
}

#[test]
fn what_is_refused_stays_refused() {
    test("inbound-refused", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let mut guarded = guarded(world, "::")?;
        let client = world.pod("shop", "client").start()?;
        // One that is older than the agent, at first.
        let agent = agent(world, &guarded)?;
        policy(world, &only("shop"))?;
        let urls = urls(&guarded.pod);
        denies(world, &urls[0])?;
        for round in 0..3 {
            guarded.server.signal(Signal::SIGUSR1)?;
            guarded.server.says(&format!("closed {round}"))?;
            eventually("connections are refused", || {
                for url in &urls {
                    let said = client.run("curl", &["-sS", "-m", "5", "-g", url]);
                    let said = said.err().map(|error| format!("{error:#}")).unwrap_or_default();
                    ensure!(said.contains("refused") || said.contains("Failed to connect"), "{said}");
                }
                Ok(())
            })?;
            guarded.server.signal(Signal::SIGUSR2)?;
            guarded.server.says(&format!("open {round}"))?;
            for url in &urls {
                let got = get(&client, url)?;
                ensure!(got.status == "200", "round {round}: {}", got.body);
            }
            denies(world, &urls[0])?;
        }
        ensure!(agent.connects("inbound_not_listening")? > 0);
        Ok(())
    });
}

#[test]
fn each_of_many_short_connections_is_its_own_clients() {
    test("inbound-storm", |world| {
        let connections = std::env::var("SLUICE_TEST_CONNECTIONS").unwrap_or_else(|_| "6000".to_owned());
        world.namespace("shop", Capture::Enabled)?;
        let guarded = guarded(world, "::")?;
        let client = world.pod("shop", "client").start()?;
        let agent = agent(world, &guarded)?;
        policy(world, &only("shop"))?;
        let [v4, v6] = [guarded.pod.ipv4().to_string(), guarded.pod.ipv6().to_string()];
        denies(world, &urls(&guarded.pod)[0])?;
        let storm = |host: &str| {
            let args = [&script("peers.py"), host, &PORT.to_string(), &connections];
            let said = client.run(python(), &args)?;
            let report: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            ensure!(report["wrong"] == 0 && report["failed"] == 0, "{report}");
            ensure!(report["right"].as_u64() > Some(1000), "{report}");
            Ok(())
        };
        storm(&v4)?;
        storm(&v6)?;
        ensure!(agent.connects("inbound_client_lost")? == 0);
        ensure!(agent.connects("inbound_steered_v6")? >= 5000);
        Ok(())
    });
}

/// A server of one request at a time, each of 10 ms, that goes on with what its clients have given up, and knows how many it has.
const SLOW_SERVER: &str = "
import http.server, sys, threading, time
one = threading.Lock()
waiting = most = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        global waiting, most
        if self.path != '/most':
            waiting += 1
            most = max(most, waiting)
            with one:
                time.sleep(0.01)
            waiting -= 1
        body = str(most).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
server = Server(('0.0.0.0', int(sys.argv[1])), Handler)
print('listening', flush=True)
server.serve_forever()
";

/// Ever more clients that wait for 300 ms, and come again soon: prints how many were answered 200 and 429, and how many gave up, in the
/// second half of the time, when all are there.
const IMPATIENT: &str = "
import collections, http.client, json, sys, threading, time
host, port, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
said, end = collections.Counter(), time.monotonic() + seconds
def note(what):
    if time.monotonic() > end - seconds / 2:
        said[what] += 1
def ask():
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(host, port, timeout=0.3)
        try:
            connection.request('GET', '/')
            response = connection.getresponse()
            response.read()
            note(str(response.status))
            if response.status == 429:
                time.sleep(0.03)
        except OSError:
            note('gave up')
        finally:
            connection.close()
all = [threading.Thread(target=ask) for _ in range(threads)]
for one in all:
    one.start()
    time.sleep(seconds / 3 / threads)
for one in all: one.join()
print(json.dumps(said))
";

fn traffic_policy(world: &World, spec: &Value) -> Result<()> {
    let mut whole = json!({"targetRefs": [{"name": "orders"}]});
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    world.apply(json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": whole,
    }))
}

/// An application that is overloaded by clients that no agent knows serves next to none of them, and with a limit at its endpoint
/// as many as it can.
#[test]
fn an_overloaded_application_does_what_it_can() {
    test("endpoint-overload", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
        let serve = || -> Result<Process> {
            let mut server = pod.spawn("server", python(), &["-c", SLOW_SERVER, &PORT.to_string()])?;
            server.says("listening")?;
            Ok(server)
        };
        world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let clients = [world.pod("plain", "a").start()?, world.pod("plain", "b").start()?];
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        let ip = pod.ipv4().to_string();
        let flood = |threads: &str, seconds: &str| -> Result<[Value; 2]> {
            let args = ["-c", IMPATIENT, &ip, &PORT.to_string(), threads, seconds];
            let start = |client: &Pod| client.spawn("clients", python(), &args);
            let [mut a, mut b] = [start(&clients[0])?, start(&clients[1])?];
            ensure!(a.wait()?.success() && b.wait()?.success(), "{} {}", a.log(), b.log());
            let said = |clients: &Process| serde_json::from_str(clients.log().trim()).context(clients.log());
            Ok([said(&a)?, said(&b)?])
        };
        let served = |said: &[Value; 2]| said.iter().filter_map(|one| one["200"].as_u64()).sum::<u64>();
        let server = serve()?;
        let without = flood("40", "8")?;
        println!("without a limit: {without:?}");
        drop(server);
        {
            let limit = json!({"maxRequests": 8, "scope": "Endpoint"});
            let _server = serve()?;
            traffic_policy(world, &json!({"concurrency": limit}))?;
            let name = [("destination_service", "orders"), ("destination_pod", "orders-1")];
            eventually("the limit is in force", || {
                let limited = agent.metrics()?.sum("sluice_endpoint_concurrency_limit", &name) as u64;
                ensure!(limited == 8, "{limited}");
                get(&clients[0], &format!("http://{ip}:{PORT}/most")).map(drop)
            })?;
            let steered = agent.connects("inbound_steered_v4")?;
            eventually("connections are steered", || {
                get(&clients[0], &format!("http://{ip}:{PORT}/most"))?;
                ensure!(agent.connects("inbound_steered_v4")? > steered);
                Ok(())
            })?;
            // What it can do is seen while it is not overloaded.
            flood("1", "3")?;
            let with = flood("40", "8")?;
            println!("with {limit}: {with:?}");
            let [before, after] = [&without, &with].map(served);
            ensure!(after >= 2 * before.max(20), "{before} without, {after} with {limit}");
            ensure!(with.iter().all(|one| one["429"].as_u64() > Some(0)), "{with:?}");
            let most: u32 = get(&clients[0], &format!("http://{ip}:{PORT}/most"))?.body.parse()?;
            ensure!(most <= 9, "{most} at once");
            let rejected = [("destination_service", "orders"), ("decision", "rejected")];
            ensure!(agent.metrics()?.sum("sluice_concurrency_limit_requests_total", &rejected) > 0.0);
        }
        Ok(())
    });
}

/// A rate limit with scope Endpoint is about all that comes to a pod: from clients that are enrolled and others together, over
/// their Service and past it; probes are not among it.
#[test]
fn a_rate_limit_at_the_endpoint_counts_all_clients() {
    test("endpoint-rate", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let guarded = guarded(world, "::")?;
        guarded.pod.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": PORT, "path": "/health"}});
        })?;
        let service = world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let ours = world.pod("shop", "gateway").start()?;
        let nobodys = world.pod("plain", "nobody").start()?;
        let agent = agent(world, &guarded)?;
        let [v4, v6] = urls(&guarded.pod);
        let limit = |limit: Value| traffic_policy(world, &json!({"rateLimits": [limit]}));
        let counted = |rule, decision| {
            let labels = [("rule", rule), ("decision", decision), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_rate_limit_requests_total", &labels) as u64)
        };
        limit(
            json!({"name": "each", "requests": 4, "interval": "1h", "scope": "Endpoint", "key": {"type": "Caller"}}),
        )?;
        // The node's own requests are counted like others', but its probes.
        eventually("the limit is in force", || {
            ensure!(get_from_node(world, &v4)?.status == "200");
            ensure!(counted("each", "allowed")? >= 1);
            Ok(())
        })?;
        let ask = |client: &Pod, urls: &[&str]| {
            let statuses: Result<Vec<_>> = urls.iter().map(|url| Ok(get(client, url)?.status)).collect();
            Ok::<_, anyhow::Error>(statuses?.join(" "))
        };
        // Four of the pod's IPv4 address, whatever it has called, and one of its IPv6 address.
        let url = service.url();
        let said = ask(&ours, &[&url, &v4, &v6, &url, &v4, &v4])?;
        ensure!(said == "200 200 200 200 200 429", "{said}");
        let said = ask(&nobodys, &[v4.as_str(); 5])?;
        ensure!(said == "200 200 200 200 429", "{said}");
        for _ in 0..5 {
            ensure!(get_from_node(world, &format!("{v4}/health"))?.status == "200", "a probe");
        }
        ensure!(counted("each", "allowed")? == 10 && counted("each", "rejected")? == 2);
        // All together.
        limit(json!({"name": "all", "requests": 3, "interval": "1h", "scope": "Endpoint"}))?;
        eventually("all are counted together", || {
            let got = get(&nobodys, &v4)?;
            ensure!(got.status == "429" && got.answer()?["rule"] == "all", "{}", got.body);
            ensure!(got.answer()?["policy"] == "shop/orders", "{}", got.body);
            Ok(())
        })?;
        ask(&ours, &[&url, &v4, &v6, &v4])?;
        let allowed = counted("all", "allowed")?;
        ensure!((1..=3).contains(&allowed), "{allowed}");
        let (_, said, _) = agent.sluice(&["explain", "--last", "20", "-o", "json"])?;
        ensure!(said.contains("rule all of TrafficPolicy shop/orders"), "{said}");
        Ok(())
    });
}

/// Load on the application itself, with a new connection for each request.
fn load(client: &Pod, guarded: &Guarded) -> Result<Load> {
    Load::start(client, &urls(&guarded.pod)[0], &["--new-connections", "--connections", "4"])
}

fn open(world: &World) -> Result<(Guarded, Pod, Agent)> {
    world.namespace("shop", Capture::Enabled)?;
    let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
    let mut server = pod.spawn("service", binary("sluice-service")?, &["--name", "orders"])?;
    server.says("listening")?;
    world.service("shop", "orders").port("http", 80, PORT).apply()?;
    let guarded = Guarded { pod, server };
    let client = world.pod("shop", "client").start()?;
    let agent = agent(world, &guarded)?;
    policy(world, &only("shop"))?;
    denies(world, &urls(&guarded.pod)[0])?;
    Ok((guarded, client, agent))
}

#[test]
fn an_agent_that_is_killed_fails_nothing_but_what_is_in_flight() {
    test("inbound-kill", |world| {
        let (guarded, client, mut one) = open(world)?;
        let load = load(&client, &guarded)?;
        let url = &urls(&guarded.pod)[0];
        for _ in 0..2 {
            one.kill()?;
            // Without an agent nothing is enforced.
            ensure!(get_from_node(world, url)?.status == "200");
            one = agent(world, &guarded)?;
            denies(world, url)?;
        }
        let report = load.stop()?;
        ensure!(report.failed <= 8 && report.ok > 100, "{report:?}");
        let cut_off = ["closed", "reset", "connect: connection reset"];
        ensure!(report.failures.keys().all(|kind| cut_off.contains(&kind.as_str())), "{report:?}");
        Ok(())
    });
}

#[test]
fn an_agent_that_hangs_is_passed_by() {
    test("inbound-hang", |world| {
        let (guarded, client, agent) = open(world)?;
        let url = &urls(&guarded.pod)[0];
        agent.stop()?;
        eventually("connections go direct", || {
            let output = world.node().command("curl")?.args(["-sS", "-m", "2", url]).output()?;
            ensure!(String::from_utf8_lossy(&output.stdout).contains("orders"), "{output:?}");
            Ok(())
        })?;
        let during = load(&client, &guarded)?;
        ensure!(get_from_node(world, url)?.status == "200");
        let report = during.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        agent.cont()?;
        denies(world, url)?;
        ensure!(agent.connects("inbound_bypassed_agent_unresponsive")? > 0);
        Ok(())
    });
}

#[test]
fn agents_hand_over_without_a_failed_request() {
    test("inbound-hand-over", |world| {
        let (guarded, client, mut old) = open(world)?;
        let load = load(&client, &guarded)?;
        let url = &urls(&guarded.pod)[0];
        for _ in 0..3 {
            let new = agent(world, &guarded)?;
            // Never is nothing enforced.
            ensure!(get_from_node(world, url)?.status == "403");
            old.terminate()?;
            let status = old.wait()?;
            ensure!(status.success(), "{status}: {}", old.log());
            ensure!(get_from_node(world, url)?.status == "403");
            old = new;
        }
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        Ok(())
    });
}

#[test]
fn pods_without_ipv6_are_guarded_too() {
    test("inbound-v4", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "orders-1").label("app", "orders").ipv4_only().start()?;
        let mut server =
            pod.spawn("server", python(), &[&script("peer_server.py"), &PORT.to_string(), "0.0.0.0"])?;
        server.says("listening")?;
        world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let guarded = Guarded { pod, server };
        let client = world.pod("shop", "client").start()?;
        let _agent = agent(world, &guarded)?;
        policy(world, &only("shop"))?;
        let [url, _] = urls(&guarded.pod);
        denies(world, &url)?;
        let got = get(&client, &url)?;
        ensure!(got.status == "200" && got.answer()?["accept"] == got.own, "{}", got.body);
        Ok(())
    });
}
