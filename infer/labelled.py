"""Labelled clips and what members say of them: out of fold, or judged now."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy.special import softmax

from cache.cli import InputError
from cache.index import Cache
from infer.corpus import find_corpus
from infer.judge import Judge
from infer.members import Member
from infer.options import EnsembleOptions
from infer.recordings import Recordings, warn_of_unread
from infer.shares import judge_in_shares
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
    """[shape=(members, views, n, classes), dtype=float32]"""
    unreadable: int = 0
    """Clips that were left out because they could not be judged."""


def held_out(member: Member, cache: Cache, audio_dir: str | None = None) -> JudgedClips:
    """What a member said of the clips that it never saw, as its training left it in ``oof.npz``.

    Names and targets are the clip table's, so that no path is opened because a run folder names it.

    Parameters
    ----------
    audio_dir : see `infer.corpus.find_corpus`

    Returns
    -------
    JudgedClips : probs of one member and one view

    Raises
    ------
    InputError : the member holds nothing out, or its file is missing, damaged, or of other clips than the cache's fold
    """
    path = Path(member.run) / f"fold{member.fold}" / "oof.npz"
    if member.fold == "none":
        raise InputError(f"{member.path}: fold none holds nothing out; choose other --folds, or labelled recordings")
    clips, logits = read_held_out(path, cache)
    expected = np.flatnonzero(cache.clips["fold"] == int(member.fold))
    if member.split_digest != cache.index["split"]["digest"] or not np.array_equal(np.sort(clips), expected):
        raise InputError(f"{path}: not the clips that fold {member.fold} of {cache.folder} holds out; train it again")
    names = [name.decode() for name in cache.clips["clip_id"][clips].tolist()]
    folder = find_corpus(cache, audio_dir)
    probs = softmax(logits / member.temperature, axis=1).astype(np.float32)
    targets = cache.clips["target"][clips].astype(np.int64)
    return JudgedClips(names, [str(folder / name) for name in names], targets, probs[None, None])


def merged(judged: list[JudgedClips]) -> JudgedClips:
    """Each clip once, sorted by name, with the mean of what the members that held it out said of it."""
    names = np.array([name for clips in judged for name in clips.names])
    paths = [path for clips in judged for path in clips.paths]
    said, targets = np.concatenate([clips.probs[0, 0] for clips in judged]), np.concatenate([c.targets for c in judged])
    names, first, clip_of, counts = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    probs = np.zeros((len(names), said.shape[1]), said.dtype)
    np.add.at(probs, clip_of, said)
    probs /= counts[:, None].astype(said.dtype)
    return JudgedClips(names.tolist(), [paths[index] for index in first], targets[first], probs[None, None])


def judge_labelled(
    members: list[Member], recordings: Recordings, options: EnsembleOptions, world: World
) -> JudgedClips:
    """Judge recordings whose first folder is their label, divided over the ranks; each rank gets all of it.

    Parameters
    ----------
    recordings : the same on every rank

    Raises
    ------
    InputError : none could be judged, or labels that no member knows
    """
    labels = recordings.labels(members[0].classes)
    judged = judge_in_shares(members, recordings.paths, options.batch_size, options.tta, world, Judge.judge)
    errors = [error for batch in judged for error in batch.errors]
    good = [index for index, error in enumerate(errors) if not error]
    if not good:
        raise InputError(
            f"none of {len(errors)} recordings could be judged; the first: {recordings.names[0]}: {errors[0]}"
        )
    if world.is_main:
        warn_of_unread({name: error for name, error in zip(recordings.names, errors, strict=True) if error})
    kept = recordings.select(good)
    return JudgedClips(
        names=kept.names,
        paths=kept.paths,
        targets=np.array([members[0].classes.index(labels[index]) for index in good]),
        probs=np.concatenate([batch.probs for batch in judged], axis=2)[:, :, good],
        unreadable=len(errors) - len(good),
    )
