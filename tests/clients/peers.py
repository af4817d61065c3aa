"""Many short connections to `peer_server.py`: `peers.py HOST PORT CONNECTIONS`. Each compares its own address with the one that the server saw, and
some are reset on the way, so that their ports are used again. Prints what became of them, as JSON."""

import collections
import json
import socket
import struct
import sys
import threading

HOST, PORT, CONNECTIONS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
THREADS = 8
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
counts = collections.Counter()
notes = []
lock = threading.Lock()


def one(number):
    with socket.create_connection((HOST, PORT), timeout=20) as connection:
        own = list(connection.getsockname()[:2])
        connection.sendall(REQUEST)
        if number % 10 == 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "abandoned"
        answer = b""
        while part := connection.recv(65536):
            answer += part
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    if seen["accept"] == own and seen["getpeername"] == own:
        return "right"
    with lock:
        notes.append([own, seen])
    return "wrong"


def run(first):
    for number in range(first, CONNECTIONS, THREADS):
        try:
            what = one(number)
        except (OSError, ValueError) as error:
            what = "failed"
            with lock:
                notes.append(repr(error))
        with lock:
            counts[what] += 1


threads = [threading.Thread(target=run, args=(first,)) for first in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({**{what: counts[what] for what in ("right", "wrong", "abandoned", "failed")}, "notes": notes[:5]}))
