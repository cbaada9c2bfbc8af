"""What a fold said of the clips that it held out: ``oof.npz``, read and checked."""

from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.index import Cache
from train.checkpoint import load_out_of_fold


def read_held_out(path: Path, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Read what a fold that was trained from a cache said of its held-out clips.

    Returns
    -------
    clips : np.ndarray [shape=(n,), dtype=int64], indices into the clip table, each once
    logits : np.ndarray [shape=(n, classes), dtype=float64], finite, and so at any temperature

    Raises
    ------
    InputError : missing, damaged, of another split, with clips that the clip table has not, or logits that are not
        finite
    """
    arrays = load_out_of_fold(path)
    if (str(arrays["split_digest"]), arrays["classes"].tolist()) != (cache.index["split"]["digest"], cache.classes):
        raise InputError(f"{path}: belongs to another split than {cache.folder}; train again")
    names, logits = arrays["clip_id"], arrays["logits"]
    order = np.argsort(cache.clips["clip_id"])
    found = np.searchsorted(cache.clips["clip_id"], names, sorter=order)
    clips = order[np.minimum(found, len(order) - 1)]
    if (cache.clips["clip_id"][clips] != names).any() or len(np.unique(clips)) < len(clips):
        raise InputError(f"{path}: not clips of {cache.folder}, each once; train this fold again")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{path}: what it says of {len(finite) - finite.sum():,} clips, such as "
            f"{names[finite.argmin()].decode(errors='replace')}, is not finite; train this fold again, with a lower "
            "--lr or --amp off"
        )
    return clips, logits.astype(np.float64)
