"""What a kernel test says to the store of limits of the whole cluster, as an agent does.

    limit_store.py replay SCRIPT CALLS HOST PASSWORD    asks what CALLS has, and compares the answers
    limit_store.py hold SCRIPT KEY RATE DEMAND HOST PASSWORD
        is an agent that uses all that it gets, until its input ends; then prints how much it was
"""

import select
import socket
import sys
import time


class Store:
    def __init__(self, host, password):
        self.socket = socket.create_connection((host, 6379), 10)
        self.file = self.socket.makefile("rb")
        assert self.ask("AUTH", password) == "OK"

    def ask(self, *words):
        words = [word.encode() for word in words]
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"".join(parts))
        return self.reply()

    def reply(self):
        line = self.file.readline().decode().rstrip("\r\n")
        kind, rest = line[:1], line[1:]
        if kind == "*":
            return [self.reply() for _ in range(int(rest))]
        if kind == "$":
            return self.file.read(int(rest) + 2)[:-2].decode()
        if kind == "-" or not kind:
            sys.exit(f"the store says {line!r}")
        return rest


def replay(script, calls, host, password):
    store = Store(host, password)
    script = open(script).read()
    wrong = count = 0
    for line in open(calls):
        if line.startswith("#"):
            continue
        asked, wanted = line.split(" = ")
        now, *words = asked.split()
        said = store.ask("EVAL", script, "1", "calls", *words, now)
        wanted = wanted.split()
        near = all(abs(float(a) - float(b)) < 1e-4 for a, b in zip(said[:5], wanted[:5]))
        if not near or said[5] != wanted[5]:
            wrong += 1
            print(f"{line.strip()}: the store says {said}")
        count += 1
    print(f"{count} calls, {wrong} wrong")
    sys.exit(wrong > 0 or count < 100)


def hold(script, key, rate, demand, host, password):
    store = Store(host, password)
    script = open(script).read()
    used, held, state = 0, 0.0, "new"
    print("holding", flush=True)
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        used += int(held)
        held = float(store.ask("EVAL", script, "1", key, "other", rate, rate, str(used), demand, state, "busy")[0])
        state = "known"
    print(f"used {used}", flush=True)


{"replay": replay, "hold": hold}[sys.argv[1]](*sys.argv[2:])
