"""Unary gRPC calls over one channel at a steady rate: grpc_load.py <target> <calls a second> <seconds>.

Says what became of them as JSON, as Sluice's own load generator does. No retries: what fails is to be seen.
"""

import collections
import json
import sys
import threading
import time

import grpc

target, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])
call = channel.unary_unary("/test.Echo/Unary")
lock = threading.Lock()
answers, failures = collections.Counter(), collections.Counter()
timeline = [collections.Counter() for _ in range(seconds + 30)]
latencies = []
began, clock = time.monotonic(), time.time()


def ended(future, sent):
    now = time.monotonic()
    error = future.exception()
    what = future.result().split(b":")[0].decode() if error is None else f"{error.code().name} {error.details()}"
    with lock:
        (failures if error else answers)[what] += 1
        timeline[int(now - began)][what] += 1
        latencies.append(now - sent)


pending = []
for number in range(rate * seconds):
    time.sleep(max(0, began + number / rate - time.monotonic()))
    sent = time.monotonic()
    future = call.future(b"x", timeout=20)
    future.add_done_callback(lambda future, sent=sent: ended(future, sent))
    pending.append(future)
while any(not future.done() for future in pending):
    time.sleep(0.05)
time.sleep(0.1)

with lock:
    while timeline and not timeline[-1]:
        timeline.pop()
    latencies.sort()
    report = {
        "sent": len(pending),
        "ok": sum(answers.values()),
        "failed": sum(failures.values()),
        "failures": failures,
        "marked": 0,
        "chains": answers,
        "connections": 1,
        "seconds": time.monotonic() - began,
        "p50_us": int(latencies[len(latencies) // 2] * 1e6),
        "p99_us": int(latencies[len(latencies) * 99 // 100] * 1e6),
        "timeline": timeline,
        "began": clock,
    }
print(json.dumps(report))
