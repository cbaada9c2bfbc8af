"""Checkpoints: tensors and plain types, written atomically, read with ``weights_only=True``, checked entry by entry."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, first_line
from cache.files import atomic_path

VERSION = 1
AGAIN = "move its folder away and train this fold again"

# The least that training writes in each entry: a value must be of the same kind, as large, and with the same entries.
# A tuple holds alternatives, of which `...` is an entry that checkpoints of earlier versions lack.
_ENTRIES = {
    "options": {"model": "", "hold_back": (0.0, ...)},
    "fold": "",
    "features": {},
    "feature_digest": "",
    "split_digest": "",
    "folds": 1,
    "held_back": (0, ...),
    "classes": ["", ""],
    "best": ({"epoch": 0, "accuracy": -1.0, "loss": 0.0}, {"epoch": 0, "accuracy": None, "loss": None}),
    "heard": (torch.empty(0, dtype=torch.int64), None, ...),
    "device": ("", ...),
    "memory_format": ("", ...),
}
_STATE = {"step": 0, "world_size": 1, "memory_format": ("contiguous", "channels_last")}
_ENTRIES_OF: dict[str, dict[str, Any]] = {
    "best.pt": {**_ENTRIES, "temperature": 1e-6, "model": {}},
    "last.pt": {**_ENTRIES, "state": _STATE, "epochs_logged": 0},
}


def fits(value: Any, least: Any) -> bool:
    """Whether a value is what is expected, see `_ENTRIES`."""
    if isinstance(least, tuple):
        return any(fits(value, each) for each in least)
    if isinstance(least, float):
        return type(value) in (int, float) and least <= value < 1 << 63
    if not isinstance(value, type(least)) or isinstance(value, bool):
        return False
    if isinstance(least, dict):
        return all(fits(value.get(key, ...), entry) for key, entry in least.items())
    if isinstance(least, list):
        return len(value) >= len(least) and all(fits(each, least[0]) for each in value)
    if isinstance(least, torch.Tensor):
        return (value.dtype, value.ndim) == (least.dtype, least.ndim)
    if isinstance(least, int):
        return least <= value < 1 << 63
    return least in ("", None, ...) or value == least


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises
    ------
    OSError : the disk is full or the folder read-only; the previous checkpoint stays
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save({"version": VERSION, **content}, file)
        except RuntimeError as error:  # torch's zip writer wraps the reason
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load_checkpoint(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Parameters
    ----------
    data : the content of the file, where it has been read already

    Raises
    ------
    InputError : missing, truncated, from another version, not plain data, or without an entry that its name promises
    """
    with _blamed(path, "no such checkpoint; train it with python -m train.run", "not a readable checkpoint"):
        content = torch.load(path if data is None else io.BytesIO(data), map_location="cpu", weights_only=True)
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: checkpoint version {version}, this version reads {VERSION}; train again")
    for key, least in _ENTRIES_OF.get(Path(path).name, {}).items():
        if not fits(content.get(key, ...), least):
            raise InputError(f"{path}: its entry {key} is missing, or not what training writes; {AGAIN}")
    options = content.get("options", {})
    if type(options.get("teacher", ())) is not tuple:  # of an earlier version, which took one
        options["teacher"] = tuple(filter(None, [options["teacher"]]))
    return content


def load_folds(paths: list[Path]) -> dict[Path, dict[str, Any]]:
    """Read checkpoints of folds of one run, by path; InputError where they are not of one kind."""
    trained = {path: load_checkpoint(path) for path in paths}
    for path, saved in trained.items():
        if path.parent.name != f"fold{saved['fold']}":
            raise InputError(f"{path}: is of fold {saved['fold']}; {AGAIN}")
    for key in ("features", "split_digest", "classes"):
        if any(saved[key] != trained[paths[0]][key] for saved in trained.values()):
            raise InputError(
                f"{paths[0].parent.parent}: its folds were not trained on the same {key}; train them again"
            )
    return trained


@contextlib.contextmanager
def _blamed(path: Path, missing: str, damaged: str, remedy: str = "") -> Iterator[None]:
    """Raise InputError where a file is missing or reading it fails; `damaged` and `remedy` enclose the reason."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: {missing}") from None
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # of a dozen types, by where the file is damaged
        raise InputError(f"{path}: {damaged} ({first_line(error)}){remedy}") from None


@contextlib.contextmanager
def taking_over(
    path: Path, what: str = "not what training writes", remedy: str = AGAIN, passed: tuple = (torch.OutOfMemoryError,)
) -> Iterator[None]:
    """Blame a checkpoint for what goes wrong while its tensors are handed to a model or an optimiser.

    Parameters
    ----------
    what, remedy : stand around the reason in the error
    passed : errors that are not the checkpoint's

    Raises
    ------
    InputError : tensors are missing, or of another shape or type
    """
    try:
        yield
    except passed:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: {what} ({type(error).__name__}: {reason}); {remedy}") from error


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub takes any name for allow_pickle


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` without pickle.

    Raises
    ------
    InputError : missing or damaged; the message names the remedy
    """
    with (
        _blamed(path, f"no such file; {AGAIN}", "damaged", f"; {AGAIN}"),
        np.load(path, allow_pickle=False) as arrays,
    ):
        return {name: arrays[name] for name in arrays.files}
