//! `cargo xtask setup`: what the other tasks need, installed where it is missing.

use anyhow::Result;
use clap::ValueEnum;

use crate::shell::{say, which};
use crate::toolchain::{self, Toolchain};
use crate::{apt, clients};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to prepare [default: all of it]
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The toolchain of the eBPF programs: a compiler with the sources of `core`, and bpf-linker
    Ebpf,
    /// `ip` and `nft`, for the network namespaces that stand for pods and the ClusterIPs between them
    Pods,
    /// The clients that the kernel tests send through Sluice: curl, Python with grpcio, Node, Java
    Clients,
    /// The proxies that the bench compares with: nginx and haproxy
    Proxies,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    for part in parts {
        match part {
            Part::Ebpf => say(&format!("eBPF toolchain: {}", ebpf()?)),
            Part::Pods => {
                pods()?;
                say("pods: `ip` and `nft` are there");
            }
            Part::Clients => {
                clients::install()?;
                say("clients: curl, Python with grpcio, Node and Java are there");
            }
            Part::Proxies => {
                proxies()?;
                say("proxies: nginx and haproxy are there");
            }
        }
    }
    Ok(())
}

pub(crate) fn ebpf() -> Result<Toolchain> {
    match toolchain::find()? {
        Some(toolchain) => Ok(toolchain),
        None => toolchain::install(),
    }
}

pub(crate) fn pods() -> Result<()> {
    let missing: Vec<&str> = [("ip", "iproute2"), ("nft", "nftables"), ("modprobe", "kmod")]
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(
        &missing,
        "making network namespaces that stand for pods",
        "install iproute2, nftables and kmod",
    )
}

pub(crate) fn proxies() -> Result<()> {
    let by_hand = "install nginx (with its stream module) and haproxy";
    let stream = std::path::Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if which("nginx").is_some() && which("haproxy").is_some() && (stream.exists() || !apt::available()) {
        return Ok(());
    }
    // Debian starts a service that it installs; the bench starts its own, so those that were not there are stopped.
    let services: Vec<&str> = [("nginx", "nginx-light"), ("haproxy", "haproxy")]
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(program, _)| *program)
        .collect();
    apt::install(
        &["nginx-light", "libnginx-mod-stream", "haproxy"],
        "comparing with nginx and haproxy",
        by_hand,
    )?;
    stop_services(&services)
}

fn stop_services(services: &[&str]) -> Result<()> {
    let systemd = std::path::Path::new("/run/systemd/system").exists();
    if services.is_empty() || !systemd {
        return Ok(());
    }
    say("Debian has started the services of these packages; the bench starts its own, so stopping those");
    let mut systemctl = crate::shell::as_root("systemctl", "to stop the new services")?;
    crate::shell::run(systemctl.args(["disable", "--now"]).args(services))
}
