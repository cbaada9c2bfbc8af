"""Normalised log-mel spectrograms, equal to librosa's and several times as fast.

The reference is ``librosa.feature.melspectrogram(center=True, pad_mode="constant")`` followed by
``librosa.power_to_db(top_db=80)`` and per-clip zero mean and unit variance; librosa supplies the filterbank. What
makes the difference: strided frames into one windowed buffer, torch's real FFT, no square root, real and imaginary
parts squared where they lie and summed by the filterbank product, which skips the zeros of the filterbank in blocks
of neighbouring filters, and in-place logarithm and normalisation in float32.
"""

import numpy as np
import torch

from cache.cli import InputError
from cache.config import FeatureConfig

_BLOCK = 8  # neighbouring mel filters in one matrix product; 8 was the fastest of 4 to 224
_AMIN = 1e-10  # the floor of librosa.power_to_db


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


def _librosa_mel(config: FeatureConfig, n_fft: int) -> np.ndarray:
    import warnings

    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa only warns of empty filters; here they are an error
        return librosa.filters.mel(
            sr=config.sample_rate, n_fft=n_fft, n_mels=config.n_mels, fmin=config.fmin, fmax=config.fmax
        )


class LogMel:
    """Computes log-mels of one FeatureConfig into buffers of fixed shape; one object per thread."""

    def __init__(self, config: FeatureConfig) -> None:
        import librosa

        filters = mel_filterbank(config)
        n_bins = filters.shape[1]
        hop, n_fft, n_frames = config.hop_length, config.n_fft, config.n_frames
        self.config = config
        self._floor = config.top_db * np.log(10) / 10  # top_db in natural-log units
        self._window = torch.from_numpy(librosa.filters.get_window("hann", n_fft).astype(np.float32))
        self._signal = torch.zeros(hop * (n_frames - 1) + n_fft)  # the clip, padded for centred frames
        self._clip = self._signal[n_fft // 2 : n_fft // 2 + config.samples]
        self._frames = self._signal.as_strided((n_frames, n_fft), (hop, 1))
        self._windowed = torch.empty(n_frames, n_fft)
        self._spectrum = torch.empty(n_frames, n_bins, dtype=torch.complex64)
        self._squares = torch.view_as_real(self._spectrum).view(n_frames, 2 * n_bins)  # re², im², re², im², …
        self._mel = torch.empty(config.n_mels, n_frames)
        self._products = []
        for first in range(0, config.n_mels, _BLOCK):
            block = filters[first : first + _BLOCK]
            bins = np.flatnonzero(block.any(axis=0))
            low, high = int(bins[0]), int(bins[-1]) + 1
            weights = torch.from_numpy(np.repeat(block[:, low:high], 2, axis=1))
            self._products.append(
                (weights, self._squares[:, 2 * low : 2 * high].t(), self._mel[first : first + _BLOCK])
            )

    def __call__(self, clip: np.ndarray, out: torch.Tensor) -> None:
        """Write the normalised log-mel of a clip.

        Parameters
        ----------
        clip : np.ndarray [shape=(samples,), dtype=float32]
        out : torch.Tensor [shape=(n_mels, n_frames), dtype=float16 or float32], overwritten; all zeros for a
            clip without any variation
        """
        self._clip.copy_(torch.from_numpy(clip))
        torch.mul(self._frames, self._window, out=self._windowed)
        torch.fft.rfft(self._windowed, out=self._spectrum)
        self._squares.square_()
        for weights, squares, mel in self._products:
            torch.mm(weights, squares, out=mel)
        mel = self._mel
        mel.clamp_min_(_AMIN)
        values = mel.numpy()
        np.log(values, out=values)  # NumPy's is twice as fast as torch's here
        low, high = mel.aminmax()
        if low == high:
            out.zero_()
            return
        mel.clamp_min_(high - self._floor)
        mel.sub_(mel.mean())
        flat = mel.view(-1)
        mel.mul_(torch.rsqrt(torch.dot(flat, flat) / flat.numel()))
        out.copy_(mel)
