//! A lane through a service that passes on nothing but the id of its trace: lost by headers alone, kept with
//! `sluice.dev/propagation: trace`.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, LANE, Load, LoadReport, Service, Shop, World, eventually};

use crate::{
    TAG,
    story::{Story, say, table},
    words,
};

/// The services of this chain, in the order of the calls.
const CHAIN: [&str; 3] = ["front", "middle", "back"];
const REQUESTS: u64 = 200;

/// `front -> middle -> back`, of which `back` also exists in the lane.
struct Chain<'w> {
    shop: &'w Shop,
    /// Their Services.
    services: [Service; 3],
    front: App,
    middle: App,
    backs: Vec<App>,
}

impl<'w> Chain<'w> {
    fn open(world: &World, shop: &'w Shop, agent: &Agent) -> Result<Self> {
        let service = |name| world.service("shop", name).port("http", 80, 8080).apply();
        let services = [service("front")?, service("middle")?, service("back")?];
        let backs = ["v1", LANE].map(|version| App::start(world, "back", version, None));
        let backs = backs.into_iter().collect::<Result<Vec<_>>>()?;
        let front = App::start(world, "front", "v1", Some(&services[1].url()))?;
        let middle = App::start_with(world, "middle", "v1", Some(&services[2].url()), &["--no-baggage"])?;
        middle.pod.set_ready(true)?;
        for app in backs.iter().chain([&front, &middle]) {
            agent.enrolled(&app.pod)?;
        }
        Ok(Self { shop, services, front, middle, backs })
    }

    fn ask(&self, args: &[&str]) -> Result<LoadReport> {
        let requests = REQUESTS.to_string();
        let args = [&["--requests", &requests, "--connections", "4", "--new-connections"], args].concat();
        Load::start(&self.shop.client, &self.services[0].url(), &args)?.finish()
    }

    /// The middle's pod asks for its traces to be known.
    fn annotate(&self) -> Result<()> {
        let annotations = json!({ "sluice.dev/propagation": "trace" });
        self.middle.pod.edit(|pod| pod["metadata"]["annotations"] = annotations)
    }

    /// Waits until what the front sends goes over new connections: those that are older than the annotation are not read.
    fn reconnect(&self) -> Result<()> {
        eventually("idle connections to the middle are closed", || {
            let open = self.front.pod.connections(8080)?;
            ensure!(open == 0, "the front has {open}");
            Ok(())
        })
    }

    fn end(self) -> Result<()> {
        self.services.iter().try_for_each(Service::delete)?;
        // A program ends before its pod.
        self.backs.into_iter().chain([self.front, self.middle]).try_for_each(|App { process, pod }| {
            drop(process);
            pod.delete()
        })
    }
}

pub(crate) fn show(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    story.chapter("A service that passes on nothing but its trace");
    let chain = Chain::open(world, shop, agent)?;
    // Until all pods are known to be Ready somebody may be missing.
    eventually("the chain responds", || {
        let report = chain.ask(&[])?;
        ensure!(report.failed == 0 && report.chains.keys().eq(["v1 v1 v1"]), "{report:?}");
        Ok(())
    })?;
    let by_headers = chain.ask(&["--header", TAG])?;
    chain.annotate()?;
    eventually("what comes to the middle is read", || {
        chain.reconnect()?;
        let report = chain.ask(&["--header", TAG])?;
        ensure!(report.failed == 0 && report.chains.keys().eq(["v1 v1 gray"]), "{report:?}");
        Ok(())
    })?;
    let carried = || -> Result<f64> {
        let labels = [("source_pod", "middle-v1"), ("carrier", "trace_id")];
        Ok(agent.metrics()?.sum("sluice_tag_carriers_total", &labels))
    };
    let before = carried()?;
    let by_trace = chain.ask(&["--header", TAG])?;
    let counted = carried()? - before;
    let untagged = chain.ask(&[])?;
    say(&format!(
        "{}, back also in lane {LANE}; the middle passes on traceparent, and no tag header, baggage or tracestate:",
        CHAIN.join(" -> ")
    ));
    let rows = |what: &str, report: &LoadReport| -> Vec<_> {
        let row = |(chain, count): (&String, &u64)| (format!("{count} x {what}"), words(chain));
        report.chains.iter().map(row).collect()
    };
    let all = [
        rows("tagged gray, by headers alone", &by_headers),
        rows("tagged gray, with sluice.dev/propagation: trace", &by_trace),
        rows("no tag, with sluice.dev/propagation: trace", &untagged),
    ];
    table(&CHAIN, all.into_iter().flatten());
    let are = |report: &LoadReport, wanted: &str| {
        report.failed == 0 && report.chains.len() == 1 && report.chains.get(wanted) == Some(&REQUESTS)
    };
    story.claim(are(&by_headers, "v1 v1 v1"), "by headers alone every tag is lost behind the middle");
    story.claim(
        are(&by_trace, "v1 v1 gray") && counted >= REQUESTS as f64,
        "with the annotation every request gets the tag of its trace, and back is gray again",
    );
    story.claim(are(&untagged, "v1 v1 v1"), "and no request without a tag gets one");
    chain.end()
}
