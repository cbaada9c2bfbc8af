"""Calibrating an ensemble: see `infer.ensemble`."""

from typing import Any

import numpy as np

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, InputError, say
from cache.files import write_sealed
from infer.corpus import cached_calibration_clips, unheard
from infer.ensemble import Ensemble, soft_vote
from infer.labelled import judge_labelled
from infer.members import Member, load_alike
from infer.options import CalibrateOptions
from infer.recordings import Recordings, list_recordings
from infer.scoring import reliability
from train.calibration import FEW_ERRORS, RANGE, fit_temperature
from train.world import World

_FEWEST = (20, 3)  # clips, and errors among them, that a temperature is fitted on


def calibrate_and_print(options: CalibrateOptions, world: World) -> int:
    """Calibrate and say what it changed; returns the exit status."""
    ensemble, kept = calibrate(options, world)
    if world.is_main:
        before, after = kept["before"], kept["after"]
        say(f"{len(kept['members'])} members, {kept['tta']} views, {kept['clips']:,} clips that none was trained on")
        say(f"accuracy {before['accuracy']:.4f}")
        say(
            f"temperature {kept['temperature']:.3f}: mean confidence {before['confidence']:.4f} -> "
            f"{after['confidence']:.4f}, calibration error {before['ece']:.4f} -> {after['ece']:.4f}"
        )
        say(str(ensemble.path))
    return EXIT_INCOMPLETE if kept["unreadable"] else EXIT_OK


def calibrate(options: CalibrateOptions, world: World) -> tuple[Ensemble, dict[str, Any]]:
    """Fit the temperature of an ensemble's mean on clips that no member was trained on, and keep it.

    Of what training held back there is little, and a few hard clips among it would make the ensemble look less sure
    than it may be. But single members are calibrated already, on many more clips: so the temperature that they would
    seem to need here is just that luck, and the mean's is divided by it.

    Returns
    -------
    the ensemble, and what its file holds: temperature, clips, members, tta, and accuracy, mean confidence and expected
        calibration error before and after, on those same clips

    Raises
    ------
    InputError : no such clips, so few of them, or so few judged wrongly, that a temperature would be chance
    """
    members = load_alike(options, world)
    judged = judge_labelled(members, world.decide(lambda: _recordings(members, options)), options, world)
    ensemble = Ensemble(members, options.tta)
    mean = soft_vote(judged.probs)
    wrong = int((mean.argmax(axis=1) != judged.targets).sum())
    remedy = "use --input FOLDER with more recordings, or train with a larger --hold-back"
    if len(mean) < _FEWEST[0] or wrong < _FEWEST[1]:
        raise InputError(
            f"judged wrongly: {wrong} of {len(mean)} clips; a temperature needs {_FEWEST[1]} errors or more among "
            f"{_FEWEST[0]} clips or more: {remedy}"
        )
    if wrong < FEW_ERRORS and world.is_main:
        say(f"the temperature rests on {wrong} errors, and so is uncertain; {remedy}", error=True)
    ensemble.temperature = _temperature_of(mean, judged.targets)
    if not options.input and all(member.calibrated for member in members):
        singles = [_temperature_of(probs[0], judged.targets) for probs in judged.probs]
        ensemble.temperature /= float(np.exp(np.log(singles).mean()))
        ensemble.temperature = min(max(ensemble.temperature, RANGE[0]), RANGE[1])
    content = {
        "temperature": ensemble.temperature,
        "clips": len(judged.targets),
        "unreadable": judged.unreadable,
        "members": [member.name for member in members],
        "tta": options.tta,
        "before": _certainty(mean, judged.targets),
        "after": _certainty(ensemble(judged.probs), judged.targets),
    }
    if world.is_main:
        write_sealed(ensemble.path, content, indent=1)
    return ensemble, content


def _recordings(members: list[Member], options: CalibrateOptions) -> Recordings:
    if options.input:
        return unheard(list_recordings(options.input), members, options.input)
    return unheard(cached_calibration_clips(members, options), members, "what training held back")


def _temperature_of(probs: np.ndarray, targets: np.ndarray) -> float:
    return fit_temperature(np.log(np.maximum(probs, 1e-30)), targets)


def _certainty(probs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == targets
    return {
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": reliability(confidence, right)[0],
    }
