"""Waveform augmentation of the stored views.

Each function takes and returns a clip: ``(samples, rng, noises) -> samples``. To add one, write it here and name it
in `AUGMENTS`. Pitch shifting is not among them: it costs many times more than the rest of the pipeline.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import soxr

from cache.config import FeatureConfig


def time_shift(samples: np.ndarray, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> np.ndarray:
    """Shift by up to a tenth of the clip to either side; zeros move in."""
    limit = len(samples) // 10
    return shifted(samples, int(rng.integers(-limit, limit + 1)))


def volume(samples: np.ndarray, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> np.ndarray:
    """Change the level by −10 to +6 dB."""
    return samples * np.float32(10 ** (rng.uniform(-10, 6) / 20))


def gaussian_noise(samples: np.ndarray, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> np.ndarray:
    """Add white noise at an SNR of 10 to 40 dB."""
    return mixed(samples, rng.standard_normal(len(samples), dtype=np.float32), rng.uniform(10, 40))


def background(samples: np.ndarray, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> np.ndarray:
    """Mix in a random stretch of a background recording at an SNR of 0 to 30 dB, in two of three views."""
    if not len(noises) or rng.random() < 1 / 3:
        return samples
    noise = noises[int(rng.integers(len(noises)))]
    start = int(rng.integers(len(noise) - len(samples) + 1))
    return mixed(samples, noise[start : start + len(samples)], rng.uniform(0, 30))


def speed(samples: np.ndarray, rng: np.random.Generator, noises: Sequence[np.ndarray]) -> np.ndarray:
    """Play up to 15% slower or faster, which moves the pitch too (Ko et al. 2015); zeros around it, or cut alike."""
    return played(samples, int(rng.integers(85, 116)))


AUGMENTS = {
    "none": (),
    "light": (time_shift, volume, gaussian_noise),
    "more": (background, time_shift, volume, gaussian_noise),
    "speed": (speed, background, time_shift, volume, gaussian_noise),
}


def render_view(
    samples: np.ndarray, config: FeatureConfig, clip_id: str, view: int, noises: Sequence[np.ndarray]
) -> np.ndarray:
    """Render a view: 0 is the clip, others are augmented; their random stream depends on (seed, clip_id, view) alone.

    Parameters
    ----------
    samples : np.ndarray [shape=(samples,), dtype=float32]
    config : its augment and seed are used
    noises : background recordings, each at least as long as the clip

    Returns
    -------
    np.ndarray [shape=(samples,), dtype=float32]
    """
    if view == 0:
        return samples
    key = hashlib.sha256(f"{config.seed}/{view}/{clip_id}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    for function in AUGMENTS[config.augment]:
        samples = function(samples, rng, noises)
    return samples


def shifted(samples: np.ndarray, count: int) -> np.ndarray:
    """Move a clip by `count` samples (to the right where positive); zeros move in."""
    left, right = max(0, count), max(0, -count)
    return np.pad(samples, (left, right))[right : right + len(samples)]


def played(samples: np.ndarray, percent: int) -> np.ndarray:
    """Play a clip at `percent` of its speed; its middle stays in the middle, and zeros or a cut keep its length."""
    other = soxr.resample(samples, percent, 100)
    before = abs(len(samples) - len(other)) // 2
    if len(other) > len(samples):
        return other[before : before + len(samples)]
    return np.pad(other, (before, len(samples) - len(other) - before))


def mixed(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `noise` at a signal-to-noise ratio of `snr_db` dB; nothing is added to or from silence."""
    signal_power = float(np.dot(samples, samples))
    noise_power = float(np.dot(noise, noise))
    if not signal_power or not noise_power:
        return samples
    return samples + noise * np.float32(np.sqrt(signal_power / noise_power * 10 ** (-snr_db / 10)))
