//! A trace over two hops, and what the access log says of them.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{App, Capture, World, ask, collector::Collector, eventually, test_with_both};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A pod that serves, and calls `next`.
fn start(world: &World, name: &str, next: Option<&str>) -> Result<App> {
    let pod = world.pod("shop", &format!("{name}-1")).label("app", name).start()?;
    let mut args = vec!["--name", name, "--copy-trace", "--next-idle", "500"];
    args.extend(next.into_iter().flat_map(|next| ["--next", next]));
    let process = pod.serve(&args)?;
    Ok(App { process, pod })
}

#[test]
fn two_hops_are_one_trace() {
    test_with_both("traces", |world| {
        world.namespace("shop", Capture::Enabled)?;
        let back = world.service("shop", "back").port("http", 80, 8080).apply()?;
        let front = world.service("shop", "front").port("http", 80, 8080).apply()?;
        let back_app = start(world, "back", None)?;
        let front_app = start(world, "front", Some(&back.url()))?;
        let client = world.pod("shop", "client").start()?;
        let collector = Collector::start_in(&world.node().netns)?;
        let log = world.directory().join("access.log");
        let mut agent = world
            .agent()
            .args(&["--otlp-traces", &collector.endpoint(), "--access-log", "json"])
            .args(&["--access-log-file", &log.display().to_string(), "--access-log-ratio", "0"])
            .start()?;
        for pod in [&client, &front_app.pod, &back_app.pod] {
            agent.enrolled(pod)?;
        }
        // Only what one of the services is asked is logged.
        world.edit("Service", "shop", "back", |service| {
            service["metadata"]["annotations"]["sluice.dev/access-log"] = "enabled".into();
        })?;
        eventually("the annotation is in force", || {
            ask(&client, &front.url(), &[])?;
            ensure!(!fs::read_to_string(&log)?.is_empty(), "nothing is logged");
            Ok(())
        })?;

        let url = format!("{}/?headers", front.url());
        let sampled = format!("traceparent: 00-{TRACE}-{CALLER}-01");
        let answer = ask(&client, &url, &[&sampled])?;
        let spans = collector.trace(TRACE, 4)?;
        let by_id: BTreeMap<_, _> = spans.iter().map(|span| (&*span.id, span)).collect();
        let seen = |hop: usize| -> Result<&str> {
            let trace = answer.chain.get(hop).and_then(|hop| hop.headers.get("traceparent"));
            let trace = trace.with_context(|| format!("no trace at hop {hop}: {answer:?}"))?;
            trace.split('-').nth(2).context("no span")
        };
        // From the last to the first, each by what the one behind it says of its parent.
        let mut id = seen(1)?;
        let mut way = Vec::new();
        while let Some(span) = by_id.get(id) {
            way.push((span.client, span.attribute("server.address"), span.attribute("sluice.source.pod")));
            id = &span.parent;
        }
        ensure!(
            way == [
                (true, "back.shop", ""),
                (false, "back.shop", "front-1"),
                (true, "front.shop", ""),
                (false, "front.shop", "client"),
            ],
            "{spans:#?}"
        );
        ensure!(id == CALLER, "the first span's parent is {id}");
        ensure!(by_id[seen(0)?].client, "the first hop's caller is no attempt: {spans:#?}");
        for span in &spans {
            ensure!(span.resource.get("service.name").is_some_and(|name| name == "sluice"), "{span:?}");
        }

        // The line of the same request, by the same ids.
        let own = spans.iter().find(|span| span.attribute("sluice.source.pod") == "front-1");
        let own = own.context("no span of the second hop")?;
        eventually("the request is logged", || {
            let text = fs::read_to_string(&log)?;
            let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            ensure!(lines.iter().all(|line| line["service"] == "back.shop:80"), "{text}");
            let line = lines.iter().find(|line| line["trace_id"] == TRACE);
            let line = line.with_context(|| format!("there is {text}"))?;
            ensure!(line["span_id"] == *own.id && line["source_pod"] == "front-1", "{line}");
            Ok(())
        })?;

        // What is not sampled is left alone, over both hops.
        let unsampled = format!("00-{TRACE}-{CALLER}-00");
        let answer = ask(&client, &url, &[&format!("traceparent: {unsampled}")])?;
        for hop in &answer.chain {
            ensure!(hop.headers.get("traceparent") == Some(&unsampled), "{hop:?}");
        }
        // An agent that has stopped has told all that it had to tell: no other request has spans.
        agent.terminate()?;
        agent.wait()?;
        ensure!(collector.spans().len() == 4, "{:#?}", collector.spans());
        Ok(())
    });
}
