"""What is to be judged: recordings in a folder or in a list."""

import dataclasses
import os
from pathlib import Path

from cache.cli import InputError
from pipeline.decode import EXTENSIONS
from pipeline.scan import walk


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Files in order, with the names under which they are reported."""

    paths: list[str]
    names: list[str]
    """Relative to the input folder, with ``/``; as written in a list."""

    def labels(self, known: list[str]) -> list[str]:
        """The label of each file: its first folder.

        Raises
        ------
        InputError : a file outside such a folder, or a label that no member knows
        """
        labels = [name.split("/")[0] if "/" in name else "" for name in self.names]
        unknown = sorted(set(labels) - set(known))
        if unknown:
            raise InputError(
                f"not the label of any class: {', '.join(name or '(no folder)' for name in unknown[:8])}; "
                f"expected <label>/ folders named {', '.join(known)}"
            )
        return labels


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
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            if any("\0" in name for name in names):
                raise ValueError("no path holds a zero byte")
        except ValueError:
            raise InputError(
                f"{source}: neither a recording ({', '.join(EXTENSIONS)}) nor a text file of paths"
            ) from None
        recordings = Recordings(names, names)
    else:
        raise InputError(f"{source}: no such folder or file")
    if not recordings.paths:
        raise InputError(f"{source}: no recordings ({', '.join(EXTENSIONS)})")
    return recordings
