//! Limits of the whole cluster, with a real Redis as their store: they hold, for whoever else has a part of them; and the
//! store that dies, hangs and comes back fails no request.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use sluice_tests::{
    Agent, App, Capture, Load, LoadReport, Pod, Process, Relay, Service, World, bench::proxies::program,
    eventually, test,
};

use crate::{python, script};

const PASSWORD: &str = "open sesame";
/// Requests a second that the limit allows.
const RATE: u64 = 100;

fn source(file: &str) -> String {
    format!("{}/../agent/src/lease/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Starts a Redis in a pod that is not enrolled.
fn store(world: &World, pod: &Pod) -> Result<Process> {
    store_with(world, pod, &[])
}

fn store_with(world: &World, pod: &Pod, more: &[&str]) -> Result<Process> {
    let (address, folder) = (pod.ipv4().to_string(), world.directory().display().to_string());
    let args = [
        ["--bind", &address],
        ["--requirepass", PASSWORD],
        ["--protected-mode", "no"],
        ["--save", ""],
        ["--appendonly", "no"],
        ["--dir", &folder],
    ];
    let mut process = pod.spawn("redis", program("redis-server")?, &[args.as_flattened(), more].concat())?;
    process.says("Ready to accept connections")?;
    Ok(process)
}

struct Shop {
    service: Service,
    _app: App,
    client: Pod,
    store: Pod,
    agent: Agent,
}

impl Shop {
    fn open(world: &World) -> Result<(Self, Process)> {
        Self::open_with(world, "redis", "", |_| Ok((Vec::new(), Vec::new())))
    }

    /// `more`: what the store and the agent are told besides, by the store's address.
    fn open_with(
        world: &World,
        scheme: &str,
        path: &str,
        more: impl FnOnce(&str) -> Result<(Vec<String>, Vec<String>)>,
    ) -> Result<(Self, Process)> {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("stores", Capture::Unmentioned)?;
        let app = App::start(world, "web", "v1", None)?;
        let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let store_pod = world.pod("stores", "redis").start()?;
        let (of_store, of_agent) = more(&store_pod.ipv4().to_string())?;
        let of_store: Vec<&str> = of_store.iter().map(String::as_str).collect();
        let redis = store_with(world, &store_pod, &of_store)?;
        world.apply(json!({
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "TrafficPolicy",
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rateLimits": [{"name": "all", "requests": RATE, "scope": "Cluster"}],
            },
        }))?;
        let client = world.pod("shop", "client").start()?;
        let password = world.directory().join("password");
        std::fs::write(&password, format!("{PASSWORD}\n"))?;
        let address = format!("{scheme}://{}{path}", store_pod.ipv4());
        let password = password.display().to_string();
        let mut args = vec!["--limit-store-password-file", &password];
        if !of_agent.iter().any(|arg| arg == "--limit-store") {
            args.extend(["--limit-store", &address]);
        }
        args.extend(of_agent.iter().map(String::as_str));
        let agent = world.agent().args(&args).start()?;
        agent.enrolled(&client)?;
        Ok((Self { service, _app: app, client, store: store_pod, agent }, redis))
    }

    fn counted(&self, how: &str) -> Result<()> {
        eventually(&format!("the limit is counted as {how}"), || {
            let limits = self.agent.metrics()?.sum("sluice_cluster_rate_limits", &[("counted", how)]);
            ensure!(limits > 0.5, "{limits}: {}", self.agent.log());
            Ok(())
        })
    }

    /// The store fails, and it is told in this way.
    fn fails(&self, reason: &str, told: &str) -> Result<()> {
        eventually(&format!("the store fails: {reason}"), || {
            let metrics = self.agent.metrics()?;
            let limits = metrics.sum("sluice_limit_store_failing_limits", &[("reason", reason)]);
            ensure!(limits > 0.5, "{limits}: {}", self.agent.log());
            let (_, status, _) = self.agent.sluice(&["status"])?;
            ensure!(status.contains(told), "{told}: {status}");
            Ok(())
        })
    }

    fn fails_nowhere(&self) -> Result<()> {
        eventually("the store does not fail", || {
            let limits = self.agent.metrics()?.sum("sluice_limit_store_failing_limits", &[]);
            ensure!(limits < 0.5, "{limits}: {}", self.agent.log());
            Ok(())
        })
    }

    fn is_connected(&self) -> Result<bool> {
        Ok(self.agent.metrics()?.sum("sluice_limit_store_connected", &[]) > 0.5)
    }

    /// Load far above the limit.
    fn load(&self) -> Result<Load> {
        Load::start(&self.client, &self.service.url(), &["--connections", "8", "--rate", "800"])
    }

    /// Load for some seconds: how many requests were admitted, and in what time at most.
    fn admitted(&self, seconds: u64) -> Result<(f64, f64)> {
        let begin = Instant::now();
        let load = self.load()?;
        thread::sleep(Duration::from_secs(seconds));
        let report = load.stop()?;
        only_limited(&report)?;
        Ok((report.ok as f64, begin.elapsed().as_secs_f64()))
    }

    /// Another agent, which is asked for as much and uses all that it gets.
    fn other(&self) -> Result<Process> {
        let mut command = self.store.command(python())?;
        let (rate, host) = (RATE.to_string(), self.store.ipv4().to_string());
        let key = "sluice:limit:{web.shop:80 all}";
        command.args([&script("limit_store.py"), "hold", &source("script.lua"), key, &rate, "800", &host]);
        command.arg(PASSWORD).stdin(Stdio::piped());
        let mut process = self.store.spawn_command("other", &mut command)?;
        process.says("holding")?;
        Ok(process)
    }
}

/// No request failed but those that the limit rejected.
fn only_limited(report: &LoadReport) -> Result<()> {
    ensure!(report.ok > 0, "{report:?}");
    ensure!(report.failures.keys().all(|kind| kind == "status 429 rate_limited"), "{report:?}");
    Ok(())
}

#[test]
fn a_limit_of_the_whole_cluster_is_shared_and_outlives_its_store() {
    test("limit-store", |world| {
        let (shop, mut redis) = Shop::open(world)?;
        let rate = RATE as f64;
        shop.counted("leased")?;
        ensure!(shop.is_connected()?);
        let (_, said, _) = shop.agent.sluice(&["explain", "--pod", "shop/client", "--to", "web.shop:80"])?;
        ensure!(said.contains("this node holds"), "{said}");

        // Alone it has all of it, and another one has its part.
        let (admitted, seconds) = shop.admitted(5)?;
        ensure!(admitted <= rate * (seconds * 1.05 + 1.1), "{admitted} in {seconds}");
        ensure!(admitted >= rate * 4.0, "{admitted} in {seconds}");
        let begin = Instant::now();
        let mut other = shop.other()?;
        let (admitted, _) = shop.admitted(6)?;
        // So far, so that it is known when the store dies.
        let load = shop.load()?;
        thread::sleep(Duration::from_secs(1));
        redis.kill()?;
        shop.counted("last_share")?;
        let used = begin.elapsed().as_secs_f64();
        ensure!(admitted <= rate * (used * 0.75 + 1.1), "{admitted} in {used}");
        ensure!(admitted >= rate * 6.0 * 0.25, "{admitted}");
        only_limited(&load.stop()?)?;
        ensure!(other.wait().is_ok() && !shop.is_connected()?);

        // The last share: half of it.
        let (admitted, seconds) = shop.admitted(5)?;
        ensure!(admitted <= rate * (seconds * 0.7 + 0.6), "{admitted} in {seconds}");
        ensure!(admitted >= rate * 5.0 * 0.3, "{admitted} in {seconds}");
        let log = shop.agent.log();
        ensure!(log.matches("scope Cluster fails").count() == 1, "{log}");
        let (_, status, _) = shop.agent.sluice(&["status"])?;
        ensure!(status.contains("goes on with its last share"), "{status}");

        // One that has forgotten everything.
        redis = store(world, &shop.store)?;
        shop.counted("leased")?;
        let (admitted, seconds) = shop.admitted(5)?;
        ensure!(admitted <= rate * (seconds * 1.05 + 1.1), "{admitted} in {seconds}");
        ensure!(admitted >= rate * 3.0, "{admitted} in {seconds}");

        // One that hangs, and goes on.
        let load = shop.load()?;
        redis.signal(Signal::SIGSTOP)?;
        shop.counted("last_share")?;
        redis.signal(Signal::SIGCONT)?;
        shop.counted("leased")?;
        only_limited(&load.stop()?)?;
        Ok(())
    });
}

/// The part of a report that is judged: after what it takes to settle.
const SETTLED: std::ops::Range<usize> = 4..14;
/// Requests a second that are asked for in all, by whomever.
const OFFERED: u64 = 800;

/// So many seconds of load on the service, of so many requests a second.
fn load_of(client: &Pod, url: &str, rate: u64, seconds: usize) -> Result<Load> {
    let (rate, seconds) = (rate.to_string(), seconds.to_string());
    Load::start(client, url, &["--connections", "8", "--rate", &rate, "--seconds", &seconds])
}

/// What was admitted, and what was asked for, in the settled seconds of a report.
fn settled(report: &LoadReport) -> Result<(u64, u64)> {
    only_limited(report)?;
    let seconds = report.timeline.get(SETTLED).with_context(|| format!("{report:?}"))?;
    let sum = |counts: &dyn Fn(&str) -> bool| {
        seconds.iter().flatten().filter(|(what, _)| counts(what)).map(|(_, count)| count).sum()
    };
    Ok((sum(&|what| !what.starts_with("status ")), sum(&|_| true)))
}

/// Together it is the limit, give or take 5 % and a burst. What was not asked for cannot be admitted.
fn is_the_limit(what: &str, (admitted, offered): (u64, u64), seconds: f64) -> Result<()> {
    let (wanted, burst) = (RATE as f64 * seconds, RATE as f64);
    let counted = format!("{what}: {admitted} of {offered} in {seconds} s");
    ensure!(admitted as f64 <= wanted * 1.05 + burst, "{counted}");
    ensure!((offered as f64) < 2.0 * wanted || admitted as f64 >= wanted * 0.95 - burst, "{counted}");
    Ok(())
}

#[test]
fn the_agents_of_two_nodes_share_a_limit_however_the_load_moves() {
    test("limit-agents", |world| {
        let here = world.node_name().to_owned();
        let node = move |_: &str| Ok((Vec::new(), vec!["--node".to_owned(), here]));
        let (shop, _redis) = Shop::open_with(world, "redis", "", node)?;
        let other_client = world.pod("shop", "other-client").on("other").start()?;
        let store = format!("redis://{}", shop.store.ipv4());
        let password = world.directory().join("password").display().to_string();
        let args = ["--limit-store", &store, "--limit-store-password-file", &password];
        let other = world.agent().on("other").args(&args).start()?;
        other.enrolled(&other_client)?;
        let shop = &shop;
        let (clients, agents) = ([&shop.client, &other_client], [&shop.agent, &other]);
        shop.counted("leased")?;
        let url = shop.service.url();
        let share = |agent: &Agent| -> Result<f64> {
            Ok(agent.metrics()?.sum("sluice_cluster_rate_limit_share", &[("rule", "all")]) / RATE as f64)
        };

        // Both are asked for as much.
        let loads = clients.map(|client| load_of(client, &url, OFFERED / 2, SETTLED.end + 1));
        eventually("each agent has a good part", || {
            for agent in agents {
                let share = share(agent)?;
                ensure!((0.3..0.7).contains(&share), "{share}");
            }
            Ok(())
        })?;
        let mut counted = (0, 0);
        for load in loads {
            let (admitted, offered) = settled(&load?.finish()?)?;
            counted = (counted.0 + admitted, counted.1 + offered);
        }
        is_the_limit("evenly", counted, SETTLED.len() as f64)?;

        // All of it is asked of one.
        let load = load_of(&shop.client, &url, OFFERED, SETTLED.end + 1)?;
        eventually("it has nearly all", || {
            let shares = [share(&shop.agent)?, share(&other)?];
            ensure!(shares[0] > 0.8 && shares[1] < 0.2, "{shares:?}");
            Ok(())
        })?;
        is_the_limit("one", settled(&load.finish()?)?, SETTLED.len() as f64)?;

        // Of one, then of the other, and so on: five turns of two seconds, after two to settle.
        let mut counted = (0, 0, 0.0);
        for turn in 0..7 {
            let begin = Instant::now();
            let report = load_of(clients[turn % 2], &url, OFFERED, 2)?.finish()?;
            only_limited(&report)?;
            if turn >= 2 {
                let seconds = begin.elapsed().as_secs_f64();
                counted = (counted.0 + report.ok, counted.1 + report.sent, counted.2 + seconds);
            }
        }
        is_the_limit("in turns", (counted.0, counted.1), counted.2)
    });
}

/// Says something to a store.
fn tell(pod: &Pod, words: &[&str]) -> Result<()> {
    let host = pod.ipv4().to_string();
    let said =
        pod.run("redis-cli", &[&["-h", &host, "-a", PASSWORD, "--no-auth-warning", "-e"], words].concat())?;
    ensure!(["OK", "1"].contains(&said.trim()), "{words:?}: {said}");
    Ok(())
}

/// A replica takes the place of a primary that has died, behind the same address, as with a Service.
#[test]
fn a_limit_outlives_a_fail_over_of_its_store() {
    test("limit-fail-over", |world| {
        let mut relay = None;
        let (shop, mut primary) = Shop::open_with(world, "redis", "", |host| {
            let netns = world.node().netns;
            let relay = relay.insert(Relay::start(&netns, format!("{host}:6379").parse()?)?);
            Ok((Vec::new(), vec!["--limit-store".to_owned(), format!("redis://{}", relay.address)]))
        })?;
        let relay = relay.context("there is a relay")?;
        let second = world.pod("stores", "second").start()?;
        let first = shop.store.ipv4().to_string();
        let of_replica = ["--masterauth", PASSWORD, "--replicaof", &first, "6379"];
        let mut replica = store_with(world, &second, &of_replica)?;
        replica.says("Finished with success")?;
        shop.counted("leased")?;
        shop.fails_nowhere()?;
        let begin = Instant::now();
        let load = shop.load()?;
        thread::sleep(Duration::from_secs(2));
        primary.kill()?;
        shop.counted("last_share")?;
        // The address is the replica's before that is told to be the primary.
        relay.point((second.ipv4(), 6379).into());
        shop.fails("read_only", "it is a replica, which may only be read")?;
        shop.counted("last_share")?;
        tell(&second, &["REPLICAOF", "NO", "ONE"])?;
        shop.counted("leased")?;
        shop.fails_nowhere()?;
        thread::sleep(Duration::from_secs(2));
        let report = load.stop()?;
        only_limited(&report)?;
        // There was no second burst.
        let (admitted, seconds) = (report.ok as f64, begin.elapsed().as_secs_f64());
        ensure!(admitted <= RATE as f64 * (seconds * 1.05 + 1.3), "{admitted} in {seconds}");
        ensure!(admitted >= RATE as f64 * (seconds * 0.6 - 1.0), "{admitted} in {seconds}");
        Ok(())
    });
}

/// Each of what a store may answer instead is told by its name, and everything is as before once it is over.
#[test]
fn a_store_that_refuses_is_told_with_the_reason_and_used_again() {
    test("limit-refused", |world| {
        let (shop, _redis) = Shop::open(world)?;
        shop.counted("leased")?;
        let load = shop.load()?;
        let key = "sluice:limit:{web.shop:80 all}";
        let cases: [(&[&str], &[&str], _, _, _); 4] = [
            (
                &["CONFIG", "SET", "maxmemory", "1"],
                &["CONFIG", "SET", "maxmemory", "0"],
                "memory",
                "it has no memory left (maxmemory)",
                "last_share",
            ),
            (
                &["ACL", "SETUSER", "default", "-hset"],
                &["ACL", "SETUSER", "default", "+hset"],
                "permission",
                "the user may not run HSET",
                "last_share",
            ),
            (
                &["CONFIG", "SET", "min-replicas-to-write", "1"],
                &["CONFIG", "SET", "min-replicas-to-write", "0"],
                "unwritable",
                "it takes no writes at the moment",
                "last_share",
            ),
            // The limit is shared by way of a second key.
            (
                &["SET", key, "ours"],
                &["DEL", key],
                "wrong_type",
                "others have written to the limit's key",
                "leased",
            ),
        ];
        for (breaks, mends, reason, told, counted) in cases {
            tell(&shop.store, breaks)?;
            shop.fails(reason, told)?;
            shop.counted(counted)?;
            tell(&shop.store, mends)?;
            shop.fails_nowhere()?;
            shop.counted("leased")?;
        }
        only_limited(&load.stop()?)
    });
}

#[test]
fn a_store_is_spoken_to_over_tls_and_in_another_database() {
    test("limit-tls", |world| {
        let (shop, _redis) = Shop::open_with(world, "rediss", "/3", |address| {
            let made = rcgen::generate_simple_self_signed([address.to_owned()])?;
            let [certificate, key] = ["redis.crt", "redis.key"].map(|name| world.directory().join(name));
            std::fs::write(&certificate, made.cert.pem())?;
            std::fs::write(&key, made.signing_key.serialize_pem())?;
            let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
            let store = format!(
                "--port 0 --tls-port 6379 --tls-cert-file {certificate} --tls-key-file {key} --tls-ca-cert-file {certificate} \
                 --tls-auth-clients no"
            );
            let store = store.split(' ').map(str::to_owned).collect();
            Ok((store, vec!["--limit-store-ca-file".to_owned(), certificate]))
        })?;
        shop.counted("leased")?;
        ensure!(shop.is_connected()?);
        Ok(())
    });
}

#[test]
fn the_script_says_in_a_store_what_its_double_says() {
    test("limit-script", |world| {
        world.namespace("stores", Capture::Unmentioned)?;
        let pod = world.pod("stores", "redis").start()?;
        let _redis = store(world, &pod)?;
        let (script, host) = (script("limit_store.py"), pod.ipv4().to_string());
        let args = [&script, "replay", &source("script.lua"), &source("calls.txt"), &host, PASSWORD];
        let said = pod.run(python(), &args).context("the script and its double do not agree")?;
        ensure!(said.contains(" 0 wrong"), "{said}");
        Ok(())
    });
}
