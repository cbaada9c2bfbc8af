"""What is found in a recording: windows that are sure enough, and of overlapping ones of a label the most confident.

Everything is decided window by window, in order, so that a recording gives the same detections from a file and while
it is heard. Nothing here needs torch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cache.cli import InputError
from infer.options import WINDOW_THRESHOLD
from pipeline.wake_words import NO_WORDS

_DIGITS = 6  # of a confidence: rounding makes equals of what differs only by the order of additions


class Detection(NamedTuple):
    """A label, when it was heard, and how sure that is."""

    start_s: float
    end_s: float
    label: str
    confidence: float

    def __str__(self) -> str:
        return f"{self.start_s:10.3f} {self.end_s:10.3f}  {self.label}  {self.confidence:.4f}"

    def to_json(self) -> str:
        """One line."""
        start, end, confidence = round(self.start_s, 3), round(self.end_s, 3), round(self.confidence, 4)
        return json.dumps({"start_s": start, "end_s": end, "label": self.label, "confidence": confidence})


def hop_samples(sample_rate: int, samples: int, hop_seconds: float | None) -> int:
    """Samples from one window to the next; without `hop_seconds` a quarter of a clip.

    Raises
    ------
    InputError : a hop that leaves gaps
    """
    clip_seconds = samples / sample_rate
    hop_seconds = clip_seconds / 4 if hop_seconds is None else hop_seconds
    hop = round(hop_seconds * sample_rate)
    if not 0 < hop <= samples:
        raise InputError(f"--hop-seconds {hop_seconds:g}; expected more than 0 and at most {clip_seconds:g}, a clip")
    return hop


def thresholds_of(
    classes: Sequence[str], chosen: float | None, calibrated: Mapping[str, float], otherwise: float
) -> np.ndarray:
    """The confidence from which on each class is believed [shape=(classes,)].

    Parameters
    ----------
    chosen : for all classes alike; None: what infer.calibrate chose
    calibrated : by label, what infer.calibrate chose
    otherwise : of a label for which it chose nothing
    """
    return np.array([calibrated.get(label, otherwise) if chosen is None else chosen for label in classes])


def window_thresholds(classes: Sequence[str], chosen: float | None, calibrated: Mapping[str, float]) -> np.ndarray:
    """As :func:`thresholds_of`, of windows; infinite for "unknown" and "silence", which nobody looks for."""
    least = thresholds_of(classes, chosen, calibrated, WINDOW_THRESHOLD)
    least[np.isin(classes, NO_WORDS)] = np.inf
    return least


class Detector:
    """Turns what is said of successive windows of one recording into detections.

    A detection stays if no window of its label that overlaps it is more confident (non-maximum suppression; of equals
    the first stays). It is given back as soon as that is known: with the first window that begins where it ends.

    Parameters
    ----------
    classes : labels
    thresholds : of :func:`window_thresholds`
    eager : give back the first window that is sure enough instead of the most confident one, at once; it suppresses
        those that overlap it
    """

    def __init__(self, classes: Sequence[str], thresholds: np.ndarray, *, eager: bool = False) -> None:
        self._classes, self._thresholds, self._eager = classes, thresholds, eager
        self._waiting: list[Detection] = []
        self._kept: list[Detection] = []  # that may overlap those that wait, or with `eager` those to come

    def add(self, scores: np.ndarray, start_s: float, end_s: float) -> list[Detection]:
        """Take a window with its probabilities [shape=(classes,)], NaN for none; give back what is settled, by start.

        Parameters
        ----------
        start_s, end_s : of the window; none begins before the one before it
        """
        best = int(scores.argmax())
        confidence = round(float(scores[best]), _DIGITS)
        if confidence >= self._thresholds[best]:
            self._waiting.append(Detection(start_s, end_s, self._classes[best], confidence))
        settled = self._settle(math.inf if self._eager else start_s)
        first = min([start_s, *(each.start_s for each in self._waiting)])
        self._kept = [each for each in self._kept if each.end_s > first]
        return settled

    def end(self) -> list[Detection]:
        """What is settled once the recording has ended, by start."""
        return self._settle(math.inf)

    def _settle(self, now_s: float) -> list[Detection]:
        settled: list[Detection] = []
        open_: list[Detection] = []
        for each in sorted(self._waiting, key=lambda found: -found.confidence):
            if _any_overlaps(each, self._kept):
                continue
            if each.end_s <= now_s and not _any_overlaps(each, open_):
                self._kept.append(each)
                settled.append(each)
            else:
                open_.append(each)
        self._waiting = sorted(open_)
        return sorted(settled)


def _any_overlaps(one: Detection, others: Sequence[Detection]) -> bool:
    return any(
        one.label == other.label and one.start_s < other.end_s and other.start_s < one.end_s
        for other in reversed(others)  # the latest are the likeliest
    )
