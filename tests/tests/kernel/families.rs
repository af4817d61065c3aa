//! Dual-stack Services whose servers listen on one address family only.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Capture, Pod, Process, Service, World, ask, test};

use crate::sockets;

/// A server that listens on one of its pod's addresses, and its Services.
struct OneFamily {
    service: Service,
    pod: Pod,
    _processes: [Process; 2],
}

impl OneFamily {
    fn start(world: &World, name: &str, ipv6: bool) -> Result<Self> {
        let pod = world.pod("shop", &format!("{name}-0")).label("app", name).start()?;
        let own = if ipv6 { IpAddr::from(pod.ipv6()) } else { pod.ipv4().into() }.to_string();
        let web = pod.serve(&["--name", name, "--address", &own])?;
        let tcp = pod.serve(&["--tcp", "--name", name, "--port", "7000", "--address", &own])?;
        let service = world.service("shop", name).port("http", 80, 8080).port("tcp", 700, 7000).apply()?;
        let headless = world.service("shop", &format!("{name}-headless")).selector("app", name);
        headless.port("http", 8080, 8080).headless().apply()?;
        Ok(Self { service, pod, _processes: [web, tcp] })
    }
}

/// A client's `connect()` succeeds at whichever address it tries first, so the agent tries the other one for it.
#[test]
fn a_server_is_reached_that_listens_on_the_other_family() {
    test("one-family", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.policy_for_all("shop")?;
        let servers = [OneFamily::start(world, "four", false)?, OneFamily::start(world, "six", true)?];
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        for OneFamily { service, pod, .. } in &servers {
            let endpoints = [format!("http://{}:8080", pod.ipv4()), format!("http://[{}]:8080", pod.ipv6())];
            for url in [service.url(), service.url6()].into_iter().chain(endpoints) {
                for _ in 0..3 {
                    let answer = ask(&client, &url, &[])?;
                    ensure!(answer.versions() == "v1", "{url}: {answer:?}");
                }
                let http2 = client.run("curl", &["-sS", "-m", "10", "--http2-prior-knowledge", &url])?;
                ensure!(http2.contains("v1"), "{url}: {http2}");
            }
            for ip in [service.ipv4.to_string(), service.ipv6.to_string()] {
                let seen = sockets(&client, &["names", &ip, "700"])?;
                ensure!(seen["line"] == format!("{} v1\n", service.name), "{ip}: {seen}");
                ensure!(seen["peer"] == json!([ip, 700]), "{ip}: {seen}");
            }
        }
        // Of each server one address of each of its three endpoints, once.
        let metrics = agent.metrics()?;
        let refused = metrics.sum("sluice_upstream_connects_total", &[("outcome", "refused")]) as u64;
        ensure!(refused == 6, "{refused} connections were refused");
        ensure!(agent.redirected()? == 2 * (4 * 4 + 2), "{}", agent.redirected()?);
        Ok(())
    });
}
