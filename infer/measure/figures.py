"""The accuracy of members out of fold, or of members and ensembles on labelled recordings."""

import dataclasses
from typing import Any

import numpy as np

from cache.cli import counted, say
from cache.clip_id import file_of
from infer.corpus import contents_of, is_background, labelled_recordings
from infer.ensemble import Ensemble, hard_vote, soft_vote
from infer.labelled import JudgedClips, judge_labelled, out_of_fold
from infer.measure.false_alarms import false_alarm_figures, find_false_alarms
from infer.measure.robustness import list_conditions, robustness_figures
from infer.measure.scoring import accuracy_of, confusions, interval, recalls, reliability
from infer.members import Member, load_alike
from infer.options import EvaluateOptions, LabelledOptions
from infer.recordings import Recordings
from infer.views import first_views
from train.world import World


def evaluate(options: EvaluateOptions, world: World) -> dict[str, Any]:
    """The figures of ``infer.evaluate``, as written to ``--json``.

    Raises
    ------
    InputError : nothing to judge, or a member that belongs to another split
    """
    members = load_alike(options, world)
    if options.source is None and options.split == "oof":
        return world.decide(lambda: out_of_fold_figures(members, *out_of_fold(members, options.cache_dir)))
    recordings = world.decide(lambda: labelled_recordings(members, options))
    return judge_and_measure(members, recordings, options, world)[0]


def judge_and_measure(
    members: list[Member], recordings: Recordings, options: LabelledOptions, world: World
) -> tuple[dict[str, Any], JudgedClips, np.ndarray]:
    """Judge labelled recordings; their figures, what the members said, and the verdict [shape=(n, classes)].

    Raises
    ------
    InputError : as :func:`infer.labelled.judge_labelled`
    """
    views = first_views(options.tta)
    conditions = list_conditions(members, recordings, world) if options.robustness else []
    judged = judge_labelled(members, recordings, options, world, (*views, *(view for _, _, view in conditions)))
    clips = dataclasses.replace(judged, probs=judged.probs[:, : len(views)])
    ensemble = Ensemble(members, options.tta, options.ensemble)
    probs, targets, verdict = clips.probs, clips.targets, ensemble(clips.probs)
    figures = {
        "source": options.source or "the split test",
        **_figures(members, clips, verdict),
        "hard": accuracy_of(hard_vote(probs[:, :1]), targets),
        "soft": accuracy_of(soft_vote(probs[:, :1]), targets),
        "soft_tta": accuracy_of(soft_vote(probs), targets),
        "hard_tta": accuracy_of(verdict, targets) if options.ensemble == "hard" else None,
        "tta": options.tta,
        "unreadable": clips.unreadable,
        "calibrated": ensemble.calibrated,
        "doubt": ensemble.describe_doubt(),
        "ece": reliability(verdict.max(axis=1), verdict.argmax(axis=1) == targets)[0],
    }
    _say_known(figures["source"], clips.paths, ensemble, "calibration error", world)
    if options.negatives:
        alarms = find_false_alarms(options.negatives, members, ensemble, clips, options, world)
        _say_known(options.negatives, alarms.paths, ensemble, "false alarms", world)
        classes, thresholds = members[0].classes, ensemble.thresholds
        figures["false_alarms"] = false_alarm_figures(alarms, clips, verdict, classes, thresholds)
    if options.robustness:
        alone = np.delete(judged.probs, range(1, len(views)), axis=1)
        figures["robustness"] = robustness_figures(Ensemble(members, 1, options.ensemble), conditions, alone, targets)
    return figures, clips, verdict


def _say_known(source: str, paths: list[str], ensemble: Ensemble, figure: str, world: World) -> None:
    """Say on stderr how many recordings the ensemble was calibrated by, which flatters a figure."""
    if not world.is_main or not len(ensemble.calibrated_by):
        return
    if count := int(np.isin(contents_of(paths), ensemble.calibrated_by).sum()):
        what = f"infer.calibrate was given {count:,} of these {counted(len(paths), 'recording')}"
        say(f"{source}: {what}: their {figure} may be too low; judge others", error=True)


def together(figures: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """What is known of the members together: what it is called, and its accuracy; the last is what they answer."""
    names = {"hard": "hard", "soft": "soft"}
    names |= {f"{way}_tta": f"{way} + {figures.get('tta')} TTA" for way in ("soft", "hard")}
    return [(name, figures[key]) for key, name in names.items() if figures.get(key)]


def out_of_fold_figures(members: list[Member], clips: JudgedClips, mean: np.ndarray) -> dict[str, Any]:
    """Figures of every clip, judged by those members that did not train on it; `mean`: what they said together."""
    several = (clips.judged_by.sum(axis=0) > 1).any()  # runs
    others = dict.fromkeys(("hard", "soft_tta", "hard_tta"))
    soft = accuracy_of(mean, clips.targets) if several else None
    return {"source": "out of fold", **_figures(members, clips, mean), "soft": soft, **others}


def _figures(members: list[Member], clips: JudgedClips, verdict: np.ndarray) -> dict[str, Any]:
    """The figures of single members, and what the verdict [shape=(n, classes)] confuses."""
    targets, judged_by, best = clips.targets, clips.judged_by, verdict.argmax(axis=1)
    right = (clips.probs[:, 0].argmax(axis=2) == targets)[judged_by]  # of each member and each clip that it judged
    singles = [
        {"member": member.name, "digest": member.digest, **accuracy_of(said[own], targets[own])}
        for member, said, own in zip(members, clips.probs[:, 0], judged_by, strict=True)
    ]
    return {
        "clips": len(targets),
        "single": interval(right.mean() * len(targets), len(targets)),
        "members": singles,
        "recordings": _per_recording(clips, verdict),
        "recall": recalls(best, targets, members[0].classes),
        "confusions": confusions(best, targets, members[0].classes),
    }


def _per_recording(clips: JudgedClips, verdict: np.ndarray) -> dict[str, Any] | None:
    """The accuracy of the mean over all parts of a recording; None where every clip is a recording of its own.

    Also where a recording has parts of several labels. Pieces of background are recordings of their own.
    """
    files = [
        path if is_background(name) else file_of(path) for name, path in zip(clips.names, clips.paths, strict=True)
    ]
    _, first, recording = np.unique(files, return_index=True, return_inverse=True)
    if len(first) == len(files) or (clips.targets != clips.targets[first][recording]).any():
        return None
    total = np.zeros((len(first), verdict.shape[1]))
    np.add.at(total, recording, verdict)
    return {"recordings": len(first), **accuracy_of(total, clips.targets[first])}
