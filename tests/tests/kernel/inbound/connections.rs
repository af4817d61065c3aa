//! Connections that clients keep or pile up: the application can start anew, and the policy holds.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::{Agent, Capture, Pod, Process, eventually, test};

use super::{Guarded, PORT, denies, get, get_from_node, guarded, only, policy, urls};
use crate::{python, script};

/// Keeps a connection after a response, and says when it ends.
const KEEPS: &str = "
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 300)
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

/// They go past the agent for as long as they last, so they are named; what the agent has accepted itself is not, by the agent that
/// takes over neither.
#[test]
fn connections_that_are_older_than_a_policy_are_named() {
    test("inbound-older", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let Guarded { pod, server: _server } = guarded(world, "0.0.0.0")?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        let ip = pod.ipv4().to_string();
        let keep = |name: &str| {
            let mut keeps = client.spawn(name, python(), &["-c", KEEPS, &ip, &PORT.to_string()])?;
            keeps.says("held").map(|()| keeps)
        };
        let [early, other] = [keep("early")?, keep("other")?];
        policy(world, &only("shop"))?;
        denies(world, &format!("http://{ip}:{PORT}/orders"))?;
        let _late = keep("late")?;
        let named = |agent: &Agent, count: usize| {
            eventually(&format!("{count} are named"), || {
                let labels = [("destination_namespace", "shop"), ("destination_pod", "orders-1")];
                let counted = agent.metrics()?.sum("sluice_preexisting_inbound_connections_open", &labels);
                ensure!((counted - count as f64).abs() < 0.5, "{counted}");
                let (_, said, _) = agent.sluice(&["status"])?;
                let are = if count == 1 { "connection that is" } else { "connections that are" };
                let line = format!(
                    "Pod shop/orders-1 has {count} {are} older than what policies ask for at its port {PORT}"
                );
                ensure!(said.contains(&line) == (count > 0), "{said}");
                Ok(())
            })
        };
        named(&agent, 2)?;
        drop(other);
        named(&agent, 1)?;
        let newer = world.agent().start()?;
        named(&newer, 1)?;
        drop(early);
        named(&newer, 0)
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

/// Reads a request, and ends its connection without a response. Says so.
const ABORTS: &str = "
import socket, sys, threading, time
listener = socket.create_server(('0.0.0.0', int(sys.argv[1])))
print('listening', flush=True)
def serve(connection):
    got = connection.recv(65536)
    if got:
        print('seen ' + got.split(b' ')[1].decode(), flush=True)
        time.sleep(0.2)
    connection.close()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
";

/// Asks once, and tells what came until the connection ended.
const ASKS_ONCE: &str = "
import socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
connection.sendall(b'GET /once HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n')
connection.settimeout(20)
said = b''
while got := connection.recv(65536):
    said += got
print(said.split(b'\\r\\n')[0].decode())
";

/// The application sees it once, as it would without a policy, and the client's connection ends with its own: the client decides
/// whether to ask again.
#[test]
fn a_request_that_the_application_aborts_is_not_sent_again() {
    test("inbound-aborts", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let Guarded { pod, server } = guarded(world, "0.0.0.0")?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        policy(world, &only("shop"))?;
        let ip = pod.ipv4().to_string();
        denies(world, &format!("http://{ip}:{PORT}/orders"))?;
        drop(server);
        let mut aborts = pod.spawn("aborts", python(), &["-c", ABORTS, &PORT.to_string()])?;
        aborts.says("listening")?;
        let asked = || client.run(python(), &["-c", ASKS_ONCE, &ip, &PORT.to_string()]);
        eventually("the application is asked", || {
            ensure!(asked()?.starts_with("HTTP/1.1 502"), "another response");
            Ok(())
        })?;
        let seen = || aborts.log().matches("seen /once").count();
        let before = seen();
        let said = asked()?;
        ensure!(said.trim() == "HTTP/1.1 502 Bad Gateway", "{said}");
        ensure!(seen() == before + 1, "{} times: {}", seen() - before, aborts.log());
        Ok(())
    });
}
