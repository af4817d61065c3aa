//! What is not HTTP goes through byte for byte, with its ends and its resets.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, Capture, Pod, Process, Service, World, eventually, test};

use crate::{python, script, sockets};

/// Port names that decide, and one that does not.
const PORTS: [(&str, u16); 3] = [("tcp", 700), ("mysql", 701), ("", 702)];

/// A server, the service in front of it with one of [`PORTS`] each, and an enrolled pod.
struct Server {
    services: Vec<Service>,
    process: Process,
    client: Pod,
    agent: Agent,
    pod: Pod,
}

fn server(world: &World, start: impl FnOnce(&Pod) -> Result<Process>) -> Result<Server> {
    world.namespace("shop", Capture::Enabled)?;
    world.policy_for_all("shop")?;
    let pod = world.pod("shop", "db-0").label("app", "db").start()?;
    let process = start(&pod)?;
    let services = PORTS
        .iter()
        .map(|(name, port)| {
            let service = world.service("shop", &format!("db-{port}"));
            service.selector("app", "db").port(name, *port, 7000).apply()
        })
        .collect::<Result<_>>()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Server { services, process, client, agent, pod })
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    test("server-first", |world| {
        let Server { services, client, agent, .. } =
            &server(world, |pod| pod.serve(&["--tcp", "--name", "db", "--port", "7000"]))?;
        for service in services {
            let seen = sockets(client, &["silent", &service.ipv4.to_string(), &service.port.to_string()])?;
            ensure!(seen["line"] == "db v1\n", "{}: {seen}", service.name);
        }
        // Found out by waiting only where nothing told it.
        let metrics = agent.metrics()?;
        let count = |outcome| metrics.sum("sluice_connections_total", &[("outcome", outcome)]) as u64;
        ensure!(count("opaque") + count("server_first") == 3, "{metrics:?}");
        ensure!(count("opaque") >= 1 && count("server_first") >= 1, "{metrics:?}");
        ensure!(agent.redirected()? == 3);
        Ok(())
    });
}

#[test]
fn half_closed_both_ways_and_whole() {
    test("half-close", |world| {
        let Server { services, client, agent, .. } =
            &server(world, |pod| pod.serve(&["--tcp", "--name", "db", "--port", "7000"]))?;
        for service in services {
            for ip in [service.ipv4.to_string(), service.ipv6.to_string()] {
                let seen = sockets(client, &["half-close", &ip, &service.port.to_string()])?;
                ensure!(seen["line"] == "db v1" && seen["whole"] == true, "{}: {seen}", service.name);
            }
        }
        ensure!(agent.redirected()? == 6);
        Ok(())
    });
}

#[test]
fn resets_are_carried_over_both_ways() {
    test("reset", |world| {
        let start = |pod: &Pod| {
            let mut process = pod.spawn("server", python(), &[&script("tcp_server.py"), "7000", "report"])?;
            process.says("listening")?;
            Ok(process)
        };
        let mut server = server(world, start)?;
        let service = &server.services[0];
        let (ip, port) = (service.ipv4.to_string(), service.port.to_string());
        // An end is an end, and the answer after it arrives.
        let netcat = "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),10); s.sendall(b'x'*1000); \
                      s.shutdown(1); print(s.recv(9).decode())";
        let said = server.client.run(python(), &["-c", netcat, &ip, &port])?;
        ensure!(said == "bye\n", "{said}");
        server.process.says("end after 1000")?;
        // A reset is a reset, not an end.
        let resets = "import socket,struct,sys,time; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),10); \
                      s.sendall(b'x'*500); time.sleep(0.3); s.setsockopt(1,13,struct.pack('ii',1,0)); s.close()";
        server.client.run(python(), &["-c", resets, &ip, &port])?;
        server.process.says("ECONNRESET after 500")?;

        let mut resetting =
            server.pod.spawn("resetting", python(), &[&script("tcp_server.py"), "7001", "reset"])?;
        resetting.says("listening")?;
        let service =
            world.service("shop", "resetting").selector("app", "db").port("tcp", 710, 7001).apply()?;
        let asks = "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2])),10); s.sendall(b'x')\n\
                    try: print(s.recv(9))\nexcept ConnectionResetError: print('reset')";
        eventually("the new service is governed", || {
            let before = server.agent.redirected()?;
            let said = server
                .client
                .run(python(), &["-c", asks, &service.ipv4.to_string(), &service.port.to_string()])?;
            ensure!(server.agent.redirected()? == before + 1 && said == "reset\n", "{said}");
            Ok(())
        })
    });
}

#[test]
fn nobody_there_is_a_reset() {
    test("nobody", |world| {
        let mut server = server(world, |pod| pod.serve(&["--tcp", "--name", "db", "--port", "7000"]))?;
        server.process.kill()?;
        let service = &server.services[0];
        let seen =
            sockets(&server.client, &["outcome", &service.ipv4.to_string(), &service.port.to_string()])?;
        ensure!(seen["error"] == "ECONNRESET", "{seen}");
        Ok(())
    });
}

#[test]
fn tls_is_none_of_our_business() {
    test("tls", |world| {
        let start = |pod: &Pod| {
            let mut process =
                pod.spawn("server", python(), &[&script("tls_server.py"), "7000", &script("tls.pem")])?;
            process.says("listening")?;
            Ok(process)
        };
        let server = server(world, start)?;
        for service in &server.services {
            let url = format!("https://{}:{}", service.ipv4, service.port);
            let said = server.client.run("curl", &["-sS", "-m", "20", "-k", &url])?;
            ensure!(said == "over TLS", "{url}: {said}");
        }
        ensure!(server.agent.redirected()? == 3);
        Ok(())
    });
}
