"""A table of recordings: CSV or TSV with a header, a row for each clip."""

import array
import csv
import dataclasses
import functools
import io
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.clip_id import Part
from pipeline.clips import Rows
from pipeline.lists import read_text, spelling, spellings
from pipeline.names import compile_pattern
from pipeline.options import BuildOptions
from pipeline.scan import from_names, scan_corpus
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
_PART = 65536  # rows
_SLACK_S = 0.01  # that a part may end behind its recording


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
    """The files of a folder, found by what tables call them: a path, or a name that is unique, also without its suffix.

    Parameters
    ----------
    folder : searched below
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.listing, _ = scan_corpus(folder, every=True)
        self._exact = _Names(self.listing["clip_id"])

    def find(self, names: list[str]) -> list[int]:
        """Indices into the listing; -1 where :meth:`explain` says why there is none."""
        found = self._exact.find(names)
        rest = np.flatnonzero(found < 0).tolist()
        meant = {at: spellings(names[at], self._folder) for at in rest}
        for way, turn in itertools.product(self._ways, range(max(map(len, meant.values())))) if rest else ():
            found[rest] = way.find([meant[at][turn] if turn < len(meant[at]) else "" for at in rest])
            rest = [at for at in rest if found[at] == -1]
            if not rest:
                break
        return np.maximum(found, -1).tolist()

    @functools.cached_property
    def _ways(self) -> list["_Names"]:
        """What a file may be called, the surest first."""
        names = self.listing["clip_id"]
        whole = from_names(lambda name: spelling(name.decode()).encode(), names)
        bases = from_names(os.path.basename, whole)
        return [_Names(whole), _Names(bases), _Names(from_names(lambda name: os.path.splitext(name)[0], bases))]

    def explain(self, name: str) -> str:
        """Why a name finds no file."""
        for way in self._ways:
            for spelled in spellings(name, self._folder):
                if len(several := way.all_of(spelled)) > 1:
                    paths = ", ".join(path.decode() for path in self.listing["clip_id"][several[:2]].tolist())
                    return f"{name!r} is the name of {len(several)} files ({paths}); name its folder, too"
        return f"no file {name!r} below {self._folder}"


class _Names:
    """Names in order, to be searched [shape=(n,), dtype=bytes]."""

    def __init__(self, names: np.ndarray) -> None:
        self._order = np.argsort(names, kind="stable")
        self._sorted = names[self._order]

    def find(self, names: list[str]) -> np.ndarray:
        """The index of each name; -1 where it is none of these, -2 where it is several of them."""
        wanted = np.array([name.encode() for name in names], bytes)
        first, last = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        at = self._order[np.minimum(first, len(self._order) - 1)]
        return np.where(last - first == 1, at, np.where(last > first, -2, -1))

    def all_of(self, name: str) -> np.ndarray:
        """The indices of all that have a name."""
        first, last = (int(np.searchsorted(self._sorted, name.encode(), side)) for side in ("left", "right"))
        return self._order[first:last]


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
    table, files, taken = Table(path, options.columns), Files(audio_dir), _Taken(audio_dir, options)
    if "label" not in table.names:
        raise InputError(
            f"{path}, line 1: no column of labels; expected one of {', '.join(COLUMNS['label'])}, or name it with "
            "--columns label=NAME"
        )
    rest = table.rows()
    missing: list[InputError] = []
    while some := list(itertools.islice(rest, _PART)):
        found = files.find([row.file for row in some])
        for row, at, file in zip(some, found, files.listing[found].tolist(), strict=True):
            if at >= 0:
                taken.add(table, row, file)
            else:
                missing.append(table.fault(row.line, "file", "" if missing else files.explain(row.file)))
    if missing and not (options.ignore_missing and taken.lines):
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise InputError(f"{missing[0]}{more}; correct --audio-dir or the table, or leave them out: --ignore-missing")
    if not taken.lines:
        raise InputError(f"{path}: no rows below the header")
    clips, folds = taken.rows.clips()
    order = np.argsort(clips["clip_id"], kind="stable")
    twice = np.flatnonzero(clips["clip_id"][order[1:]] == clips["clip_id"][order[:-1]])
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        name = clips["clip_id"][first].decode()
        raise table.fault(taken.lines[second], "file", f"{name} stands in line {taken.lines[first]} already")
    used = ", ".join(f"{meaning} from {name}" for meaning, name in table.names.items())
    notes = [f"{path}: {len(clips):,} rows; {used}"]
    if missing:
        notes.append(f"left out: {len(missing):,} rows; {missing[0]}")
    if not (clips["speaker"] != b"").any():
        notes.append("speakers: none known, so that one may stand on both sides of a fold; name them in a column group")
    return clips, folds, notes


class _Taken:
    """The rows of a table that become clips.

    Parameters
    ----------
    audio_dir : the corpus
    """

    def __init__(self, audio_dir: Path, options: BuildOptions) -> None:
        self.rows = Rows()
        self.lines = array.array("q")
        """Of each clip."""
        self._audio_dir, self._grouped = audio_dir, options.group_by != "none"
        self._pattern = compile_pattern(options.pattern)
        self._sides: dict[str, tuple] = {}
        self._seconds: dict[str, float] = {}

    def add(self, table: Table, row: Row, file: tuple) -> None:
        """Take a row of a file (clip_id, size, mtime_ns).

        Raises
        ------
        InputError : its part lies outside the file, its group stands on another side, its split or fold is none
        """
        name = file[0].decode()
        if row.part:
            self._check_part(table, row, name)
        group = row.group
        if not group and "group" not in table.names and (found := self._pattern.search(name)):
            group = found.groupdict().get("speaker") or ""
        if not group and row.part:
            group = name
        if group and self._grouped:
            self._check_side(table, row, group)
        try:
            self.rows.add(file, row.part, row.label, group, row.split, row.fold)
        except ValueError as error:
            raise table.fault(row.line, "fold" if "fold" in str(error) else "split", str(error)) from None
        self.lines.append(row.line)

    def _check_part(self, table: Table, row: Row, name: str) -> None:
        assert row.part
        if name not in self._seconds:
            self._seconds[name] = duration_seconds(str(self._audio_dir / name))
        seconds, last = self._seconds[name], row.part.end_s or row.part.start_s
        if seconds and last > seconds + _SLACK_S:
            raise table.fault(row.line, "end" if row.part.end_s else "start", f"{last:g} s; {name} has {seconds:g}")

    def _check_side(self, table: Table, row: Row, group: str) -> None:
        """Groups of given folds and splits stand on one side."""
        now = (row.fold, row.split.lower())
        other, line = self._sides.setdefault(group, (now, row.line))
        for meaning, here, there in zip(("fold", "split"), now, other, strict=True):
            if here != there:
                what = f"{here} for the group {group}, {there} in line {line}; correct it, or --group-by none"
                raise table.fault(row.line, meaning, what)
