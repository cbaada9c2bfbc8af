"""Evaluating members out of fold, or members and ensembles on labelled recordings."""

from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.index import Cache
from infer.engine import Judge
from infer.ensemble import hard_vote, soft_vote
from infer.inputs import Recordings, cached_test_split, find_member_cache, list_recordings
from infer.members import Member, load_members
from infer.options import EvaluateOptions
from infer.scoring import Accuracy, accuracy_of, confusions, recalls
from infer.views import first_views
from train.checkpoint import load_arrays
from train.world import World


def evaluate(options: EvaluateOptions, world: World) -> dict[str, Any]:
    """The figures of ``infer.evaluate``, as written to ``--json``.

    Raises
    ------
    InputError : nothing to judge, or a member that belongs to another split
    """
    members = load_members(options.run_folders, options.folds, world.device)
    if options.input is None and options.split == "oof":
        return _out_of_fold(members, find_member_cache(members, options.cache_dir))
    source = options.input or "the split test"
    recordings = list_recordings(options.input) if options.input else cached_test_split(members, options.cache_dir)
    return {"source": source, **_on_recordings(members, recordings, options, world)}


def _out_of_fold(members: list[Member], cache: Cache) -> dict[str, Any]:
    """Every clip judged by the member that never saw its speaker."""
    digest = cache.index["split"]["digest"]
    rows, judged, targets = [], [], []
    for member in members:
        path = Path(member.run) / f"fold{member.fold}" / "oof.npz"
        if member.fold == "none":
            raise InputError(f"{member.path}: fold none holds nothing out; use --split test or --input")
        arrays = load_arrays(path)
        if str(arrays["split_digest"]) != digest or member.split_digest != digest:
            raise InputError(f"{path}: belongs to another split than {cache.folder}; train again")
        judged.append(arrays["logits"].argmax(axis=1))
        targets.append(arrays["target"])
        rows.append({"member": member.name, **accuracy_of(arrays["logits"], arrays["target"]).to_dict()})
    all_judged, all_targets = np.concatenate(judged), np.concatenate(targets)
    clips = len(all_targets)
    single = Accuracy.of(int((all_judged == all_targets).sum()), clips)
    return {
        "source": "out of fold",
        "clips": clips,
        "single": single.to_dict(),
        "hard": None,
        "soft": None,
        "soft_tta": None,
        "members": rows,
        "recall": recalls(all_judged, all_targets, cache.classes),
        "confusions": confusions(all_judged, all_targets, cache.classes),
    }


def _on_recordings(
    members: list[Member], recordings: Recordings, options: EvaluateOptions, world: World
) -> dict[str, Any]:
    classes = members[0].classes
    labels = recordings.labels(classes)
    judge = Judge(members, first_views(options.tta), world.device)
    batches = list(judge.judge(recordings.paths, options.batch_size))
    judge.close()
    errors = [error for batch in batches for error in batch.errors]
    good = np.array([not error for error in errors])
    if not good.any():
        raise InputError(
            f"none of {len(errors)} recordings could be read; the first: {recordings.names[0]}: {errors[0]}"
        )
    probs = np.concatenate([batch.probs for batch in batches], axis=2)[:, :, good]
    targets = np.array([classes.index(label) for label in labels])[good]
    singles = [accuracy_of(probs[index, 0], targets) for index in range(len(members))]
    mean = sum(single.accuracy for single in singles) / len(singles)
    best = soft_vote(probs).argmax(axis=1)
    return {
        "clips": len(targets),
        "unreadable": int((~good).sum()),
        "tta": options.tta,
        "single": Accuracy.of(mean * len(targets), len(targets)).to_dict(),
        "hard": accuracy_of(hard_vote(probs[:, :1]), targets).to_dict(),
        "soft": accuracy_of(soft_vote(probs[:, :1]), targets).to_dict(),
        "soft_tta": accuracy_of(soft_vote(probs), targets).to_dict(),
        "members": [
            {"member": member.name, **single.to_dict()} for member, single in zip(members, singles, strict=True)
        ],
        "recall": recalls(best, targets, classes),
        "confusions": confusions(best, targets, classes),
    }
