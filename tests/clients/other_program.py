"""Attaches a connect4 program called "other" to a cgroup for as long as it runs: other_program.py CGROUP"""

import ctypes
import os
import platform
import struct
import sys
import time

BPF_PROG_LOAD = 5
BPF_LINK_CREATE = 28
CGROUP_SOCK_ADDR = 18
INET4_CONNECT = 10

libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        sys.exit(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return result


# r0 = 1; exit
instructions = ctypes.create_string_buffer(struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0))
license = ctypes.create_string_buffer(b"GPL")
program = bpf(
    BPF_PROG_LOAD,
    struct.pack(
        "=IIQQIIQII16sII",
        CGROUP_SOCK_ADDR,
        2,
        ctypes.addressof(instructions),
        ctypes.addressof(license),
        0,
        0,
        0,
        0,
        0,
        b"other",
        0,
        INET4_CONNECT,
    ),
)
group = os.open(sys.argv[1], os.O_RDONLY)
bpf(BPF_LINK_CREATE, struct.pack("=IIII", program, group, INET4_CONNECT, 0))
print("attached", flush=True)
while True:
    time.sleep(3600)
