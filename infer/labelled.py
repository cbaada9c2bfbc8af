"""Labelled clips and what members say of them: out of fold, or judged now."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import softmax

from cache.cli import InputError, counted, say
from cache.index import Cache
from infer.corpus import check_no_words_added, find_corpus, find_member_cache
from infer.judge import Judge, describe_cropped, judge_in_shares
from infer.members import Member
from infer.options import EnsembleOptions
from infer.recordings import Recordings
from infer.views import first_views
from train.held_out import read_held_out
from train.world import World


@dataclasses.dataclass(frozen=True)
class JudgedClips:
    """Labelled clips and what the members made of them."""

    names: list[str]
    paths: list[str]
    targets: np.ndarray
    """[shape=(n,), dtype=int64]"""
    probs: np.ndarray
    """[shape=(members, views, n, classes), dtype=float32]; NaN where a member did not judge a clip."""
    unreadable: int = 0
    """Clips that were left out because they could not be judged."""

    @property
    def judged_by(self) -> np.ndarray:
        """Which members judged which clips [shape=(members, n), dtype=bool]."""
        return ~np.isnan(self.probs[:, 0, :, 0])


def out_of_fold(members: list[Member], cache_dir: str, audio_dir: str | None = None) -> tuple[JudgedClips, np.ndarray]:
    """What members said of the clips that they held out, as their training left it in ``oof.npz``.

    Names and targets are the clip table's, so that no path is opened because a run folder names it.

    Parameters
    ----------
    cache_dir, audio_dir : see `infer.corpus.find_member_cache` and `infer.corpus.find_corpus`

    Returns
    -------
    the clips, sorted by name, with one view; and per clip the mean of what was said [shape=(n, classes)]

    Raises
    ------
    InputError : as :func:`infer.corpus.find_member_cache`, :func:`infer.corpus.check_no_words_added`, :func:`_held_out`
    """
    cache = find_member_cache(members[0], cache_dir)
    check_no_words_added(members[0], cache)
    probs = np.full((len(members), 1, len(cache.clips), len(cache.classes)), np.nan, np.float32)
    for said, member in zip(probs[:, 0], members, strict=True):
        held_out, logits = _held_out(member, cache)
        said[held_out] = softmax(logits / member.temperature, axis=1)
    judged = np.flatnonzero(~np.isnan(probs[:, 0, :, 0]).all(axis=0))
    judged = judged[np.argsort(cache.clips["clip_id"][judged])]
    probs = probs[:, :, judged]
    names = [name.decode() for name in cache.clips["clip_id"][judged].tolist()]
    folder = find_corpus(cache, audio_dir)
    targets = cache.clips["target"][judged].astype(np.int64)
    clips = JudgedClips(names, [str(folder / name) for name in names], targets, probs)
    return clips, np.nanmean(probs[:, 0], axis=0)


def _held_out(member: Member, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """The clips that a member held out, as indices into the clip table, and its logits (n, classes).

    Raises
    ------
    InputError : the member holds nothing out, or its file is missing, damaged, or of other clips than the cache's fold
    """
    path = member.path.with_name("oof.npz")
    if member.fold == "none":
        raise InputError(
            f"{member.path}: fold none holds nothing out; use --split test, --input FOLDER or other --folds"
        )
    clips, logits = read_held_out(path, cache, member.epoch)
    expected = np.flatnonzero(cache.clips["fold"] == int(member.fold))
    if member.split_digest != cache.index["split"]["digest"] or not np.array_equal(np.sort(clips), expected):
        raise InputError(f"{path}: not the clips that fold {member.fold} of {cache.folder} holds out; train it again")
    return clips, logits


def judge_readable(
    members: list[Member],
    recordings: Recordings,
    options: EnsembleOptions,
    world: World,
    views: Sequence[Callable] = (),
) -> tuple[list[int], np.ndarray]:
    """Judge recordings, divided over the ranks; says how many could not be judged.

    Parameters
    ----------
    recordings : the same on every rank
    views : of each clip (default: the first of `infer.views`, as many as ``--tta`` says)

    Returns
    -------
    the indices of those that could be judged, and their probabilities [shape=(members, views, n, classes)]

    Raises
    ------
    InputError : none could be judged
    """
    views = views or first_views(options.tta)
    judged = judge_in_shares(members, recordings.paths, options.batch_size, views, world, Judge.judge)
    errors = [error for batch in judged for error in batch.errors]
    good = [index for index, error in enumerate(errors) if not error]
    bad = [f"{name}: {error}" for name, error in zip(recordings.names, errors, strict=True) if error]
    if not good:
        raise InputError(f"none of {len(bad)} recordings could be judged; the first: {bad[0]}")
    if bad and world.is_main:
        say(f"{counted(len(bad), 'recording')} could not be read: not counted; {bad[0]}", error=True)
    cropped = describe_cropped(sum(batch.cropped for batch in judged), members)
    if cropped and world.is_main:
        say(cropped, error=True)
    return good, np.concatenate([batch.probs for batch in judged], axis=2)[:, :, good]


def judge_labelled(
    members: list[Member],
    recordings: Recordings,
    options: EnsembleOptions,
    world: World,
    views: Sequence[Callable] = (),
) -> JudgedClips:
    """As :func:`judge_readable`, for recordings whose first folder is their label.

    Raises
    ------
    InputError : none could be judged, or labels that no member knows
    """
    targets = recordings.targets(members[0].classes)
    good, probs = judge_readable(members, recordings, options, world, views)
    kept = recordings.select(good)
    return JudgedClips(kept.names, kept.paths, targets[good], probs, len(targets) - len(good))
