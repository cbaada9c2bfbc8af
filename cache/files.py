"""Atomic writes, checksums and locks: the only place that renames a file into being."""

import contextlib
import csv
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cache.cli import FULL, InputError

LOCK = ".lock"  # of a cache folder: held by the build
WORKERS_LOCK = ".workers.lock"  # shared by the workers that are writing a shard
_CHUNK = 1 << 20
_SEAL = re.compile(rb'{"checksum": "([0-9a-f]{64})",')


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Where the disk is full and the system does not say which file is meant, say `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends without an error.

    The file is fsynced before the rename and the folder after it, so that a file that has its final name is whole
    even after a power cut. On an error the temporary file is removed and `path` keeps its old content. It is locked
    while it is written, so that those that killed writers of `path` left are told apart, and removed.

    Raises
    ------
    OSError : as the block; a full disk names `path`
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(InputError, OSError), file_lock(left, busy=""):
            left.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with open(temporary, "xb") as held:
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with naming_full_disk(path):
                yield temporary
                _fsync(temporary)
                os.replace(temporary, path)
                _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically (see :func:`atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def csv_table(path: str | Path | None, header: list[str]) -> Iterator[Any]:
    """A CSV writer whose file appears under its name when the block ends without an error.

    Lines end with a line feed. Cells that hold one, or a carriage return, are quoted (RFC 4180).

    Parameters
    ----------
    path : the file; None for a table that nobody wants
    header : its first row
    """
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(atomic_path(Path(path))) if path else os.devnull
        file = stack.enter_context(open(target, "w", newline="", encoding="utf-8", errors="surrogateescape"))
        # It quotes no carriage return but where it ends lines with one itself.
        lines = types.SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(lines, lineterminator="\r\n")
        writer.writerow(header)
        yield writer


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_sealed(path: Path, content: dict[str, Any], *, indent: int | None = None) -> None:
    """Write `content` atomically as JSON that opens with the SHA-256 of the rest; the same content is left alone."""
    body = json.dumps(content, indent=indent).encode()[1:] + b"\n"
    data = b'{"checksum": "%b",%b' % (hashlib.sha256(body).hexdigest().encode(), body)
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write_sealed`.

    Raises
    ------
    ValueError : any byte of it differs from what was written
    OSError : it cannot be read
    """
    data = Path(path).read_bytes()
    seal = _SEAL.match(data)
    if not seal or hashlib.sha256(data[seal.end() :]).hexdigest() != seal[1].decode():
        raise ValueError("its checksum does not match its content")
    try:
        return json.loads(b"{" + data[seal.end() :])
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked_output(path: str | Path) -> Path:
    """The path, if a file can be written to it.

    Raises
    ------
    InputError : it is a folder or a device, or there is no folder for it; known before the work whose result it holds
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file; name one")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent} to write it to")
    return path


def lies_in(path: str | Path, places: Iterable[str | Path]) -> str | Path | None:
    """The first of some files and folders that `path` is or lies in, through whatever links; None where there is none.

    `path` need not exist yet.
    """
    path = Path(path)
    ends = (Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name)
    around = {_identity(folder) for end in ends for folder in (end, *end.parents)} - {None}
    return next((place for place in places if _identity(place) in around), None)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and inode; None where there is nothing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def file_lock(path: Path, *, busy: str | None = None, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the kernel drops it when the process dies.

    Parameters
    ----------
    path : the lock file; it is created and stays
    busy : message of the error when another process holds the lock; None: wait for it
    shared : hold it together with others who share it, all of whom keep out those who do not

    Raises
    ------
    InputError : the lock is held, and `busy` says so
    """
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if busy is None else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            raise InputError(busy) from None
        yield


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed writers left in `folder`; call only while holding its lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def unused_folder(out: str | Path) -> Path:
    """The path, if a folder can be made there; InputError where it exists and is not an empty folder."""
    target = Path(out).resolve()
    if Path(out).name in ("", ".."):
        raise InputError(f"{out}: name the folder itself")
    if os.path.ismount(target):
        raise InputError(f"{out}: is a mount point; name a folder inside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; remove it or name another")
    return Path(out)


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error.

    Raises
    ------
    InputError : `out` exists and is not an empty folder, or another process is making it
    """
    target = unused_folder(out).resolve()  # a link to an empty folder stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f".{target.name}.lock"
    with file_lock(lock, busy=f"{out}: another process is writing it; wait for it or name another folder"):
        folder = target.parent / f".{target.name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        folder.mkdir()
        try:
            with naming_full_disk(out):
                yield folder
                os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
