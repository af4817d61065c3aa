//! What is hidden or refused, also where the client does not look like HTTP, or speaks gRPC.

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::{Capture, eventually, test};

use super::{PORT, agent, denies, get, guarded, only, policy, urls};
use crate::{python, script};

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
