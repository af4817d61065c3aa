"""Every kind of gRPC call over one channel, as JSON: grpc_client.py <target> [name of a metadata key=value]..."""

import json
import queue
import sys

import grpc

metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[2:]]
channel = grpc.insecure_channel(sys.argv[1])
options = {"metadata": metadata, "timeout": 20}
seen = {}

unary = channel.unary_unary("/test.Echo/Unary")
answer, call = unary.with_call(b"hello", **options)
seen["unary"] = answer.decode()
seen["trailer"] = dict(call.trailing_metadata()).get("served-by")
seen["large"] = len(unary(b"x" * 3_000_000, **options))

try:
    channel.unary_unary("/test.Echo/Fails")(b"", **options)
except grpc.RpcError as error:
    seen["fails"] = [error.code().name, error.details()]

stream = channel.unary_stream("/test.Echo/ServerStream")(b"1000", **options)
seen["server_stream"] = [answer.decode() for answer in stream][-1]

chunks = (b"y" * 10_000 for _ in range(100))
seen["client_stream"] = channel.stream_unary("/test.Echo/ClientStream")(chunks, **options).decode()

# Each message is sent only when the answer to the one before has come: nothing on the way may wait for more.
messages = queue.Queue()
calls = channel.stream_stream("/test.Echo/Both")(iter(messages.get, None), **options)
rounds = []
for number in range(20):
    messages.put(b"%d" % number)
    rounds.append(next(calls).decode())
messages.put(None)
seen["both"] = rounds[-1]
seen["both_ended"] = next(calls, None) is None

futures = [unary.future(b"%d" % number, **options) for number in range(100)]
seen["parallel"] = len({future.result().split(b":")[1] for future in futures})
print(json.dumps(seen))
