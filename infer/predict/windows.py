"""Long recordings, judged in overlapping windows of a clip's length.

Of the windows of one label that overlap, only the most confident is kept (non-maximum suppression): two detections of
one label in a file never overlap, and a word said twice within a clip's length counts once. A file no longer than a
clip is one window.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from cache.cli import InputError
from infer.ensemble import Ensemble
from infer.judge import Judge, batched
from infer.members import Member, shared_clip
from infer.options import PredictOptions
from pipeline.decode import reason_of
from pipeline.stream import LoudestClip, duration_seconds, read_blocks, windows

HEADER = ["file", "start_s", "end_s", "label", "confidence"]
DETECTION = np.dtype([("file", "i4"), ("start_s", "f8"), ("end_s", "f8"), ("target", "i4"), ("confidence", "f4")])


@dataclasses.dataclass(frozen=True)
class JudgedFiles:
    """What an ensemble says of some files."""

    probs: np.ndarray
    """[shape=(n, classes), dtype=float32]; zero where the file could not be judged."""
    errors: list[str]
    """Per file, why it could not be judged, or the empty string."""
    detections: np.ndarray
    """[shape=(m,), dtype=DETECTION], by file (its index among these) and start."""


def hop_samples(members: Sequence[Member], options: PredictOptions) -> int:
    """Samples from one window to the next.

    Raises
    ------
    InputError : members of different clip lengths, or a hop that leaves gaps
    """
    config = shared_clip(members)
    hop_seconds = config.clip_seconds / 4 if options.hop_seconds is None else options.hop_seconds
    hop = round(hop_seconds * config.sample_rate)
    if not 0 < hop <= config.samples:
        raise InputError(
            f"--hop-seconds {hop_seconds:g}; expected more than 0 and at most {config.clip_seconds:g}, a clip"
        )
    return hop


def judge_windows(
    judge: Judge, ensemble: Ensemble, paths: Sequence[str], hop: int, options: PredictOptions
) -> JudgedFiles:
    """Judge files of any length in constant memory, each as a whole (by its loudest window) and in windows.

    Parameters
    ----------
    paths : few enough to hold all their detections
    hop : of :func:`hop_samples`
    """
    config = shared_clip(judge.members)
    errors = [""] * len(paths)
    spans: collections.deque[tuple] = collections.deque()  # of the items given to the judge: file, start, end, whole?

    def items() -> Iterator[str | np.ndarray]:
        """Yield every window of every long file, then its loudest one, or a short file's path; notes their spans."""
        for file, path in enumerate(paths):
            seconds, loudest = duration_seconds(path), LoudestClip(config.samples)
            try:
                if seconds * config.sample_rate >= config.samples + 1:
                    for first, clip in windows(loudest.watch(read_blocks(path, config)), config.samples, hop):
                        start, end = first / config.sample_rate, (first + config.samples) / config.sample_rate
                        spans.append((file, start, end, False))
                        yield clip
            except (InputError, OSError) as error:
                errors[file] = reason_of(error)
                continue
            cut = len(loudest.samples) > 0
            spans.append((file, 0.0, 0.0 if cut else seconds, True))
            yield loudest.samples if cut else path

    probs = np.zeros((len(paths), len(judge.classes)), np.float32)
    found: list[tuple] = []
    for judged in judge.judge(batched(items(), options.batch_size)):
        for scores, error in zip(ensemble(judged.probs), judged.errors, strict=True):
            file, start, end, whole = spans.popleft()
            errors[file] = errors[file] or error
            if whole:
                probs[file] = scores
            best = int(scores.argmax())
            if end and not error and scores[best] >= options.window_confidence:
                found.append((file, start, end, best, scores[best]))
    detections = np.array([row for row in found if not errors[row[0]]], DETECTION)
    probs[[bool(error) for error in errors]] = 0
    return JudgedFiles(probs, errors, suppressed(detections))


def suppressed(detections: np.ndarray) -> np.ndarray:
    """Drop every detection that overlaps a more confident one of the same file and label; of equals the first stays.

    Parameters
    ----------
    detections : np.ndarray [shape=(n,)] with the fields file, start_s, end_s, target and confidence, by file and start

    Returns
    -------
    np.ndarray : those that stay, in the same order
    """
    stays = np.zeros(len(detections), bool)
    for key in np.unique(detections[["file", "target"]]):
        here = np.flatnonzero((detections["file"] == key["file"]) & (detections["target"] == key["target"]))
        rows, open_ = detections[here], np.ones(len(here), bool)
        for index in np.argsort(-rows["confidence"], kind="stable").tolist():
            if open_[index]:
                stays[here[index]] = True
                first = np.searchsorted(rows["end_s"], rows["start_s"][index], side="right")
                open_[first : np.searchsorted(rows["start_s"], rows["end_s"][index])] = False
    return detections[stays]


def detection_rows(detections: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> Iterator[list[str]]:
    """Rows under `HEADER`."""
    for file, start, end, target, confidence in detections.tolist():
        yield [names[file], f"{start:.3f}", f"{end:.3f}", classes[target], f"{confidence:.4f}"]
