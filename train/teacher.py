"""Distillation: learning from what a run's folds said of the clips that they never trained on."""

from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.index import TRAIN, Cache
from train.calibration import fit_temperature
from train.held_out import read_held_out


def teacher_probs(run: str, cache: Cache) -> np.ndarray:
    """Out-of-fold probabilities of a run (Hinton, Vinyals & Dean 2015), each fold's at its own temperature.

    A clip's probabilities are those of the member of its own fold, which did not train on it. The members together
    have heard every speaker, so a student's validation is flattered: judge it on the split "test".

    Parameters
    ----------
    run : a run folder whose folds are all trained on this cache's split
    cache : the opened cache

    Returns
    -------
    np.ndarray [shape=(n_clips, classes), dtype=float32], zero for the split "test"

    Raises
    ------
    InputError : a fold is missing, damaged or of another split, or the split holds only some clips out
    """
    from scipy.special import softmax  # see train/calibration.py

    probs = np.zeros((len(cache.clips), len(cache.classes)), np.float32)
    for fold in range(cache.index["split"]["folds"]):
        path = Path(run) / f"fold{fold}" / "oof.npz"
        if not path.exists():
            raise InputError(f"--teacher: {path} is not there; the teacher needs all folds: train.run --fold all")
        clips, logits = read_held_out(path, cache)
        probs[clips] = softmax(logits / fit_temperature(logits, cache.clips["target"][clips]), axis=1)
    if not probs[cache.clips["split"] == TRAIN].any(axis=1).all():
        raise InputError(f"--teacher: the split of {cache.folder} holds only some clips out; it needs --split kfold")
    return probs
