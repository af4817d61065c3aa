//! Limits at the endpoint: what an application gets of clients that no agent knows.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Capture, Pod, Process, World, eventually, test};

use super::{PORT, agent, get, get_from_node, guarded, policy_of_kind, urls};
use crate::python;

/// A server of one request at a time, each of 10 ms, that goes on with what its clients have given up, and knows how many it has.
const SLOW_SERVER: &str = "
import http.server, sys, threading, time
one = threading.Lock()
waiting = most = 0
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        global waiting, most
        if self.path != '/most':
            waiting += 1
            most = max(most, waiting)
            with one:
                time.sleep(0.01)
            waiting -= 1
        body = str(most).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
server = Server(('0.0.0.0', int(sys.argv[1])), Handler)
print('listening', flush=True)
server.serve_forever()
";

/// Ever more clients that wait for 300 ms, and come again: prints how many were answered 200 and 429, and how many gave up, in the
/// second half of the time, when all are there.
const IMPATIENT: &str = "
import collections, http.client, json, sys, threading, time
host, port, threads, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
said, end = collections.Counter(), time.monotonic() + seconds
def note(what):
    if time.monotonic() > end - seconds / 2:
        said[what] += 1
def ask():
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(host, port, timeout=0.3)
        try:
            connection.request('GET', '/')
            response = connection.getresponse()
            response.read()
            note(str(response.status))
            if response.status == 429:
                time.sleep(0.2)
        except OSError:
            note('gave up')
        finally:
            connection.close()
all = [threading.Thread(target=ask) for _ in range(threads)]
for one in all:
    one.start()
    time.sleep(seconds / 3 / threads)
for one in all: one.join()
print(json.dumps(said))
";

fn traffic_policy(world: &World, spec: &Value) -> Result<()> {
    policy_of_kind(world, "TrafficPolicy", spec)
}

/// An application that is overloaded by clients that no agent knows serves next to none of them, and with a limit at its endpoint
/// as many as it can.
#[test]
fn an_overloaded_application_does_what_it_can() {
    test("endpoint-overload", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let pod = world.pod("shop", "orders-1").label("app", "orders").start()?;
        let serve = || -> Result<Process> {
            let mut server = pod.spawn("server", python(), &["-c", SLOW_SERVER, &PORT.to_string()])?;
            server.says("listening")?;
            Ok(server)
        };
        world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let clients = [world.pod("plain", "a").start()?, world.pod("plain", "b").start()?];
        let agent = world.agent().start()?;
        agent.enrolled(&pod)?;
        let ip = pod.ipv4().to_string();
        let flood = |threads: &str, seconds: &str| -> Result<[Value; 2]> {
            let args = ["-c", IMPATIENT, &ip, &PORT.to_string(), threads, seconds];
            let start = |client: &Pod| client.spawn("clients", python(), &args);
            let [mut a, mut b] = [start(&clients[0])?, start(&clients[1])?];
            ensure!(a.wait()?.success() && b.wait()?.success(), "{} {}", a.log(), b.log());
            let said = |clients: &Process| serde_json::from_str(clients.log().trim()).context(clients.log());
            Ok([said(&a)?, said(&b)?])
        };
        let served = |said: &[Value; 2]| said.iter().filter_map(|one| one["200"].as_u64()).sum::<u64>();
        let server = serve()?;
        let without = flood("40", "8")?;
        println!("without a limit: {without:?}");
        drop(server);
        {
            let limit = json!({"maxRequests": 8, "scope": "Endpoint"});
            let _server = serve()?;
            traffic_policy(world, &json!({"concurrency": limit}))?;
            let name = [("destination_service", "orders"), ("destination_pod", "orders-1")];
            eventually("the limit is in force", || {
                let limited = agent.metrics()?.sum("sluice_endpoint_concurrency_limit", &name) as u64;
                ensure!(limited == 8, "{limited}");
                get(&clients[0], &format!("http://{ip}:{PORT}/most")).map(drop)
            })?;
            let steered = agent.connects("inbound_steered_v4")?;
            eventually("connections are steered", || {
                get(&clients[0], &format!("http://{ip}:{PORT}/most"))?;
                ensure!(agent.connects("inbound_steered_v4")? > steered);
                Ok(())
            })?;
            // What it can do is seen while it is not overloaded.
            flood("1", "3")?;
            let with = flood("40", "8")?;
            println!("with {limit}: {with:?}");
            let [before, after] = [&without, &with].map(served);
            ensure!(after >= 2 * before.max(20), "{before} without, {after} with {limit}");
            ensure!(with.iter().all(|one| one["429"].as_u64() > Some(0)), "{with:?}");
            let most: u32 = get(&clients[0], &format!("http://{ip}:{PORT}/most"))?.body.parse()?;
            ensure!(most <= 9, "{most} at once");
            let rejected = [("destination_service", "orders"), ("decision", "rejected")];
            ensure!(agent.metrics()?.sum("sluice_concurrency_limit_requests_total", &rejected) > 0.0);
        }
        Ok(())
    });
}

/// A rate limit with scope Endpoint is about all that comes to a pod: from clients that are enrolled and others together, over
/// their Service and past it; probes are not among it.
#[test]
fn a_rate_limit_at_the_endpoint_counts_all_clients() {
    test("endpoint-rate", |world| {
        world.namespace("shop", Capture::Enabled)?;
        world.namespace("plain", Capture::Unmentioned)?;
        let guarded = guarded(world, "::")?;
        guarded.pod.edit(|pod| {
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": PORT, "path": "/health"}});
        })?;
        let service = world.service("shop", "orders").port("http", 80, PORT).apply()?;
        let ours = world.pod("shop", "gateway").start()?;
        let nobodys = world.pod("plain", "nobody").start()?;
        let agent = agent(world, &guarded)?;
        let [v4, v6] = urls(&guarded.pod);
        let limit = |limit: Value| traffic_policy(world, &json!({"rateLimits": [limit]}));
        let counted = |rule, decision| {
            let labels = [("rule", rule), ("decision", decision), ("destination_service", "orders")];
            Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_rate_limit_requests_total", &labels) as u64)
        };
        limit(
            json!({"name": "each", "requests": 4, "interval": "1h", "scope": "Endpoint", "key": {"type": "Caller"}}),
        )?;
        // The node's own requests are counted like others', but its probes.
        eventually("the limit is in force", || {
            ensure!(get_from_node(world, &v4)?.status == "200");
            ensure!(counted("each", "allowed")? >= 1);
            Ok(())
        })?;
        let ask = |client: &Pod, urls: &[&str]| {
            let statuses: Result<Vec<_>> = urls.iter().map(|url| Ok(get(client, url)?.status)).collect();
            Ok::<_, anyhow::Error>(statuses?.join(" "))
        };
        // Four of the pod's IPv4 address, whatever it has called, and one of its IPv6 address.
        let url = service.url();
        let said = ask(&ours, &[&url, &v4, &v6, &url, &v4, &v4])?;
        ensure!(said == "200 200 200 200 200 429", "{said}");
        let said = ask(&nobodys, &[v4.as_str(); 5])?;
        ensure!(said == "200 200 200 200 429", "{said}");
        for _ in 0..5 {
            ensure!(get_from_node(world, &format!("{v4}/health"))?.status == "200", "a probe");
        }
        ensure!(counted("each", "allowed")? == 10 && counted("each", "rejected")? == 2);
        // All together.
        limit(json!({"name": "all", "requests": 3, "interval": "1h", "scope": "Endpoint"}))?;
        eventually("all are counted together", || {
            let got = get(&nobodys, &v4)?;
            ensure!(got.status == "429" && got.answer()?["rule"] == "all", "{}", got.body);
            ensure!(got.answer()?["policy"] == "shop/orders", "{}", got.body);
            Ok(())
        })?;
        ask(&ours, &[&url, &v4, &v6, &v4])?;
        let allowed = counted("all", "allowed")?;
        ensure!((1..=3).contains(&allowed), "{allowed}");
        let (_, said, _) = agent.sluice(&["explain", "--last", "20", "-o", "json"])?;
        ensure!(said.contains("rule all of TrafficPolicy shop/orders"), "{said}");
        Ok(())
    });
}
