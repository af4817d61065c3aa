//! Clients that give up: what they held of the agent is free at once, and who only ends its side still gets its answer.

use anyhow::{Result, ensure};
use sluice_tests::{Capture, Pod, Process, World, eventually, test};

use crate::python;

/// Accepts, reads a request and answers after so many seconds; 0 is never.
const SLOW: &str = "
import socket, socketserver, sys, time
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline().strip():
            pass
        wait = float(sys.argv[2])
        time.sleep(wait or 3600)
        self.wfile.write(b'HTTP/1.1 200 OK\\r\\ncontent-length: 5\\r\\n\\r\\nstill')
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    request_queue_size = 512
    daemon_threads = True
server = Server(('::', int(sys.argv[1])), Handler)
print('listening', flush=True)
server.serve_forever()
";

/// Asks, ends its side, and prints what comes all the same.
const HALF_CLOSES: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
s.sendall(b'GET / HTTP/1.1\\r\\nhost: slow\\r\\n\\r\\n')
s.shutdown(socket.SHUT_WR)
got = b''
while part := s.recv(4096):
    got += part
print(got.decode())
";

/// Many that ask, end their side, wait for a moment and close.
const GIVE_UP: &str = "
import socket, sys, time
sockets = []
for _ in range(int(sys.argv[3])):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
    s.sendall(b'GET / HTTP/1.1\\r\\nhost: slow\\r\\n\\r\\n')
    if len(sockets) % 2:
        s.shutdown(socket.SHUT_WR)
    sockets.append(s)
time.sleep(0.5)
";

fn server(pod: &Pod, port: &str, wait: &str) -> Result<Process> {
    let mut process = pod.spawn("slow", python(), &["-c", SLOW, port, wait])?;
    process.says("listening")?;
    Ok(process)
}

#[test]
fn who_has_given_up_holds_nothing_and_who_half_closes_is_answered() {
    test("leaving", |world: &World| {
        world.namespace("shop", Capture::Enabled)?;
        let pod = world.pod("shop", "slow-0").label("app", "slow").start()?;
        let (_hanging, _slow) = (server(&pod, "7000", "0")?, server(&pod, "7001", "2")?);
        let service =
            |name: &str, to| world.service("shop", name).selector("app", "slow").port("http", 80, to).apply();
        let (hanging, slow) = (service("hanging", 7000)?, service("slow", 7001)?);
        let client = world.pod("shop", "client").start()?;
        let agent = world.agent().start()?;
        agent.enrolled(&client)?;
        let in_flight =
            || Ok::<_, anyhow::Error>(agent.metrics()?.sum("sluice_requests_in_flight", &[]) as u64);

        for ip in [hanging.ipv4.to_string(), format!("[{}]", hanging.ipv6)] {
            // curl itself says that it was in vain.
            let url = format!("http://{ip}:80/");
            ensure!(client.run("curl", &["-sS", "-m", "1", "-o", "/dev/null", &url]).is_err());
        }
        client.run(python(), &["-c", GIVE_UP, &hanging.ipv4.to_string(), "80", "100"])?;
        eventually("who has given up holds nothing", || {
            let metrics = agent.metrics()?;
            let closed = metrics.sum("sluice_requests_total", &[("reason", "client_closed")]) as u64;
            ensure!(closed == 102 && in_flight()? == 0, "{closed} closed, {} in flight", in_flight()?);
            Ok(())
        })?;

        let said = client.run(python(), &["-c", HALF_CLOSES, &slow.ipv4.to_string(), "80"])?;
        ensure!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("still\n"), "{said}");
        ensure!(agent.redirected()? == 103);
        Ok(())
    });
}
