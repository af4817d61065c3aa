"""Calls of three kinds over one gRPC channel: grpc_routes.py <target> <unary calls>.

Says as JSON who answered each kind, and what became of a call of a service that nobody has.
"""

import collections
import json
import sys

import grpc

target, calls = sys.argv[1], int(sys.argv[2])
channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])
unary = channel.unary_unary("/test.Echo/Unary")
stream = channel.unary_stream("/test.Echo/ServerStream")
fails = channel.unary_unary("/test.Other/Nothing")


def who(answer):
    return answer.split(b":")[0].decode()


def outcome(call):
    try:
        return who(call())
    except grpc.RpcError as error:
        return error.code().name


said = {
    "unary": collections.Counter(outcome(lambda: unary(b"x", timeout=20)) for _ in range(calls)),
    "stream": collections.Counter(
        outcome(lambda: list(stream(b"3", timeout=20))[-1]) for _ in range(20)
    ),
    "header": collections.Counter(
        outcome(lambda: unary(b"x", timeout=20, metadata=(("who", "me"),))) for _ in range(20)
    ),
    "unknown": outcome(lambda: fails(b"x", timeout=20)),
}
print(json.dumps(said))
