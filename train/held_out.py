"""What folds said of the clips that they held out: ``oof.npz``, read and checked."""

from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.index import Cache
from train.checkpoint import AGAIN, load_arrays


def read_held_out(path: Path, cache: Cache, epoch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read what a fold that was trained from a cache said of its held-out clips.

    Parameters
    ----------
    epoch : of the weights beside it; files of earlier versions do not say theirs

    Returns
    -------
    clips : np.ndarray [shape=(n,), dtype=int64], indices into the clip table, each once
    logits : np.ndarray [shape=(n, classes), dtype=float64], finite, and so at any temperature

    Raises
    ------
    InputError : missing, damaged, of another split or epoch, with clips that the clip table has not, or logits that
        are not finite
    """
    arrays = load_arrays(path)
    if missing := {"clip_id", "logits", "target", "split_digest", "classes"} - arrays.keys():
        raise InputError(f"{path}: its array {min(missing)} is missing; {AGAIN}")
    if (str(arrays["split_digest"]), arrays["classes"].tolist()) != (cache.index["split"]["digest"], cache.classes):
        raise InputError(f"{path}: belongs to another split than {cache.folder}; name its --cache-dir, or train again")
    if epoch is not None and (own := arrays.get("epoch", np.array(epoch)).tolist()) != epoch:
        raise InputError(
            f"{path}: of epoch {own}, but the weights beside it are of epoch {epoch}: training has written one of them "
            "only; run this again, or where it was interrupted continue it first"
        )
    names, logits, target = (arrays[key] for key in ("clip_id", "logits", "target"))
    known = names.shape == target.shape == logits.shape[:1] != (0,) and logits.shape[1:] == (len(cache.classes),)
    if not known or (logits.dtype, target.dtype) != (np.float32, np.int64):
        raise InputError(f"{path}: its arrays are not what training writes; {AGAIN}")
    index = {name: clip for clip, name in enumerate(cache.clips["clip_id"].tolist())}
    clips = np.array([index.get(name, -1) for name in names.tolist()], np.int64)
    if (clips < 0).any() or len(np.unique(clips)) < len(clips):
        raise InputError(f"{path}: not clips of {cache.folder}, each once; {AGAIN}")
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{path}: what it says of {len(finite) - finite.sum():,} clips, such as {names[finite.argmin()].decode()}, "
            f"is not finite; {AGAIN}, with a lower --lr or --amp off"
        )
    return clips, logits.astype(np.float64)
