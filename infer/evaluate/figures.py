"""The accuracy of members out of fold, or of members and ensembles on labelled recordings."""

from typing import Any

import numpy as np

from infer.corpus import find_member_cache, labelled_recordings
from infer.ensemble import Ensemble, hard_vote, soft_vote
from infer.labelled import JudgedClips, held_out, judge_labelled, merged
from infer.members import Member, load_alike
from infer.options import EvaluateOptions
from infer.scoring import accuracy_of, confusions, interval, recalls, reliability
from train.world import World


def evaluate(options: EvaluateOptions, world: World) -> dict[str, Any]:
    """The figures of ``infer.evaluate``, as written to ``--json``.

    Raises
    ------
    InputError : nothing to judge, or a member that belongs to another split
    """
    members = load_alike(options, world)
    if options.input is None and options.split == "oof":
        return world.decide(lambda: _out_of_fold(members, options))
    recordings = world.decide(lambda: labelled_recordings(members, options))
    judged = judge_labelled(members, recordings, options, world)
    return ensemble_figures(members, judged, options.input or "the split test")


def _out_of_fold(members: list[Member], options: EvaluateOptions) -> dict[str, Any]:
    cache = find_member_cache(members[0], options.cache_dir)
    judged = [held_out(member, cache) for member in members]
    return out_of_fold_figures(members, judged, merged(judged))


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
