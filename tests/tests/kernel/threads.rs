//! Lanes through services that pass on nothing at all: the kernel follows the threads that handle their requests.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::{Pod, Process, Service, eventually, test};

use crate::{
    propagation::{Chain, Seen, relay_java, relay_node, relay_py},
    python, script,
};

/// How many of a load's requests have a tag, and how many have none.
const HALF: u64 = 640;

/// How often each load is borne: once, or as `SLUICE_TEST_LOADS` says, for those who want to see a million requests.
fn loads() -> u32 {
    std::env::var("SLUICE_TEST_LOADS")
        .map_or(1, |loads| loads.parse().expect("SLUICE_TEST_LOADS is a number"))
}

/// What the page says of the relay's port: how its threads handle requests, and the thread that has shown it.
fn handling(chain: &Chain) -> Result<(String, Option<String>)> {
    let (_, overview) = chain.agent.get("/api/overview")?;
    let overview: Value = serde_json::from_str(&overview)?;
    let pods = overview["pods"].as_array().context("no pods")?;
    let relay = pods.iter().find(|pod| pod["name"] == "relay-1").context("no relay")?;
    let server = &relay["threads"][0];
    ensure!(server["port"] == 8080, "{relay}");
    let handling = server["handling"].as_str().context("nothing said")?;
    Ok((handling.to_owned(), server["thread"].as_str().map(str::to_owned)))
}

/// Asks until its trial is over, on the way of which nothing is guessed.
fn trusted(chain: &Chain) -> Result<()> {
    chain.propagation(Some("thread"))?;
    eventually("its threads are trusted", || {
        let seen = chain.load("none", 4)?;
        ensure!(seen.wrong == 0, "{seen:?}");
        let (handling, thread) = handling(chain)?;
        ensure!(handling == "by_thread", "{handling} {thread:?} {seen:?}");
        Ok(())
    })
}

/// Each request is in the lane of the one that it is sent for.
fn holds(name: &str, server: impl Fn(&Pod, &Service) -> Result<Process>) {
    test(name, |world| {
        let chain = Chain::open(world, server)?;
        trusted(&chain)?;
        for _ in 0..loads() {
            let seen = chain.load("none", 20)?;
            ensure!(seen == Seen { right: HALF, lost: 0, wrong: 0, baseline: HALF }, "{seen:?}");
        }
        let carried = chain.counted("sluice_tag_carriers_total", &[("carrier", "thread")])?;
        ensure!(carried >= HALF, "{carried}");
        // A trace goes before the thread, and says the same.
        let seen = chain.load("w3c", 20)?;
        ensure!((seen.right, seen.wrong) == (HALF, 0), "{seen:?}");
        ensure!(chain.counted("sluice_tag_conflicts_total", &[])? == 0);
        Ok(())
    });
}

/// Its threads do not tell what a request is sent for: that is noticed, said, and nothing is guessed meanwhile.
fn is_left_alone(name: &str, faults: &[&str], server: impl Fn(&Pod, &Service) -> Result<Process>) {
    test(name, |world| {
        let chain = Chain::open(world, server)?;
        chain.propagation(Some("thread"))?;
        let mut said = String::new();
        eventually("its threads are found not to tell", || {
            let seen = chain.load("none", 4)?;
            ensure!(seen.wrong == 0, "{seen:?}");
            said = handling(&chain)?.0;
            ensure!(faults.contains(&said.as_str()), "{said} {seen:?}");
            Ok(())
        })?;
        for _ in 0..loads() {
            let seen = chain.load("none", 20)?;
            ensure!(seen == Seen { right: 0, lost: HALF, wrong: 0, baseline: HALF }, "{seen:?}");
        }
        let (_, status, _) = chain.agent.sluice(&["status"])?;
        let wanted = "sluice.dev/propagation: thread has no effect on requests to port 8080 of Pod shop/relay-1: its thread";
        ensure!(status.contains(wanted), "{status}");
        ensure!(chain.agent.log().contains("nothing is known by threads"), "{}", chain.agent.log());
        // What is known by traces is known all the same.
        let seen = chain.load("w3c", 20)?;
        ensure!(seen.wrong == 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn python_with_threads() {
    holds("thread-py-threads", relay_py("threads"));
}

#[test]
fn java_with_a_pool_of_threads() {
    holds("thread-java-pool", relay_java("classic"));
}

#[test]
fn tomcat() {
    holds("thread-tomcat", relay_tomcat("sync"));
}

#[test]
fn gunicorn_with_threads() {
    holds("thread-gthread", relay_gunicorn(&["--worker-class", "gthread", "--threads", "64"]));
}

/// A thread that handles one request at a time cannot be told from one that runs others beside it, as gevent does: it is never
/// trusted.
fn is_never_trusted(name: &str, server: impl Fn(&Pod, &Service) -> Result<Process>) {
    test(name, |world| {
        let chain = Chain::open(world, server)?;
        chain.propagation(Some("thread"))?;
        eventually("its threads are followed", || {
            chain.load("none", 2)?;
            handling(&chain).map(drop)
        })?;
        let seen = chain.load("none", 20)?;
        ensure!(seen == Seen { right: 0, lost: HALF, wrong: 0, baseline: HALF }, "{seen:?}");
        let (handling, _) = handling(&chain)?;
        ensure!(handling == "on_trial", "{handling}");
        // Among so many it is by chance that all which it has to answer have a tag.
        ensure!(chain.one(&["x-mse-tag: gray"])? == "v1", "its tag is lost");
        let (_, status, _) = chain.agent.sluice(&["status"])?;
        ensure!(status.contains("Port 8080: 0 of 32 requests have shown"), "{status}");
        Ok(())
    });
}

#[test]
fn python_with_processes() {
    is_never_trusted("thread-py-fork", relay_py("prefork"));
}

#[test]
fn gunicorn_with_processes() {
    is_never_trusted("thread-gunicorn", relay_gunicorn(&["--workers", "8"]));
}

/// Nothing that one has shown is believed of another.
fn begins_anew(chain: &Chain) -> Result<()> {
    let seen = chain.load("none", 20)?;
    ensure!((seen.right, seen.wrong) == (0, 0), "{seen:?}");
    eventually("its threads are found not to tell", || {
        chain.load("none", 2)?;
        let (handling, _) = handling(chain)?;
        ensure!(handling == "multiplexes", "{handling}");
        Ok(())
    })
}

#[test]
fn another_process_on_the_port_begins_anew() {
    test("thread-restart", |world| {
        let mut chain = Chain::open(world, relay_java("classic"))?;
        trusted(&chain)?;
        chain.replace(relay_node)?;
        begins_anew(&chain)
    });
}

#[test]
fn another_program_in_the_process_begins_anew() {
    test("thread-exec", |world| {
        let chain = Chain::open(world, |pod, next| {
            let (host, port) = (next.ipv4.to_string(), next.port.to_string());
            let next = ["8080", host.as_str(), port.as_str()];
            let (first, second) = (script("relay.py"), script("relay.mjs"));
            let args = [&[first.as_str(), "threads"], &next[..], &["node", second.as_str()], &next].concat();
            pod.spawn("relay", python(), &args)
        })?;
        trusted(&chain)?;
        chain.server.signal(Signal::SIGUSR1)?;
        eventually("it listens again", || {
            let log = chain.server.log();
            ensure!(log.matches("listening").count() == 2, "{log}");
            Ok(())
        })?;
        begins_anew(&chain)
    });
}

/// A server that closes each connection, on a thread for each.
#[test]
fn one_request_a_thread() {
    test("thread-closing", |world| {
        let chain = Chain::open(world, |pod, next| {
            pod.serve(&["--name", "relay", "--blocking", "--next", &next.url()])
        })?;
        chain.propagation(Some("thread"))?;
        eventually("its threads are trusted", || {
            for _ in 0..20 {
                ensure!(chain.one(&[])? == "v1");
            }
            ensure!(chain.one(&["x-mse-tag: gray"])? == "gray");
            Ok(())
        })?;
        Ok(())
    });
}

/// An interim response is none.
#[test]
fn a_body_that_waits_to_be_asked_for() {
    test("thread-expect", |world| {
        let chain = Chain::open(world, relay_py("threads"))?;
        trusted(&chain)?;
        let expects = ["expect: 100-continue"];
        let ask = |headers: &[&str]| chain.one_with(&["-d", "body"], &[&expects, headers].concat());
        eventually("such requests are known", || {
            ensure!(ask(&["x-mse-tag: gray"])? == "gray");
            Ok(())
        })?;
        for _ in 0..5 {
            ensure!(ask(&[])? == "v1");
            ensure!(ask(&["x-mse-tag: gray"])? == "gray");
        }
        Ok(())
    });
}

#[test]
fn python_with_an_event_loop() {
    is_left_alone("thread-py-async", &["multiplexes"], relay_py("async"));
}

#[test]
fn node() {
    is_left_alone("thread-node", &["multiplexes"], relay_node);
}

#[test]
fn java_with_callbacks() {
    is_left_alone("thread-java-async", &["hands_over", "multiplexes"], relay_java("async"));
}

#[test]
fn tomcat_with_asynchronous_servlets() {
    is_left_alone("thread-tomcat-as", &["hands_over", "multiplexes"], relay_tomcat("async"));
}

/// What is known of a server is known of each kind of request by itself.
#[test]
fn tomcat_whose_servlets_are_asynchronous_for_some_paths() {
    test("thread-tomcat-mx", |world| {
        let chain = Chain::open(world, relay_tomcat("mixed"))?;
        trusted(&chain)?;
        for _ in 0..3 {
            let seen = chain.load_at("/async", "none", 4)?;
            ensure!(seen.wrong == 0, "{seen:?}");
        }
        let (handling, _) = handling(&chain)?;
        ensure!(handling != "by_thread", "{handling}");
        let seen = chain.load("none", 4)?;
        ensure!(seen.wrong == 0 && seen.right == 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn java_with_virtual_threads() {
    is_left_alone("thread-java-virt", &["hands_over", "multiplexes"], |pod, next| {
        let classes = concat!(env!("CARGO_TARGET_TMPDIR"), "/relay");
        let compiled = Command::new("javac").args(["-d", classes, &script("Relay.java")]).output()?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let java = std::env::var_os("SLUICE_JAVA_VIRTUAL").map_or_else(|| "java".into(), PathBuf::from);
        let (host, port) = (next.ipv4.to_string(), next.port.to_string());
        pod.spawn("relay", java, &["-cp", classes, "Relay", "virtual", "8080", &host, &port])
    });
}

fn relay_tomcat(kind: &'static str) -> impl Fn(&Pod, &Service) -> Result<Process> {
    move |pod, next| {
        let (host, port) = (next.ipv4.to_string(), next.port.to_string());
        let jars = "/usr/share/java/tomcat10-embed-core.jar";
        pod.spawn("relay", "java", &["-cp", jars, &script("TomcatRelay.java"), kind, "8080", &host, &port])
    }
}

fn relay_gunicorn(args: &'static [&'static str]) -> impl Fn(&Pod, &Service) -> Result<Process> {
    move |pod, next| {
        let clients = script("");
        let (host, port) = (format!("NEXT_HOST={}", next.ipv4), format!("NEXT_PORT={}", next.port));
        let python = python().display().to_string();
        let begin = [&host, &port, &python, "-m", "gunicorn", "--chdir", &clients, "--bind", "0.0.0.0:8080"];
        let server = ["--backlog", "512", "--log-file", "-", "relay_wsgi:application"];
        pod.spawn("relay", "env", &[&begin[..], args, &server[..]].concat())
    }
}
