//! A service that tests govern: one client, instances that come and go, and a TrafficPolicy.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Agent, App, Load, LoadReport, Pod, Process, Service, World, eventually};

/// How long the programs of a [`Depot`] go on after SIGTERM, in milliseconds.
const LINGER: &str = "1000";

/// The service `depot` in the namespace `shop`, which must be opted in, as a pod calls it through an agent.
pub struct Depot<'d> {
    pub world: &'d World,
    pub agent: &'d Agent,
    pub client: &'d Pod,
    pub service: Service,
}

impl<'d> Depot<'d> {
    const NAME: &'static str = "depot";

    pub fn open(world: &'d World, agent: &'d Agent, client: &'d Pod) -> Result<Self> {
        let service = world.service("shop", Self::NAME).port("http", 80, 8080).apply()?;
        Ok(Self { world, agent, client, service })
    }

    /// An instance, to which nothing is sent before it is set ready.
    pub fn instance(&self, version: &str) -> Result<App> {
        self.instance_with(version, &[])
    }

    /// The same with more arguments for its program.
    pub fn instance_with(&self, version: &str, args: &[&str]) -> Result<App> {
        let name = format!("{}-{version}", Self::NAME);
        let pod = self.world.pod("shop", &name).label("app", Self::NAME).unready().start()?;
        let process = Self::serve(&pod, version, args)?;
        Ok(App { process, pod })
    }

    /// An instance that has been there for long.
    pub fn old_instance(&self, version: &str) -> Result<App> {
        let app = self.instance(version)?;
        app.pod.set_ready_since(true, UNIX_EPOCH + Duration::from_secs(1_700_000_000))?;
        self.answers(&[version])?;
        Ok(app)
    }

    /// Kills an instance's program and starts it anew in the same pod, with more arguments.
    pub fn restart(&self, app: &mut App, version: &str, args: &[&str]) -> Result<()> {
        app.process.kill()?;
        app.process = Self::serve(&app.pod, version, args)?;
        Ok(())
    }

    fn serve(pod: &Pod, version: &str, args: &[&str]) -> Result<Process> {
        pod.serve(&[&["--name", Self::NAME, "--version", version, "--linger", LINGER], args].concat())
    }

    /// Ends an instance as the kubelet does: its pod is marked and its program told at the same moment, and the program
    /// goes on for a second.
    pub fn end(&self, mut app: App) -> Result<()> {
        app.pod.set_terminating()?;
        app.process.signal(Signal::SIGTERM)?;
        app.process.wait()?;
        Ok(())
    }

    /// Load of so many requests a second for so many seconds.
    pub fn load(&self, rate: u32, seconds: u32) -> Result<Load> {
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let args = ["--rate", &rate, "--seconds", &seconds, "--connections", "16"];
        Load::start(self.client, &self.service.url(), &args)
    }

    /// So many requests, one after the other.
    pub fn requests(&self, count: u32) -> Result<LoadReport> {
        let count = count.to_string();
        Load::start(self.client, &self.service.url(), &["--requests", &count, "--connections", "1"])?.finish()
    }

    /// Waits until exactly these versions answer.
    pub fn answers(&self, versions: &[&str]) -> Result<()> {
        eventually(&format!("{versions:?} answer"), || {
            let report = self.requests(40)?;
            ensure!(report.failed == 0 && report.chains.keys().eq(versions), "{report:?}");
            Ok(())
        })
    }

    /// Applies the TrafficPolicy `depot` for the service, and waits until it is in force.
    pub fn policy(&self, spec: Value) -> Result<()> {
        let wanted = spec.clone();
        let mut spec = spec;
        spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": Self::NAME}]);
        self.world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"name": Self::NAME, "namespace": "shop"},
            "spec": spec,
        }))?;
        eventually("the policy is in force", || {
            let query = format!("/api/service?namespace=shop&name={}&port={}", Self::NAME, self.service.port);
            let (status, body) = self.agent.get(&query)?;
            ensure!(status == 200, "{status}: {body}");
            let detail: Value = serde_json::from_str(&body)?;
            in_force(&detail["policy_values"], "", &wanted)
        })
    }

    /// Deletes the policy.
    pub fn no_policy(&self) -> Result<()> {
        self.world.delete("TrafficPolicy", "shop", Self::NAME)
    }
}

/// That every value of a policy is one of those that an agent goes by.
fn in_force(values: &Value, field: &str, wanted: &Value) -> Result<()> {
    let objects = |items: &Vec<Value>| items.iter().all(Value::is_object);
    match wanted {
        Value::Object(fields) => fields.iter().try_for_each(|(name, wanted)| {
            let field = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
            in_force(values, &field, wanted)
        }),
        Value::Array(items) if objects(items) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(n, wanted)| in_force(values, &format!("{field}[{n}]"), wanted))
        }
        wanted => {
            let mut values = values.as_array().into_iter().flatten();
            let is = values.find(|value| value["field"] == field).map(|value| &value["value"]);
            ensure!(is == Some(wanted), "{field} is {is:?}, not {wanted}");
            Ok(())
        }
    }
}
