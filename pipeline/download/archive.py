"""Public archives: download (resumable), verify, unpack safely, and make a folder whole or not at all."""

import contextlib
import errno
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cache.cli import InputError
from cache.files import exclusive_lock, file_checksum

if TYPE_CHECKING:
    from rich.progress import Progress

_RETRIES = 3  # in a row without a new byte
_CHUNK_BYTES = 1 << 20
_MAX_MEMBERS, _MAX_FILE_BYTES, _MAX_TOTAL_BYTES = 1_000_000, 1 << 28, 1 << 34


def download_corpus(url: str, sha256: str, out: Path, *, pause_seconds: float = 1.0) -> tuple[int, int]:
    """Download, verify and unpack one archive; `out` comes into being whole or not at all.

    Parameters
    ----------
    url : http or https address of a .tar.gz
    sha256 : of the archive, 64 hexadecimal digits
    out : the folder to make; it must not exist or be empty
    pause_seconds : before the first retry; it doubles with each

    Returns
    -------
    (int, int) : clips and labels

    Raises
    ------
    InputError : `out` is not empty, the server cannot be reached, the checksum differs, or a member is unsafe
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: expected an address that starts with http:// or https://")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with new_folder(out) as folder, Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        archive = folder.parent / f".{out.name}.{PurePosixPath(urlsplit(url).path).name}.part"
        if not archive.exists() or file_checksum(archive) != sha256:
            fetch(url, archive, progress, pause_seconds)
            found = file_checksum(archive)
            if found != sha256:
                archive.unlink()
                raise InputError(f"{url}: SHA-256 is {found}, expected {sha256}; it was removed, run again to retry")
        with _full_disk(folder):
            counts = unpack(archive, folder, progress)
    archive.unlink()
    return counts


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends without an error.

    Raises
    ------
    InputError : `out` exists and is not an empty folder, or another process is making it
    """
    target = Path(out).resolve()  # a link to an empty folder stays a link
    if os.path.ismount(target):
        raise InputError(f"{out}: is a mount point; name a folder inside it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; remove it or name another")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = target.parent / f".{target.name}.lock"
    with exclusive_lock(lock, busy=f"{out}: another process is writing it; wait for it or name another folder"):
        folder = target.parent / f".{target.name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        folder.mkdir()
        try:
            yield folder
            os.replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()


class _LostError(Exception):
    """The connection failed; the same request may succeed later."""


def fetch(url: str, archive: Path, progress: "Progress", pause_seconds: float = 1.0) -> None:
    """Download `url` into `archive`, continuing what is there; a lost connection is retried a few times.

    Raises
    ------
    InputError : the server refuses or cannot be reached, or the disk is full
    """
    task, server = progress.add_task("download", total=None), urlsplit(url).netloc
    etag, failures = "", 0
    while True:
        have = _size(archive)
        try:
            response = _request(url, have, etag)
            if response is not None:
                with response:
                    etag = response.headers.get("ETag", "")
                    _receive(response, archive, have, progress, task)
            return
        except _LostError as error:
            kept = _size(archive)
            failures = 1 if kept > have else failures + 1
            if failures > _RETRIES:
                remedy = f"check the network, or name another server with --mirror ({kept:,} bytes are kept"
                raise InputError(f"{server}: {error}; {remedy}; running this again continues)") from None
            wait = pause_seconds * 2 ** (failures - 1)
            progress.console.print(f"{server}: {error}; trying again in {wait:g} s", highlight=False, soft_wrap=True)
            time.sleep(wait)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _request(url: str, have: int, etag: str) -> http.client.HTTPResponse | None:
    """Ask for the bytes after the first `have`; None if there are none."""
    headers = {"User-Agent": "melshard"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag.startswith('"'):  # a weak one cannot vouch for bytes
            headers["If-Range"] = etag
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return None
        if error.code < 500 and error.code not in (408, 429):
            raise InputError(f"{url}: the server answers {error.code} {error.reason}; check --mirror") from None
        raise _LostError(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(f"cannot be reached ({getattr(error, 'reason', error)})") from None


def _receive(response: http.client.HTTPResponse, archive: Path, have: int, progress: "Progress", task: int) -> None:
    """Append the body to `archive`, or start it anew if the server does not answer for the range asked for."""
    done = have if response.status == 206 else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    with _full_disk(archive), open(archive, "ab" if done else "wb") as file:
        for chunk in _chunks(response):
            file.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done, total=total)
    if total and done < total:
        raise _LostError(f"the connection closed after {done:,} of {total:,} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _LostError(f"the connection broke ({error})") from None


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise InputError(f"{path}: {error.strerror}; make room, then running this again continues") from None
        raise


def unpack(archive: Path, folder: Path, progress: "Progress") -> tuple[int, int]:
    """Unpack a .tar.gz of plain files and folders into the empty `folder`.

    Only names and contents are taken over: no links, devices, owners or modes, and nothing outside `folder`
    (Python's own `data` filter is missing from early releases of 3.10).

    Returns
    -------
    (int, int) : clips and labels, without ``_background_noise_``

    Raises
    ------
    InputError : a member is unsafe, or the archive is damaged
    """
    clips, labels, room = 0, set(), _MAX_TOTAL_BYTES
    try:
        with progress.open(archive, "rb", description="unpack") as raw, tarfile.open(fileobj=raw, mode="r|gz") as tar:
            for count, member in enumerate(tar):
                room -= member.size
                if room < 0 or member.size > _MAX_FILE_BYTES or count >= _MAX_MEMBERS:
                    raise InputError(f"unsafe archive: larger than any corpus at {member.name!r}; nothing was unpacked")
                path = folder / checked_name(member)
                if member.isdir():
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as target:
                    shutil.copyfileobj(tar.extractfile(member), target)
                if path.suffix == ".wav" and path.parent.name != "_background_noise_":
                    clips += 1
                    labels.add(path.parent.name)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"unsafe archive: {member.name!r} occurs twice; nothing was unpacked") from None
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{archive}: not a whole .tar.gz ({error}); remove it and run again") from None
    return clips, len(labels)


def checked_name(member: tarfile.TarInfo) -> PurePosixPath:
    """The member's path inside the target folder.

    Raises
    ------
    InputError : it is not a plain file or folder, or it would lie outside
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"unsafe archive: {member.name!r} lies outside the target folder; nothing was unpacked")
    if not (member.isreg() or member.isdir()):
        raise InputError(f"unsafe archive: {member.name!r} is a link or a device; nothing was unpacked")
    return path
