//! What the agent does with a machine or a command line that does not fit: one line, and out of the way.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use sluice_tests::{World, binary, test};

fn agent(world: &World, args: &[&str]) -> Result<Output> {
    let program = std::env::var_os("SLUICE_BIN").map_or_else(|| binary("sluice"), |path| Ok(path.into()))?;
    let mut command = world.node().command(program)?;
    Ok(command.env("NO_COLOR", "1").arg("agent").args(args).output()?)
}

/// Fails with this status, and with one line that names all of `words`.
fn one_line(output: &Output, status: i32, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{output:?}");
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(lines.len() == 1, "{} lines: {said}", lines.len());
    ensure!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
    Ok(())
}

#[test]
fn bad_arguments_are_one_line_and_exit_2() {
    test("arguments", |world| {
        let manifests = world.manifests().display().to_string();
        one_line(&agent(world, &["--manifests", &manifests, "--colour", "red"])?, 2, &["--colour"])?;
        one_line(&agent(world, &["--manifests", "/no/such/directory"])?, 2, &["/no/such/directory"])?;
        one_line(&agent(world, &["--manifests", &manifests, "--workers", "0"])?, 2, &["--workers", "0"])?;
        one_line(&agent(world, &["--manifests", &manifests, "--admin", "here"])?, 2, &["--admin", "here"])
    });
}

#[test]
fn a_cgroup_that_is_none_is_named() {
    test("no-cgroup", |world| {
        let manifests = world.manifests().display().to_string();
        for directory in ["/no/such/cgroup", &manifests] {
            let output = agent(
                world,
                &["--manifests", &manifests, "--pods-cgroup", directory, "--admin-socket", "none"],
            )?;
            ensure!(!output.status.success(), "{output:?}");
            let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            ensure!(said.contains(directory) && !said.contains("panicked"), "{said}");
        }
        Ok(())
    });
}

#[test]
fn without_capabilities_it_says_which() {
    test("capabilities", |world| {
        let program =
            std::env::var_os("SLUICE_BIN").map_or_else(|| binary("sluice"), |path| Ok(path.into()))?;
        let manifests = world.manifests().display().to_string();
        let pods = world.pods_cgroup().display().to_string();
        let output = Command::new("setpriv")
            .args(["--bounding-set", "-all", "--inh-caps", "-all", "--"])
            .arg(program)
            .args(["agent", "--manifests", &manifests, "--pods-cgroup", &pods, "--admin", "127.0.0.1:0"])
            .args(["--admin-socket", "none"])
            .output()?;
        ensure!(!output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("CAP_") && !said.contains("panicked"), "{said}");
        Ok(())
    });
}

#[test]
fn a_taken_admin_address_is_named() {
    test("admin-taken", |world| {
        let place = world.node();
        let taken = place.netns.run(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
        let admin = taken.local_addr()?.to_string();
        let manifests = world.manifests().display().to_string();
        let pods = world.pods_cgroup().display().to_string();
        let output = agent(world, &["--manifests", &manifests, "--pods-cgroup", &pods, "--admin", &admin])?;
        ensure!(!output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains(&admin), "{said}");
        Ok(())
    });
}
