"""Tables as CSV."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.files import atomic_path


@contextlib.contextmanager
def csv_table(path: str | Path | None, header: list[str]) -> Iterator[Any]:
    """A CSV writer whose file appears under its name when the block ends without an error.

    Parameters
    ----------
    path : the file; None for a table that nobody wants
    header : its first row
    """
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(atomic_path(Path(path))) if path else os.devnull
        settings = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        writer = csv.writer(stack.enter_context(open(target, "w", **settings)), lineterminator="\n")
        writer.writerow(header)
        yield writer
