"""Requests of traces of their own, every other one with a tag: traced_load.py <host> <port> <form> <clients> <requests of each> [path]

`form`: how a request says its trace: `w3c`, `b3`, `b3multi` or `none`. Each client keeps a connection open, and all ask at once. The
answer is that of a chain of services. Says how many of each kind were answered by which version of the last one."""

import collections
import http.client
import json
import random
import sys
import threading

HOST, PORT, FORM = sys.argv[1], int(sys.argv[2]), sys.argv[3]
CLIENTS, REQUESTS = int(sys.argv[4]), int(sys.argv[5])
PATH = sys.argv[6] if len(sys.argv) > 6 else "/"


def trace():
    trace, span = f"{random.getrandbits(128) | 1:032x}", f"{random.getrandbits(64) | 1:016x}"
    return {
        "none": {},
        "w3c": {"traceparent": f"00-{trace}-{span}-01"},
        "b3": {"b3": f"{trace}-{span}-1"},
        "b3multi": {"X-B3-TraceId": trace, "X-B3-SpanId": span, "X-B3-Sampled": "1"},
    }[FORM]


def client(index, seen, start):
    connection = http.client.HTTPConnection(HOST, PORT, timeout=30)
    start.wait()
    for number in range(REQUESTS):
        tagged = (index + number) % 2 == 0
        headers = trace() | ({"x-mse-tag": "gray"} if tagged else {})
        try:
            connection.request("GET", PATH, headers=headers)
            response = connection.getresponse()
            body = response.read()
            answer = json.loads(body)["chain"][-1]["version"] if response.status == 200 else response.status
        except Exception as error:
            answer = repr(error)
            connection.close()
        seen[f"{'tagged' if tagged else 'untagged'} {answer}"] += 1


seen, start = [collections.Counter() for _ in range(CLIENTS)], threading.Barrier(CLIENTS)
threads = [threading.Thread(target=client, args=(i, seen[i], start)) for i in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(sum(seen, collections.Counter())))
