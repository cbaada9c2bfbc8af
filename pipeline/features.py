"""Normalised log-mel spectrograms, equal to librosa's and several times as fast.

The reference is ``librosa.feature.melspectrogram(center=True, pad_mode="constant")`` followed by
``librosa.power_to_db(top_db=80)`` and per-clip zero mean and unit variance, or one scale for all clips
(`FeatureConfig.normalize`); librosa supplies the filterbank. What makes the difference: strided frames into one
windowed buffer, torch's real FFT, no square root, squared real and imaginary parts summed by the filterbank product,
which skips the zeros of the filterbank in blocks of neighbouring filters, and in-place logarithm and normalisation in
float32.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from cache.config import FeatureConfig
from pipeline.filterbank import mel_filterbank

_BLOCK = 4  # neighbouring mel filters in one matrix product: OpenBLAS's small products beat MKL's at 4 and 5 only
_ALIGN = 8  # bins: products over whole vectors (and some zeros) take a fifth less time
_SAMPLES = 256 * 2048  # of frames transformed at once: more leave the core's cache, with fewer the calls cost time
AMIN = 1e-10  # the floor of librosa.power_to_db
ZERO_DB, UNIT_DB = -40.0, 20.0  # what 0 and a step of 1 mean where clips keep their level


def frame_window(config: FeatureConfig) -> np.ndarray:
    """The Hann window of a frame, as librosa pads it: zeros around a shorter one [shape=(n_fft,), dtype=float64]."""
    length = config.win_length or config.n_fft
    left = (config.n_fft - length) // 2
    return np.pad(torch.hann_window(length, dtype=torch.float64).numpy(), (left, config.n_fft - length - left))


class LogMel:
    """Computes log-mels of one FeatureConfig into buffers of fixed shape; one object per thread.

    Parameters
    ----------
    config : the features
    filters : of :func:`pipeline.filterbank.mel_filterbank`; a worker that is given them need not import librosa

    Attributes
    ----------
    at_once : so many clips together take less time than one by one
    """

    def __init__(self, config: FeatureConfig, filters: np.ndarray | None = None) -> None:
        self._filters = mel_filterbank(config) if filters is None else filters
        self.config, self.at_once = config, max(1, _SAMPLES // config.n_fft // config.n_frames)
        self._range = 10 ** (-config.top_db / 10)  # of power
        self._window = torch.from_numpy(frame_window(config)).float()
        self._buffers: dict[int, _Buffers] = {}

    def __call__(self, clips: Sequence[np.ndarray], out: Sequence[torch.Tensor]) -> None:
        """Write the normalised log-mels of some clips; what is written for one does not depend on the others.

        Parameters
        ----------
        clips : each [shape=(samples,), dtype=float32]
        out : of each clip, or more [shape=(n_mels, n_frames), dtype=float16 or float32], overwritten; all zeros for a
            clip without any variation, unless clips keep their level
        """
        for first in range(0, len(clips), self.at_once):
            self._transform(clips[first : first + self.at_once], out[first : first + self.at_once])

    def _transform(self, clips: Sequence[np.ndarray], out: Sequence[torch.Tensor]) -> None:
        if len(clips) not in self._buffers:
            self._buffers[len(clips)] = _Buffers(self.config, self._filters, len(clips))
        buffers = self._buffers[len(clips)]
        for signal, clip in zip(buffers.clips, clips, strict=True):
            signal.copy_(torch.from_numpy(clip))  # NumPy's copy takes twice as long
        for frames, windowed, pairs, products in buffers.blocks:
            torch.mul(frames, self._window, out=windowed)
            spectrum = torch.view_as_real(torch.fft.rfft(windowed))  # with out= it would copy
            torch.mul(spectrum, spectrum, out=pairs)
            for weights, squares, bands in products:
                np.matmul(weights, squares, out=bands)
        for (mel, values), target in zip(buffers.mels, out, strict=False):
            self._normalise(mel, values, target)

    def _normalise(self, mel: torch.Tensor, values: np.ndarray, out: torch.Tensor) -> None:
        """Decibels, at most top_db below the loudest, on the configuration's scale; `values` are those of `mel`.

        Each step is done by whichever of torch and NumPy takes half the other's time for it.
        """
        loudest = float(values.max())
        per_clip = self.config.normalize == "clip"
        if loudest <= AMIN and per_clip:
            out.zero_()
            return
        mel.clamp_min_(max(AMIN, loudest * self._range))
        np.log(values, out=values)
        if not per_clip:
            out.copy_(mel.mul_(10 / math.log(10) / UNIT_DB).sub_(ZERO_DB / UNIT_DB))
            return
        mel.sub_(mel.sum().item() / values.size)
        if power := np.vdot(values, values):
            mel.mul_(math.sqrt(values.size / power))
        out.copy_(mel)


class _Buffers:
    """What `LogMel` computes `count` clips in, and views of it: frames in blocks that the core's cache holds."""

    def __init__(self, config: FeatureConfig, filters: np.ndarray, count: int) -> None:
        hop, n_fft, n_frames, n_bins = config.hop_length, config.n_fft, config.n_frames, filters.shape[1]
        signal = torch.zeros(count, hop * (n_frames - 1) + n_fft)  # the clips, padded for centred frames
        self.clips = signal[:, n_fft // 2 : n_fft // 2 + config.samples].unbind()
        frames = signal.as_strided((count, n_frames, n_fft), (signal.shape[1], hop, 1))
        mel = torch.empty(count, config.n_mels, n_frames)
        self.mels = [(one, one.numpy()) for one in mel]
        rows = math.ceil(n_frames / math.ceil(n_frames * n_fft / _SAMPLES))
        memory = torch.empty(count, rows, 2 * n_bins)  # re², im², re², im², …
        every = slice(None) if count > 1 else 0  # products of two dimensions are faster
        bands = [_sparse(filters, first) for first in range(0, config.n_mels, _BLOCK)]
        self.blocks = []
        for first in range(0, n_frames, rows):
            block = frames[:, first : first + rows]
            squares = memory[:, : block.shape[1]]
            windowed = squares[:, :, :n_fft]  # once transformed, frames make room for the squares
            pairs = squares.view(count, -1, n_bins, 2)
            values, target = squares.numpy()[every], mel.numpy()[every, :, first : first + rows]
            products = [
                (weights, np.moveaxis(values[..., low:high], -1, -2), target[..., mels, :])
                for mels, low, high, weights in bands
            ]
            self.blocks.append((block, windowed, pairs, products))


def _sparse(filters: np.ndarray, first: int) -> tuple[slice, int, int, np.ndarray]:
    """Some neighbouring filters: which, and the part of re², im², re², … that they weight, with its weights."""
    block = filters[first : first + _BLOCK]
    bins = np.flatnonzero(block.any(axis=0))
    low, high = int(bins[0]) // _ALIGN * _ALIGN, min(filters.shape[1], -(-int(bins[-1] + 1) // _ALIGN) * _ALIGN)
    return slice(first, first + _BLOCK), 2 * low, 2 * high, np.repeat(block[:, low:high], 2, axis=1)
