"""Fitting the temperature of an ensemble's mean, which `infer.ensemble` explains."""

from typing import Any

import numpy as np

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, InputError, counted, say
from cache.files import read_sealed, write_sealed
from infer.corpus import contents_of, labelled_recordings
from infer.detections import thresholds_of
from infer.ensemble import Ensemble, soft_vote
from infer.labelled import JudgedClips, judge_labelled
from infer.measure.false_alarms import find_false_alarms
from infer.measure.scoring import reliability
from infer.members import Member, load_alike
from infer.options import CalibrateOptions
from train.calibration import FEW_ERRORS, RANGE, fit_temperature
from train.world import World

_FEWEST_CLIPS, _FEWEST_ERRORS = 20, 3  # that a temperature is fitted on


def calibrate(options: CalibrateOptions, world: World) -> int:
    """Fit the temperature of an ensemble's mean on clips that no member was trained on, and keep it.

    Kept and shown with it are the number of clips and, before and after, on those same clips, the accuracy, the mean
    confidence and the expected calibration error.

    Training holds few clips back. If some of them happen to be hard, any model looks too sure on them, and a
    temperature fitted on them alone would be too high. Each member shows by how much: it is calibrated already, on many
    more clips, so the temperature that it seems to need here is due to these clips. The mean's temperature is divided
    by the (geometric) mean of theirs.

    Returns
    -------
    the exit status

    Raises
    ------
    InputError : no such clips, so few of them, or so few judged wrongly, that a temperature would be chance
    """
    members = load_alike(options, world)
    judged = judge_labelled(members, world.decide(lambda: labelled_recordings(members, options)), options, world)
    ensemble = Ensemble(members, options.tta)
    mean = soft_vote(judged.probs)
    fitted = _fit(mean, judged, members, options, world)
    temperature = ensemble.temperature if fitted is None else fitted
    if ensemble.thresholds and not options.negatives and world.is_main:
        say("thresholds that were chosen before are dropped; add --negatives FOLDER to choose new ones", error=True)
    ensemble.temperature, ensemble.thresholds = temperature, {}
    calibrated = ensemble(judged.probs)
    before, after = _certainty(mean, judged.targets), _certainty(calibrated, judged.targets)
    content = {
        "temperature": temperature,
        "fitted": fitted is not None,
        "clips": len(mean),
        "unreadable": judged.unreadable,
        "contents": _as_hex(judged.paths),
        "members": [member.name for member in members],
        "tta": options.tta,
        "before": before,
        "after": after,
    }
    kept = {"fitted": True, **read_sealed(ensemble.path)} if fitted is None and ensemble.path.exists() else {}
    if kept.get("fitted"):  # an earlier temperature stays, and so does what it was fitted on
        fit = ("fitted", "clips", "unreadable", "contents", "before", "after")
        content |= {key: kept[key] for key in fit if key in kept}
    if options.negatives:
        content |= _thresholds(members, ensemble, judged, options, world)
    if world.is_main:
        write_sealed(ensemble.path, content, indent=1)
        said = f"{counted(len(members), 'member')}, {counted(options.tta, 'view')}, {counted(len(mean), 'clip')}"
        say(f"{said} that none was trained on")
        say(f"accuracy {before['accuracy']:.4f}")
        say(
            f"temperature {temperature:.3f}: mean confidence {before['confidence']:.4f} -> {after['confidence']:.4f}, "
            f"calibration error {before['ece']:.4f} -> {after['ece']:.4f}"
        )
        if options.negatives:
            _say_thresholds(content, calibrated, judged.targets, members[0].classes)
        say(str(ensemble.path))
    return EXIT_INCOMPLETE if judged.unreadable else EXIT_OK


def _fit(
    mean: np.ndarray, judged: JudgedClips, members: list[Member], options: CalibrateOptions, world: World
) -> float | None:
    """The temperature of the mean; None where it would be chance, and ``--negatives`` asks for thresholds anyway."""
    wrong = int((mean.argmax(axis=1) != judged.targets).sum())
    remedy = "use --input FOLDER with more recordings, or train with a larger --hold-back"
    if len(mean) < _FEWEST_CLIPS or wrong < _FEWEST_ERRORS:
        few = (
            f"judged wrongly: {wrong} of {len(mean)} clips; a temperature needs {_FEWEST_ERRORS} errors or more among "
            f"{_FEWEST_CLIPS} clips or more: {remedy}"
        )
        if not options.negatives:
            raise InputError(few)
        if world.is_main:
            say(f"the temperature stays what it is; {few}", error=True)
        return None
    if wrong < FEW_ERRORS and world.is_main:
        say(f"the temperature rests on {wrong} errors, and so is uncertain; {remedy}", error=True)
    temperature = _temperature_of(mean, judged.targets)
    if options.source or not all(member.calibrated for member in members):
        return temperature
    singles = [_temperature_of(probs[0], judged.targets) for probs in judged.probs]
    return float(np.clip(temperature / np.exp(np.log(singles).mean()), *RANGE))


def _thresholds(
    members: list[Member], ensemble: Ensemble, judged: JudgedClips, options: CalibrateOptions, world: World
) -> dict[str, Any]:
    """Per label the lowest threshold that keeps its false alarms to what is wanted."""
    wanted = float(options.false_alarms_per_hour or 0)
    alarms = find_false_alarms(str(options.negatives), members, ensemble, judged, options, world, wanted)
    return {
        "thresholds": {label: alarms.threshold(label, wanted) for label in alarms.confidences},
        "false_alarms_per_hour": wanted,
        "negative_hours": alarms.hours,
        "negative_contents": _as_hex(alarms.paths),
    }


def _as_hex(paths: list[str]) -> str:
    """The contents of recordings, by which infer.evaluate knows them again."""
    return contents_of(paths).astype("<i8").tobytes().hex()


def _say_thresholds(content: dict[str, Any], probs: np.ndarray, targets: np.ndarray, classes: list[str]) -> None:
    thresholds = content["thresholds"]
    highest = sorted(thresholds, key=lambda label: -thresholds[label])[:5]
    believed = probs.max(axis=1) >= thresholds_of(classes, None, thresholds, 0.0)[probs.argmax(axis=1)]
    missed = np.mean((probs.argmax(axis=1) != targets) | ~believed)
    say(
        f"thresholds for {content['false_alarms_per_hour']:g} false alarms of each label in an hour, from "
        f"{content['negative_hours']:.2f} hours: {min(thresholds.values()):g} to {max(thresholds.values()):g}; highest "
        + ", ".join(f"{label} {thresholds[label]:g}" for label in highest)
    )
    if never := [label for label in thresholds if thresholds[label] > 1]:
        say(
            f"never believed, for too many of their false alarms have a confidence of 1: {', '.join(never)}", error=True
        )
    say(f"with them {missed:.1%} of the clips that calibrate are missed or judged wrongly")


def _temperature_of(probs: np.ndarray, targets: np.ndarray) -> float:
    return fit_temperature(np.log(np.maximum(probs, 1e-30)), targets)


def _certainty(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == targets
    return {
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": reliability(confidence, right)[0],
    }
