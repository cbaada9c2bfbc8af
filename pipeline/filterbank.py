"""The mel filterbank, which librosa supplies."""

import functools
import math
import warnings

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig


@functools.lru_cache(maxsize=4)
def mel_filterbank(config: FeatureConfig) -> np.ndarray:
    """librosa's Slaney mel filterbank.

    Returns
    -------
    np.ndarray [shape=(n_mels, 1 + n_fft // 2), dtype=float32]

    Raises
    ------
    InputError : a filter is empty; the message names the smallest power of two for n_fft that has none
    """
    filters = _librosa_mel(config, config.n_fft)
    if filters.any(axis=1).all():
        return filters
    empty = int((~filters.any(axis=1)).sum())
    n_fft = 1 << config.n_fft.bit_length()
    while n_fft <= 65536 and not _librosa_mel(config, n_fft).any(axis=1).all():
        n_fft *= 2
    remedy = f"--n-fft {n_fft} is the smallest power of two that works" if n_fft <= 65536 else "use fewer mels"
    raise InputError(f"n_mels {config.n_mels} with n_fft {config.n_fft} leaves {empty} mel filters empty; {remedy}")


def default_n_fft(config: FeatureConfig) -> int:
    """Samples in a frame: the smallest power of two of 25 ms or more with which frames overlap by half.

    For that it is 128 ms at most, and longer only where mel bands are narrow: the narrowest is three bins wide. So it
    is 2048 for 224 mels x 224 frames, and 512 for 32 x 64 at 16 kHz (docs/experiments.md, the length of a frame).

    Parameters
    ----------
    config : all of it but n_fft
    """
    import librosa

    edges = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)
    narrowest = float((edges[2:] - edges[:-2]).min())  # Hz
    overlapping = min(2 * config.hop_length, 0.128 * config.sample_rate)
    needed = max(0.025 * config.sample_rate, overlapping, 3 * config.sample_rate / narrowest)
    return 1 << (math.ceil(needed) - 1).bit_length()


def _librosa_mel(config: FeatureConfig, n_fft: int) -> np.ndarray:
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa only warns of empty filters; here they are an error
        return librosa.filters.mel(
            sr=config.sample_rate, n_fft=n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.fmax
        )
