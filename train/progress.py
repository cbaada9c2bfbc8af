"""What a run's folds have logged so far; safe to read while training writes it."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from cache.cli import InputError

_FOLD = re.compile(r"fold(\d+|none)")
_NUMBERS = ("epoch", "lr", "train_loss", "train_accuracy", "clips_per_second")
_JUDGED = ("val_loss", "val_accuracy")  # None where nothing was held out


@dataclasses.dataclass(frozen=True)
class FoldLog:
    """One fold of a run."""

    fold: str
    entries: list[dict[str, Any]]
    """Lines of metrics.jsonl, one per epoch."""


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
    metrics = folder / "metrics.jsonl"
    try:
        whole = metrics.read_bytes().rpartition(b"\n")[0]  # a line without its end is still being written
        entries = [json.loads(line) for line in whole.splitlines()]
    except FileNotFoundError:
        entries = []
    except (ValueError, RecursionError) as error:
        raise InputError(f"{metrics}: not readable as JSON lines ({error}); train this fold again") from None
    for number, entry in enumerate(entries, 1):
        if not _is_entry(entry):
            raise InputError(f"{metrics}: line {number} is not what training writes; train this fold again")
    return FoldLog(folder.name.removeprefix("fold"), entries)


def _is_entry(line: Any) -> bool:
    """Whether a line of metrics.jsonl is an object with all numbers that are shown; NaN and infinity are numbers."""
    if not isinstance(line, dict):
        return False
    judged = [line.get(key) for key in _JUDGED]
    values = [*map(line.get, _NUMBERS), *(judged if judged != [None, None] else [])]
    return all(type(value) is float or (type(value) is int and abs(value) < 1 << 63) for value in values)
