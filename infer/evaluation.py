"""Evaluating members out of fold, or members and ensembles on labelled recordings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from cache.cli import InputError
from cache.index import Cache
from infer.engine import Judge
from infer.ensemble import Ensemble, hard_vote, soft_vote
from infer.inputs import Recordings, cached_paths, cached_test_split, find_member_cache, list_unheard
from infer.members import Member, load_members
from infer.options import EnsembleOptions, EvaluateOptions, LabelledOptions
from infer.scoring import accuracy_of, confusions, interval, recalls, reliability
from infer.views import first_views
from train.checkpoint import load_arrays
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
    """Clips that were left out because they could not be read."""


def evaluate(options: EvaluateOptions, world: World) -> dict[str, Any]:
    """The figures of ``infer.evaluate``, as written to ``--json``.

    Raises
    ------
    InputError : nothing to judge, or a member that belongs to another split
    """
    members = load_members(options.run_folders, options.folds, world.device)
    if options.input is None and options.split == "oof":
        cache = find_member_cache(members[0], options.cache_dir)
        judged = [held_out(member, cache) for member in members]
        return out_of_fold_figures(members, judged, merged(judged))
    judged = judge_labelled(members, labelled_recordings(members, options), options, world.device)
    return ensemble_figures(members, judged, options.input or "the split test")


def held_out(member: Member, cache: Cache) -> JudgedClips:
    """What a member said of the clips that it never saw, as its training left it in ``oof.npz``.

    Returns
    -------
    JudgedClips : probs of one member and one view

    Raises
    ------
    InputError : the member holds nothing out, has no such file, or belongs to another split than the cache
    """
    path = Path(member.run) / f"fold{member.fold}" / "oof.npz"
    if member.fold == "none":
        raise InputError(f"{member.path}: fold none holds nothing out; choose other --folds, or labelled recordings")
    arrays, digest = load_arrays(path), cache.index["split"]["digest"]
    if str(arrays["split_digest"]) != digest or member.split_digest != digest:
        raise InputError(f"{path}: belongs to another split than {cache.folder}; train again")
    names = [name.decode() for name in arrays["clip_id"].tolist()]
    probs = softmax(arrays["logits"] / member.temperature, axis=1)
    return JudgedClips(names, cached_paths(cache, names), arrays["target"], probs[None, None])


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


def labelled_recordings(members: list[Member], options: LabelledOptions) -> Recordings:
    """The recordings of ``--input``, or those of the split "test"."""
    if options.input:
        return list_unheard(options.input, members, options.cache_dir)
    return cached_test_split(members, options.cache_dir)


def judge_labelled(
    members: list[Member],
    recordings: Recordings,
    options: EnsembleOptions,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> JudgedClips:
    """Judge recordings whose first folder is their label.

    Parameters
    ----------
    progress : called with (clips done, clips in all)

    Raises
    ------
    InputError : none readable, or labels that no member knows
    """
    labels = recordings.labels(members[0].classes)
    judge = Judge(members, first_views(options.tta), device)
    batches = []
    for batch in judge.judge(recordings.paths, options.batch_size):
        batches.append(batch)
        progress(min(len(batches) * options.batch_size, len(labels)), len(labels))
    judge.close()
    errors = [error for batch in batches for error in batch.errors]
    good = np.flatnonzero([not error for error in errors])
    if not len(good):
        raise InputError(
            f"none of {len(errors)} recordings could be read; the first: {recordings.names[0]}: {errors[0]}"
        )
    return JudgedClips(
        names=[recordings.names[index] for index in good],
        paths=[recordings.paths[index] for index in good],
        targets=np.array([members[0].classes.index(labels[index]) for index in good]),
        probs=np.concatenate([batch.probs for batch in batches], axis=2)[:, :, good],
        unreadable=len(errors) - len(good),
    )


def out_of_fold_figures(members: list[Member], judged: list[JudgedClips], clips: JudgedClips) -> dict[str, Any]:
    """Figures of every clip judged by the member of each run that never saw its speaker; `clips`: all, merged."""
    classes = members[0].classes
    best, targets = clips.probs[0, 0].argmax(axis=1), clips.targets
    right = np.concatenate([part.probs[0, 0].argmax(axis=1) == part.targets for part in judged])
    return {
        "source": "out of fold",
        "clips": len(targets),
        "single": interval(right.mean() * len(targets), len(targets)),
        "hard": None,
        "soft": None,
        "soft_tta": None,
        "members": [
            {"member": member.name, **accuracy_of(clips.probs[0, 0], clips.targets)}
            for member, clips in zip(members, judged, strict=True)
        ],
        "recall": recalls(best, targets, classes),
        "confusions": confusions(best, targets, classes),
    }


def ensemble_figures(members: list[Member], judged: JudgedClips, source: str) -> dict[str, Any]:
    """The figures of members and ensembles on labelled recordings."""
    probs, targets, classes = judged.probs, judged.targets, members[0].classes
    singles = [accuracy_of(probs[index, 0], targets) for index in range(len(members))]
    mean = sum(single["accuracy"] for single in singles) / len(singles)
    ensemble = Ensemble(members, probs.shape[1])
    verdict = ensemble(probs)
    best = verdict.argmax(axis=1)
    return {
        "source": source,
        "clips": len(targets),
        "unreadable": judged.unreadable,
        "tta": probs.shape[1],
        "single": interval(mean * len(targets), len(targets)),
        "hard": accuracy_of(hard_vote(probs[:, :1]), targets),
        "soft": accuracy_of(soft_vote(probs[:, :1]), targets),
        "soft_tta": accuracy_of(verdict, targets),
        "calibrated": ensemble.calibrated,
        "ece": reliability(verdict.max(axis=1), best == targets)[0],
        "members": [{"member": member.name, **single} for member, single in zip(members, singles, strict=True)],
        "recall": recalls(best, targets, classes),
        "confusions": confusions(best, targets, classes),
    }
