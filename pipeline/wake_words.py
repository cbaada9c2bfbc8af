"""What a wake word needs beside its recordings: the label "unknown" for other sounds, and "silence" for background."""

from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.clip_id import Part
from cache.index import NO_FOLD, TEST, TRAIN
from pipeline.clips import VALIDATION, as_clips
from pipeline.lists import spelling
from pipeline.manifest import Files
from pipeline.options import BuildOptions
from pipeline.scan import NOISE_FOLDER, noise_files, random_keys, stamp_of
from pipeline.stream import duration_seconds
from pipeline.table import Table

UNKNOWN, SILENCE = NO_WORDS = "unknown", "silence"
NEGATIVES_FOLDER = "_negatives_"
_QUIETEST = -40.0  # dB, of background that becomes silence


def keep_labels(clips: np.ndarray, options: BuildOptions) -> tuple[np.ndarray, str]:
    """All clips of the labels to keep, and a sample of the others under the label "unknown".

    Every split and given fold has its sample, which takes from each speaker one clip before it takes two from any.

    Parameters
    ----------
    clips : as in `pipeline.clips`

    Returns
    -------
    (clips, what was done in words)
    """
    labels = {spelling(label.decode()): label.decode() for label in np.unique(clips["label"]).tolist()}
    wanted = list(dict.fromkeys(spelling(label.strip()) for label in (options.keep or "").split(",")))
    for label in wanted:
        if label not in labels:
            raise InputError(f"--keep: no label {label!r}; the corpus has {', '.join(labels.values())}")
    wanted = [labels[label] for label in wanted]
    kept = np.isin(clips["label"], [label.encode() for label in wanted])
    share = 1 / len(wanted) if options.unknown_share is None else options.unknown_share
    sides, side = np.unique(clips["fold"].astype(int) * 4 + clips["split"], return_inverse=True)
    rows: list[tuple] = []
    for number in range(len(sides)):
        others = clips[~kept & (side == number)]
        chosen = others[_by_speaker(others, options.seed)][: round(share * (kept & (side == number)).sum())]
        rows += [(*row[:2], UNKNOWN.encode(), *row[3:]) for row in chosen.tolist()]
    unknown = as_clips(rows)
    note = f"{UNKNOWN}: {len(unknown):,} of {(~kept).sum():,} clips of other labels (--unknown-share)"
    return np.concatenate([clips[kept], unknown]), note


def add_negatives(clips: np.ndarray, options: BuildOptions) -> np.ndarray:
    """Add the parts of recordings without the words that a table names, under the label "unknown".

    The recordings lie in ``_negatives_/``. All parts of one are in the same fold.

    Parameters
    ----------
    clips : as in `pipeline.clips`

    Raises
    ------
    InputError : no such table or recordings, or a row whose file is not there
    """
    table, folder = Table(Path(str(options.negatives))), Path(options.audio_dir) / NEGATIVES_FOLDER
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; put the recordings of {options.negatives} there")
    files, rows = Files(folder), list(table.rows(labelled=False))
    added: dict[bytes, tuple] = {}  # by clip_id: a table put together of several may name a part twice
    for row, at in zip(rows, files.find([row.file for row in rows]), strict=True):
        if at < 0:
            raise table.fault(row.line, "file", files.explain(row.file))
        name, stamp = files.listing[at].tolist()
        path = f"{NEGATIVES_FOLDER}/".encode() + name
        clip_id = path + str(row.part or "").encode()
        added[clip_id] = (clip_id, stamp, UNKNOWN.encode(), path, TRAIN, NO_FOLD)
    return np.concatenate([clips, as_clips(list(added.values()))])


def _by_speaker(clips: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which every speaker comes once before any comes twice [shape=(n,)]."""
    random = random_keys(clips["clip_id"], seed)
    who = np.where(clips["speaker"] == b"", clips["clip_id"], clips["speaker"])
    order = np.lexsort((random, who))
    first = np.searchsorted(who[order], who[order])  # of the clip's speaker
    turn = np.empty(len(clips), np.int64)
    turn[order] = np.arange(len(clips)) - first
    return np.lexsort((random, turn))


def add_silence(clips: np.ndarray, options: BuildOptions, folds: int) -> np.ndarray:
    """Add parts of the background recordings at random levels, under the label "silence".

    Every fold, and every other side of the split, has a stretch of each recording to itself.

    Parameters
    ----------
    clips : as in `pipeline.clips`
    folds : that the corpus names; 0 where it names none

    Raises
    ------
    InputError : no background recordings, too short ones, or a corpus with a label of this name
    """
    if (clips["label"] == SILENCE.encode()).any():
        raise InputError(f"--silence: the corpus has a label {SILENCE} already; leave out --silence, or rename it")
    files = noise_files(Path(options.audio_dir))
    if not files:
        raise InputError(f"--silence: no recordings in {options.audio_dir}/{NOISE_FOLDER}")
    lengths = np.array([duration_seconds(str(file)) for file in files])
    sides = _sides(clips["split"], folds or options.folds)
    edges = np.cumsum([0.0, *(share for *_, share in sides)])
    rng = np.random.default_rng(options.seed)
    rows = []
    for number in range(options.silence):
        side = int(np.searchsorted(edges[1:-1], (number + 0.5) / options.silence, side="right"))
        begin, end = edges[side] * lengths, edges[side + 1] * lengths - options.clip_seconds
        roomy = np.flatnonzero(end > begin)
        if not len(roomy):
            raise InputError(
                f"--silence: the background recordings are too short to give each of {len(sides)} folds and splits "
                f"{options.clip_seconds:g} s of its own; the longest lasts {lengths.max():.1f} s"
            )
        at = int(rng.choice(roomy))
        start = rng.uniform(begin[at], end[at])
        part = Part(start, start + options.clip_seconds, rng.uniform(_QUIETEST, 0))
        name = f"{files[at].relative_to(options.audio_dir).as_posix()}{part}".encode()
        rows.append((name, stamp_of(files[at].stat()), SILENCE.encode(), b"", *sides[side][:2]))
    return np.concatenate([clips, as_clips(rows)])


def _sides(split: np.ndarray, folds: int) -> list[tuple[int, int, float]]:
    """Split, fold and share of the clips of each side of a corpus's split."""
    shares = [float((split == side).mean()) for side in (TRAIN, VALIDATION, TEST)]
    if shares[1]:
        training = [(TRAIN, NO_FOLD, shares[0]), (VALIDATION, NO_FOLD, shares[1])]
    else:
        training = [(TRAIN, fold, shares[0] / folds) for fold in range(folds)]
    return [side for side in (*training, (TEST, NO_FOLD, shares[2])) if side[2]]
