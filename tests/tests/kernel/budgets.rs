//! A pod that uses more of the agent than its part: its new connections go direct, and no other pod feels it.

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Agent, App, Capture, Pod, Process, Service, World, ask, eventually, test};

use crate::python;

const BAGGAGE: &str = "baggage: x-mse-tag=gray";

/// Opens so many connections, says so, and keeps them without a word.
const HOLD: &str = "
import socket, sys, time
held = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(int(sys.argv[3]))]
print('holding', flush=True)
time.sleep(3600)
";

/// Answers each connection's first bytes with so many bytes, as fast as they are taken.
const GENEROUS: &str = "
import resource, selectors, socket, sys
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
length = int(sys.argv[2])
answer = memoryview(b'HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n' % length + b'x' * length)
server = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
server.setblocking(False)
ready = selectors.DefaultSelector()
ready.register(server, selectors.EVENT_READ)
print('listening', flush=True)
while True:
    for key, _ in ready.select():
        s = key.fileobj
        if s is server:
            s, _ = s.accept()
            s.setblocking(False)
            ready.register(s, selectors.EVENT_READ, None)
            continue
        try:
            if key.data is None:
                if not s.recv(65536):
                    raise ConnectionError()
                ready.modify(s, selectors.EVENT_WRITE, 0)
                continue
            sent = key.data + s.send(answer[key.data:key.data + 1048576])
            ready.modify(s, *((selectors.EVENT_READ, None) if sent == len(answer) else (selectors.EVENT_WRITE, sent)))
        except BlockingIOError:
            pass
        except OSError:
            ready.unregister(s)
            s.close()
";

/// Opens so many connections, asks over each and reads nothing; says so, and keeps them.
const STALL: &str = "
import resource, socket, sys, time
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
held = []
for _ in range(int(sys.argv[3])):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: generous\\r\\n\\r\\n')
    held.append(s)
print('holding', flush=True)
time.sleep(3600)
";

/// The same over HTTP/2, with windows that let everything come.
const STALL_HTTP2: &str = "
import socket, struct, sys, time
def frame(kind, flags, stream, payload):
    return struct.pack('>I', len(payload))[1:] + bytes([kind, flags]) + struct.pack('>I', stream) + payload
path = b'/bytes/8000000'
hello = b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + frame(4, 0, 0, struct.pack('>HI', 4, 2**31 - 1))
hello += frame(8, 0, 0, struct.pack('>I', 2**31 - 65536))
hello += frame(1, 5, 1, b'\\x82\\x86\\x41\\x01a\\x04' + bytes([len(path)]) + path)
held = []
for _ in range(int(sys.argv[3])):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    s.sendall(hello)
    held.append(s)
print('holding', flush=True)
time.sleep(3600)
";

/// Reads as much as comes, and prints how much it was.
const READ: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.sendall(b'GET / HTTP/1.1\\r\\nhost: generous\\r\\nconnection: close\\r\\n\\r\\n')
got = 0
while part := s.recv(1048576):
    got += len(part)
print(got)
";

fn hold(pod: &Pod, service: &Service, count: u32) -> Result<Process> {
    hold_by(pod, HOLD, service, count)
}

fn hold_by(pod: &Pod, script: &str, service: &Service, count: u32) -> Result<Process> {
    let target = [&service.ipv4.to_string(), &service.port.to_string(), &count.to_string()];
    let args: Vec<&str> = ["-c", script].into_iter().chain(target.iter().map(|arg| arg.as_str())).collect();
    let mut process = pod.spawn("hold", python(), &args)?;
    process.says("holding")?;
    Ok(process)
}

/// A service, with and without an agent, and two pods that call it.
struct Street {
    service: Service,
    greedy: Pod,
    other: Pod,
    _app: App,
}

impl Street {
    fn open(world: &World) -> Result<Self> {
        world.namespace("shop", Capture::Enabled)?;
        world.kube_proxy()?;
        let app = App::start(world, "web", "v1", None)?;
        let service = world.service("shop", "web").port("http", 80, 8080).apply()?;
        let greedy = world.pod("shop", "greedy").start()?;
        let other = world.pod("shop", "other").start()?;
        Ok(Self { service, greedy, other, _app: app })
    }

    fn enrolled(&self, agent: &Agent) -> Result<()> {
        agent.enrolled(&self.greedy)?;
        agent.enrolled(&self.other)
    }

    /// Whether a new connection of the pod goes through the agent; it is answered either way.
    fn goes_through(&self, pod: &Pod) -> Result<bool> {
        let answer = ask(pod, &format!("{}/?headers", self.service.url()), &[BAGGAGE])?;
        Ok(answer.chain.first().is_some_and(|hop| hop.headers.contains_key("x-mse-tag")))
    }
}

/// The names of the pods of which `sluice status` says that they bypass the agent.
fn named(agent: &Agent) -> Result<Vec<String>> {
    let (_, said, _) = agent.sluice(&["status"])?;
    let named = said.lines().filter(|line| line.contains("new connections bypass the agent"));
    Ok(named
        .filter_map(|line| line.split_whitespace().find(|word| word.contains('/')))
        .map(str::to_owned)
        .collect())
}

#[test]
fn above_its_connections_a_pod_goes_direct_and_comes_back() {
    test("over-budget", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().args(&["--connections-per-pod", "24"]).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        ensure!(agent.connects("bypassed_over_budget")? == 0);
        let open = || -> Result<f64> {
            Ok(agent.metrics()?.sum("sluice_pod_connections_open", &[("source_pod", "greedy")]))
        };
        // Or it would be one of the 24.
        eventually("the connection of that request has ended", || {
            let open = open()?;
            ensure!(open < 0.5, "{open} open");
            Ok(())
        })?;

        let held = hold(&street.greedy, &street.service, 60)?;
        eventually("its new connections go direct", || {
            ensure!(!street.goes_through(&street.greedy)?);
            Ok(())
        })?;
        ensure!(street.goes_through(&street.other)?);
        let open = open()?;
        let direct = agent.connects("bypassed_over_budget")?;
        ensure!(open >= 24.0 && direct > 0 && open as u64 + direct >= 60, "{open} open, {direct} direct");
        ensure!(named(&agent)? == ["shop/greedy"], "{:?}", agent.sluice(&["status"])?);

        drop(held);
        eventually("they come back", || {
            ensure!(street.goes_through(&street.greedy)?);
            Ok(())
        })?;
        ensure!(named(&agent)?.is_empty());
        let over = agent.metrics()?.sum(
            "sluice_pod_over_budget_seconds_total",
            &[("source_pod", "greedy"), ("budget", "connections")],
        );
        ensure!(over >= 1.0, "{over}");
        Ok(())
    });
}

/// Begins to open so many connections at once, and keeps them.
const BURST: &str = "
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((sys.argv[1], int(sys.argv[2])))
    held.append(s)
print('holding', flush=True)
time.sleep(3600)
";

#[test]
fn a_burst_gets_no_more_than_the_pods_part() {
    test("burst", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().args(&["--connections-per-pod", "32"]).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        // The agent sees nothing of it until it is over. (It is still taken for alive: that takes a second.)
        agent.stop()?;
        let burst = hold_by(&street.greedy, BURST, &street.service, 300);
        agent.cont()?;
        let burst = burst?;
        eventually("those that were redirected are accepted", || {
            let open = agent.metrics()?.sum("sluice_pod_connections_open", &[("source_pod", "greedy")]);
            ensure!(open >= 1.0, "{open}");
            Ok(())
        })?;
        ask(&street.other, &street.service.url(), &[])?;
        let open = agent.metrics()?.sum("sluice_pod_connections_open", &[("source_pod", "greedy")]);
        ensure!(open <= 32.0, "{open} are open");
        ensure!(agent.connects("bypassed_over_budget")? >= 200);
        ensure!(street.goes_through(&street.other)?);
        drop(burst);
        eventually("it comes back", || {
            ensure!(street.goes_through(&street.greedy)?);
            Ok(())
        })
    });
}

#[test]
fn one_pods_idle_connections_leave_descriptors_to_others() {
    test("descriptors", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().open_files(256).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        let held = hold(&street.greedy, &street.service, 300)?;
        for _ in 0..20 {
            ensure!(street.goes_through(&street.other)?, "there is room for another pod");
            ask(&street.greedy, &street.service.url(), &[])?;
        }
        let named = named(&agent)?;
        ensure!(named == ["shop/greedy"], "{named:?}");
        ensure!(!agent.log().contains("cannot accept"), "{}", agent.log());
        drop(held);
        eventually("both come back", || {
            ensure!(street.goes_through(&street.other)? && street.goes_through(&street.greedy)?);
            Ok(())
        })
    });
}

/// Bytes that the kernel holds for the agent's sockets in the pod's network namespace, as `ss` tells.
fn kernel_memory(pod: &Pod) -> Result<u64> {
    let said = pod.run("ss", &["-tmnHpO"])?;
    let mut sum = 0;
    for line in said.lines().filter(|line| line.contains("\"sluice\"")) {
        // skmem:(r0,rb131072,t0,tb2626560,f0,w0,o0,bl0,d0)
        let told = line.split("skmem:(").nth(1).and_then(|rest| rest.split(')').next());
        for field in told.context("ss tells of memory")?.split(',') {
            let digits = field.find(|c: char| c.is_ascii_digit()).unwrap_or(field.len());
            if matches!(&field[..digits], "r" | "f" | "w" | "bl") {
                sum += field[digits..].parse::<u64>()?;
            }
        }
    }
    Ok(sum)
}

const MEBI: u64 = 1 << 20;

#[test]
fn thousands_of_stalled_readers_stay_within_the_agents_memory() {
    const BODY: u64 = 8 * MEBI;
    test("stalled", |world| {
        let street = Street::open(world)?;
        let pod = world.pod("shop", "generous-0").label("app", "generous").start()?;
        let mut server = pod.spawn("generous", python(), &["-c", GENEROUS, "7000", &BODY.to_string()])?;
        server.says("listening")?;
        let generous = world.service("shop", "generous").port("http", 80, 7000).apply()?;
        // As an agent does whose memory is limited to 512 MiB.
        let limits = ["--connection-memory", "256", "--connections-per-pod", "100000"];
        let agent = world.agent().args(&limits).start()?;
        street.enrolled(&agent)?;
        // The kernel enforces it, where this machine has a controller for that.
        let limited = agent.limit_memory(512 * MEBI)?;
        let read = |pod: &Pod| -> Result<u64> {
            let target = [generous.ipv4.to_string(), generous.port.to_string()];
            Ok(pod.run(python(), &["-c", READ, &target[0], &target[1]])?.trim().parse()?)
        };
        let before = agent.memory()?;

        let held = hold_by(&street.greedy, STALL, &generous, 4096)?;
        eventually("what waits is counted, and new connections go direct", || {
            let waiting = agent.metrics()?.sum("sluice_pod_waiting_bytes", &[("source_pod", "greedy")]);
            ensure!(waiting > (64 * MEBI) as f64 && !street.goes_through(&street.greedy)?, "{waiting}");
            Ok(())
        })?;
        for _ in 0..10 {
            let (kernel, own) = (kernel_memory(&street.greedy)?, agent.memory()?.saturating_sub(before));
            ensure!(kernel + own < 440 * MEBI, "{} MiB in the kernel, {} MiB own", kernel / MEBI, own / MEBI);
            ensure!(street.goes_through(&street.other)?);
            ensure!(read(&street.other)? > BODY);
            if let Some(limited) = &limited {
                limited.check()?;
                let (own, sockets) = limited.charged()?;
                println!(
                    "charged: {} MiB, {} MiB of them for sockets",
                    (own + sockets) / MEBI,
                    sockets / MEBI
                );
            }
        }
        ensure!(named(&agent)? == ["shop/greedy"]);
        drop(held);
        eventually("all is free again", || {
            let waiting = agent.metrics()?.sum("sluice_pod_waiting_bytes", &[]);
            ensure!(waiting < 1.0 && street.goes_through(&street.greedy)?, "{waiting}");
            Ok(())
        })
    });
}

/// HTTP/2's own part of the memory is smaller than what sends a pod's connections elsewhere: new requests are rejected first.
#[test]
fn stalled_readers_of_http2_stay_within_the_agents_memory() {
    test("stalled-http2", |world| {
        let street = Street::open(world)?;
        let agent = world.agent().args(&["--connection-memory", "256"]).open_files(4096).start()?;
        street.enrolled(&agent)?;
        ensure!(street.goes_through(&street.greedy)?);
        let before = agent.memory()?;
        let waiting = || Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_pod_waiting_bytes", &[]) as u64);

        let held = hold_by(&street.greedy, STALL_HTTP2, &street.service, 1000)?;
        eventually("what waits is counted, and no more is taken on", || {
            let (waiting, agent) = (waiting()?, agent.metrics()?);
            let labels = [("source_pod", "greedy"), ("reason", "overloaded")];
            let rejected = agent.sum("sluice_requests_total", &labels);
            ensure!(waiting > 32 * MEBI && rejected > 0.0, "{waiting} bytes, {rejected} rejected");
            Ok(())
        })?;
        for _ in 0..10 {
            let (kernel, own) = (kernel_memory(&street.greedy)?, agent.memory()?.saturating_sub(before));
            ensure!(kernel + own < 256 * MEBI, "{} MiB in the kernel, {} MiB own", kernel / MEBI, own / MEBI);
            let url = format!("{}/bytes/1000000", street.service.url());
            let args =
                ["-sS", "-m", "20", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{size_download}"];
            let got = street.other.run("curl", &[&args[..], &[&url]].concat())?;
            ensure!(got == "1000000", "{got}");
        }
        drop(held);
        // Connections to the endpoint are kept for a while, with their windows.
        eventually("all is free again", || {
            let waiting = waiting()?;
            ensure!(waiting < 4 * MEBI, "{waiting}");
            Ok(())
        })
    });
}
