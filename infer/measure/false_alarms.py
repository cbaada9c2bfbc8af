"""False alarms: what members find, window by window, in recordings that hold none of the words."""

import dataclasses
import os
from typing import Any

import numpy as np

from cache.cli import InputError
from infer.corpus import check_not_trained_on, contents_of
from infer.ensemble import Ensemble
from infer.labelled import JudgedClips
from infer.members import Member
from infer.options import WINDOW_THRESHOLD, EnsembleOptions
from infer.recordings import Recordings, list_recordings
from infer.windows import judge_in_windows
from pipeline.stream import duration_seconds
from pipeline.wake_words import NO_WORDS
from train.world import World

_THRESHOLDS = [0.5, *(round(1 - 10 ** (-step / 10), 6) for step in range(4, 41))]  # to 0.9999
_STEP = 1e-6  # between two confidences, see `infer.detections`


@dataclasses.dataclass(frozen=True)
class FalseAlarms:
    """What was found in recordings that hold none of the words."""

    source: str
    paths: list[str]
    hours: float
    confidences: dict[str, np.ndarray]
    """Of the detections of each label, highest first; the labels "unknown" and "silence" are no alarms."""

    def per_hour(self, label: str, threshold: float) -> float:
        """False alarms of a label in an hour."""
        return float((self.confidences[label] >= threshold).sum() / self.hours)

    def threshold(self, label: str, per_hour: float) -> float:
        """The lowest threshold, from 0.5 on, at which a label has at most so many false alarms in an hour."""
        allowed, found = int(per_hour * self.hours + 1e-9), self.confidences[label]
        beyond = float(found[allowed]) + _STEP if allowed < len(found) else 0.0
        return round(max(WINDOW_THRESHOLD, beyond), 6)


def find_false_alarms(
    folder: str,
    members: list[Member],
    ensemble: Ensemble,
    words: JudgedClips,
    options: EnsembleOptions,
    world: World,
    wanted: float | None = None,
) -> FalseAlarms:
    """Judge recordings of any length, divided over the ranks, as predict --windows does.

    Parameters
    ----------
    words : recordings of the words, none of which may be among them
    wanted : false alarms in an hour, which the recordings must be long enough to show

    Raises
    ------
    InputError : nothing there, a recording that cannot be read, that a member was trained on, or that is of a word; or
        too few hours, which the headers tell before any is judged
    """
    classes = members[0].classes
    recordings = world.decide(lambda: list_negatives(folder, members, words))
    hours = sum(map(duration_seconds, recordings.paths)) / 3600
    if wanted is not None and hours * wanted < 1:
        least = f"{1 / wanted:.1f} hours" if 0 < wanted <= 1 else f"{60 / (wanted or 1):.1f} minutes"
        raise InputError(
            f"{folder}: {60 * hours:,.1f} minutes do not show whether there are {wanted:g} false alarms in an hour; it "
            f"takes {f'{least} or more' if wanted else 'a number above 0'}"
        )
    judged = judge_in_windows(members, ensemble, recordings.paths, None, np.zeros(len(classes)), options, world)
    errors = [error for files in judged for error in files.errors]
    for name, error in zip(recordings.names, errors, strict=True):
        if error:
            raise InputError(f"{folder}: {name}: {error}; repair or remove it")
    found: dict[str, list[float]] = {label: [] for label in classes if label not in NO_WORDS}
    for detection in (each for files in judged for of_file in files.detections for each in of_file):
        if detection.label in found:
            found[detection.label].append(detection.confidence)
    if not hours:
        raise InputError(f"{folder}: recordings without any sound; name others")
    return FalseAlarms(folder, recordings.paths, hours, {label: np.sort(each)[::-1] for label, each in found.items()})


def list_negatives(folder: str, members: list[Member], words: JudgedClips) -> Recordings:
    """The recordings of a folder, each content once; InputError where some are of words, or were trained on."""
    recordings = list_recordings(folder)
    contents = check_not_trained_on(recordings, members, folder)
    alarming = [label not in NO_WORDS for label in members[0].classes]
    of_words = [path for path, target in zip(words.paths, words.targets.tolist(), strict=True) if alarming[target]]
    spoken = (contents != 0) & np.isin(contents, contents_of(of_words))
    if spoken.any():
        name = recordings.names[int(spoken.argmax())]
        raise InputError(f"{folder}: {spoken.sum():,} of its recordings are also given as words, such as {name}")
    places = [os.path.realpath(path) for path in recordings.paths]  # where the content does not tell
    known = [content or place for content, place in zip(contents.tolist(), places, strict=True)]
    return recordings.select(sorted({each: at for at, each in enumerate(known)}.values()))  # copies count once


def false_alarm_figures(
    alarms: FalseAlarms, clips: JudgedClips, verdict: np.ndarray, classes: list[str], thresholds: dict[str, float]
) -> dict[str, Any]:
    """False alarms and misses of each label, at many thresholds and at its own.

    Parameters
    ----------
    clips, verdict : labelled clips, and what was said of them [shape=(n, classes)]
    thresholds : by label; 0.5 where there is none

    Returns
    -------
    dict : ``hours``, ``thresholds``, ``labels`` with a row per label, and ``all`` with one for all together; each has
        ``false_alarms_per_hour`` and ``misses`` (None for a label without clips) at each of the thresholds, and in
        ``at`` both at the label's own
    """
    judged, confidence = verdict.argmax(axis=1), verdict.max(axis=1)
    labels, total = [], np.zeros((3, 1 + len(_THRESHOLDS)))  # of all labels: clips, missed, false alarms per hour
    for label in alarms.confidences:
        own = thresholds.get(label, WINDOW_THRESHOLD)
        at = np.array([own, *_THRESHOLDS])
        said = clips.targets == classes.index(label)
        missed = (said & ((judged != clips.targets) | (confidence < at[:, None]))).sum(axis=1)
        counts = np.array([np.full(len(at), said.sum()), missed, [alarms.per_hour(label, each) for each in at]])
        labels.append(_row(label, own, *counts))
        total += counts
    return {
        "source": alarms.source,
        "hours": alarms.hours,
        "thresholds": _THRESHOLDS,
        "labels": labels,
        "all": _row(None, None, *total),
    }


def _row(
    label: str | None, own: float | None, clips: np.ndarray, missed: np.ndarray, per_hour: np.ndarray
) -> dict[str, Any]:
    misses = (missed / clips).round(6).tolist() if clips[0] else [None] * len(clips)
    rates = per_hour.round(6).tolist()
    return {
        "label": label,
        "clips": int(clips[0]),
        "at": {"threshold": own, "false_alarms_per_hour": rates[0], "misses": misses[0]},
        "false_alarms_per_hour": rates[1:],
        "misses": misses[1:],
    }
