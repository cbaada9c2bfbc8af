"""Files in memory, without a descriptor of their own, and one line instead of a crash where one is cut short."""

import ctypes
import functools
import mmap
import os
import signal
import weakref
from typing import BinaryIO

import numpy as np

from cache.cli import EXIT_ERROR

_SA_SIGINFO, _SI_ADDR = 4, 16  # sigaction(2), on 64-bit Linux
_mapped: dict[int, tuple[int, str]] = {}  # address → bytes, file
_callbacks: list = []


class _Action(ctypes.Structure):
    """``struct sigaction``"""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def map_file(file: BinaryIO) -> np.ndarray:
    """Map a file read-only [shape=(bytes,), dtype=uint8]; unlike ``mmap``, which copies it, it needs no descriptor.

    A page that is gone when it is read (the file was cut short, its disk fails) raises no error but SIGBUS: then the
    process says which file it was and ends with status 2.

    Raises
    ------
    OSError : the file is empty, or there is no room for another mapping
    """
    size, libc = os.fstat(file.fileno()).st_size, _guarded_libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), file.name)
    _mapped[address] = (size, str(file.name))
    buffer = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(buffer, _unmap, address).atexit = False  # threads may still read then
    return np.frombuffer(memoryview(buffer).toreadonly(), np.uint8)


def _unmap(address: int) -> None:
    size, _ = _mapped.pop(address)
    _guarded_libc().munmap(address, size)


@functools.cache
def _guarded_libc() -> ctypes.CDLL:
    """The C library, with a handler of SIGBUS that knows the mapped files."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    before = _Action()

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def end(number: int, info: int, context: int) -> None:
        """Runs in the thread that touched the page, which waits in a copying loop: Python may run here."""
        at = ctypes.c_void_p.from_address(info + _SI_ADDR).value or 0
        for address, (size, name) in list(_mapped.items()):
            if address <= at < address + size:
                line = f"error: {name}: cut short or unreadable while in use; check it with python -m cache.verify\n"
                os.write(2, line.encode(errors="backslashreplace"))
                os._exit(EXIT_ERROR)
        libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)  # the access is tried again, and another answers

    _callbacks.append(end)  # a callback must outlive its use
    action = _Action(ctypes.cast(end, ctypes.c_void_p).value, flags=_SA_SIGINFO)
    libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))
    return libc
