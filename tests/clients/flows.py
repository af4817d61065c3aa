"""Connections of which everything is known: how many there are, who ends them, and how many bytes go each way.

flows.py serve PORT                    answers what FIRST asks for: that many bytes, and then closes or waits to be closed
flows.py ask ADDRESS PORT COUNT FIRST  COUNT connections, one after the other; FIRST ends them: `server` or `client`
flows.py hold ADDRESS PORT             one connection that stays open until it is killed
flows.py refused ADDRESS PORT COUNT    COUNT attempts that must be refused
"""

import socket
import sys
import threading

REQUEST = 1000
ANSWER = 3000


def read(connection, count):
    while count > 0:
        count -= len(connection.recv(count)) or sys.exit("the connection ended too early")


def answer(connection):
    with connection:
        first = connection.recv(1)
        if not first:
            return
        read(connection, REQUEST - 1)
        connection.sendall(b"a" * ANSWER)
        if first == b"c":
            while connection.recv(4096):
                pass


def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
    print("listening", flush=True)
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()


def ask(address, port, count, first):
    for _ in range(count):
        with socket.create_connection((address, port), timeout=10) as connection:
            connection.sendall(first[0].encode() * REQUEST)
            read(connection, ANSWER)
            if first == "server" and connection.recv(1):
                sys.exit("the server said more than it should")


def hold(address, port):
    with socket.create_connection((address, port), timeout=10):
        print("holding", flush=True)
        threading.Event().wait()


def refused(address, port, count):
    for _ in range(count):
        try:
            socket.create_connection((address, port), timeout=10)
        except ConnectionRefusedError:
            continue
        sys.exit("somebody listens there")


match sys.argv[1:]:
    case ["serve", port]:
        serve(int(port))
    case ["ask", address, port, count, first]:
        ask(address, int(port), int(count), first)
    case ["hold", address, port]:
        hold(address, int(port))
    case ["refused", address, port, count]:
        refused(address, int(port), int(count))
    case _:
        sys.exit(__doc__)
