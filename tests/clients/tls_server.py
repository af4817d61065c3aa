"""An HTTPS server that says each request: tls_server.py <port> <file with certificate and key> [<file to serve, read each time>]"""

import http.server
import pathlib
import ssl
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print("asked", self.path, flush=True)
        body = pathlib.Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else b"over TLS"
        self.send_response(200)
        self.send_header("content-type", "application/json" if len(sys.argv) > 3 else "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server = http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("listening", flush=True)
server.serve_forever()
