"""Accuracy with its interval, recall and confusions."""

import collections
import math
from typing import Any

import numpy as np


def interval(right: float, clips: int) -> dict[str, float]:
    """Share of clips judged rightly, with its 95% interval: Wilson's score interval (Wilson 1927).

    Parameters
    ----------
    right : clips judged rightly; a mean over members may be fractional
    clips : 1 or more

    Returns
    -------
    dict : ``accuracy``, ``low`` and ``high``
    """
    z, share = 1.959964, right / clips
    middle = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z / (1 + z * z / clips) * math.sqrt(share * (1 - share) / clips + z * z / (4 * clips * clips))
    return {"accuracy": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def accuracy_of(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Accuracy, as of :func:`interval`, of the highest score [shape=(n, classes)] against targets [shape=(n,)]."""
    return interval(int((scores.argmax(axis=1) == targets).sum()), len(targets))


def recalls(judged: np.ndarray, targets: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """Per class its clips and the share of them judged rightly, lowest first."""
    clips = np.bincount(targets, minlength=len(classes)).tolist()
    right = np.bincount(targets[judged == targets], minlength=len(classes)).tolist()
    rows = [{"label": name, "clips": n, "recall": r / n} for name, n, r in zip(classes, clips, right, strict=True) if n]
    return sorted(rows, key=lambda row: row["recall"])


def confusions(judged: np.ndarray, targets: np.ndarray, classes: list[str]) -> list[dict[str, Any]]:
    """The ten most frequent pairs of true and wrong label, with their counts."""
    wrong = judged != targets
    pairs = sorted(zip(targets[wrong].tolist(), judged[wrong].tolist(), strict=True))
    found = collections.Counter(pairs).most_common(10)
    return [{"label": classes[label], "judged": classes[other], "clips": count} for (label, other), count in found]


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> tuple[float, list[list[float]]]:
    """Expected calibration error and the reliability diagram (Guo et al. 2017).

    Parameters
    ----------
    confidence : np.ndarray [shape=(n,)], 0 to 1
    right : np.ndarray [shape=(n,), dtype=bool]
    bins : of equal width

    Returns
    -------
    (ECE, per bin: clips, their mean confidence, the share of them judged rightly; 0 for an empty bin)
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    clips = np.bincount(place, minlength=bins)
    means = [np.bincount(place, weights, bins) / np.maximum(clips, 1) for weights in (confidence, right)]
    ece = float(np.abs(means[0] - means[1]) @ clips / max(1, len(right)))
    return ece, np.stack([clips, *means], axis=1).round(4).tolist()


def coverage(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """What a threshold on the confidence keeps.

    Returns
    -------
    list : for the thresholds 0, 0.01 … 1: the share of clips at or above, and the share of those judged rightly
        (1 where none is left)
    """
    order = np.argsort(confidence)
    kept_from = np.searchsorted(confidence[order], np.arange(101) / 100)
    rights = np.append(np.cumsum(right[order][::-1])[::-1], 0)[kept_from]
    clips = len(right) - kept_from
    accuracy = np.where(clips > 0, rights / np.maximum(clips, 1), 1.0)
    return np.stack([clips / len(right), accuracy], axis=1).round(5).tolist()


def suspects(probs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips that are probably of another label, by confident learning (Northcutt, Jiang & Chuang 2021).

    A clip counts to a label where its probability is at least the mean that the clips of that label have. It is
    suspected where the most probable of the labels that it counts to is not its own.

    Parameters
    ----------
    probs : np.ndarray [shape=(n, classes)], of clips that the model did not train on
    targets : np.ndarray [shape=(n,), dtype=int64]

    Returns
    -------
    indices of the suspected clips, the most suspected first, and the target [shape=(n,)] that each clip counts to
    """
    counts = np.bincount(targets, minlength=probs.shape[1])
    own = probs[np.arange(len(targets)), targets]
    usual = np.bincount(targets, own, minlength=probs.shape[1]) / np.maximum(counts, 1)
    counted = (probs >= usual) & (counts > 0)
    likely = np.where(counted, probs, -1.0).argmax(axis=1)
    margin = own - probs[np.arange(len(targets)), likely]
    found = np.flatnonzero(counted.any(axis=1) & (likely != targets))
    return found[np.argsort(margin[found], kind="stable")], likely
