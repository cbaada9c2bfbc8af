"""Waveform in, probabilities out: views, log-mel, members and averaging as one torch module that can be exported.

It repeats `infer.views` and `pipeline.features` in operations that every exporter and runtime knows. The DFT has two
steps of small matrix products (Cooley and Tukey 1965), because ONNX runtimes either lack a fast DFT operator or need
it slow: one clip of 224 x 224 takes 6 ms against 16 ms with the operator and 36 ms with one matrix of 2048 x 2050.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cache.config import FeatureConfig
from infer.members import Member, shared_clip
from infer.views import SHIFT, SNR_DB, white_noise
from pipeline.decode import MAX_LEVEL
from pipeline.features import AMIN, UNIT_DB, ZERO_DB, frame_window
from pipeline.filterbank import mel_filterbank


class GraphLogMel(nn.Module):
    """`pipeline.features.LogMel` for batches of clips.

    With n_fft = p * q, sample q * a + b of a frame and bin k + p * c, the DFT is a p-point DFT over a for every b,
    followed for every k by one product over b that holds the twiddle factors. Of the p remainders k those up to p / 2
    are enough: the signal is real, so the others mirror them.

    Parameters
    ----------
    config : the features
    """

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        n_fft, hop = config.n_fft, config.hop_length
        p = min((d for d in range(1, n_fft + 1) if n_fft % d == 0), key=lambda d: abs(d - math.sqrt(n_fft / 2)))
        q, remainders = n_fft // p, np.arange(p // 2 + 1)
        self.config, self.p, self.q = config, p, q
        self.grain = math.gcd(hop, n_fft)  # frames are gathered in pieces of so many samples
        pieces = np.arange(config.n_frames)[:, None] * (hop // self.grain) + np.arange(n_fft // self.grain)
        turn = 2 * np.pi * (np.outer(remainders, np.arange(p)) % p) / p
        first = np.stack([np.cos(turn), -np.sin(turn)], axis=1)  # (remainders, re and im, p)
        bins = remainders[:, None] + p * np.arange(q)  # (remainders, q)
        turn = 2 * np.pi * (np.arange(q)[:, None] * bins[:, None, :] % n_fft) / n_fft
        cos, sin = np.cos(turn), np.sin(turn)
        second = np.block([[cos, -sin], [sin, cos]])  # (remainders, 2q, 2q)
        mirrored = np.minimum(bins, n_fft - bins)
        filters = mel_filterbank(config).T[mirrored] / np.bincount(mirrored.ravel())[mirrored][..., None]
        self.pieces, self.window = nn.Buffer(torch.from_numpy(pieces)), _constant(frame_window(config))
        self.first, self.second = _constant(first.reshape(-1, p)), _constant(second)
        self.filters = _constant(np.concatenate([filters, filters], axis=1))  # (remainders, 2q, n_mels)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Normalised log-mels (n, 1, n_mels, n_frames) of clips (n, samples), rounded to float16 as the cache does."""
        config = self.config
        left = config.n_fft // 2
        right = config.hop_length * (config.n_frames - 1) + config.n_fft - left - config.samples
        frames = functional.pad(clips, (left, right)).reshape(clips.shape[0], -1, self.grain)[:, self.pieces]
        windowed = frames.reshape(-1, config.n_fft) * self.window  # (n * n_frames, n_fft)
        partial = (self.first @ windowed.reshape(-1, self.p, self.q)).reshape(-1, len(self.second), 2 * self.q)
        squares = (partial.transpose(0, 1) @ self.second).square()  # (remainders, n * n_frames, re and im)
        mel = (squares @ self.filters).sum(dim=0).reshape(-1, config.n_frames, config.n_mels)
        loudest = mel.amax(dim=(1, 2), keepdim=True)
        floor = (loudest.log() - config.top_db * math.log(10) / 10).clamp_min(math.log(AMIN))
        values = torch.maximum(mel.log(), floor)
        if config.normalize == "clip":
            values = values - values.mean(dim=(1, 2), keepdim=True)
            values = values * values.square().mean(dim=(1, 2), keepdim=True).clamp_min(1e-12).rsqrt()
            values = torch.where(loudest > AMIN, values, torch.zeros_like(values))
        else:
            values = (values * (10 / math.log(10)) - ZERO_DB) / UNIT_DB
        return values.transpose(1, 2)[:, None].half().float()


def _constant(values: np.ndarray) -> nn.Buffer:
    return nn.Buffer(torch.from_numpy(values.astype(np.float32)))


def _moved(clips: torch.Tensor, share: float) -> torch.Tensor:
    """`pipeline.augment.shifted` by a share of the clip."""
    count = round(share * clips.shape[1])
    return functional.pad(clips, (count, -count))  # a negative side crops


GRAPH_VIEWS = {
    "clean": lambda clips, noise: clips,
    "earlier": lambda clips, noise: _moved(clips, -SHIFT),
    "later": lambda clips, noise: _moved(clips, SHIFT),
    "noisy": lambda clips, noise: clips + noise * clips.square().sum(dim=1, keepdim=True).sqrt(),
}
"""The views of `infer.views.VIEWS` for clips (n, samples) and the noise that suits a clip whose squares sum to 1."""


class WaveformEnsemble(nn.Module):
    """Members and views as one module: clips (n, samples) in, probabilities (n, classes) out.

    Parameters
    ----------
    members : at least one, of the same sample rate and clip length
    views : functions of `infer.views`
    temperature : of their mean, see `infer.ensemble`

    Raises
    ------
    InputError : members of other sample rates or clip lengths
    """

    def __init__(self, members: Sequence[Member], views: Sequence[Callable], temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        noise = white_noise(shared_clip(members).samples)
        noise = noise * np.float32(np.sqrt(10 ** (-SNR_DB / 10) / np.dot(noise, noise)))
        configs = list(dict.fromkeys(member.config.view_config for member in members))
        self.views = [GRAPH_VIEWS[view.__name__] for view in views]
        self.noise = nn.Buffer(torch.from_numpy(noise))
        self.log_mels = nn.ModuleList(GraphLogMel(config) for config in configs)
        self.networks = nn.ModuleList(member.model for member in members)
        self.features_of = [configs.index(member.config.view_config) for member in members]
        self.temperatures = [member.temperature for member in members]

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Probabilities (batch, classes) of clips (batch, samples) float32.

        NaN where predict would have an error: of samples or logits that are not finite, or samples beyond all levels.
        """
        return self.with_features(waveform)[0]

    def with_features(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :func:`forward`; and the first member's log-mels (batch, n_mels, n_frames) of the clips as they are."""
        sound = (waveform.abs() <= MAX_LEVEL).all(dim=1)  # not of NaN
        clips = torch.cat([view(waveform, self.noise) for view in self.views])  # (views * batch, samples)
        features = [log_mel(clips) for log_mel in self.log_mels]
        logits = [network(features[index]) for network, index in zip(self.networks, self.features_of, strict=True)]
        probs = [(each / of).softmax(dim=1) for each, of in zip(logits, self.temperatures, strict=True)]
        mean = torch.stack(probs).mean(dim=0)
        mean = mean.reshape(len(self.views), -1, mean.shape[1]).mean(dim=0)
        if self.temperature != 1:
            powers = (mean / mean.amax(dim=1, keepdim=True)) ** (1 / self.temperature)
            mean = powers / powers.sum(dim=1, keepdim=True)
        finite = (torch.stack(logits).abs() < torch.inf).all(dim=0).all(dim=1)  # (views * batch)
        sound = sound & finite.reshape(len(self.views), -1).all(dim=0)
        shown = features[0][: waveform.shape[0], 0]  # the first view is the clip itself
        return torch.where(sound[:, None], mean, torch.nan), shown
