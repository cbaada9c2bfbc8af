"""Distillation: learning from what a run's folds said of the clips that they never trained on."""

from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.index import TRAIN, Cache
from train.calibration import fit_temperature
from train.checkpoint import load_out_of_fold


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
    InputError : a fold is missing or belongs to another split, or the split holds only some clips out
    """
    from scipy.special import softmax  # see train/calibration.py

    probs = np.zeros((len(cache.clips), len(cache.classes)), np.float32)
    order = np.argsort(cache.clips["clip_id"])
    for fold in range(cache.index["split"]["folds"]):
        path = Path(run) / f"fold{fold}" / "oof.npz"
        if not path.exists():
            raise InputError(f"--teacher: {path} is not there; the teacher needs all folds: train.run --fold all")
        arrays = load_out_of_fold(path)
        if str(arrays["split_digest"]) != cache.index["split"]["digest"] or arrays["classes"].tolist() != cache.classes:
            raise InputError(f"--teacher: {path} belongs to another split than {cache.folder}; train the teacher again")
        found = np.searchsorted(cache.clips["clip_id"], arrays["clip_id"], sorter=order)
        clips = order[np.minimum(found, len(order) - 1)]
        if (cache.clips["clip_id"][clips] != arrays["clip_id"]).any():
            raise InputError(f"--teacher: {path} names clips that {cache.folder} does not hold; train it again")
        logits = arrays["logits"]
        probs[clips] = softmax(logits / fit_temperature(logits, arrays["target"]), axis=1)
    if not probs[cache.clips["split"] == TRAIN].any(axis=1).all():
        raise InputError(f"--teacher: the split of {cache.folder} holds only some clips out; it needs --split kfold")
    return probs
