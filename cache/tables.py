"""Tables as CSV, whatever is in their cells."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cache.files import atomic_path


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
        writer = csv.writer(_Lines(file), lineterminator="\r\n")
        writer.writerow(header)
        yield writer


class _Lines:
    """What `csv.writer` writes to: it quotes no carriage return but where it ends lines with one itself."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        """Write a row that ends with CR LF, without the CR."""
        self._file.write(line.removesuffix("\r\n") + "\n")
