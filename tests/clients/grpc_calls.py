"""Unary gRPC calls over one channel that balances by itself: grpc_calls.py <target> <calls> [name of a metadata key=value]...

<target> may name several addresses (ipv4:10.0.0.1:80,10.0.0.2:80), as a headless service's name comes to: the calls go to each in
turn. They are made eight at a time, and none is made again. Says as JSON how often each answered, or how calls failed.
"""

import collections
import json
import sys
from concurrent import futures

import grpc

options = [("grpc.enable_retries", 0), ("grpc.lb_policy_name", "round_robin")]
channel = grpc.insecure_channel(sys.argv[1], options=options)
unary = channel.unary_unary("/test.Echo/Unary")
metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[3:]]


def call(_):
    try:
        return unary(b"x", timeout=20, metadata=metadata).split(b":")[0].decode()
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"


with futures.ThreadPoolExecutor(8) as pool:
    print(json.dumps(collections.Counter(pool.map(call, range(int(sys.argv[2]))))))
