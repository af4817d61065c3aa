"""A TCP server with manners of its own: tcp_server.py <port> <how>. Says what it sees of each connection.

reset    answers one read with a reset
report   reads to the end, says how that came, and answers "bye"
"""

import errno
import socket
import struct
import sys
import threading

port, how = int(sys.argv[1]), sys.argv[2]


def serve(connection):
    if how == "reset":
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        return
    count = 0
    try:
        while data := connection.recv(65536):
            count += len(data)
        print(f"end after {count}", flush=True)
        connection.sendall(b"bye")
    except OSError as error:
        print(f"{errno.errorcode[error.errno]} after {count}", flush=True)
    connection.close()


listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=[connection], daemon=True).start()
