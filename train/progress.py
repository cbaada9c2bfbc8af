"""What a run's folds have logged so far; safe to read while training writes it."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from cache.cli import InputError

_FOLD = re.compile(r"fold(\d+|none)")


@dataclasses.dataclass(frozen=True)
class FoldLog:
    """One fold of a run."""

    fold: str
    entries: list[dict[str, Any]]
    """Lines of metrics.jsonl, one per epoch."""
    epochs: int | None
    """How many epochs it was asked for, once that is known."""
    written: float
    """When something was last written, in seconds since 1970."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The epoch with the best validation, if anything was held out."""
        judged = [entry for entry in self.entries if entry["val_accuracy"] is not None]
        return max(judged, key=lambda entry: (entry["val_accuracy"], -entry["val_loss"]), default=None)


def read_run(run: Path) -> list[FoldLog]:
    """The folds of a run, in order.

    Raises
    ------
    InputError : no such run, or no fold in it
    """
    run = Path(run)
    folders = [path for path in run.glob("fold*") if path.is_dir() and _FOLD.fullmatch(path.name)]
    if not folders:
        near = ", ".join(sorted({path.parent.name for path in run.parent.glob("*/fold*")}))
        raise InputError(
            f"{run}: no run there; train one with python -m train.run" + (f", or name one of {near}" if near else "")
        )
    folds = [_read_fold(folder) for folder in folders]
    return sorted(folds, key=lambda log: (not log.fold.isdecimal(), len(log.fold), log.fold))


def _read_fold(folder: Path) -> FoldLog:
    metrics, config = folder / "metrics.jsonl", folder / "config.json"
    try:
        whole = metrics.read_bytes().rpartition(b"\n")[0]  # a line without its end is still being written
        entries = [json.loads(line) for line in whole.splitlines()]
        written = metrics.stat().st_mtime
    except FileNotFoundError:
        entries, written = [], folder.stat().st_mtime
    except ValueError as error:
        raise InputError(f"{metrics}: not readable as JSON lines ({error}); train this fold again") from None
    epochs = None
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # not there yet, or cut
        epochs = json.loads(config.read_bytes())["options"]["epochs"]
    return FoldLog(folder.name.removeprefix("fold"), entries, epochs, written)
