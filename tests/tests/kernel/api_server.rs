//! The agent watches an API server that does not always answer, while requests are on their way.

use anyhow::{Result, ensure};
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
        world.api(ApiServer::go)?;
        let mut agent = world.agent().spawn()?;
        eventually("the agent says what is missing", || {
            let (status, body) = agent.get("/readyz")?;
            ensure!(
                status == 503 && body.contains("no pod is enrolled until it is there"),
                "{status} {body}"
            );
            Ok(())
        })?;
        ensure!(agent.log().matches("no pod is enrolled until it is there").count() == 1, "{}", agent.log());
        world.api(ApiServer::come)?;
        agent.ready()?;
        agent.enrolled(&client)?;
        Ok(())
    });
    Ok(())
}
