"""Test-time views: deterministic functions of a clip, so that they can be exported with the model.

A view is ``(samples) -> samples``, both [shape=(samples,), dtype=float32]. ``--tta N`` takes the first N of `VIEWS`.
"""

import functools

import numpy as np

from cache.cli import InputError
from pipeline.augment import mixed, shifted

SHIFT = 0.05  # of the clip
SNR_DB = 30.0


def clean(samples: np.ndarray) -> np.ndarray:
    """The clip itself."""
    return samples


def earlier(samples: np.ndarray) -> np.ndarray:
    """The clip moved to the left."""
    return shifted(samples, -round(SHIFT * len(samples)))


def later(samples: np.ndarray) -> np.ndarray:
    """The clip moved to the right."""
    return shifted(samples, round(SHIFT * len(samples)))


def noisy(samples: np.ndarray) -> np.ndarray:
    """The clip with the same white noise every time."""
    return mixed(samples, white_noise(len(samples)), SNR_DB)


@functools.lru_cache(maxsize=4)
def white_noise(count: int) -> np.ndarray:
    """The noise of :func:`noisy` [shape=(count,), dtype=float32]."""
    return np.random.default_rng(0).standard_normal(count, dtype=np.float32)


VIEWS = (clean, earlier, later, noisy)


def first_views(count: int) -> tuple:
    """The first `count` views; InputError where there are not so many."""
    if count > len(VIEWS):
        raise InputError(f"--tta {count}: there are {len(VIEWS)} views: {', '.join(view.__name__ for view in VIEWS)}")
    return VIEWS[:count]
