"""A gRPC server without generated code: grpc_server.py <port> <name> [sick]. Messages are bytes.

A sick one is not able to answer. After SIGTERM it goes on for a second, and then ends in order.
"""

import signal
import sys
import threading
import time
from concurrent import futures

import grpc

NAME = sys.argv[2].encode()
SICK = sys.argv[3:] == ["sick"]


def unary(request, context):
    if SICK:
        context.abort(grpc.StatusCode.UNAVAILABLE, "sick")
    context.set_trailing_metadata((("served-by", sys.argv[2]),))
    return NAME + b":" + request


def fails(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 % sure")


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%s:%d" % (NAME, number)


def client_stream(requests, context):
    return NAME + b":%d" % sum(len(request) for request in requests)


def both(requests, context):
    for request in requests:
        yield NAME + b":" + request


def pause(requests, context):
    """Does not read for as long as the call says; then all of it."""
    time.sleep(float(dict(context.invocation_metadata())["pause"]))
    return b"%d" % sum(len(request) for request in requests)


def hang(request, context):
    """Until the client gives it up."""
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait(30)
    return b""


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fails": grpc.unary_unary_rpc_method_handler(fails),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Pause": grpc.stream_unary_rpc_method_handler(pause),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
}

server = grpc.server(futures.ThreadPoolExecutor(256))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", HANDLERS),))
assert server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
print("listening", flush=True)
told.wait()
threading.Event().wait(1)
server.stop(5).wait()
