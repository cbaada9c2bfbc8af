"""What is to be judged: recordings in a folder, in a list or in a table."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cache.cli import InputError, counted
from cache.index import TEST
from infer.options import EnsembleOptions
from pipeline.clips import SPLITS
from pipeline.lists import find_files, read_lines, spelling
from pipeline.manifest import Files
from pipeline.scan import walk
from pipeline.sound_files import EXTENSIONS, is_recording
from pipeline.table import Table
from pipeline.wake_words import NO_WORDS, UNKNOWN


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Files in order, with the names under which they are reported."""

    paths: list[str]
    """Where they lie; a part of one ends as in `cache.clip_id`."""
    names: list[str]
    """Relative to the input folder, with ``/``; as written in a list or table."""
    note: str = ""
    """What a list holds, to be shown."""
    labels: list[str] | None = None
    """Of a table; elsewhere the first folder of each name is its label."""

    def select(self, indices: Iterable[int]) -> "Recordings":
        """Some of them."""
        chosen = list(indices)
        labels = self.labels and [self.labels[index] for index in chosen]
        return Recordings([self.paths[index] for index in chosen], [self.names[index] for index in chosen], "", labels)

    def targets(self, classes: list[str]) -> np.ndarray:
        """The index of each recording's label among the classes [shape=(n,), dtype=int64].

        Folders that public test sets call ``_unknown_`` and ``_silence_`` are those labels.

        Raises
        ------
        InputError : a file without a label, or a label that is none of the classes
        """
        known = {f"_{label}_": target for target, label in enumerate(classes) if label in NO_WORDS}
        known |= {spelling(label): target for target, label in enumerate(classes)}
        labels = self.labels or [name.split("/")[0] if "/" in name else "" for name in self.names]
        targets = [known.get(spelling(label)) for label in labels]
        unknown = sorted({label for label, target in zip(labels, targets, strict=True) if target is None})
        if unknown:
            others = f"; call all other words {UNKNOWN}" if UNKNOWN in classes else ""
            here = (
                "the labels" if self.labels else "a table with labels (--columns label=NAME) or <label>/ folders named"
            )
            raise InputError(
                f"not the label of any class: {', '.join(name or '(no folder)' for name in unknown[:8])}; "
                f"expected {here} {', '.join(classes)}{others}"
            )
        return np.array(targets, np.int64)


def list_recordings(source: str, options: EnsembleOptions | None = None) -> Recordings:
    """Recordings of a folder (searched below, sorted), of a table, of a text file with a path per line, or one.

    Parameters
    ----------
    source : the folder or file; what ``--manifest`` names is a table, whatever it is called
    options : say of a table (.csv, .tsv) where its files lie, if not beside it, and what its columns mean

    Raises
    ------
    InputError : nothing there
    """
    path, table = Path(source), getattr(options, "manifest", None) is not None
    audio_dir, columns = (options.audio_dir, options.columns) if options else (None, None)
    if path.is_file() and (table or columns or path.suffix.lower() in (".csv", ".tsv")):
        recordings = _in_table(path, Path(audio_dir or path.parent), columns)
    elif path.is_dir() and not table:
        prefix = len(os.path.join(path, ""))
        names = sorted(e.path[prefix:] for e in walk(str(path), skipped=(".",)) if is_recording(e.name))
        recordings = Recordings([str(path / name) for name in names], names)
    elif path.is_file() and path.name.lower().endswith(EXTENSIONS):
        recordings = Recordings([source], [path.name])
    elif path.is_file():
        try:
            names = read_lines(path)
        except InputError as error:
            raise InputError(f"{error}; nor is it a recording ({', '.join(EXTENSIONS)})") from None
        paths = find_files(names, path.parent)
        there = sum(map(os.path.lexists, paths))
        recordings = Recordings(paths, names, f"{source}: {counted(len(names), 'line')}, {counted(there, 'file')}")
    else:
        raise InputError(f"{source}: no such {'table' if table else 'folder or file'}")
    if not recordings.paths:
        raise InputError(f"{source}: no recordings ({', '.join(EXTENSIONS)})")
    return recordings


def _in_table(path: Path, folder: Path, columns: str | None) -> Recordings:
    """The rows of a table; of one that names splits those for testing."""
    table, files = Table(path, columns), Files(folder)
    rows = list(table.rows(labelled=False))
    for row in rows:
        if row.split.lower() not in SPLITS:
            raise table.fault(row.line, "split", f"{row.split!r}; expected train, validation or test")
    tested = [row for row in rows if SPLITS[row.split.lower()] == TEST]
    rows, which = (tested, " for testing") if tested else (rows, "")
    found = files.find([row.file for row in rows])
    if -2 in found:
        row = rows[found.index(-2)]
        raise table.fault(row.line, "file", files.explain(row.file))
    if rows and max(found) < 0:
        raise InputError(
            f"{path}: none of its {len(rows):,} files lies in {folder}; name their folder with --audio-dir"
        )
    paths = [
        f"{folder / (files.listing['clip_id'][at].decode() if at >= 0 else row.file)}{row.part or ''}"
        for row, at in zip(rows, found, strict=True)
    ]
    names = [f"{row.file}{row.part or ''}" for row in rows]
    labels = [row.label for row in rows] if "label" in table.names else None
    note = f"{path}: {counted(len(rows), 'row')}{which}, {len(rows) - found.count(-1):,} of files that are there"
    return Recordings(paths, names, note, labels)
