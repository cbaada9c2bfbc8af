"""Lists of recordings, as people and their tools write them.

Lines may end as on Windows, begin with ``./`` or the name of the corpus's folder, hold backslashes, or spell ``é`` with
one code point where the file's name has two.
"""

import dataclasses
import os
import re
import unicodedata
from pathlib import Path

import numpy as np

from cache.cli import InputError
from pipeline.options import BuildOptions

TESTING, VALIDATION = "testing_list.txt", "validation_list.txt"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins


@dataclasses.dataclass(frozen=True)
class ClipList:
    """A list of the corpus, and what it names."""

    name: str
    lines: list[str]
    clip_ids: set[bytes]
    """The clips of the corpus that are named."""
    missing: list[str]
    """Lines that name none."""

    def __str__(self) -> str:
        return f"{self.name}: {len(self.lines):,} lines, {len(self.clip_ids):,} clips"


def read_clip_lists(options: BuildOptions, clip_ids: np.ndarray) -> dict[str, ClipList]:
    """The lists that are there and that a build uses, by their file name.

    Parameters
    ----------
    clip_ids : of all recordings, whether or not they can be decoded [shape=(n,), dtype=bytes]

    Raises
    ------
    InputError : lines that name no clip, which are then trained on, or are expected to be there and are not
    """
    used = (TESTING, VALIDATION) if options.split == "official" else (TESTING,)
    there = [name for name in used if os.path.lexists(Path(options.audio_dir) / name)]
    return {name: _read_clip_list(name, options, clip_ids) for name in there}


def _read_clip_list(name: str, options: BuildOptions, clip_ids: np.ndarray) -> ClipList:
    lines = read_lines(Path(options.audio_dir) / name)
    named = ClipList(name, lines, *_find_clips(lines, clip_ids, options.audio_dir))
    if named.missing and not (options.ignore_missing and named.clip_ids):
        remedy = ", or go on without them with --ignore-missing" if named.clip_ids else ""
        raise InputError(
            f"{options.audio_dir}/{named}; {len(named.missing):,} lines name no clip of this corpus, such as "
            f"{named.missing[0]!r} (clips are named as {clip_ids[0].decode()!r}): correct them{remedy}"
        )
    return named


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks around them.

    Parameters
    ----------
    path : UTF-8 with or without a byte order mark, or UTF-16 with one

    Raises
    ------
    InputError : no such text
    """
    lines = re.split(r"\r\n?|\n", read_text(path))
    return [line.strip() for line in lines if line.strip()]


def read_text(path: str | Path) -> str:
    """A text file without byte order marks, which also stand within where files were joined; see :func:`read_lines`."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: not text in UTF-8 ({error.reason} at byte {error.start}, line {line}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(f"{path}: not text: it has bytes that are zero")
    return text.replace("\ufeff", "")


def spelling(path: str) -> str:
    """One spelling of all those that mean the same path: with ``/``, without empty parts and dots, in NFC."""
    return os.path.normpath(unicodedata.normalize("NFC", path.replace("\\", "/"))).lstrip("/")


def spellings(line: str, folder: str | Path) -> list[str]:
    """What a line may mean within a folder: itself, and what follows the folder's name in it."""
    whole = spelling(line)
    parts = whole.split("/")
    if len(parts) == 1:
        return [whole]
    names = {spelling(os.path.basename(place(folder))) for place in (os.path.abspath, os.path.realpath)}
    return [whole, *("/".join(parts[at + 1 :]) for at, part in enumerate(parts[:-1]) if part in names)]


def _find_clips(lines: list[str], clip_ids: np.ndarray, audio_dir: str) -> tuple[set[bytes], list[str]]:
    """The clips that lines name, and the lines that name none."""
    wanted = {line.encode() for line in lines}
    found = {bytes(name) for name in clip_ids if name in wanted}  # one by one: a list of all takes their memory again
    others = {line: spellings(line, audio_dir) for line in lines if line.encode() not in found}
    if not others:
        return found, []
    meant = {name for names in others.values() for name in names}
    here: dict[str, list[bytes]] = {}
    for clip_id in clip_ids:
        name = spelling(clip_id.decode())
        if name in meant:
            here.setdefault(name, []).append(bytes(clip_id))
    missing = []
    for line, names in others.items():
        clips = next((here[name] for name in names if name in here), [])
        found.update(clips)
        missing += [] if clips else [line]
    return found, missing


def find_files(lines: list[str], folder: Path) -> list[str]:
    """The file that each line names: from the working directory, or from the list's own folder.

    Parameters
    ----------
    folder : the list's

    Returns
    -------
    list of str : paths; a line that names no file is returned as it is
    """
    entries: dict[str, dict[str, str]] = {}  # of each folder that was searched, by their spelling

    def existing(path: str) -> str:
        """The path as the file system spells it, or the empty string."""
        if os.path.lexists(path):
            return path
        parent, name = os.path.split(path)
        if path.isascii() or not name or not (parent := existing(parent or ".")):
            return ""
        if parent not in entries:
            entries[parent] = {spelling(entry): entry for entry in os.listdir(parent)} if os.path.isdir(parent) else {}
        found = entries[parent].get(spelling(name))
        return os.path.join(parent, found) if found else ""

    def find(line: str) -> str:
        places = [line, line.replace("\\", "/"), *(str(folder / name) for name in spellings(line, folder))]
        return next(filter(None, map(existing, places)), line)

    return [find(line) for line in lines]
