"""Fits Debian's User Mode Linux binary to processors with a larger register file than it knows.

User Mode Linux 6.1 restores a process's floating point registers with PTRACE_SETREGSET and a fixed
length of 2,696 octets (x87 to PKRU). The host demands the exact size of its own register file, so
on a processor with AMX (11,008 octets) the call fails, and the kernel panics as it starts its first
process. Linux 6.10 and later ask the host for the size.

Only that length is changed, in a private copy of the binary: the host then reads beyond the saved
registers, into memory of the same kernel, and takes nothing from there, because the header of the
saved area says which parts are present and AMX never is (a process must ask for it first).
"""

import ctypes
import os
import re
import signal
from pathlib import Path

_PTRACE_TRACEME = 0
_PTRACE_GETREGSET = 0x4204
_NT_X86_XSTATE = 0x202
_ROOM = 1 << 16
_KNOWN_SIZE = 2696

# mov $0x202,%edx; mov %edi,%esi; lea -0x10(%rbp),%rcx; movq $SIZE,-8(%rbp); mov $0x4205,%edi
_SET_REGISTERS = re.compile(
    rb"\xba\x02\x02\x00\x00\x89\xfe\x48\x8d\x4d\xf0\x48\xc7\x45\xf8(....)\xbf\x05\x42\x00\x00",
    re.DOTALL,
)


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def host_register_size() -> int:
    """Octets of this host's extended register set as ptrace counts them; 0 when it cannot say."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if child == 0:
        try:
            libc.ptrace(_PTRACE_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    try:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return 0
        room = ctypes.create_string_buffer(_ROOM)
        vector = _IoVec(ctypes.addressof(room), _ROOM)
        answer = libc.ptrace(_PTRACE_GETREGSET, child, _NT_X86_XSTATE, ctypes.addressof(vector))
        return int(vector.length) if answer == 0 else 0
    finally:
        # After a stop the child is still there to be ended; otherwise it is gone already.
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def fit_to_processor(binary: Path, directory: Path) -> Path:
    """Return `binary`, or a copy in `directory` whose register set is as large as the host's."""
    size = host_register_size()
    if size <= _KNOWN_SIZE:
        return binary
    code = binary.read_bytes()
    places = list(_SET_REGISTERS.finditer(code))
    if len(places) != 1 or int.from_bytes(places[0][1], "little") != _KNOWN_SIZE:
        return binary  # another version: it knows better, or its panic will be reported
    start, end = places[0].span(1)
    fitted = directory / "linux.uml"
    fitted.write_bytes(code[:start] + size.to_bytes(4, "little") + code[end:])
    fitted.chmod(0o755)
    return fitted
