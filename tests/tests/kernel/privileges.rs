//! The capabilities that the `DaemonSet` names are enough, and each of them is needed.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{Capture, Shop, test};

/// What `deploy/base/daemonset.yaml` gives the agent.
pub(crate) fn capabilities() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/daemonset.yaml");
    let daemon_set: Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array().context("no capabilities")?;
    added.iter().map(|name| Ok(name.as_str().context("no name")?.to_owned())).collect()
}

#[test]
fn those_of_the_daemon_set_are_enough() {
    test("capabilities-enough", |world| {
        let shop = Shop::open(world, Capture::Enabled)?;
        let mut agent = world.agent().capabilities(&capabilities()?).among_pods().start()?;
        shop.pods().try_for_each(|pod| agent.enrolled(pod))?;
        ensure!(shop.ask(&["x-mse-tag: gray"])?.versions() == "v1 gray v1 gray");
        ensure!(agent.redirected()? > 0);
        // Nothing was left undone quietly either.
        let log = agent.log();
        let complaints: Vec<_> =
            log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
        ensure!(complaints.is_empty(), "{complaints:#?}");
        agent.terminate()?;
        ensure!(agent.wait()?.success(), "{}", agent.log());
        Ok(())
    });
}

#[test]
fn none_of_them_can_be_left_out() {
    test("capabilities-needed", |world| {
        let all = capabilities()?;
        ensure!(!all.is_empty());
        for without in &all {
            let rest: Vec<String> = all.iter().filter(|name| *name != without).cloned().collect();
            let mut agent = world.agent().capabilities(&rest).spawn()?;
            let status = agent.wait()?;
            ensure!(!status.success(), "it runs without {without}");
            let log = agent.log();
            ensure!(log.contains(&format!("CAP_{without}")), "without {without} it says: {log}");
        }
        Ok(())
    });
}
