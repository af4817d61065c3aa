//! `cargo xtask setup`: what the other tasks need, installed where it is missing.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::arch::Arch;
use crate::shell::{self, say, which};
use crate::toolchain::{self, Toolchain};
use crate::{apt, clients, helm, prometheus, runtime, vm, workspace};

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
    /// The clients that the kernel tests send through Sluice: curl, Python with grpcio, Node with grpc-js, Java
    Clients,
    /// `kubectl` with a kustomize that reads `deploy/`
    Kubectl,
    /// Helm, for the chart
    Helm,
    /// The musl target and compiler, for the static binary of the image
    Image,
    /// crun, and the system call filter of container runtimes: the tests run the image as nodes do
    Runtime,
    /// Prometheus and promtool, which the kernel tests and the checks of the rules run
    Prometheus,
    /// Chromium and chromedriver, in which the kernel tests look at the page
    Browser,
    /// qemu and kernels, for trying those in virtual machines
    Vm,
    /// Redis, in which the kernel tests keep limits of the whole cluster
    Store,
    /// nginx, haproxy and nghttpx, which the bench compares with and the kernel tests put before and behind the agent; h2load
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
                say("clients: curl, Python with grpcio, Node with grpc-js and Java are there");
            }
            Part::Kubectl => say(&format!("manifests: rendered by `{}`", kustomize()?.join(" "))),
            Part::Helm => say(&format!("chart: rendered by {}", helm::programs()?.helm.display())),
            Part::Image => say(&format!("image: the target {} is there", musl(Arch::native()?)?)),
            Part::Runtime => {
                say(&format!("runtime: crun is there, and the filter {}", runtime::profile()?.display()));
            }
            Part::Prometheus => {
                let programs = prometheus::programs()?;
                say(&format!(
                    "Prometheus: {}, {}",
                    programs.prometheus.display(),
                    programs.promtool.display()
                ));
            }
            Part::Browser => {
                browser()?;
                say("browser: Chromium and chromedriver are there");
            }
            Part::Vm => {
                vm::prepare()?;
                vm::fetch_for_ci()?;
                say("virtual machines: qemu is there, and the kernels that CI tries");
            }
            Part::Store => {
                store()?;
                say("store: redis-server is there");
            }
            Part::Proxies => {
                proxies()?;
                say("proxies: nginx, haproxy, nghttpx and h2load are there");
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

/// The first `kubectl` whose kustomize knows directories as resources, and `labels`: it came with kustomize 4.
const KUBECTL_MINOR: u32 = 22;

/// The command that renders a directory: `kubectl kustomize`, or `kustomize build`.
pub(crate) fn kustomize() -> Result<Vec<String>> {
    let said =
        shell::ask(std::process::Command::new("kubectl").args(["version", "--client", "--output=json"]));
    if said.as_deref().and_then(kubectl_minor).is_some_and(|minor| minor >= KUBECTL_MINOR) {
        return Ok(vec!["kubectl".to_owned(), "kustomize".to_owned()]);
    }
    if which("kustomize").is_some() {
        return Ok(vec!["kustomize".to_owned(), "build".to_owned()]);
    }
    let kubectl = helm::programs()?.kubectl;
    Ok(vec![kubectl.display().to_string(), "kustomize".to_owned()])
}

/// From `kubectl version --client --output=json`. Some distributors' minor versions end with a plus.
fn kubectl_minor(version: &str) -> Option<u32> {
    let version: serde_json::Value = serde_json::from_str(version).ok()?;
    let minor = version["clientVersion"]["minor"].as_str()?;
    minor.trim_end_matches(|last: char| !last.is_ascii_digit()).parse().ok()
}

/// The target of static binaries, with the C compiler that crates ask for where they are of this architecture.
pub(crate) fn musl(arch: Arch) -> Result<String> {
    let target = arch.musl();
    if arch.is_native() && which("musl-gcc").is_none() {
        apt::install(
            &["musl-tools"],
            "building a static binary",
            "install musl's compiler wrapper, `musl-gcc`",
        )?;
    }
    let libraries =
        shell::read(workspace::command("rustc").args(["--print", "target-libdir", "--target", &target]))?;
    if std::path::Path::new(libraries.trim()).is_dir() {
        return Ok(target);
    }
    if which("rustup").is_none() {
        bail!("the compiler has no standard library for {target}: install it (rustup target add {target})");
    }
    say(&format!("the compiler has no standard library for {target}: rustup adds it"));
    shell::run(workspace::command("rustup").args(["target", "add", &target]))?;
    Ok(target)
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

/// A browser, what drives it, and a font: a page without letters has no sizes to look at.
pub(crate) fn browser() -> Result<()> {
    if which("chromedriver").is_some() {
        return Ok(());
    }
    apt::install(
        &["chromium", "chromium-driver", "fonts-dejavu-core"],
        "looking at the page",
        "install Chromium and its chromedriver",
    )
}

pub(crate) fn store() -> Result<()> {
    if which("redis-server").is_some() {
        return Ok(());
    }
    apt::install(&["redis-server"], "keeping limits of the whole cluster", "install redis-server")?;
    // Debian starts it; the tests start their own.
    stop_services(&["redis-server"])
}

pub(crate) fn proxies() -> Result<()> {
    let by_hand = "install nginx (with its stream module), haproxy, nghttpx and h2load";
    let stream = std::path::Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let there = ["nginx", "haproxy", "nghttpx", "h2load"].iter().all(|program| which(program).is_some());
    if there && (stream.exists() || !apt::available()) {
        return Ok(());
    }
    // Debian starts a service that it installs; the bench starts its own, so those that were not there are stopped.
    let mut services = vec!["nginx", "haproxy", "nghttpx"];
    services.retain(|program| which(program).is_none());
    apt::install(
        &["nginx-light", "libnginx-mod-stream", "haproxy", "nghttp2-proxy", "nghttp2-client"],
        "comparing with nginx, haproxy and nghttpx, and testing with them and h2load",
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
    let mut systemctl = shell::as_root("systemctl", "to stop the new services")?;
    shell::run(systemctl.args(["disable", "--now"]).args(services))
}

#[cfg(test)]
mod tests {
    use super::kubectl_minor;

    #[test]
    fn the_version_of_kubectl_is_read() {
        assert_eq!(kubectl_minor(r#"{"clientVersion":{"major":"1","minor":"32"}}"#), Some(32));
        assert_eq!(kubectl_minor(r#"{"clientVersion":{"major":"1","minor":"20+"}}"#), Some(20));
        assert_eq!(kubectl_minor("Client Version: v1.32.4"), None);
    }
}
