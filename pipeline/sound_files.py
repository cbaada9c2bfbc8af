"""Files that hold recordings: which these are, how they are opened and read, and what tells their contents apart."""

import contextlib
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

from cache.cli import InputError
from cache.cores import usable_cores

EXTENSIONS = (
    *(".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".caf", ".au", ".snd"),
)
FOREIGN = (".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".3gp", ".mka")  # sound that libsndfile does not decode
CONVERT = "convert them first, such as with: ffmpeg -i x.m4a x.flac"
MAX_BYTES = 1 << 28  # of a file
_FILES = 65536  # at once: more take memory


def is_recording(name: str) -> bool:
    """Whether a file's name is one of a recording that libsndfile may decode."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def reason_of(error: InputError | OSError) -> str:
    """Why a recording cannot be read, without its name."""
    return getattr(error, "strerror", None) or str(error)


def open_recording(path: str) -> int:
    """A file descriptor for reading.

    Raises
    ------
    InputError : a FIFO or a device, which might never end
    OSError : not readable
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise InputError("not a regular file")


def read_file(path: str) -> bytes:
    """The content of a file that is small enough to be a recording.

    Raises
    ------
    InputError, OSError : too large, or not readable
    """
    with open(open_recording(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise InputError(f"{size} bytes; expected at most {MAX_BYTES}")
        return file.read()


def content_digest(data: bytes) -> str:
    """What tells a recording's content from any other: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def content_digests(paths: list[str]) -> list[str]:
    """Of each file its :func:`content_digest`; empty where it cannot be read, or is too large for a recording."""

    def digest(path: str) -> str:
        with contextlib.suppress(InputError, OSError):
            return content_digest(read_file(path))
        return ""

    once, found = list(dict.fromkeys(paths)), dict[str, str]()
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter lock
        for at in range(0, len(once), _FILES):
            found.update(zip(once[at : at + _FILES], pool.map(digest, once[at : at + _FILES]), strict=True))
    return [found[path] for path in paths]
