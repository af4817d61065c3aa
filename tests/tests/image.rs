//! The image as nodes run it: unpacked from its archive, in a container that is made as the DaemonSet says, by a real
//! runtime, among pods, with an API server. `cargo xtask test image` builds it and names it.

use std::{collections::BTreeSet, env, fs};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Capture, Container, DaemonSet, Image, Metrics, Shop, TOKEN, World, eventually, run, test_in,
};

/// What the agent serves on the network, read by curl on the node.
fn page(world: &World, address: &str, path: &str) -> Result<String> {
    let url = format!("http://{address}:9465{path}");
    run(world.node().command("curl")?.args(["-sS", "--fail-with-body", "-m", "10", &url]))
}

fn metrics(world: &World) -> Result<Metrics> {
    Ok(Metrics::parse(&page(world, &world.node_address().to_string(), "/metrics")?))
}

fn enrolled(world: &World, pods: usize) -> Result<()> {
    eventually("all pods of the shop are enrolled", || {
        let count = metrics(world)?.sum("sluice_pods", &[("state", "enrolled")]) as usize;
        ensure!(count == pods, "{count} of {pods}");
        Ok(())
    })
}

/// The shop, open on a node with the image's agent.
fn open(name: &str) -> Result<(World, Shop)> {
    let world = World::watched(name)?;
    world.api(|api| {
        api.set_tokens(Some(&[TOKEN]));
        Ok(())
    })?;
    world.apply(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": world.node_name(), "labels": { "topology.kubernetes.io/zone": "a" } },
    }))?;
    world.kube_proxy()?;
    let shop = Shop::open(&world, Capture::Enabled)?;
    Ok((world, shop))
}

#[test]
fn it_is_built_from_the_files_that_kustomize_renders() -> Result<()> {
    // Where there is a kustomize, xtask has rendered what `kubectl apply -k deploy/` sends.
    let Some(rendered) = env::var_os("SLUICE_RENDERED") else { return Ok(()) };
    let rendered = DaemonSet::of_rendered(&fs::read_to_string(rendered)?)?;
    assert_eq!(rendered.comparable()?, DaemonSet::of_base()?.comparable()?);
    Ok(())
}

#[test]
fn it_runs_as_the_daemon_set_says() -> Result<()> {
    let (set, image) = (DaemonSet::of_base()?, Image::unpacked()?);
    let (world, shop) = open("image")?;
    test_in(&world, |world| {
        world.namespace(&set.namespace, Capture::Unmentioned)?;
        let mut agent = Container::start(world, &set, &image, "sluice-one")?;
        agent.probe("startupProbe")?;
        agent.probe("readinessProbe")?;
        agent.probe("livenessProbe")?;
        enrolled(world, shop.pods().count())?;
        shop.quiet()?;
        let idle = agent.memory()?;

        // Lanes, and what Prometheus reads.
        for (headers, versions) in [(&[][..], "v1 v1 v1 v1"), (&["x-mse-tag: gray"], "v1 gray v1 gray")] {
            for _ in 0..20 {
                let answer = shop.ask(headers)?;
                ensure!(answer.versions() == versions, "{headers:?}: {answer:?}");
            }
        }
        for address in [world.node_address().to_string(), "127.0.0.1".to_owned()] {
            let metrics = Metrics::parse(&page(world, &address, "/metrics")?);
            ensure!(metrics.sum("sluice_requests_total", &[]) >= 160.0, "{address}");
        }
        ensure!(page(world, "127.0.0.1", "/")?.contains("<html"), "no dashboard");

        // What `kubectl exec` asks.
        let (status, said) = agent.exec(&["/sluice", "status"])?;
        ensure!(status == 0 && said.contains(world.node_name()), "{status}: {said}");
        let (status, said) = agent.exec(&["/sluice", "status", "-o", "json"])?;
        let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(status == 0 && said["ready"] == true, "{said}");

        confined(&agent, &set, &image)?;

        // As much as the DaemonSet asks for is enough for it, with some load as well.
        let load = shop.load(&["--connections", "16"])?;
        eventually("there is load", || {
            let requests = metrics(world)?.sum("sluice_requests_total", &[]);
            ensure!(requests > 4000.0, "{requests} requests");
            Ok(())
        })?;
        let loaded = agent.memory()?;
        let requested = set.memory("requests")?;
        println!("resident: {} KiB idle, {} KiB loaded", idle / 1024, loaded / 1024);
        ensure!(loaded < requested, "{loaded} bytes resident, {requested} requested: {idle} when idle");

        // It goes as the kubelet has it go, and nobody notices.
        let (status, log) = agent.end()?;
        ensure!(status.code() == Some(0), "{status}:\n{log}");
        eventually("calls go on without it", || {
            let answer = shop.ask(&[])?;
            ensure!(answer.chain.len() == 4, "{answer:?}");
            Ok(())
        })?;
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 4000, "{report:?}");
        quiet(&log)
    });
    Ok(())
}

/// README.md says what this prints, and the DaemonSet asks for more.
#[test]
fn a_cluster_of_some_size_fits_into_what_the_daemon_set_asks_for() -> Result<()> {
    const SERVICES: usize = 500;
    const ENDPOINTS: usize = 4;
    let (set, image) = (DaemonSet::of_base()?, Image::unpacked()?);
    let (world, shop) = open("image-cluster")?;
    test_in(&world, |world| {
        world.namespace(&set.namespace, Capture::Unmentioned)?;
        world.namespace("many", Capture::Enabled)?;
        world.policy_for_all("many")?;
        world.api(|api| {
            for number in 0..SERVICES {
                let pods: Vec<_> = (0..ENDPOINTS).map(|pod| ENDPOINTS * number + pod).collect();
                for (kind, object) in many(number, &pods) {
                    api.apply(kind, object);
                }
            }
            Ok(())
        })?;
        let mut agent = Container::start(world, &set, &image, "sluice-one")?;
        agent.probe("startupProbe")?;
        agent.probe("readinessProbe")?;
        enrolled(world, shop.pods().count())?;
        shop.quiet()?;
        eventually("all services are managed", || {
            let managed = metrics(world)?.sum("sluice_managed_destinations", &[]) as usize;
            ensure!(managed >= SERVICES, "{managed} destinations");
            Ok(())
        })?;
        let (idle, requested) = (agent.memory()?, set.memory("requests")?);
        println!("resident: {} KiB with {SERVICES} services of {ENDPOINTS} pods each", idle / 1024);
        ensure!(idle < requested, "{idle} bytes resident, {requested} requested");
        let (status, log) = agent.end()?;
        ensure!(status.code() == Some(0), "{status}:\n{log}");
        quiet(&log)
    });
    Ok(())
}

/// A Service, its slice, and pods of another node that are behind it, by their kinds.
fn many(number: usize, pods: &[usize]) -> Vec<(&'static str, Value)> {
    let (name, high, low) = (format!("service-{number}"), number / 250, number % 250 + 1);
    let ip = |pod: usize| format!("10.250.{}.{}", pod / 250, pod % 250 + 1);
    let labels = json!({ "app": name });
    let mut objects = vec![
        (
            "services",
            json!({
                "metadata": { "name": name, "namespace": "many" },
                "spec": { "clusterIP": format!("10.96.{}.{low}", 200 + high), "clusterIPs": [format!("10.96.{}.{low}", 200 + high)],
                    "selector": labels, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
            }),
        ),
        (
            "endpointslices",
            json!({
                "metadata": { "name": format!("{name}-1"), "namespace": "many", "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "endpoints": pods.iter().map(|pod| json!({
                    "addresses": [ip(*pod)], "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": "elsewhere",
                    "targetRef": { "kind": "Pod", "name": format!("pod-{pod}"), "namespace": "many", "uid": format!("uid-{pod}") },
                })).collect::<Vec<_>>(),
                "ports": [{ "name": "http", "port": 8080 }],
            }),
        ),
    ];
    objects.extend(pods.iter().map(|pod| {
        let object = json!({
            "metadata": { "name": format!("pod-{pod}"), "namespace": "many", "uid": format!("uid-{pod}"), "labels": labels },
            "spec": { "nodeName": "elsewhere", "containers": [{ "name": "app", "image": "app" }] },
            "status": { "phase": "Running", "podIP": ip(*pod), "podIPs": [{ "ip": ip(*pod) }] },
        });
        ("pods", object)
    }));
    objects
}

/// The DaemonSet's surge: the new agent is ready before the old one is told to end.
#[test]
fn one_takes_over_from_another() -> Result<()> {
    let (set, image) = (DaemonSet::of_base()?, Image::unpacked()?);
    let (world, shop) = open("image-rollout")?;
    test_in(&world, |world| {
        world.namespace(&set.namespace, Capture::Unmentioned)?;
        let mut old = Container::start(world, &set, &image, "sluice-old")?;
        old.probe("startupProbe")?;
        old.probe("readinessProbe")?;
        enrolled(world, shop.pods().count())?;
        shop.quiet()?;
        let load = shop.load(&["--connections", "8", "--header", "x-mse-tag: gray"])?;
        let mut new = Container::start(world, &set, &image, "sluice-new")?;
        new.probe("startupProbe")?;
        new.probe("readinessProbe")?;
        let (status, log) = old.end()?;
        ensure!(status.code() == Some(0), "{status}:\n{log}");
        quiet(&log)?;
        let report = load.stop()?;
        // In the lane all the while.
        ensure!(report.failed == 0 && report.chains.keys().eq(["v1 gray v1 gray"]), "{report:?}");
        let (status, log) = new.end()?;
        ensure!(status.code() == Some(0), "{status}:\n{log}");
        quiet(&log)
    });
    Ok(())
}

/// The container is what the DaemonSet says, and no more.
fn confined(agent: &Container, set: &DaemonSet, image: &Image) -> Result<()> {
    ensure!(image.files()?.len() == 1, "the image has more than the agent: {:?}", image.files()?);
    let root = format!("/proc/{}/root", agent.pid()?);
    let found: BTreeSet<String> = fs::read_dir(&root)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    // Beside the agent only what leads to mounts.
    let mounted = agent.mounted()?;
    let first = |path: &str| path.split('/').nth(1).unwrap_or_default().to_owned();
    let mut expected: BTreeSet<String> =
        mounted.iter().map(|(path, ..)| first(path)).filter(|name| !name.is_empty()).collect();
    expected.extend(image.files()?.iter().map(|path| path.display().to_string()));
    ensure!(found == expected, "{found:?}, not {expected:?}");
    let read_only = |path: &str| {
        let mount = mounted.iter().rfind(|(other, ..)| other == path);
        mount.is_some_and(|(_, options, _)| options.split(',').any(|option| option == "ro"))
    };
    for path in ["/", "/sys/fs/cgroup", "/var/run/secrets/kubernetes.io/serviceaccount", "/proc/sys"] {
        ensure!(read_only(path), "{path} is not read-only: {mounted:?}");
    }
    let mut bits = 0u64;
    for name in set.capabilities()? {
        bits |= match &*name {
            "CAP_SYS_PTRACE" => 1 << 19,
            "CAP_SYS_ADMIN" => 1 << 21,
            other => anyhow::bail!("what is the number of {other}?"),
        };
    }
    for which in ["CapEff", "CapPrm", "CapBnd"] {
        let has = agent.status(which)?;
        ensure!(u64::from_str_radix(&has, 16)? == bits, "{which} is {has}");
    }
    ensure!(agent.status("NoNewPrivs")? == "1");
    // 2: a filter.
    ensure!(agent.status("Seccomp")? == "2");
    Ok(())
}

/// Nothing was left undone, and the container's file systems were enough.
fn quiet(log: &str) -> Result<()> {
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}
