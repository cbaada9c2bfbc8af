"""Listing a corpus: its clips and its background recordings."""

import collections
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.clip_id import file_of
from pipeline.sound_files import CONVERT, EXTENSIONS, FOREIGN, is_recording, read_file, reason_of

NOISE_FOLDER = "_background_noise_"
_PART = 65536  # clips


def scan_corpus(audio_dir: Path, *, every: bool = False) -> tuple[np.ndarray, dict[str, int]]:
    """List the recordings below a folder, but for folders that begin with ``_`` or ``.``.

    Parameters
    ----------
    every : list whatever files there are, also below ``_`` folders: a table says which are recordings

    Returns
    -------
    listing : np.ndarray [shape=(n,)] with the fields clip_id (bytes, UTF-8) and stamp (see :func:`stamp_of`), sorted by
        clip_id, whatever the order of the file system
    ignored : suffix → count of files that are not recordings, but for lists and the like beside the labels

    Raises
    ------
    InputError : no folder, or nothing in it
    """
    audio_dir = Path(audio_dir)
    if not audio_dir.is_dir():
        raise InputError(
            f"{audio_dir}: no such folder; put recordings into {audio_dir}/<label>/*.wav, or make some with "
            "python -m pipeline.download speech-commands-v0.01 or python -m pipeline.demo_corpus"
        )
    parts, found, ignored = [], [], collections.Counter[str]()
    prefix = len(os.fsencode(os.path.join(audio_dir, "")))
    for entry in walk(str(audio_dir), skipped=(".",) if every else ("_", ".")):
        name = os.fsencode(entry.path)[prefix:]
        if not (every or is_recording(entry.name)):
            suffix = os.path.splitext(entry.name)[1].lower()
            if b"/" in name or suffix in FOREIGN:  # else beside the labels, as the corpus's lists
                ignored[".*" if entry.name.startswith(".") else suffix or "no suffix"] += 1
            continue
        try:
            found.append((name, stamp_of(entry.stat())))
        except OSError:  # a link to nowhere: decoding will say so
            found.append((name, -1))
        if len(found) == _PART:
            parts.append(_listing(audio_dir, found))
            found.clear()
    if not parts and not found:
        foreign = sum(ignored[suffix] for suffix in FOREIGN)
        raise InputError(
            f"{audio_dir}: no recordings; expected {audio_dir}/<label>/*{{{','.join(EXTENSIONS)}}}"
            + (f"; {foreign:,} files are of kinds that cannot be decoded here: {CONVERT}" if foreign else "")
        )
    listing = np.concatenate([*parts, _listing(audio_dir, found)])
    parts.clear()
    return listing[np.argsort(listing["clip_id"], kind="stable")], ignored


def stamp_of(status: os.stat_result) -> int:
    """What changes when a file is written to or another takes its place: 56 bits over size, times and inode.

    Copies and archives may set the time of the last write, and a file system gives free inodes away again. The time of
    the last change to the inode is the system's own.
    """
    facts = b"%d %d %d %d" % (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return int.from_bytes(hashlib.blake2b(facts, digest_size=7).digest(), "big")


def _listing(audio_dir: Path, found: list[tuple[bytes, int]]) -> np.ndarray:
    """A part of the listing; Python's objects take several times the memory, so that they are kept for a part only."""
    width = max((len(name) for name, _ in found), default=1)
    for name, _ in found:
        _check_name(audio_dir, name)
    return np.array(found, [("clip_id", f"S{width}"), ("stamp", "<i8")])


def _check_name(folder: Path, name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError:
        raise InputError(f"{folder}: the file name {name!r} is not UTF-8; rename it") from None


def walk(top: str, *, skipped: tuple[str, ...] = ()) -> Iterator[os.DirEntry]:
    """Everything below a folder that is no folder, in no order.

    Links to folders are followed, except to a folder that they lie in.

    Parameters
    ----------
    skipped : how the names of folders begin that are left out

    Raises
    ------
    OSError : a folder cannot be read
    """
    waiting: list[tuple[str, tuple]] = [(top, (_identity(os.stat(top)),))]
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _is_folder(entry):
                    yield entry
                elif not entry.name.startswith(skipped) and (here := _identity(entry.stat())) not in above:
                    waiting.append((entry.path, (*above, here)))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it will say so
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def from_names(function: Callable[[bytes], bytes], names: np.ndarray) -> np.ndarray:
    """A function of each name, a part at a time [shape=(n,), dtype=bytes]."""
    starts = range(0, max(1, len(names)), _PART)
    return np.concatenate([np.array([*map(function, names[at : at + _PART].tolist())], bytes) for at in starts])


def files_of(clip_ids: np.ndarray) -> np.ndarray:
    """The file of each clip, as `cache.clip_id` has it [shape=(n,), dtype=bytes]; `clip_ids` where none is a part."""
    if not (np.char.find(clip_ids, b"#t=") >= 0).any():
        return clip_ids
    return from_names(lambda name: file_of(name.decode()).encode(), clip_ids)


def random_keys(names: np.ndarray, seed: int) -> np.ndarray:
    """Keys that put names in a random order, which is the same whatever other names there are [shape=(n,)]."""
    return from_names(lambda name: hashlib.sha256(b"%d/%b" % (seed, name)).digest()[:8], names)


def noise_files(audio_dir: Path) -> list[Path]:
    """The corpus's background recordings, also those in folders of their folder, sorted."""
    folder = Path(audio_dir) / NOISE_FOLDER
    entries = walk(str(folder), skipped=(".",)) if folder.is_dir() else ()
    files = sorted(Path(entry.path) for entry in entries if is_recording(entry.name))
    for path in files:
        _check_name(folder, os.fsencode(path.relative_to(folder)))
    return files


def noise_digest(files: list[Path]) -> str:
    """Digest of the content of the background recordings; empty where there are none.

    Raises
    ------
    InputError : one cannot be read
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(hashlib.sha256(read_file(str(path))).digest())
        except (InputError, OSError) as error:
            raise InputError(f"{path}: {reason_of(error)}; repair or remove it") from None
    return digest.hexdigest()[:16] if files else ""
