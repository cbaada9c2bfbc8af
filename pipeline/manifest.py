"""A table of recordings: CSV or TSV with a header, a row for each clip."""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.clip_id import Part
from pipeline.clips import Rows
from pipeline.lists import read_text, spellings
from pipeline.names import compile_pattern
from pipeline.options import BuildOptions
from pipeline.scan import scan_corpus
from pipeline.stream import duration_seconds

COLUMNS = {
    "file": ("file", "path", "filename", "fname", "slice_file_name"),
    "label": ("label", "category", "class", "primary_label"),
    "group": ("group", "speaker", "client_id", "src_file", "fsid"),
    "fold": ("fold",),
    "split": ("split",),
    "start": ("start_s",),
    "end": ("end_s",),
}
"""What a column may be called, in lower case, by what it means."""
_DELIMITERS = ",;\t|"


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
        head = self._text.lstrip("\r\n").partition("\n")[0]
        self._delimiter = max(_DELIMITERS, key=head.count)
        header = next(self._cells(), (1, []))[1]
        self.names = _find_columns(path, [cell.lower() for cell in header], columns)
        """Meaning → the column's name."""
        self._at = {meaning: [cell.lower() for cell in header].index(name) for meaning, name in self.names.items()}
        self._width = len(header)

    def fault(self, line: int, meaning: str, what: str) -> InputError:
        """An error that names the table, the line and the column."""
        return InputError(f"{self.path}, line {line}, column {self.names.get(meaning, meaning)}: {what}")

    def _cells(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=self._delimiter, strict=True)
        try:
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise InputError(f"{self.path}, line {reader.line_num}: {error}; is a quote not closed?") from None

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


def _find_columns(path: Path, header: list[str], columns: str | None) -> dict[str, str]:
    """The column of each meaning that the header has; `columns` comes first."""
    found = {}
    for meaning, names in COLUMNS.items():
        if there := [name for name in names if name in header]:
            found[meaning] = there[0]
    for pair in (columns or "").split(",") if columns else ():
        meaning, _, name = pair.partition("=")
        if meaning.strip() not in COLUMNS or name.strip().lower() not in header:
            raise InputError(
                f"--columns {pair}: expected MEANING=COLUMN; meanings are {', '.join(COLUMNS)}, "
                f"the columns of {path} {', '.join(header)}"
            )
        found[meaning.strip()] = name.strip().lower()
    if "file" not in found:
        raise InputError(
            f"{path}, line 1: no column of files; expected one of {', '.join(COLUMNS['file'])}, or name it with "
            f"--columns file=NAME; the table has {', '.join(header) or 'nothing'}"
        )
    return found


class Files:
    """The files of a folder, found by what tables call them: a path, or a name that is unique.

    Parameters
    ----------
    folder : searched below
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listing, _ = scan_corpus(folder, every=True)
        self._names = self.listing["clip_id"]
        self._bases: dict[str, list[int]] = {}

    def find(self, name: str) -> int:
        """The index of a file in the listing.

        Raises
        ------
        LookupError : says why there is none
        """
        wanted = name.encode()
        at = int(np.searchsorted(self._names, wanted))
        if at < len(self._names) and self._names[at] == wanted:
            return at
        if not self._bases:
            for index, path in enumerate(self._names.tolist()):
                base = os.path.basename(path.decode())
                for key in {path.decode(), base, os.path.splitext(base)[0]}:
                    self._bases.setdefault(key, []).append(index)
        for spelled in spellings(name, self._folder):
            found = self._bases.get(spelled, [])
            if len(found) > 1:
                paths = b", ".join(self._names[found[:2]].tolist()).decode()
                raise LookupError(f"{name!r} is the name of {len(found)} files ({paths}); name its folder, too")
            if found:
                return found[0]
        raise LookupError(f"no file {name!r} below {self._folder}")


def read_manifest(path: Path, audio_dir: Path, options: BuildOptions) -> tuple[np.ndarray, list[str], list[str]]:
    """The clips of a table.

    Parameters
    ----------
    path : the table
    audio_dir : what its files are named from

    Returns
    -------
    (clips, as in `pipeline.clips`; names of their folds; notes)

    Raises
    ------
    InputError : names line and column
    """
    table, files, rows = Table(path, options.columns), Files(audio_dir), Rows()
    if "label" not in table.names:
        raise InputError(
            f"{path}, line 1: no column of labels; expected one of {', '.join(COLUMNS['label'])}, or name it with "
            "--columns label=NAME"
        )
    pattern = compile_pattern(options.pattern)
    lines: dict[bytes, int] = {}
    sides: dict[str, tuple] = {}
    missing, lengths = [], dict[int, float]()
    listing = files.listing.tolist()
    for row in table.rows():
        try:
            at = files.find(row.file)
        except LookupError as error:
            missing.append(table.fault(row.line, "file", str(error)))
            continue
        name = listing[at][0].decode()
        key = name.encode() + str(row.part or "").encode()
        if key in lines:
            raise table.fault(row.line, "file", f"{row.file} stands in line {lines[key]} already")
        lines[key] = row.line
        if row.part:
            if at not in lengths:
                lengths[at] = duration_seconds(str(audio_dir / name))
            last = max(row.part.start_s, row.part.end_s or 0)
            if lengths[at] and last > lengths[at] + 0.01:
                raise table.fault(
                    row.line, "end" if row.part.end_s else "start", f"{last:g} s; {name} has {lengths[at]:g}"
                )
        group = row.group
        if not group and "group" not in table.names and (found := pattern.search(name)):
            group = found.groupdict().get("speaker") or ""
        if not group and row.part:
            group = name
        if group and options.group_by != "none":
            side = (row.fold, row.split.lower())
            other, line = sides.setdefault(group, (side, row.line))
            if other != side:
                column = "fold" if other[0] != side[0] else "split"
                was, now = ((pair[0] if column == "fold" else pair[1]) or "" for pair in (other, side))
                raise table.fault(
                    row.line,
                    column,
                    f"{now} for the group {group}, {was} in line {line}; correct it, or --group-by none",
                )
        try:
            rows.add(listing[at], row.part, row.label, group, row.split, row.fold)
        except ValueError as error:
            raise table.fault(row.line, "fold" if "fold" in str(error) else "split", str(error)) from None
    if missing and not (options.ignore_missing and lines):
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}{more}; correct --audio-dir or the table, or leave them out: --ignore-missing")
    if not lines:
        raise InputError(f"{path}: no rows below the header")
    clips, folds = rows.clips()
    used = ", ".join(f"{meaning} from {name}" for meaning, name in table.names.items())
    notes = [f"{path}: {len(lines):,} rows; {used}"]
    if missing:
        notes.append(f"left out: {len(missing):,} rows; {missing[0]}")
    if not (clips["speaker"] != b"").any():
        notes.append("groups: none known, so that a speaker may stand on both sides of a fold")
    return clips, folds, notes
