"""Stops one thread of a process, as a debugger does, until this program or that process ends: stop_thread.py TID"""

import ctypes
import os
import sys

PTRACE_ATTACH = 16
ALL_THREADS = 0x40000000  # __WALL

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

tid = int(sys.argv[1])
if libc.ptrace(PTRACE_ATTACH, tid, None, None) != 0:
    sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
os.waitpid(tid, ALL_THREADS)
print("stopped", flush=True)
# The kernel waits for the tracer to take note of the thread's end.
while True:
    _, status = os.waitpid(tid, ALL_THREADS)
    if os.WIFEXITED(status) or os.WIFSIGNALED(status):
        break
