"""The clips of a table: --manifest."""

import array
import functools
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.cli import InputError, counted
from pipeline.clips import Rows
from pipeline.decode import PART_SLACK_S
from pipeline.lists import spelling, spellings
from pipeline.names import compile_pattern
from pipeline.options import BuildOptions
from pipeline.scan import files_of, from_names, scan_corpus
from pipeline.sound_files import is_recording
from pipeline.stream import duration_seconds
from pipeline.table import COLUMNS, Row, Table

_PART = 65536  # rows
_NOTHING = [b"nan", b"none", b"null", b"na", b"n/a", b"<na>"]
"""What programs write into a cell that they have no value for, in lower case."""


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
        """Indices into the listing; -1 where there is no such file, -2 where there are several: see :meth:`explain`."""
        found = self._exact.find(names)
        rest = np.flatnonzero(found < 0).tolist()
        meant = {at: spellings(names[at], self._folder) for at in rest}
        for way, turn in itertools.product(self._ways, range(max(map(len, meant.values())))) if rest else ():
            found[rest] = way.find([meant[at][turn] if turn < len(meant[at]) else "" for at in rest])
            rest = [at for at in rest if found[at] == -1]
            if not rest:
                break
        return found.tolist()

    @functools.cached_property
    def _ways(self) -> list["_Names"]:
        """What a file may be called, the surest first."""
        whole = from_names(lambda name: spelling(name.decode()).encode(), self.listing["clip_id"])
        bases = from_names(os.path.basename, whole)
        return [_Names(way) for way in (whole, bases, from_names(_stem, whole), from_names(_stem, bases))]

    def explain(self, name: str) -> str:
        """Why a name finds no file."""
        for way in self._ways:
            for spelled in spellings(name, self._folder):
                if len(several := way.all_of(spelled)) > 1:
                    paths = ", ".join(path.decode() for path in self.listing["clip_id"][several[:2]].tolist())
                    return f"{name!r} is the name of {len(several)} files ({paths}); name its folder, too"
        return f"no file {name!r} below {self._folder}"


def _stem(name: bytes) -> bytes:
    """A recording's name without its suffix; of another file, such as notes beside it, what no file is called."""
    return os.path.splitext(name)[0] if is_recording(os.path.basename(name).decode()) else b"/"


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
    labelled = "label" in table.names
    if not labelled and "(?P<label>" not in (options.pattern or ""):
        raise InputError(
            f"{path}, line 1: no column of labels; expected one of {', '.join(COLUMNS['label'])}, or name it with "
            "--columns label=NAME or --pattern"
        )
    rest = table.rows(labelled=labelled)
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
    if options.group_by != "none":
        _check_parts(clips, table, taken.lines)
    used = ", ".join(f"{meaning} from {name}" for meaning, name in table.names.items())
    notes = [f"{path}: {counted(len(clips), 'row')}; {used}"]
    if missing:
        notes.append(f"left out: {counted(len(missing), 'row')}; {missing[0]}")
    for meaning, name in (("label", "label"), ("group", "speaker")):
        empty = np.flatnonzero(np.isin(np.char.lower(clips[name]), _NOTHING))
        if empty.size and meaning in table.names:
            what = f"{clips[name][empty[0]].decode()!r} may mean that nothing is known; taken as it is"
            notes.append(f"{table.fault(taken.lines[empty[0]], meaning, what)} (rows: {empty.size:,})")
    if not (clips["speaker"] != b"").any():
        notes.append("speakers: none known, so that one may stand on both sides of a fold; name them in a column group")
    return clips, folds, notes


def _check_parts(clips: np.ndarray, table: Table, lines: Sequence[int]) -> None:
    """InputError where parts of one recording, or it and a part of it, are given to two sides of a split."""
    clip_ids = clips["clip_id"]
    if (files := files_of(clip_ids)) is clip_ids:
        return
    names, first, file = np.unique(files, return_index=True, return_inverse=True)
    for column in ("split", "fold"):
        if (other := np.flatnonzero(clips[column] != clips[column][first][file])).size:
            at = int(other[0])
            whose = f"{names[file[at]].decode()}, which line {lines[first[file[at]]]} gives to another"
            raise table.fault(lines[at], column, f"of {whose}; correct it, or use --group-by none")


class _Taken:
    """The rows of a table that become clips.

    Parameters
    ----------
    audio_dir : the corpus
    """

    def __init__(self, audio_dir: Path, options: BuildOptions) -> None:
        self.rows = Rows(grouped=options.group_by != "none")
        self.lines = array.array("q")
        """Of each clip."""
        self._audio_dir, self._pattern = audio_dir, compile_pattern(options.pattern)
        self._duration = functools.cache(duration_seconds)

    def add(self, table: Table, row: Row, file: tuple) -> None:
        """Take a row of a file (clip_id, stamp).

        Raises
        ------
        InputError : its part lies outside the file, its group stands on another side, its label, split or fold is none
        """
        name = file[0].decode()
        if row.part:
            seconds, last = self._duration(os.path.join(self._audio_dir, name)), row.part.end_s or row.part.start_s
            if seconds and last > seconds + PART_SLACK_S:
                raise table.fault(row.line, "end" if row.part.end_s else "start", f"{last:g} s; {name} has {seconds:g}")
        found = self._pattern.search(name)
        said = found.groupdict("") if found else dict.fromkeys(self._pattern.groupindex, "")
        label, group, split, fold = (
            getattr(row, column) if column in table.names else said.get(meaning)
            for column, meaning in (("label", "label"), ("group", "speaker"), ("split", "split"), ("fold", "fold"))
        )
        if not label:
            raise table.fault(row.line, "file", f"no label in {name} by --pattern")
        if not group and row.part:
            group = name
        try:
            self.rows.add(file, row.part, label, group or "", split or "", fold, f"line {row.line}")
        except ValueError as error:
            column, what = error.args
            if column in table.names:
                raise table.fault(row.line, column, what) from None
            raise table.fault(row.line, "file", f"the {column} of {name} by --pattern: {what}") from None
        self.lines.append(row.line)
