"""An HTTP server that says what it sees of its clients: `peer_server.py PORT [ADDRESS]`.

Each request is answered with the addresses that accept(), getpeername() and getsockname() gave, and the path and headers as they came. SIGUSR1 closes
the listener, and SIGUSR2 opens it again. One thread a connection; no library between the test and the sockets.
"""

import json
import signal
import socket
import sys
import threading

PORT = int(sys.argv[1])
ADDRESS = sys.argv[2] if len(sys.argv) > 2 else "::"


def listen():
    family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((ADDRESS, PORT))
    listener.listen(512)
    return listener


def plain(address):
    ip = address[0]
    return [ip.removeprefix("::ffff:"), address[1]]


def serve(connection, accepted):
    with connection, connection.makefile("rb") as lines:
        while request := lines.readline():
            # As RFC 9112, section 2.2, asks of a server that wants to be robust.
            if not request.strip():
                continue
            headers = {}
            while (line := lines.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.strip().lower()] = value.strip()
            lines.read(int(headers.get("content-length", 0)))
            body = json.dumps({
                "accept": plain(accepted),
                "getpeername": plain(connection.getpeername()),
                "getsockname": plain(connection.getsockname()),
                "target": request.split()[1].decode(),
                "headers": headers,
            }).encode()
            close = headers.get("connection", "").lower() == "close"
            end = b"connection: close\r\n" if close else b""
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s" % (len(body), end, body))
            if close:
                return


def accept(listener):
    while True:
        try:
            connection, accepted = listener.accept()
        except OSError:
            return
        threading.Thread(target=quietly, args=(connection, accepted), daemon=True).start()


def quietly(connection, accepted):
    try:
        serve(connection, accepted)
    except OSError:
        # A client that has left, in whatever way.
        pass


def start():
    listener = listen()
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    return listener


signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
listener = start()
print("listening", flush=True)
rounds = 0
while (number := signal.sigwait(signals)) != signal.SIGTERM:
    if number == signal.SIGUSR1:
        # Wakes who accepts; a descriptor that is only closed stays with them.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        print(f"closed {rounds}", flush=True)
    else:
        listener = start()
        print(f"open {rounds}", flush=True)
        rounds += 1
