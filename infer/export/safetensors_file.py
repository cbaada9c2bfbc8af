"""The weights of an ensemble as a safetensors file, whose metadata say all that judging with them needs."""

import json
from pathlib import Path

import torch

from cache.config import FeatureConfig
from cache.files import atomic_path
from infer.export.graph import WaveformEnsemble
from infer.export.onnx_file import Runner
from infer.members import Member
from infer.views import first_views
from train.models import create_model

REQUIRED = ("safetensors",)  # of the extra [export]
OUTPUT = "model.safetensors"
placed = atomic_path


def write(module: WaveformEnsemble, samples: int, metadata: dict[str, str], path: Path) -> None:
    """Write the members' weights: under timm's own names, which of several members follow the member's number.

    Raises
    ------
    OSError : the disk is full
    """
    from safetensors.torch import save

    temperatures = {"temperatures": module.temperatures, "temperature": module.temperature}
    metadata = metadata | {name: json.dumps(value) for name, value in temperatures.items()}
    weights = _networks(module).state_dict()
    weights = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    path.write_bytes(save(weights, metadata))  # safetensors' save_file would not name a full disk as the system does


def run(path: Path) -> Runner:
    """Build the ensemble of a file of :func:`write` from that file alone, on the CPU."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        weights, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no dict
    classes, models, features, temperatures, temperature, tta = (
        json.loads(about[name]) for name in ("classes", "models", "features", "temperatures", "temperature", "tta")
    )
    members = []
    for name, values, of in zip(models, features, temperatures, strict=True):
        config = FeatureConfig.from_dict(values, str(path))
        network = create_model(name, len(classes), (config.n_mels, config.n_frames))
        members.append(Member("", "", path, config, classes, "", of, network))
    module = WaveformEnsemble(members, first_views(tta), temperature).eval()
    _networks(module).load_state_dict(weights)
    return torch.inference_mode()(lambda clips: module(torch.from_numpy(clips)).numpy())


def _networks(module: WaveformEnsemble) -> torch.nn.Module:
    """All networks, or the only one."""
    return module.networks if len(module.networks) > 1 else module.networks[0]
