//! The shop that the demo shows and many tests use: `gateway -> orders -> pricing -> stock`, of which `orders` and
//! `stock` also exist in the lane `gray`.

use anyhow::{Context as _, Result, ensure};

use crate::{Answer, Capture, LoadReport, Pod, Process, Service, World, binary, eventually};

/// The services of the chain, in the order of the calls.
pub const CHAIN: [&str; 4] = ["gateway", "orders", "pricing", "stock"];
/// Those that have an instance in the lane.
pub const IN_LANE: [&str; 2] = ["orders", "stock"];
pub const LANE: &str = "gray";

/// A running shop, in the namespace `shop`, with a pod that calls it.
#[derive(Debug)]
pub struct Shop {
    pub services: Vec<Service>,
    pub apps: Vec<App>,
    pub client: Pod,
}

/// One instance of a service.
#[derive(Debug)]
pub struct App {
    // First, so that it is ended before its pod.
    pub process: Process,
    pub pod: Pod,
}

impl Shop {
    /// Opens the shop. Whether its namespace is opted in is the caller's affair.
    pub fn open(world: &World, capture: Capture) -> Result<Self> {
        world.namespace("shop", capture)?;
        let services = CHAIN
            .iter()
            .map(|name| world.service("shop", name).port("http", 80, 8080).apply())
            .collect::<Result<Vec<_>>>()?;
        let mut apps = Vec::new();
        for (index, name) in CHAIN.into_iter().enumerate() {
            let next = services.get(index + 1).map(Service::url);
            let next = next.as_deref();
            apps.push(App::start(world, name, "v1", next)?);
            if IN_LANE.contains(&name) {
                apps.push(App::start(world, name, LANE, next)?);
            }
        }
        let client = world.pod("shop", "client").label("app", "client").start()?;
        Ok(Self { services, apps, client })
    }

    /// Where the chain begins.
    pub fn gateway(&self) -> &Service {
        &self.services[0]
    }

    /// The instance called `<service>-<version>`.
    pub fn app(&self, name: &str) -> Result<&App> {
        self.apps.iter().find(|app| app.pod.name == name).with_context(|| format!("the shop has no {name}"))
    }

    /// All pods, the client's among them.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.apps.iter().map(|app| &app.pod).chain([&self.client])
    }

    /// Waits until the pods have no connections to services: those that exist when a pod is enrolled stay direct.
    pub fn quiet(&self) -> Result<()> {
        eventually("idle connections are closed", || {
            for pod in self.pods() {
                let open = pod.connections(80)?;
                ensure!(open == 0, "{} has {open} connections to services", pod.name);
            }
            Ok(())
        })
    }

    /// One request from the client through the chain, with `headers` as in `name: value`.
    pub fn ask(&self, headers: &[&str]) -> Result<Answer> {
        ask(&self.client, &self.gateway().url(), headers)
    }

    /// Starts load from the client on the gateway.
    pub fn load(&self, args: &[&str]) -> Result<Load> {
        Load::start(&self.client, &self.gateway().url(), args)
    }
}

impl App {
    /// Starts a pod `<name>-<version>` that serves on port 8080. Any version but `v1` is also its lane.
    pub fn start(world: &World, name: &str, version: &str, next: Option<&str>) -> Result<Self> {
        let app = Self::start_unready(world, name, version, next)?;
        app.pod.set_ready(true)?;
        Ok(app)
    }

    /// [`App::start`], but nothing is sent to the pod before it is set ready.
    pub fn start_unready(world: &World, name: &str, version: &str, next: Option<&str>) -> Result<Self> {
        Self::start_with(world, name, version, next, &[])
    }

    /// The same with more arguments for `sluice-service`.
    pub fn start_with(
        world: &World,
        name: &str,
        version: &str,
        next: Option<&str>,
        more: &[&str],
    ) -> Result<Self> {
        let mut pod =
            world.pod("shop", &format!("{name}-{version}")).label("app", name).label("version", version);
        if version != "v1" {
            pod = pod.tag(version);
        }
        let pod = pod.unready().start()?;
        let mut args = vec!["--name", name, "--version", version];
        // Connections from before an enrolment stay direct: soon there shall be none.
        args.extend(next.into_iter().flat_map(|next| ["--next", next, "--next-idle", "500"]));
        args.extend(more);
        let process = pod.serve(&args)?;
        Ok(Self { process, pod })
    }
}

/// One request with curl from a pod, to a service that answers with its chain.
pub fn ask(pod: &Pod, url: &str, headers: &[&str]) -> Result<Answer> {
    let mut args = vec!["-sS", "-m", "10", url];
    args.extend(headers.iter().flat_map(|header| ["-H", header]));
    let body = pod.run("curl", &args)?;
    serde_json::from_str(&body).with_context(|| format!("{url} answered {body:?}"))
}

/// Load that runs.
#[derive(Debug)]
pub struct Load {
    process: Process,
}

impl Load {
    /// Starts `sluice-load` in a pod and waits until it runs.
    pub fn start(pod: &Pod, url: &str, args: &[&str]) -> Result<Self> {
        let mut all = vec![url];
        all.extend(args);
        let mut process = pod.spawn("load", binary("sluice-load")?, &all)?;
        process.says("running")?;
        Ok(Self { process })
    }

    /// Ends the load and gives its report.
    pub fn stop(self) -> Result<LoadReport> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM)?;
        self.finish()
    }

    /// Waits for load that ends by itself, and gives its report.
    pub fn finish(mut self) -> Result<LoadReport> {
        let status = self.process.wait()?;
        let log = self.process.log();
        ensure!(status.success(), "the load generator failed ({status}): {log}");
        let report =
            log.lines().rfind(|line| line.starts_with('{')).context("the load generator reported nothing")?;
        serde_json::from_str(report).with_context(|| format!("no load report: {report}"))
    }
}
