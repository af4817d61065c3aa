//! Redirection: who is redirected, where to, and what the application sees of it.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sluice_tests::{
    Capture, Pod, Process, Service, StormReport, World, ask, binary, eventually, test, test_with_both,
};

use crate::{python, sockets};

/// A service that says its name first, and the pod behind it.
struct Speaker {
    service: Service,
    _process: Process,
    pod: Pod,
}

fn speaker(world: &World, namespace: &str, name: &str, flags: &[&str]) -> Result<Speaker> {
    let pod = world.pod(namespace, &format!("{name}-0")).label("app", name).start()?;
    // Or it would be left alone, being none that speaks HTTP.
    world.policy_for_all(namespace)?;
    let process = pod.serve(&[&["--tcp", "--name", name, "--port", "7000"], flags].concat())?;
    let service = world.service(namespace, name).port("tcp", 700, 7000).apply()?;
    Ok(Speaker { service, _process: process, pod })
}

#[test]
fn each_of_50_000_short_connections_reaches_the_service_it_dialled() {
    test("storm", |world| {
        const CONNECTIONS: u64 = 50_000;
        world.namespace("shop", Capture::Enabled)?;
        let names = ["one", "two", "three", "four"];
        let speakers =
            names.iter().map(|name| speaker(world, "shop", name, &["--once"])).collect::<Result<Vec<_>>>()?;
        let client = world.pod("shop", "client").start()?;
        // Few ports, so that each is used again and again, soon after a reset.
        client.netns().sysctl("net/ipv4/ip_local_port_range", "40000 41023")?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let targets: Vec<String> = speakers
            .iter()
            .flat_map(|Speaker { service, .. }| {
                [
                    format!("{}:{}={}", service.ipv4, service.port, service.name),
                    format!("[{}]:{}={}", service.ipv6, service.port, service.name),
                ]
            })
            .collect();
        let count = CONNECTIONS.to_string();
        let mut args: Vec<&str> = targets.iter().map(String::as_str).collect();
        args.extend(["--connections", &count]);
        let report: StormReport = serde_json::from_str(&client.run(binary("sluice-storm")?, &args)?)?;
        ensure!(report.wrong == 0 && report.failed == 0, "{report:?}");
        ensure!(report.right + report.abandoned == CONNECTIONS, "{report:?}");
        ensure!(agent.redirected()? >= CONNECTIONS, "some went past: {}", agent.redirected()?);
        ensure!(agent.connects("lost")? == 0, "{} lost their destination", agent.connects("lost")?);
        Ok(())
    });
}

#[test]
fn the_application_sees_the_addresses_that_it_expects() {
    test("names", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let Speaker { service, .. } = &speaker(world, "shop", "db", &[])?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let port = service.port.to_string();
        let mapped = |ip: std::net::Ipv4Addr| format!("::ffff:{ip}");
        let cases = [
            (service.ipv4.to_string(), client.ipv4().to_string()),
            (service.ipv6.to_string(), client.ipv6().to_string()),
            (mapped(service.ipv4), mapped(client.ipv4())),
        ];
        for (dialled, own) in &cases {
            for how in ["names", "nonblocking", "bound"] {
                let before = agent.redirected()?;
                let seen = sockets(&client, &[how, dialled, &port, own])?;
                ensure!(seen["line"] == "db v1\n", "{how} {dialled}: {seen}");
                ensure!(seen["peer"] == json!([dialled, service.port]), "{how} {dialled}: {seen}");
                ensure!(seen["own"][0] == *own, "{how} {dialled}: {seen}");
                // A socket that is bound to a port goes direct.
                let redirected = u64::from(how != "bound");
                ensure!(agent.redirected()? == before + redirected, "{how} {dialled}");
                if how == "nonblocking" {
                    ensure!(seen["writable"] == true && seen["error"] == 0, "{dialled}: {seen}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_not_governed_is_left_alone() {
    test("ungoverned", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("finance", Capture::Unmentioned)?;
        world.kube_proxy()?;
        let governed = speaker(world, "shop", "db", &[])?;
        let ungoverned = speaker(world, "finance", "ledger", &[])?;
        let client = world.pod("shop", "client").start()?;
        let stranger = world.pod("finance", "stranger").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let before = agent.redirected()?;

        // A service of a namespace that did not opt in; a pod by its address, governed or not; another port of a
        // governed address; the same for a pod that is not enrolled.
        let service_port = governed.service.port.to_string();
        let cases = [
            (&client, ungoverned.service.ipv4.to_string(), service_port.as_str(), "ledger v1\n"),
            (&client, ungoverned.service.ipv6.to_string(), &service_port, "ledger v1\n"),
            (&client, governed.pod.ipv4().to_string(), "7000", "db v1\n"),
            (&client, ungoverned.pod.ipv6().to_string(), "7000", "ledger v1\n"),
            (&stranger, governed.service.ipv4.to_string(), &service_port, "db v1\n"),
            (&stranger, governed.service.ipv6.to_string(), &service_port, "db v1\n"),
        ];
        for (pod, dialled, port, line) in &cases {
            let seen = sockets(pod, &["names", dialled, port])?;
            ensure!(seen["line"] == *line, "{dialled}:{port} from {}: {seen}", pod.name);
            ensure!(seen["peer"] == json!([dialled, port.parse::<u16>()?]), "{dialled}:{port}: {seen}");
            let own = if dialled.contains(':') { pod.ipv6().to_string() } else { pod.ipv4().to_string() };
            ensure!(seen["own"][0] == own, "{dialled}:{port} from {}: {seen}", pod.name);
        }
        // UDP to the very address and port that is governed for TCP.
        let address = governed.service.ipv4.to_string();
        let seen = sockets(&client, &["udp", &address, &service_port])?;
        ensure!(seen["peer"] == json!([address, governed.service.port]), "{seen}");
        ensure!(seen["own"][0] == client.ipv4().to_string(), "{seen}");

        ensure!(agent.redirected()? == before, "something was redirected");
        ensure!(agent.connects("bypassed_not_managed")? > 0, "nothing was seen passing");
        Ok(())
    });
}

#[test]
fn whoever_dials_the_listener_itself_is_sent_away() {
    test("listener", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let ports = loopback_listeners(&client)?;
        ensure!(!ports.is_empty(), "no listener in the pod");
        for port in ports {
            let seen = sockets(&client, &["outcome", "127.0.0.1", &port.to_string()])?;
            ensure!(seen["read"] == 0 || seen["error"] == "ECONNRESET", "port {port}: {seen}");
            // From elsewhere there is nothing at all.
            let seen = sockets(&client, &["outcome", &client.ipv4().to_string(), &port.to_string()])?;
            ensure!(seen["error"] == "ECONNREFUSED", "port {port} of the pod's address: {seen}");
        }
        let turned_away = agent.metrics()?.sum("sluice_connections_total", &[("outcome", "not_redirected")]);
        ensure!(turned_away >= 1.0, "{turned_away} were counted");
        Ok(())
    });
}

/// Ports on 127.0.0.1 on which somebody listens in the pod's namespace.
fn loopback_listeners(pod: &Pod) -> Result<Vec<u16>> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", pod.pause()))?;
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN.
            (fields.get(3) == Some(&"0A")).then(|| fields[1].strip_prefix("0100007F:"))?
        })
        .map(|port| u16::from_str_radix(port, 16).context("a port in /proc/net/tcp"))
        .collect()
}

#[test]
fn a_pod_without_ipv6_is_served_over_ipv4() {
    test("ipv4-only", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let web = world.pod("shop", "web-0").label("app", "web").start()?;
        let _web = web.serve(&["--name", "web"])?;
        let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").ipv4_only().start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let answer = ask(&client, &service.url(), &[])?;
        ensure!(answer.versions() == "v1", "{answer:?}");
        ensure!(agent.redirected()? == 1);
        Ok(())
    });
}

#[test]
fn sockets_that_the_agents_could_not_stand_for_go_direct() {
    test("particular", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let [one, two] = ["one", "two"].map(|name| speaker(world, "shop", name, &[]));
        let (one, two) = (one?, two?);
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        for (first, second) in [
            (one.service.ipv4.to_string(), two.service.ipv4.to_string()),
            (one.service.ipv6.to_string(), two.service.ipv6.to_string()),
        ] {
            let before = agent.connects("bypassed_socket_options")?;
            let seen = sockets(&client, &["fixed-port", &first, "700", &second])?;
            ensure!(seen["lines"] == json!(["one v1\n", "two v1\n"]), "{seen}");
            ensure!(agent.connects("bypassed_socket_options")? == before + 2);
            for how in ["mark", "tos"] {
                let before = agent.connects("bypassed_socket_options")?;
                let seen = sockets(&client, &[how, &first, "700"])?;
                ensure!(seen["line"] == "one v1\n", "{how} {first}: {seen}");
                ensure!(agent.connects("bypassed_socket_options")? == before + 1, "{how} {first}");
            }
            let before = agent.redirected()?;
            let own = if first.contains(':') { client.ipv6().to_string() } else { client.ipv4().to_string() };
            let seen = sockets(&client, &["own-address", &first, "700", &own])?;
            ensure!(seen["line"] == "one v1\n" && seen["own"][0] == own, "{first}: {seen}");
            ensure!(agent.redirected()? == before + 1, "{first} from the pod's own address");
        }
        Ok(())
    });
}

#[test]
fn what_nothing_can_be_done_for_is_left_alone() {
    test_with_both("not-served", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let pod = world.pod("shop", "web-0").label("app", "web").start()?;
        let _web = pod.serve(&["--name", "web"])?;
        let web = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let opaque = world.service("shop", "opaque").selector("app", "web").port("tcp", 81, 8080).apply()?;
        world.service("shop", "peers").selector("app", "web").port("http", 8080, 8080).headless().apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        // Whether a connection to it is redirected; it is answered in any case.
        let is_redirected = |url: &str| {
            let before = (agent.redirected()?, agent.connects("bypassed_not_served")?);
            let answer = ask(&client, url, &[])?;
            ensure!(answer.versions() == "v1", "{answer:?}");
            let after = (agent.redirected()?, agent.connects("bypassed_not_served")?);
            ensure!(
                after == (before.0 + 1, before.1) || after == (before.0, before.1 + 1),
                "{before:?} {after:?}"
            );
            Ok(after.0 > before.0)
        };
        let headless = format!("http://{}:8080", pod.ipv4());
        ensure!(is_redirected(&web.url())?, "a service that speaks HTTP");
        for url in [&opaque.url(), &headless] {
            ensure!(!is_redirected(url)?, "{url} without a policy");
        }
        world.policy_for_all("shop")?;
        for url in [&opaque.url(), &headless] {
            eventually("it is redirected where a policy asks for it", || {
                ensure!(is_redirected(url)?, "{url}");
                Ok(())
            })?;
        }
        world.delete("TrafficPolicy", "shop", "all")?;
        for url in [&opaque.url(), &headless] {
            eventually("and no longer", || {
                ensure!(!is_redirected(url)?, "{url}");
                Ok(())
            })?;
        }

        let refused = || {
            let seen = sockets(&client, &["outcome", &web.ipv4.to_string(), "80"])?;
            ensure!(seen["error"] == "ECONNREFUSED", "{seen}");
            Ok(())
        };
        pod.set_ready(false)?;
        eventually("a service without an endpoint refuses", refused)?;
        pod.set_ready(true)?;
        eventually("it is redirected again", || {
            ensure!(is_redirected(&web.url())?);
            Ok(())
        })?;
        // The pod of a headless service that is gone refuses, so that its client tries the next.
        let other = world.pod("shop", "web-1").label("app", "web").start()?;
        let code = "import socket, sys\n\
            for address in sys.argv[1:]:\n\
            \x20 try: socket.create_connection((address, 8080), 10); print('to', address); break\n\
            \x20 except ConnectionRefusedError: print('refused by', address)\n";
        let (gone, there) = (other.ipv4().to_string(), pod.ipv4().to_string());
        let said = client.run(python(), &["-c", code, &gone, &there])?;
        ensure!(said == format!("refused by {gone}\nto {there}\n"), "{said}");
        Ok(())
    });
}

#[test]
fn listeners_stay_out_of_the_way_of_applications() {
    test("listener-ports", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let agent = world.agent().start()?;
        for (range, wanted) in [(None, 61_000..=65_535), (Some("20000 30000"), 30_001..=65_535)] {
            let client = world
                .pod("shop", &format!("client-{}", range.map_or("default", |_| "own")))
                .capture("disabled")
                .start()?;
            if let Some(range) = range {
                client.netns().sysctl("net/ipv4/ip_local_port_range", range)?;
            }
            client.set_capture(Some("enabled"))?;
            agent.enrolled(&client)?;
            let ports = loopback_listeners(&client)?;
            ensure!(
                !ports.is_empty() && ports.iter().all(|port| wanted.contains(port)),
                "{range:?}: {ports:?}"
            );
        }
        Ok(())
    });
}
