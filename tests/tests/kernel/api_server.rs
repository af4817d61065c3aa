//! The agent watches an API server that does not always answer, while requests are on their way.

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::{Capture, Load, World, api_server::ApiServer, eventually, test_in};

#[test]
fn an_api_server_that_goes_away_and_comes_back() -> Result<()> {
    let world = World::watched("api-away")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let one = world.pod("shop", "web-one").label("app", "web").start()?;
        let _one = one.serve(&["--name", "web", "--version", "one"])?;
        let web = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let load = Load::start(&client, &web.url(), &["--connections", "4"])?;

        world.api(ApiServer::go)?;
        eventually("the agent has noticed", || {
            ensure!(agent.log().contains("the last snapshot stays active"), "{}", agent.log());
            Ok(())
        })?;
        // What changes in the meantime is not known; what was known goes on.
        let two = world.pod("shop", "web-two").label("app", "web").start()?;
        let _two = two.serve(&["--name", "web", "--version", "two"])?;
        ensure!(agent.get("/readyz")?.0 == 200, "an agent that governs is ready");
        world.api(ApiServer::come)?;
        eventually("both answer", || {
            let report = Load::start(&client, &web.url(), &["--requests", "50"])?.finish()?;
            ensure!(report.chains.keys().eq(["one", "two"]), "{report:?}");
            Ok(())
        })?;
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        // Once that it is away, once that it no longer is: when the last of the watches has come back, too.
        eventually("the agent has noticed that it is back", || {
            let told = agent.log().matches("the last snapshot stays active").count();
            ensure!(told == 2, "{told} lines:\n{}", agent.log());
            Ok(())
        })
    });
    Ok(())
}

#[test]
fn an_api_server_that_is_away_at_the_start() -> Result<()> {
    let world = World::watched("api-late")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let client = world.pod("shop", "client").start()?;
        // What keeps other pods off the node meanwhile.
        let taint = "sluice.dev/agent-not-ready";
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": world.node_name() },
            "spec": { "taints": [{ "key": taint, "effect": "NoSchedule" }] },
        });
        world.api(|api| {
            api.apply("nodes", node);
            api.go()
        })?;
        let args = ["--node", world.node_name(), "--startup-taint", taint];
        let mut agent = world.agent().args(&args).spawn()?;
        eventually("the agent says what is missing", || {
            let (status, body) = agent.get("/readyz")?;
            ensure!(
                status == 503 && body.contains("until then pods are enrolled by the state file"),
                "{status} {body}"
            );
            Ok(())
        })?;
        ensure!(
            agent.log().matches("until then pods are enrolled by the state file").count() == 1,
            "{}",
            agent.log()
        );
        world.api(ApiServer::come)?;
        agent.ready()?;
        agent.enrolled(&client)?;
        eventually("the taint is taken off", || {
            let node = world.api(|api| Ok(api.get("nodes", "", world.node_name())))?;
            let taints = node.map(|node| node["spec"]["taints"].clone()).unwrap_or_default();
            ensure!(taints == json!([]), "{taints}:\n{}", agent.log());
            Ok(())
        })
    });
    Ok(())
}

#[test]
fn an_agent_that_is_started_anew_while_the_api_server_is_away() -> Result<()> {
    let world = World::watched("api-kept")?;
    test_in(&world, |world| {
        world.namespace("shop", Capture::Enabled)?;
        let web_pod = world.pod("shop", "web-one").label("app", "web").start()?;
        let _web = web_pod.serve(&["--name", "web"])?;
        let web = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let client = world.pod("shop", "client").start()?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy",
            "metadata": { "namespace": "shop", "name": "web" },
            "spec": {
                "targetRefs": [{ "name": "web" }],
                "rules": [{ "name": "ours", "from": [{ "namespace": "shop" }] }],
            },
        }))?;
        let stranger_gets = |wanted: &str| {
            let url = format!("http://{}:8080", web_pod.ipv4());
            let ask = ["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url];
            let output = world.node().command("curl")?.args(ask).output()?;
            let status = String::from_utf8_lossy(&output.stdout);
            ensure!(status == wanted, "{status}, not {wanted}");
            Ok(())
        };
        let file = world.directory().join("state.gz");
        let args = ["--state-file", &file.display().to_string()];
        let mut before = world.agent().args(&args).start()?;
        before.enrolled(&client)?;
        eventually("the state is kept", || {
            ensure!(file.exists(), "there is no file yet:\n{}", before.log());
            Ok(())
        })?;
        eventually("who may call is enforced", || stranger_gets("403"))?;
        world.api(ApiServer::go)?;
        before.kill()?;
        stranger_gets("200")?;

        let mut agent = world.agent().args(&args).spawn()?;
        agent.enrolled(&client)?;
        eventually("who may call is enforced again", || stranger_gets("403"))?;
        let report =
            Load::start(&client, &web.url(), &["--connections", "2", "--requests", "50"])?.finish()?;
        ensure!(report.failed == 0 && report.ok == 50, "{report:?}");
        ensure!(agent.redirected()? >= 2, "they were managed:\n{}", agent.log());
        ensure!(agent.metrics()?.sum("sluice_snapshot_restored", &[]) > 0.5);
        let (_, status, _) = agent.sluice(&["status"])?;
        ensure!(
            status.contains("NOT READY") && status.contains("the agent runs on the state file"),
            "{status}"
        );
        let (status, body) = agent.get("/readyz")?;
        ensure!(status == 503 && body.contains("runs on the state file"), "{status} {body}");

        let load = Load::start(&client, &web.url(), &["--connections", "2"])?;
        world.api(ApiServer::come)?;
        agent.ready()?;
        ensure!(agent.metrics()?.sum("sluice_snapshot_restored", &[]) < 0.5);
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        ensure!(!agent.log().contains("pod withdrawn"), "nothing is gone in between:\n{}", agent.log());
        Ok(())
    });
    Ok(())
}
