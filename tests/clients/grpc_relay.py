"""A gRPC service in the middle that passes on the id of a trace and nothing else: grpc_relay.py <port> <next>

What the next service answers to a unary call is the answer."""

import sys
from concurrent import futures

import grpc

channel = grpc.insecure_channel(sys.argv[2], options=[("grpc.enable_retries", 0)])
ask = channel.unary_unary("/test.Echo/Unary")


def unary(request, context):
    passed_on = [pair for pair in context.invocation_metadata() if pair[0] == "traceparent"]
    return ask(request, timeout=20, metadata=passed_on)


server = grpc.server(futures.ThreadPoolExecutor(64))
handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary)}
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", handlers)])
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
print("listening", flush=True)
server.wait_for_termination()
