//! What an application has set on its socket, and what it does with it, reaches the endpoint as it would without an agent.

use anyhow::{Result, ensure};
use sluice_tests::{Agent, Capture, Pod, Process, Service, World, ask, eventually, test};

use crate::python;

/// Sends back what comes, urgent data first, as a reader sees it that does not keep it in line.
const ECHO: &str = "
import select, socket, sys, threading
server = socket.create_server(('', 7000))
print('listening', flush=True)
def serve(s):
    got, urgent = b'', b''
    while len(got) < 6 or not urgent:
        readable, _, odd = select.select([s], [], [s])
        if odd and not urgent:
            urgent = s.recv(1, socket.MSG_OOB)
        elif readable:
            part = s.recv(100)
            if not part:
                break
            got += part
    s.sendall(urgent + b' ' + got)
    s.send(b'?', socket.MSG_OOB)
    s.recv(1)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
";

/// Sends urgent data between other data, and prints what comes back.
const URGENT: &str = "
import select, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.sendall(b'abc')
s.send(b'!', socket.MSG_OOB)
s.sendall(b'def')
got = b''
while len(got) < 8:
    got += s.recv(100)
select.select([], [], [s], 20)
# With a timeout Python waits for other data first.
s.settimeout(None)
print(got.decode(), s.recv(1, socket.MSG_OOB).decode())
";

/// Asks for HTTP over a socket that asks a silent peer after 3,000 seconds, and keeps the connection.
const PATIENT: &str = "
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 3000)
s.connect((sys.argv[1], int(sys.argv[2])))
s.sendall(b'GET / HTTP/1.1\\r\\nhost: web\\r\\n\\r\\n')
s.recv(1)
print('connected', flush=True)
time.sleep(3600)
";

/// Connects from a thread that is called as an agent's are.
const NAMESAKE: &str = "
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b'sluice-worker-0', 0, 0, 0)
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.sendall(b'GET / HTTP/1.1\\r\\nhost: web\\r\\nconnection: close\\r\\n\\r\\n')
while s.recv(1000):
    pass
";

/// A service of any protocol on port 70 and one of HTTP on port 80, and a pod that calls them.
struct Lane {
    bytes: Service,
    web: Service,
    client: Pod,
    agent: Agent,
    _servers: [Pod; 2],
    _processes: Vec<Process>,
}

fn lane(world: &World) -> Result<Lane> {
    world.namespace("shop", Capture::Enabled)?;
    world.policy_for_all("shop")?;
    let db = world.pod("shop", "db-0").label("app", "db").start()?;
    let mut echo = db.spawn("echo", python(), &["-c", ECHO])?;
    echo.says("listening")?;
    let bytes = world.service("shop", "db").port("tcp", 70, 7000).apply()?;
    let pod = world.pod("shop", "web-0").label("app", "web").start()?;
    let app = pod.serve(&["--name", "web"])?;
    let web = world.service("shop", "web").port("http", 80, 8080).apply()?;
    let client = world.pod("shop", "client").start()?;
    let agent = world.agent().start()?;
    agent.enrolled(&client)?;
    Ok(Lane { bytes, web, client, agent, _servers: [db, pod], _processes: vec![echo, app] })
}

fn target(service: &Service) -> [String; 2] {
    [service.ipv4.to_string(), service.port.to_string()]
}

#[test]
fn urgent_data_goes_through_a_tunnel_as_such() {
    test("urgent", |world| {
        let lane = lane(world)?;
        let [address, port] = target(&lane.bytes);
        let said = lane.client.run(python(), &["-c", URGENT, &address, &port])?;
        ensure!(said.trim() == "! abcdef ?", "{said}");
        ensure!(lane.agent.redirected()? == 1);
        Ok(())
    });
}

/// Seconds until the kernel asks the peers of this pod's connections to a port whether they are there, as `/proc/net/tcp` has it
/// (timer 2, in hundredths of a second).
fn asked_after(client: &Pod, port: u16) -> Result<Vec<u64>> {
    let table = client.run("cat", &["/proc/net/tcp"])?;
    let port = format!(":{port:04X}");
    let mut all = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<_> = line.split_whitespace().collect();
        if fields[2].ends_with(&port)
            && let Some(when) = fields[5].strip_prefix("02:")
        {
            all.push(u64::from_str_radix(when, 16)? / 100);
        }
    }
    Ok(all)
}

#[test]
fn keepalive_settings_of_a_client_hold_on_the_way_to_the_endpoint() {
    test("keepalive", |world| {
        let lane = lane(world)?;
        // By itself an agent asks after a minute.
        ask(&lane.client, &lane.web.url(), &[])?;
        let [address, port] = target(&lane.web);
        let mut patient = lane.client.spawn("patient", python(), &["-c", PATIENT, &address, &port])?;
        patient.says("connected")?;
        eventually("the endpoint is asked as rarely as the client said", || {
            let after = asked_after(&lane.client, 8080)?;
            ensure!(after.iter().any(|seconds| (1000..=3000).contains(seconds)), "{after:?}");
            Ok(())
        })?;
        ensure!(lane.agent.redirected()? == 2);
        Ok(())
    });
}

/// Connects a multipath TCP socket, and prints whom it is connected to, and from where.
const MULTIPATH: &str = "
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
s.connect((sys.argv[1], int(sys.argv[2])))
print(s.getpeername(), s.getsockname()[0])
";

#[test]
fn a_multipath_socket_sees_what_it_dialled() {
    test("multipath", |world| {
        let lane = lane(world)?;
        let [address, port] = target(&lane.web);
        let said = lane.client.run(python(), &["-c", MULTIPATH, &address, &port])?;
        let expected = format!("('{address}', {port}) {}", lane.client.ipv4());
        ensure!(said.trim() == expected, "{said}, and not {expected}");
        ensure!(lane.agent.redirected()? == 1);
        Ok(())
    });
}

#[test]
fn a_thread_that_is_called_as_an_agents_is_redirected() {
    test("namesake", |world| {
        let lane = lane(world)?;
        let [address, port] = target(&lane.web);
        lane.client.run(python(), &["-c", NAMESAKE, &address, &port])?;
        ensure!(lane.agent.redirected()? == 1);
        Ok(())
    });
}
