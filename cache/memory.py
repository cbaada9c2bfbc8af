"""How this process's memory is handed out."""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX, _PERTURB = -1, -4, -6  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Let malloc keep large blocks that are freed for the next ones, instead of giving them back to the kernel.

    Features and networks on the CPU allocate the same megabytes in each step. Faulting them in anew, page by page,
    costs a worker of the build a fifth of its time and training a tenth to a third. Nothing happens where the C
    library is not glibc.
    """
    _mallopt(_MMAP_MAX, 0)
    _mallopt(_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """While the block runs, malloc hands out memory full of huge numbers: code that reads what nobody wrote shows.

    Each byte is 0x7f, which makes 3.4e38 as float32 and as bfloat16. Nothing happens where the C library is not glibc.
    """
    _mallopt(_PERTURB, 0x80)  # the complement of the byte
    try:
        yield
    finally:
        _mallopt(_PERTURB, 0)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(parameter, value)
