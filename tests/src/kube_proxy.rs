//! ClusterIPs without Sluice: what kube-proxy does on a node, for the services of a world.
//!
//! A pod's connection to a ClusterIP leaves for the bridge, where nftables translates it to a ready endpoint, at
//! random. The bridge hands its packets to netfilter (`br_netfilter`), because the answer comes from a neighbour on
//! the same bridge and would otherwise never meet the translation again.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    NetNs,
    manifests::Manifests,
    node::{NODE_IPV4, NODE_IPV6},
};

/// Turns the node into one on which ClusterIPs are translated.
pub(crate) fn prepare(node: &NetNs) -> Result<()> {
    if std::fs::metadata("/proc/sys/net/bridge").is_err() {
        let _ = std::process::Command::new("modprobe").arg("br_netfilter").status();
    }
    node.sysctl("net/bridge/bridge-nf-call-iptables", "1").context("is the module br_netfilter there?")?;
    node.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
}

/// Brings the translation in line with the manifests, in one transaction.
pub(crate) fn sync(node: &NetNs, manifests: &Manifests) -> Result<()> {
    node.feed("nft", &["-f", "-"], &rules(manifests)).context("Debian's package `nftables` has `nft`")
}

fn rules(manifests: &Manifests) -> String {
    let mut chains = String::new();
    let mut dispatch = String::new();
    let mut next = 0;
    for service in manifests.all("Service") {
        for ip in service["spec"]["clusterIPs"].as_array().into_iter().flatten() {
            let Some(ip) = ip.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let mut endpoints = endpoints(manifests, service, ip, port);
                let (family, number) = (if ip.is_ipv4() { "ip" } else { "ip6" }, &port["port"]);
                let matches = format!("{family} daddr {ip} tcp dport {number}");
                // As kube-proxy: refused. Here by a port of the node on which nothing listens.
                if endpoints.is_empty() {
                    endpoints.push(if ip.is_ipv4() { (NODE_IPV4.into(), 1) } else { (NODE_IPV6.into(), 1) });
                }
                let count = endpoints.len();
                let _ = write!(dispatch, "    {matches} numgen random mod {count} vmap {{");
                for (index, (address, port)) in endpoints.into_iter().enumerate() {
                    let target = if address.is_ipv4() {
                        format!("{address}:{port}")
                    } else {
                        format!("[{address}]:{port}")
                    };
                    let _ = writeln!(
                        chains,
                        "  chain endpoint-{next} {{\n    meta l4proto tcp dnat {family} to {target}\n  }}"
                    );
                    let _ = write!(
                        dispatch,
                        "{} {index} : goto endpoint-{next}",
                        if index > 0 { "," } else { "" }
                    );
                    next += 1;
                }
                dispatch.push_str(" }\n");
            }
        }
    }
    // The first line makes sure that there is something to delete.
    format!(
        "table inet kube-proxy\ndelete table inet kube-proxy\ntable inet kube-proxy {{\n{chains}\
         \x20 chain services {{\n    type nat hook prerouting priority dstnat\n{dispatch}  }}\n}}\n"
    )
}

/// The ready endpoints of a service's port, of the address family of `ip`.
fn endpoints(manifests: &Manifests, service: &Value, ip: IpAddr, port: &Value) -> Vec<(IpAddr, u64)> {
    let name = port["name"].as_str().unwrap_or_default();
    let mut found = Vec::new();
    for slice in manifests.all("EndpointSlice") {
        let metadata = &slice["metadata"];
        if metadata["namespace"] != service["metadata"]["namespace"]
            || metadata["labels"]["kubernetes.io/service-name"] != service["metadata"]["name"]
        {
            continue;
        }
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let Some(number) = ports
            .find(|entry| entry["name"].as_str().unwrap_or_default() == name)
            .and_then(|entry| entry["port"].as_u64())
        else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            let addresses = addresses.filter_map(|address| address.as_str()?.parse::<IpAddr>().ok());
            found.extend(
                addresses
                    .filter(|address| address.is_ipv4() == ip.is_ipv4())
                    .map(|address| (address, number)),
            );
        }
    }
    found
}
