"""Lists of recordings, as people and their tools write them.

Lines may end as on Windows, begin with ``./`` or the name of the corpus's folder, hold backslashes, or spell ``é`` with
one code point where the file's name has two.
"""

import os
import re
import unicodedata
from pathlib import Path

from cache.cli import InputError

_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins


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
