//! A lane through services that pass on no tag: lost by headers alone, kept with `sluice.dev/propagation`, `trace` for one that
//! passes on the id of its trace, and `thread` for one that passes on nothing.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, App, LANE, Load, LoadReport, Service, Shop, World, eventually};

use crate::{
    TAG,
    story::{Story, say, table},
    words,
};

/// The services of a chain, in the order of the calls.
const CHAIN: [&str; 3] = ["front", "middle", "back"];
const REQUESTS: u64 = 200;

/// A service in the middle that passes on no tag, and by what its requests are known all the same.
struct Middle {
    name: &'static str,
    front: &'static str,
    /// For `sluice-service`.
    args: &'static str,
    /// Of `sluice.dev/propagation`.
    propagation: &'static str,
    /// As `sluice_tag_carriers_total` says it.
    carrier: &'static str,
}

/// It passes on `traceparent`.
const TRACED: Middle = Middle {
    name: "middle",
    front: "front",
    args: "--no-baggage",
    propagation: "trace",
    carrier: "trace_id",
};
/// It is a blocking server, and passes on nothing.
const PLAIN: Middle = Middle {
    name: "plain",
    front: "front-of-plain",
    args: "--blocking",
    propagation: "thread",
    carrier: "thread",
};

/// `front -> middle -> back`, of which `back` also exists in the lane.
struct Chain<'w> {
    shop: &'w Shop,
    kind: &'static Middle,
    /// Their Services.
    services: [Service; 2],
    front: App,
    middle: App,
}

impl<'w> Chain<'w> {
    fn open(
        world: &World,
        shop: &'w Shop,
        agent: &Agent,
        kind: &'static Middle,
        back: &Service,
    ) -> Result<Self> {
        let service = |name| world.service("shop", name).port("http", 80, 8080).apply();
        let services = [service(kind.front)?, service(kind.name)?];
        let front = App::start(world, kind.front, "v1", Some(&services[1].url()))?;
        let middle = App::start_with(world, kind.name, "v1", Some(&back.url()), &[kind.args])?;
        middle.pod.set_ready(true)?;
        for app in [&front, &middle] {
            agent.enrolled(&app.pod)?;
        }
        Ok(Self { shop, kind, services, front, middle })
    }

    fn ask(&self, args: &[&str]) -> Result<LoadReport> {
        let requests = REQUESTS.to_string();
        let args = [&["--requests", &requests, "--connections", "4", "--new-connections"], args].concat();
        Load::start(&self.shop.client, &self.services[0].url(), &args)?.finish()
    }

    /// The middle's pod asks for what its requests are sent for to be known.
    fn annotate(&self) -> Result<()> {
        let annotations = json!({ "sluice.dev/propagation": self.kind.propagation });
        self.middle.pod.edit(|pod| pod["metadata"]["annotations"] = annotations)
    }

    /// Waits until what is sent goes over new connections. Those to a Service itself are direct, older than what the agent knows of
    /// it; the front's to the middle's pod are the agent's, and are not read if they are older than the annotation.
    fn reconnect(&self) -> Result<()> {
        eventually("idle connections are closed", || {
            for (app, port) in [(&self.front, 80), (&self.middle, 80), (&self.front, 8080)] {
                let open = app.pod.connections(port)?;
                ensure!(open == 0, "{} has {open} to port {port}", app.pod.name);
            }
            Ok(())
        })
    }

    /// Shows what becomes of tags, before and after the annotation.
    fn show(&self, agent: &Agent, story: &mut Story) -> Result<()> {
        // Until all pods are known to be Ready somebody may be missing.
        eventually("the chain responds", || {
            let report = self.ask(&[])?;
            ensure!(report.failed == 0 && report.chains.keys().eq(["v1 v1 v1"]), "{report:?}");
            Ok(())
        })?;
        self.reconnect()?;
        let by_headers = self.ask(&["--header", TAG])?;
        self.annotate()?;
        eventually("what comes to the middle is read", || {
            self.reconnect()?;
            let report = self.ask(&["--header", TAG])?;
            ensure!(report.failed == 0 && report.chains.keys().eq(["v1 v1 gray"]), "{report:?}");
            Ok(())
        })?;
        let pod = format!("{}-v1", self.kind.name);
        let carried = || -> Result<f64> {
            let labels = [("source_pod", pod.as_str()), ("carrier", self.kind.carrier)];
            Ok(agent.metrics()?.sum("sluice_tag_carriers_total", &labels))
        };
        let before = carried()?;
        let by_cause = self.ask(&["--header", TAG])?;
        let counted = carried()? - before;
        let untagged = self.ask(&[])?;
        let rows = |what: &str, report: &LoadReport| -> Vec<_> {
            let row = |(chain, count): (&String, &u64)| (format!("{count} x {what}"), words(chain));
            report.chains.iter().map(row).collect()
        };
        let with = format!("with sluice.dev/propagation: {}", self.kind.propagation);
        let all = [
            rows("tagged gray, by headers alone", &by_headers),
            rows(&format!("tagged gray, {with}"), &by_cause),
            rows(&format!("no tag, {with}"), &untagged),
        ];
        table(&CHAIN, all.into_iter().flatten());
        let are = |report: &LoadReport, wanted: &str| {
            report.failed == 0 && report.chains.len() == 1 && report.chains.get(wanted) == Some(&REQUESTS)
        };
        story.claim(are(&by_headers, "v1 v1 v1"), "by headers alone every tag is lost behind the middle");
        story.claim(
            are(&by_cause, "v1 v1 gray") && counted >= REQUESTS as f64,
            "with the annotation every request gets the tag of what it is sent for, and back is gray again",
        );
        story.claim(are(&untagged, "v1 v1 v1"), "and no request without a tag gets one");
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.services.iter().try_for_each(Service::delete)?;
        [self.front, self.middle].into_iter().try_for_each(end)
    }
}

/// A program ends before its pod.
fn end(App { process, pod }: App) -> Result<()> {
    drop(process);
    pod.delete()
}

pub(crate) fn show(world: &World, shop: &Shop, agent: &Agent, story: &mut Story) -> Result<()> {
    story.chapter("Services that pass on no tag");
    let back = world.service("shop", "back").port("http", 80, 8080).apply()?;
    let backs = ["v1", LANE].map(|version| App::start(world, "back", version, None));
    let backs = backs.into_iter().collect::<Result<Vec<_>>>()?;
    for app in &backs {
        agent.enrolled(&app.pod)?;
    }
    for (kind, passes_on) in [
        (&TRACED, "traceparent, and no tag header, baggage or tracestate"),
        (&PLAIN, "nothing at all, and handles each request on one thread"),
    ] {
        say(&format!("{}, back also in lane {LANE}; the middle passes on {passes_on}:", CHAIN.join(" -> ")));
        let chain = Chain::open(world, shop, agent, kind, &back)?;
        chain.show(agent, story)?;
        chain.end()?;
    }
    back.delete()?;
    backs.into_iter().try_for_each(end)
}
