"""Checkpoints: tensors and plain types, written atomically, read with ``weights_only=True``, checked entry by entry."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError
from cache.files import atomic_path

VERSION = 1
_AGAIN = "train this fold again"


def _number(value: Any, low: float = -math.inf) -> bool:
    return type(value) in (int, float) and low <= value < math.inf


def _whole(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 1 << 63


def _text(value: Any) -> bool:
    return type(value) is str


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _options(value: Any) -> bool:
    return _table(value) and _text(value.get("model")) and _number(value.get("hold_back", 0.0), 0)


def _best(value: Any) -> bool:
    judged = _table(value) and (value.get("accuracy"), value.get("loss"))
    return bool(judged) and _whole(value.get("epoch"), 0) and (judged == (None, None) or all(map(_number, judged)))


def _state(value: Any) -> bool:
    known = _table(value) and value.get("memory_format") in ("channels_last", "contiguous")
    return known and _whole(value.get("step"), 0) and _whole(value.get("world_size"), 1)


def _heard(value: Any) -> bool:
    return value is None or (isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.ndim == 1)


_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "options": _options,
    "fold": _text,
    "features": _table,
    "feature_digest": _text,
    "split_digest": _text,
    "folds": lambda value: _whole(value, 1),
    "classes": lambda value: type(value) is list and len(value) > 1 and all(map(_text, value)),
    "best": _best,
}
_LATER_ENTRIES = {  # which checkpoints of earlier versions lack
    "heard": _heard,
    **dict.fromkeys(("device", "memory_format"), lambda value: value is None or _text(value)),
}
_ENTRIES_OF = {
    "best.pt": {
        **_ENTRIES,
        "temperature": lambda value: _number(value, 1e-6) and value < 1e6,
        "model": _table,
    },
    "last.pt": {**_ENTRIES, "state": _state, "epochs_logged": lambda value: _whole(value, 0)},
}


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
    try:
        content = torch.load(path if data is None else io.BytesIO(data), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train it with python -m train.run") from None
    except (PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # of a dozen types, by where the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable checkpoint ({reason})") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: checkpoint version {version}, this version reads {VERSION}; train again")
    entries = {**_LATER_ENTRIES, **_ENTRIES_OF.get(Path(path).name, {})}
    wrong = [key for key, holds in entries.items() if not holds(content.get(key))]
    if wrong:
        raise InputError(f"{path}: its entry {wrong[0]} is missing, or not what training writes; {_AGAIN}")
    return content


@contextlib.contextmanager
def taking_over(path: Path) -> Iterator[None]:
    """Blame a checkpoint for what goes wrong while its tensors are handed to a model or an optimiser.

    Raises
    ------
    InputError : tensors are missing, or of another shape or type
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not what training writes ({type(error).__name__}: {reason}); {_AGAIN}") from error


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path, remedy: str = _AGAIN) -> dict[str, np.ndarray]:
    """Read an ``.npz`` without pickle.

    Raises
    ------
    InputError : missing or damaged; the message ends with the remedy
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; what the system says of it is no damage
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    try:
        with file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # of a dozen types, by where the file is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged ({reason}); {remedy}") from None


def load_out_of_fold(path: Path) -> dict[str, np.ndarray]:
    """Read ``oof.npz``: ``clip_id``, ``logits`` (n, classes), ``target`` (n,), ``split_digest`` and ``classes``.

    Raises
    ------
    InputError : missing, damaged, or not what training writes
    """
    arrays = load_arrays(path)
    try:
        clips, target, logits, classes = (arrays[key] for key in ("clip_id", "target", "logits", "classes"))
        known = (clips.dtype.kind, target.dtype, logits.dtype, classes.dtype.kind) == ("S", "i8", "f4", "U")
        known &= arrays["split_digest"].shape == () and clips.shape == target.shape == (len(logits),) != (0,)
        known &= classes.ndim == 1 and logits.shape[1:] == classes.shape
        known = known and target.min() >= 0 and target.max() < len(classes)
        known = known and all(name.decode() for name in clips.tolist())
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise InputError(f"{path}: its arrays are missing, or not what training writes; {_AGAIN}")
    return arrays
