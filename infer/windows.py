"""Long recordings, judged in overlapping windows of a clip's length.

Two detections of one label in a file never overlap (see `infer.detections`): a word said twice within a clip's length
counts once. A file no longer than a clip is one window.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cache.cli import InputError
from cache.clip_id import file_of
from infer.detections import Detection, Detector, hop_samples
from infer.ensemble import Ensemble
from infer.judge import Judge, batched, judge_in_shares
from infer.members import Member, shared_clip
from infer.options import EnsembleOptions
from infer.views import first_views
from pipeline.sound_files import reason_of
from pipeline.stream import LoudestClip, duration_seconds, read_blocks, windows
from train.world import World

_FILES = 8  # in a group: each may last for hours


@dataclasses.dataclass(frozen=True)
class JudgedFiles:
    """What an ensemble says of some files."""

    probs: np.ndarray
    """[shape=(n, classes), dtype=float32]; zero where the file could not be judged."""
    errors: list[str]
    """Per file, why it could not be judged, or the empty string."""
    detections: list[list[Detection]]
    """Of each file, by start."""
    cropped: int = 0
    """How many files were judged by their loudest clip alone."""


def judge_in_windows(
    members: Sequence[Member],
    ensemble: Ensemble,
    paths: Sequence[str],
    hop_seconds: float | None,
    thresholds: np.ndarray,
    options: EnsembleOptions,
    world: World,
) -> list[JudgedFiles]:
    """Judge files of any length, divided over the ranks, by groups of :func:`judge_windows`.

    Parameters
    ----------
    hop_seconds : from one window to the next; None: a quarter of a clip

    Raises
    ------
    InputError : parts of files, members of different clip lengths, or a hop that leaves gaps
    """
    if part := next((path for path in paths if file_of(path) != path), None):
        raise InputError(f"{part}: a part of a recording; windows are of whole ones, so name the file, or its folder")
    clip = shared_clip(members)
    hop = hop_samples(clip.sample_rate, clip.samples, hop_seconds)

    def judge_groups(judge: Judge, groups: Iterable[list[str]]) -> Iterable[JudgedFiles]:
        return (judge_windows(judge, ensemble, group, hop, thresholds, options.batch_size) for group in groups)

    return judge_in_shares(members, paths, _FILES, first_views(options.tta), world, judge_groups)


def judge_windows(
    judge: Judge,
    ensemble: Ensemble,
    paths: Sequence[str],
    hop: int,
    thresholds: np.ndarray,
    batch_size: int,
) -> JudgedFiles:
    """Judge files of any length in constant memory, each as a whole (by its loudest window) and in windows.

    Parameters
    ----------
    paths : few enough to hold all their detections
    hop : of `infer.detections.hop_samples`
    thresholds : of `infer.detections.window_thresholds`
    batch_size : windows in a forward pass
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
                        spans.append((file, first, first + config.samples, False))
                        yield clip
            except (InputError, OSError) as error:
                errors[file] = reason_of(error)
                continue
            cut = len(loudest.samples) > 0
            spans.append((file, 0, 0 if cut else seconds * config.sample_rate, True))
            yield loudest.samples if cut else path

    probs = np.zeros((len(paths), len(judge.classes)), np.float32)
    detectors = [Detector(judge.classes, thresholds) for _ in paths]
    found: list[list[Detection]] = [[] for _ in paths]
    for judged in judge.judge(batched(items(), batch_size)):
        for scores, error in zip(ensemble(judged.probs), judged.errors, strict=True):
            file, first, end, whole = spans.popleft()
            errors[file] = errors[file] or error
            if whole:
                probs[file] = scores
            if end and not error:
                found[file] += detectors[file].add(scores, first / config.sample_rate, end / config.sample_rate)
    for file, error in enumerate(errors):
        found[file] = [] if error else sorted(found[file] + detectors[file].end())
    probs[[bool(error) for error in errors]] = 0
    return JudgedFiles(probs, errors, found)
