"""Tables as CSV, whatever is in their cells."""

import contextlib
import csv
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
        # It quotes no carriage return but where it ends lines with one itself.
        lines = types.SimpleNamespace(write=lambda line: file.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(lines, lineterminator="\r\n")
        writer.writerow(header)
        yield writer
