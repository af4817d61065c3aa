"""Socket calls of an application, and what it sees, as JSON: sockets.py <what> <address> <port>"""

import errno
import json
import select
import socket
import struct
import sys

what, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
seen = {}


def say(**more):
    seen.update(more)


def names(connection):
    say(peer=connection.getpeername()[:2], own=connection.getsockname()[:2])


def read_all(connection):
    data = b""
    while True:
        more = connection.recv(65536)
        if not more:
            return data
        data += more


def connected(kind=socket.SOCK_STREAM):
    connection = socket.socket(family, kind)
    connection.settimeout(10)
    connection.connect((address, port))
    return connection


if what == "names":
    connection = connected()
    names(connection)
    say(line=connection.makefile().readline())
elif what == "nonblocking":
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    result = connection.connect_ex((address, port))
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    events = poll.poll(10_000)
    say(
        started=errno.errorcode.get(result, result),
        writable=bool(events and events[0][1] & select.POLLOUT),
        error=connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    )
    connection.setblocking(True)
    connection.settimeout(10)
    names(connection)
    say(line=connection.makefile().readline())
elif what == "bound":
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.bind((sys.argv[4], 0))
    connection.connect((address, port))
    names(connection)
    say(line=connection.makefile().readline())
elif what == "own-address":
    # Bound to an address, and the port left to connect().
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    connection.bind((sys.argv[4], 0))
    connection.connect((address, port))
    names(connection)
    say(line=connection.makefile().readline())
elif what == "fixed-port":
    # Two services from one port.
    lines, connections = [], []
    for to in (address, sys.argv[4]):
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", 7777))
        connection.connect((to, port))
        lines.append(connection.makefile().readline())
        connections.append(connection)
    say(lines=lines)
elif what in ("mark", "tos"):
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(10)
    if what == "mark":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
    elif family == socket.AF_INET6:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 6)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
    connection.connect((address, port))
    say(line=connection.makefile().readline())
elif what == "udp":
    connection = connected(socket.SOCK_DGRAM)
    names(connection)
elif what == "half-close":
    # All that we have to say, the end of it, and then all that the other side has to say.
    payload = b"".join(struct.pack(">I", number) for number in range(200_000))
    connection = connected()
    banner = connection.recv(1, socket.MSG_PEEK)
    import threading

    def send():
        connection.sendall(payload)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    line, _, rest = read_all(connection).partition(b"\n")
    sender.join()
    say(line=line.decode(), whole=rest == payload, length=len(rest), banner=bool(banner))
elif what == "silent":
    # A connection on which the client says nothing for long; what the server says arrives.
    connection = connected()
    say(line=connection.makefile().readline())
elif what == "reset":
    connection = connected()
    say(line=connection.makefile().readline())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
elif what == "outcome":
    # How a connection to somebody who does not serve ends.
    try:
        connection = connected()
        say(connected=True)
        say(read=len(connection.recv(1)))
    except OSError as error:
        say(error=errno.errorcode.get(error.errno, str(error)))
else:
    sys.exit(f"what is {what}?")
print(json.dumps(seen))
