"""Streams of very many small messages, ends that pause, calls that are given up:
grpc_streams.py <target> <rounds of 60 calls that are given up> <deadlines>.

Meanwhile sixteen neighbours call again and again, eight of them over the same channel and eight over another, and must not
notice anything. Says as JSON what came of it.
"""

import json
import sys
import threading
import time

import grpc

target = sys.argv[1]
ROUNDS, DEADLINES = int(sys.argv[2]), int(sys.argv[3])
PAUSE = 2
# Only what hangs takes that long, on a slow machine, too.
PATIENCE = 300


def channel():
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(target, options=options)


ours, other = channel(), channel()
stop = threading.Event()
calls, failures = [0] * 16, []


def neighbour(number):
    call = (ours if number < 8 else other).unary_unary("/test.Echo/Unary")
    while not stop.is_set():
        try:
            call(b"x", timeout=60)
            calls[number] += 1
        except grpc.RpcError as error:
            failures.append(f"{number}: {error.code().name} {error.details()}")
            return
        time.sleep(0.01)


threads = [threading.Thread(target=neighbour, args=(number,), daemon=True) for number in range(16)]
for thread in threads:
    thread.start()
seen = {}


def small(count):
    return (b"x" for _ in range(count))


def row(name, what):
    before = list(calls)
    seen[name] = what()
    # All of them have gone on meanwhile, or do now.
    deadline = time.monotonic() + 60
    while any(now <= then for now, then in zip(calls, before)) and not failures and time.monotonic() < deadline:
        time.sleep(0.01)
    stalled = [number for number in range(16) if calls[number] <= before[number]]
    if stalled:
        failures.append(f"{name}: {stalled} stand still")


def count(answers):
    return sum(1 for _ in answers)


client_stream = ours.stream_unary("/test.Echo/ClientStream")
server_stream = ours.unary_stream("/test.Echo/ServerStream")
both = ours.stream_stream("/test.Echo/Both")
pause = ours.stream_unary("/test.Echo/Pause")
hang = ours.unary_unary("/test.Echo/Hang")

row("client_stream", lambda: client_stream(small(20_000), timeout=PATIENCE).decode().split(":")[1])
row("server_stream", lambda: count(server_stream(b"20000", timeout=PATIENCE)))
row("both", lambda: count(both(small(20_000), timeout=PATIENCE)))


def uploads():
    metadata = (("pause", str(PAUSE)),)
    parts = lambda: (b"y" * 10_000 for _ in range(40))
    futures = [pause.future(parts(), metadata=metadata, timeout=PATIENCE) for _ in range(12)]
    return sorted({future.result().decode() for future in futures})


def consumers():
    answers = [server_stream(b"8000", timeout=PATIENCE) for _ in range(12)]
    for answer in answers:
        next(answer)
    time.sleep(PAUSE)
    return sorted({1 + count(answer) for answer in answers})


def given_up():
    long = both(iter(lambda: time.sleep(0.02) or b"x", None), timeout=PATIENCE)
    for _ in range(ROUNDS):
        futures = [hang.future(b"", timeout=PATIENCE) for _ in range(60)]
        time.sleep(0.02)
        for future in futures:
            future.cancel()
        next(long)
    long.cancel()
    return "the long call goes on"


def deadlines():
    """All of them pass at once."""
    futures = [hang.future(b"", timeout=1) for _ in range(DEADLINES)]
    codes = {}
    for future in futures:
        code = future.exception().code().name
        codes[code] = codes.get(code, 0) + 1
    return codes


row("uploads", uploads)
row("consumers", consumers)
row("given_up", given_up)
row("deadlines", deadlines)
stop.set()
for thread in threads:
    thread.join()
seen["failures"] = failures
seen["enough"] = all(number > 20 for number in calls)
print(json.dumps(seen))
