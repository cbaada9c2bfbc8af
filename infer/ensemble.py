"""Combining members and views.

Each member has a temperature, which training fitted on the clips that the member held out. The mean of such
probabilities claims too little, the more so the more the members differ (Rahaman & Thiery 2021). So the mean has a
temperature of its own. infer.calibrate fits it on clips that no member was trained on.

The temperature is kept in the folder of one of the runs, as ``ensemble-<digest of the members and views>.json``, and
with it, if infer.calibrate was given sounds without the words, the confidence from which on each label is believed. It
is the only thing that a command writes into what another command made.
"""

import contextlib
import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.files import read_sealed
from infer.members import Member
from train.calibration import RANGE


def soft_vote(probs: np.ndarray) -> np.ndarray:
    """Mean of the probabilities of all members and views.

    Parameters
    ----------
    probs : np.ndarray [shape=(members, views, n, classes)]

    Returns
    -------
    np.ndarray [shape=(n, classes)]
    """
    return probs.mean(axis=(0, 1))


def hard_vote(probs: np.ndarray) -> np.ndarray:
    """Share of the votes of all members and views; ties go to the class of higher mean probability.

    Votes are counted in integers and the means of a tie compared in float64: in float32 means that differ by less than
    a ten-millionth would look alike.

    Parameters
    ----------
    probs : np.ndarray [shape=(members, views, n, classes)]

    Returns
    -------
    np.ndarray [shape=(n, classes)], whose argmax is the winner and whose values are shares of votes: exactly for the
        winner, less 1e-6 for those that it beat in a tie
    """
    votes = (probs.argmax(axis=-1)[..., None] == np.arange(probs.shape[-1])).sum(axis=(0, 1))  # (n, classes)
    tied = votes == votes.max(axis=-1, keepdims=True)
    winner = np.where(tied, probs.mean(axis=(0, 1), dtype=np.float64), -1).argmax(axis=-1)
    beaten = tied & (np.arange(probs.shape[-1]) != winner[:, None])
    return (votes / (probs.shape[0] * probs.shape[1]) - 1e-6 * beaten).astype(probs.dtype)


ENSEMBLES = {"soft": soft_vote, "hard": hard_vote}


class Ensemble:
    """What members and views say together: their mean at its own temperature, or their votes.

    Parameters
    ----------
    members : at least one
    tta : views of each clip
    ensemble : a name in `ENSEMBLES`

    Attributes
    ----------
    calibrated_by : contents of the recordings that temperature and thresholds were chosen by, see `train.trained_on`
        [shape=(n,), dtype=int64]; empty where the file, of an older version, does not say

    Raises
    ------
    InputError : the file of the temperature is damaged
    """

    def __init__(self, members: Sequence[Member], tta: int, ensemble: str = "soft") -> None:
        self.vote = ENSEMBLES[ensemble]
        digests = [*sorted(member.digest for member in members), str(tta)]
        name = f"ensemble-{hashlib.sha256(' '.join(digests).encode()).hexdigest()[:16]}.json"
        self.path = Path(min(members, key=lambda member: member.digest).run) / name
        alone = (len(members), tta) == (1, 1) and members[0].calibrated
        self.temperature, self.calibrated = 1.0, ensemble == "hard" or alone
        self.thresholds: dict[str, float] = {}
        self.calibrated_by = np.empty(0, np.int64)
        if ensemble == "soft" and self.path.exists():
            self.temperature, self.thresholds, fitted, self.calibrated_by = _read_calibration(self.path)
            self.calibrated = fitted or alone
        runs = "".join(f" --run {shlex.quote(run)}" for run in dict.fromkeys(member.run for member in members))
        folds = ",".join(dict.fromkeys(member.fold for member in members))
        source = "" if all(member.held_back for member in members) else " --input FOLDER"
        self._remedy = f"run python -m infer.calibrate{runs} --folds {folds} --tta {tta}{source}"

    def describe_doubt(self) -> str:
        """What infer.calibrate has not done for these members and views, and how to have it done; "" for nothing."""
        if self.vote is hard_vote:
            unused = f"{self.path.parent}: its thresholds are of --ensemble soft, and not used for votes"
            return unused if _has_thresholds(self.path) else ""
        if not self.path.exists() and any(map(_has_thresholds, self.path.parent.glob("ensemble-*.json"))):
            remedy = f"{self._remedy} --negatives FOLDER --false-alarms-per-hour N"
            return f"{self.path.parent}: its thresholds are of other folds, views or an earlier training; {remedy}"
        return "" if self.calibrated else f"confidence: too modest until you {self._remedy}"

    def __call__(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities (n, classes) from those of members and views (members, views, n, classes)."""
        return tempered(self.vote(probs), self.temperature)


def _has_thresholds(path: Path) -> bool:
    with contextlib.suppress(InputError, OSError):
        return bool(_read_calibration(path)[1])
    return False


def _read_calibration(path: Path) -> tuple[float, dict[str, float], bool, np.ndarray]:
    """The temperature, the thresholds by label, whether the temperature was fitted, and by which contents."""
    try:
        content = read_sealed(path)
        temperature, thresholds = content.get("temperature"), content.get("thresholds", {})
        if type(temperature) is not float or not RANGE[0] <= temperature <= RANGE[1]:
            raise ValueError(f"temperature {temperature!r}, expected {RANGE[0]:g} to {RANGE[1]:g}")
        if not isinstance(thresholds, dict) or not all(type(each) is float for each in thresholds.values()):
            raise ValueError("thresholds that are not numbers by label")
        known = content.get("contents", "") + content.get("negative_contents", "")
        contents = np.frombuffer(bytes.fromhex(known), "<i8")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and run infer.calibrate again") from None
    return temperature, thresholds, content.get("fitted") is not False, contents


def tempered(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [shape=(n, classes)] as if their logits had been divided by the temperature."""
    if temperature == 1:
        return probs
    highest = np.maximum(probs.max(axis=1, keepdims=True), np.finfo(probs.dtype).tiny)  # of an unread file it is zero
    powers = (probs / highest) ** (1 / temperature)
    return powers / np.maximum(powers.sum(axis=1, keepdims=True), 1)
