"""Which clips a fold trains on, which it holds out, and which no fold trains on."""

import dataclasses
import hashlib

import numpy as np

from cache.cli import InputError
from cache.index import TRAIN, Cache


@dataclasses.dataclass(frozen=True)
class Fold:
    """The clips of a fold, as indices into the cache's clip table."""

    training: np.ndarray
    validation: np.ndarray
    """Empty for the fold "none"."""


def calibration_clips(cache: Cache, share: float) -> np.ndarray:
    """The clips that no fold trains on, so that what all folds say together can be calibrated on them.

    Whole speakers, in the order of a hash, until one does not fit the share: all runs from a cache hold back the same.
    Of an official split none are, so that a run compares with published figures.

    Parameters
    ----------
    share : of the clips outside the split "test"

    Returns
    -------
    np.ndarray [shape=(n_clips,), dtype=bool]
    """
    clips = cache.clips
    if cache.index["split"]["split"] == "official":
        return np.zeros(len(clips), bool)
    free = np.flatnonzero(clips["split"] == TRAIN)
    known = clips["speaker"][free]
    names, speaker, counts = np.unique(
        np.where(known == b"", clips["clip_id"][free], known), return_inverse=True, return_counts=True
    )
    order = np.argsort([hashlib.sha256(name).digest() for name in names.tolist()])
    mask = np.zeros(len(clips), bool)
    mask[free] = np.isin(speaker, order[np.cumsum(counts[order]) <= share * len(free)])
    return mask


def select_fold(cache: Cache, fold: str, hold_back: float = 0.0) -> Fold:
    """Training and validation clips; the split "test" belongs to neither, what is held back to no fold's training.

    Raises
    ------
    InputError : the cache has no such fold, or what is held back holds the last training clips of a class
    """
    free = cache.clips["split"] == TRAIN
    if fold == "none":
        return Fold(np.flatnonzero(free), np.empty(0, np.int64))
    folds = cache.index["split"]["folds"]
    if int(fold) >= folds:
        raise InputError(f"--fold {fold}: {cache.folder} has folds 0 to {folds - 1}")
    held_out = cache.clips["fold"] == int(fold)
    training = np.flatnonzero(free & ~held_out)
    if hold_back:
        heard = training[~calibration_clips(cache, hold_back)[training]]
        for lost in np.setdiff1d(cache.clips["target"][training], cache.clips["target"][heard]).tolist():
            raise InputError(f"--hold-back {hold_back:g} leaves fold {fold} no clip of {cache.classes[lost]}; use less")
        training = heard
    return Fold(training, np.flatnonzero(free & held_out))
