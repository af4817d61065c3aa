"""A gRPC server without generated code: grpc_server.py <port> <name>. Messages are bytes."""

import sys
from concurrent import futures

import grpc

NAME = sys.argv[2].encode()


def unary(request, context):
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


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fails": grpc.unary_unary_rpc_method_handler(fails),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
}

server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", HANDLERS),))
assert server.add_insecure_port(f"[::]:{sys.argv[1]}")
server.start()
print("listening", flush=True)
server.wait_for_termination()
