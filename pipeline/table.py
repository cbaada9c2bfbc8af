"""Tables of recordings, as people and their programs write them: CSV or TSV with a header."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from cache.cli import InputError
from cache.clip_id import Part
from pipeline.lists import read_text
from pipeline.sound_files import is_recording

COLUMNS = {
    "file": ("file", "path", "filename", "fname", "slice_file_name"),
    "label": ("label", "category", "class", "primary_label"),
    "group": ("group", "speaker", "speaker_id", "client_id", "src_file", "fsid"),
    "fold": ("fold",),
    "split": ("split",),
    "start": ("start_s",),
    "end": ("end_s",),
}
"""What a column may be called, in lower case, by what it means."""
_DELIMITERS, _LINE_END = ",;\t|", re.compile(r"\r\n?|\n")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table."""

    line: int
    file: str
    label: str
    group: str
    fold: str | None
    """None where the table has no folds."""
    split: str
    part: Part | None


class Table:
    """A table and what its columns mean.

    Parameters
    ----------
    path : the table: UTF-8 with or without a byte order mark, or UTF-16 with one
    columns : names of columns that are called otherwise, as ``file=wav,label=species``

    Raises
    ------
    InputError : no text, or a header that lacks a column
    """

    def __init__(self, path: Path, columns: str | None = None) -> None:
        self.path, self._text = path, read_text(path)
        head = re.sub(r'"[^"]*"', "", self._text.lstrip("\r\n").partition("\n")[0])
        self._delimiter = max(_DELIMITERS, key=head.count)
        header = [cell.lower() for cell in next(self._cells(), (1, []))[1]]
        self.names = _find_columns(path, header, columns)
        """Meaning → the column's name."""
        self._at = {meaning: header.index(name) for meaning, name in self.names.items()}
        self._width = len(header)

    def fault(self, line: int, meaning: str, what: str) -> InputError:
        """An error that names the table, the line and the column."""
        return InputError(f"{self.path}, line {line}, column {self.names.get(meaning, meaning)}: {what}")

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        if self._delimiter == "\t" and self._is_plain():
            for line, text in enumerate(_LINE_END.split(self._text), 1):
                if text.strip():
                    yield line, [_unquoted(cell.strip()) for cell in text.split("\t")]
            return
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        try:
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}; is a quote not closed?") from None

    def _is_plain(self) -> bool:
        """Whether each line has as many tabs as the first: then a quote is a character, and hides no line end."""
        return len({text.count("\t") for text in _LINE_END.split(self._text) if text.strip()}) == 1

    def rows(self, *, labelled: bool = True) -> Iterator[Row]:
        """The rows below the header.

        Parameters
        ----------
        labelled : whether a label is needed

        Raises
        ------
        InputError : a row that lacks a cell, or holds what its column does not take
        """
        rows = self._cells()
        next(rows, None)
        for line, cells in rows:
            if len(cells) != self._width:
                raise InputError(f"{self.path}, line {line}: {len(cells)} cells; the header has {self._width}")
            said = {meaning: cells[at] for meaning, at in self._at.items()}
            for meaning in ("file", "label") if labelled else ("file",):
                if not said.get(meaning):
                    raise self.fault(line, meaning, "empty")
            start = self._seconds(line, "start", said.get("start"))
            end = self._seconds(line, "end", said.get("end"))
            if end is not None and end <= (start or 0):
                raise self.fault(line, "end", f"{end:g} s; expected more than the start, {start or 0:g} s")
            part = None if start is None and end is None else Part(start or 0.0, end)
            group, label = said.get("group", ""), said.get("label", "")
            yield Row(line, said["file"], label, group, said.get("fold"), said.get("split", ""), part)

    def _seconds(self, line: int, meaning: str, cell: str | None) -> float | None:
        if not cell:
            return None
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise self.fault(line, meaning, f"{cell!r}; expected seconds, such as 2.5")
        return value


def _unquoted(cell: str) -> str:
    """What is within a pair of quotes around a cell."""
    whole = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if whole else cell


def _find_columns(path: Path, header: list[str], columns: str | None) -> dict[str, str]:
    """The column of each meaning that the header has; `columns` comes first."""
    if named := [cell for cell in header if is_recording(cell)]:
        raise InputError(
            f"{path}, line 1: names a recording ({named[0]}), but should name columns; put a line above it, such as "
            "file,label with the table's own delimiter"
        )
    called = {meaning: [name for name in names if name in header] for meaning, names in COLUMNS.items()}
    found = {meaning: names[0] for meaning, names in called.items() if names}
    for pair in columns.split(",") if columns else ():
        meaning, _, name = pair.partition("=")
        meaning = {"speaker": "group"}.get(meaning.strip(), meaning.strip())
        if meaning not in COLUMNS or name.strip().lower() not in header:
            raise InputError(
                f"--columns {pair}: expected MEANING=COLUMN; meanings are {', '.join(COLUMNS)}, "
                f"the columns of {path} {', '.join(header)}"
            )
        found[meaning] = name.strip().lower()
    for name in found.values():
        if header.count(name) > 1:
            raise InputError(f"{path}, line 1: {header.count(name)} columns are called {name}; leave one")
    if "file" not in found:
        raise InputError(
            f"{path}, line 1: no column of files; expected one of {', '.join(COLUMNS['file'])}, or name it with "
            f"--columns file=NAME; the table has {', '.join(header) or 'nothing'}"
        )
    return found
