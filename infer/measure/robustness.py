"""Accuracy on recordings made worse in known ways: what a test set from the training corpus does not show.

Each condition is a view ``(samples) -> samples``, as those of `infer.views`, of the recordings that are judged. It is
the same whenever the same recording is judged.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr

from cache.cli import InputError, say
from cache.config import FeatureConfig
from infer.ensemble import Ensemble
from infer.measure.scoring import accuracy_of
from infer.members import Member, shared_clip
from infer.recordings import Recordings
from pipeline.augment import mixed, played, shifted
from pipeline.decode import read_clip
from train.world import World

_VOICES, _BABBLE_CLIPS = 8, 32  # in the babble at once, and one after another
_EDGE = 4000  # Hz

Babble = list[tuple[np.ndarray, set[int]]]
"""Sound [shape=(n,), dtype=float32], and which clips it is made of."""
Condition = tuple[str, float, Callable]
"""What is changed, by how much, and the view that changes it."""


def conditions(babbles: Babble, sample_rate: int) -> dict[str, dict[float, Callable]]:
    """Views by what is changed and by how much; what changes nothing, for want of voices or of a high rate, is no view.

    Parameters
    ----------
    babbles : what :func:`babbles_of` makes
    sample_rate : Hz
    """
    ratios, edges = (20, 10, 5, 0) if babbles else (), (_EDGE,) if sample_rate > 2 * _EDGE else ()
    return {
        "babble, SNR in dB": {snr: functools.partial(_in_babble, babbles=babbles, snr_db=snr) for snr in ratios},
        "level, dB": {gain: functools.partial(_recorded_at, gain_db=gain) for gain in (-30, -20, -10, 10)},
        "shift, ms": {
            ms: functools.partial(shifted, count=round(ms * sample_rate / 1000)) for ms in (-200, -100, 100, 200)
        },
        "speed, percent": {percent: functools.partial(played, percent=percent) for percent in (80, 90, 110, 120)},
        "upper band edge, Hz": {edge: functools.partial(_band_limited, sample_rate=sample_rate) for edge in edges},
        "clipped at percent of its peak": {
            percent: functools.partial(_clipped, percent=percent) for percent in (30, 10)
        },
    }


def list_conditions(members: list[Member], recordings: Recordings, world: World) -> list[Condition]:
    """The conditions that these recordings allow; says which they do not.

    Raises
    ------
    InputError : members of different clip lengths
    """
    config = shared_clip(members)
    table = conditions(babbles_of(recordings, config), config.sample_rate)
    left = [changed for changed, values in table.items() if not values]
    if left and world.is_main:
        needs = f"babble takes {2 * _VOICES} different recordings, the edge a rate above {2 * _EDGE} Hz"
        say(f"--robustness: left out: {'; '.join(left)} ({needs})", error=True)
    return [(changed, value, view) for changed, values in table.items() for value, view in values.items()]


def robustness_figures(
    ensemble: Ensemble, conditions: list[Condition], probs: np.ndarray, targets: np.ndarray
) -> dict[str, Any]:
    """The ensemble's accuracy, without further test-time views, in every condition.

    Parameters
    ----------
    ensemble : of one view
    probs : of the clips as they are, and then in each condition [shape=(members, 1 + conditions, n, classes)]
    targets : labels [shape=(n,)]

    Returns
    -------
    dict : ``score``, the mean accuracy of the changed conditions; ``clean``; ``conditions``, each with ``changed``,
        ``value``, ``accuracy``, ``low`` and ``high``
    """
    clean, *figures = (accuracy_of(ensemble(probs[:, [view]]), targets) for view in range(probs.shape[1]))
    rows = [
        {"changed": changed, "value": value, **row}
        for (changed, value, _), row in zip(conditions, figures, strict=True)
    ]
    return {"score": float(np.mean([row["accuracy"] for row in rows])), "clean": clean, "conditions": rows}


def babbles_of(recordings: Recordings, config: FeatureConfig) -> Babble:
    """Many voices at once, of some of the recordings themselves; twice, for no clip is to be its own noise.

    Returns
    -------
    nothing where there are too few different recordings
    """
    clips: dict[int, np.ndarray] = {}
    for index in np.random.default_rng(0).permutation(len(recordings.paths)).tolist():
        try:
            samples = read_clip(recordings.paths[index], config).samples
        except (InputError, OSError):
            continue  # judging says why
        if power := float(np.dot(samples, samples)):
            clips[zlib.crc32(samples.tobytes())] = samples / np.float32(np.sqrt(power))
        if len(clips) == 2 * _VOICES * _BABBLE_CLIPS:
            break
    if len(clips) < 2 * _VOICES:
        return []
    halves = [list(clips.items())[half::2] for half in range(2)]
    return [(_spoken_at_once([said for _, said in half]), {name for name, _ in half}) for half in halves]


def _spoken_at_once(clips: list[np.ndarray]) -> np.ndarray:
    """The sum of voices, each of which says every eighth clip."""
    voices = [np.concatenate(clips[first::_VOICES]) for first in range(_VOICES)]
    return np.stack([np.resize(voice, len(voices[0])) for voice in voices]).sum(axis=0)


def _in_babble(samples: np.ndarray, babbles: Babble, snr_db: float) -> np.ndarray:
    """Add a stretch, which depends on the samples alone, of a babble that they are not in."""
    name = zlib.crc32(samples.tobytes())
    babble = next(sound for sound, names in babbles if name not in names)
    start = name % (len(babble) - len(samples) + 1)
    return mixed(samples, babble[start : start + len(samples)], snr_db)


def _recorded_at(samples: np.ndarray, gain_db: float) -> np.ndarray:
    """As a 16-bit recording of another level has it: rounded, and clipped at full scale."""
    scaled = np.round(samples * np.float32(32768 * 10 ** (gain_db / 20)))
    return np.clip(scaled, -32768, 32767).astype(np.float32) / np.float32(32768)


def _band_limited(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Without what lies above `_EDGE` Hz, as of a telephone line."""
    back = soxr.resample(soxr.resample(samples, sample_rate, 2 * _EDGE), 2 * _EDGE, sample_rate)
    return np.pad(back, (0, max(0, len(samples) - len(back))))[: len(samples)]


def _clipped(samples: np.ndarray, percent: float) -> np.ndarray:
    limit = float(np.abs(samples).max()) * percent / 100
    return samples.clip(-limit, limit)
