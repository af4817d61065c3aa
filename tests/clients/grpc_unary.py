"""One gRPC call: grpc_unary.py <target> [name of a metadata key=value]... Prints its status and what it brought."""

import sys

import grpc

metadata = [tuple(pair.split("=", 1)) for pair in sys.argv[2:]]
unary = grpc.insecure_channel(sys.argv[1]).unary_unary("/test.Echo/Unary")
try:
    print("OK", unary(b"hello", metadata=metadata, timeout=20).decode())
except grpc.RpcError as error:
    print(error.code().name, error.details())
