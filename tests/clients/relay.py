"""A service in the middle that passes on the ids of traces and nothing else: relay.py <kind> <port> <next host> <next port> [program...]

`threads`: a thread for each connection. `prefork`: processes that take one request after the other, each on a connection of its
own, as gunicorn's sync workers do. A SIGUSR1 makes the process another program. `async`: one event loop. All but `prefork` keep connections open on both sides. What the next
service answers is the answer."""

import asyncio
import http.client
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

KIND, PORT, HOST, NEXT = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
PASSED_ON = ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"]
local = threading.local()
signal.signal(signal.SIGUSR1, lambda *_: os.execvp(sys.argv[5], sys.argv[5:]))


def ask(headers):
    connection = getattr(local, "connection", None)
    if connection is None:
        connection = local.connection = http.client.HTTPConnection(HOST, NEXT, timeout=20)
    connection.request("GET", "/", headers={name: headers[name] for name in PASSED_ON if name in headers})
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, body
    return body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0" if KIND == "prefork" else "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        body = ask(self.headers)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


class Threads(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


class Prefork(HTTPServer):
    request_queue_size = 512


async def read_message(reader):
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if line)
    headers = {name.lower(): value.strip() for name, value in pairs}
    return lines[0], headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def serve(reader, writer, idle):
    try:
        while True:
            _, headers, _ = await read_message(reader)
            there = idle.pop() if idle else await asyncio.open_connection(HOST, NEXT)
            lines = "".join(f"{name}: {headers[name]}\r\n" for name in PASSED_ON if name in headers)
            there[1].write(f"GET / HTTP/1.1\r\nhost: next\r\n{lines}\r\n".encode())
            status, _, body = await read_message(there[0])
            assert " 200 " in status, status
            idle.append(there)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def event_loop():
    idle = []
    await asyncio.start_server(lambda *streams: serve(*streams, idle), "0.0.0.0", PORT, backlog=512)
    print("listening", flush=True)
    await asyncio.Event().wait()


if KIND == "async":
    asyncio.run(event_loop())
elif KIND == "prefork":
    server = Prefork(("0.0.0.0", PORT), Handler)
    for _ in range(7):
        if os.fork() == 0:
            server.serve_forever()
    print("listening", flush=True)
    server.serve_forever()
else:
    server = Threads(("0.0.0.0", PORT), Handler)
    print("listening", flush=True)
    server.serve_forever()
