"""Checkpoints: tensors and plain types, written atomically, read with ``weights_only=True``."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError
from cache.files import atomic_path

VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises
    ------
    OSError : the disk is full or the folder read-only; the previous checkpoint stays
    """
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
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
    InputError : missing, truncated, from another version, or not plain data
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
    return content


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` without pickle.

    Raises
    ------
    InputError : missing or damaged
    """
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; train this fold with python -m train.run") from None
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({error}); train this fold again") from None
