"""What is to be judged: recordings in a folder or in a list."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cache.cli import InputError
from pipeline.decode import EXTENSIONS
from pipeline.lists import find_files, read_lines, spelling
from pipeline.scan import walk


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Files in order, with the names under which they are reported."""

    paths: list[str]
    names: list[str]
    """Relative to the input folder, with ``/``; as written in a list."""
    note: str = ""
    """What a list holds, to be shown."""

    def select(self, indices: Iterable[int]) -> "Recordings":
        """Some of them."""
        chosen = list(indices)
        return Recordings([self.paths[index] for index in chosen], [self.names[index] for index in chosen])

    def targets(self, classes: list[str]) -> np.ndarray:
        """The index of each file's label, its first folder, among the classes [shape=(n,), dtype=int64].

        Raises
        ------
        InputError : a file outside such a folder, or a label that is none of the classes
        """
        known = {spelling(label): target for target, label in enumerate(classes)}
        folders = [name.split("/")[0] if "/" in name else "" for name in self.names]
        targets = [known.get(spelling(folder)) for folder in folders]
        unknown = sorted({folder for folder, target in zip(folders, targets, strict=True) if target is None})
        if unknown:
            raise InputError(
                f"not the label of any class: {', '.join(name or '(no folder)' for name in unknown[:8])}; "
                f"expected <label>/ folders named {', '.join(classes)}"
            )
        return np.array(targets, np.int64)


def list_recordings(source: str) -> Recordings:
    """Recordings of a folder (searched below, sorted), of a text file with a path per line, or one recording.

    Raises
    ------
    InputError : nothing there
    """
    path = Path(source)
    if path.is_dir():
        prefix = len(os.path.join(path, ""))
        names = sorted(e.path[prefix:] for e in walk(str(path)) if e.name.lower().endswith(EXTENSIONS))
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
        recordings = Recordings(paths, names, f"{source}: {len(names):,} lines, {there:,} files")
    else:
        raise InputError(f"{source}: no such folder or file")
    if not recordings.paths:
        raise InputError(f"{source}: no recordings ({', '.join(EXTENSIONS)})")
    return recordings
