"""What a run's folds have logged so far; safe to read while training writes it."""

import json
import re
from pathlib import Path
from typing import Any

from cache.cli import InputError

_FOLD_FOLDER = re.compile(r"fold(\d+|none)")
_NUMBERS = ("epoch", "lr", "train_loss", "train_accuracy", "clips_per_second")
_JUDGED = ("val_loss", "val_accuracy")  # None where nothing was held out


def best_checkpoints(run: Path) -> dict[str, Path]:
    """The best.pt of each trained fold of a run, by the fold's name; sorted."""
    paths = [path for path in sorted(run.glob("fold*/best.pt")) if _FOLD_FOLDER.fullmatch(path.parent.name)]
    return {path.parent.name.removeprefix("fold"): path for path in paths}


def read_run(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What :func:`read_metrics` says of each fold of a run; the folds are in order."""
    folders = [path for path in run.glob("fold*") if path.is_dir() and _FOLD_FOLDER.fullmatch(path.name)]
    folds = {folder.name.removeprefix("fold"): read_metrics(folder) for folder in folders}
    return dict(sorted(folds.items(), key=lambda item: (not item[0].isdecimal(), len(item[0]), item[0])))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in a fold's folder, one per epoch; none where it is not there.

    Raises
    ------
    InputError : damaged
    """
    metrics = folder / "metrics.jsonl"
    try:
        whole = metrics.read_bytes().rpartition(b"\n")[0]  # a line without its end is still being written
        entries = [json.loads(line) for line in whole.splitlines()]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise InputError(f"{metrics}: not readable as JSON lines ({error}); train this fold again") from None
    for number, entry in enumerate(entries, 1):
        if not _is_entry(entry):
            raise InputError(f"{metrics}: line {number} is not what training writes; train this fold again")
    return entries


def _is_entry(line: Any) -> bool:
    """Whether a line of metrics.jsonl is an object with all numbers that are shown; NaN and infinity are numbers."""
    if not isinstance(line, dict):
        return False
    judged = [line.get(key) for key in _JUDGED]
    values = [*map(line.get, _NUMBERS), *(judged if judged != [None, None] else [])]
    return all(type(value) is float or (type(value) is int and abs(value) < 1 << 63) for value in values)
