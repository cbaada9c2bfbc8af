"""Placement on CUDA and waiting for it, without a GPU: torch's fake tensors have a device and a shape but no values.

A tensor on the wrong device raises there, and so does what needs a value: ``.item()``, ``bool``, a mask as an index.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import train.models
import train.precision
from cache.config import FeatureConfig
from cache.index import Cache
from infer.judge import Judge
from infer.members import Member, memory_format_on
from infer.views import first_views
from tests.words_run import RUN
from train.checkpoint import load_checkpoint
from train.engine import Trainer
from train.folds import select_fold
from train.models import create_model
from train.options import TrainOptions
from train.precision import device_name
from train.world import World

CUDA = torch.device("cuda", 0)


class NoCopyToHost(TorchDispatchMode):
    """Copies to the host wait for the device, unless they are asked not to."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {arg.device.type for arg in args if isinstance(arg, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        waits = "cuda" in devices and isinstance(result, torch.Tensor) and result.device.type == "cpu"
        asked_not_to = any(arg is True for arg in args) or (kwargs or {}).get("non_blocking")
        assert not waits or asked_not_to, f"{func} waits for the device"
        return result


def real_model(*args: object, **kwargs: object) -> torch.nn.Module:
    with unset_fake_temporarily():  # a fake parameter cannot be moved
        return create_model(*args, **kwargs)


def numpy_of(tensor: FakeTensor) -> np.ndarray:
    assert tensor.device.type == "cpu", "a tensor on the device has no array"
    return np.zeros(tensor.shape, str(tensor.dtype).removeprefix("torch."))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """CUDA as far as fake tensors need it: its streams do nothing, its generators draw nothing."""
    for name in ("set_device", "empty_cache", "Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch, "Generator", lambda device, make=torch.Generator: make())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(FakeTensor, "numpy", numpy_of)
    monkeypatch.setattr(train.models, "create_model", real_model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield CUDA


def make_trainer(cache_dir: Path, monkeypatch: pytest.MonkeyPatch, **flags: object) -> Trainer:
    (folder,) = cache_dir.iterdir()
    flags = {"model": "test_resnet", "batch_size": 12, "memory_format": "channels_last", **flags}
    trainer = Trainer(TrainOptions(**flags), World(0, 0, 1, CUDA), Cache(folder), select_fold(Cache(folder), "0"))

    def backward(loss: torch.Tensor) -> None:  # torch's own needs a driver
        assert loss.device == CUDA
        for parameter in trainer.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    return trainer


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
@pytest.mark.parametrize("resident", ["auto", "off"])
def test_steps(amp: str, resident: str, tiny: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetched batch is on the device, from a mapped fold and a resident one, and a step waits for nothing."""
    trainer = make_trainer(tiny, monkeypatch, amp=amp, resident=resident, loss="binary", balance=0.5, ohem=0.5)
    fetch = trainer.batches._fetcher()
    for step in range(2):
        features, clips, _ = fetch(step)
        with NoCopyToHost():
            trainer.train_step(features[:, None], clips)
    assert trainer.batches.resident == (resident == "auto")
    assert {tensor.device for tensor in (features, clips, trainer.sums, *trainer.model.parameters())} == {device}


def test_validation_and_prediction(tiny: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out clips are judged on the device, and so are the recordings of a prediction."""
    trainer = make_trainer(tiny, monkeypatch)
    assert trainer.validate()["logits"].shape == (20, 4)
    config, views = trainer.cache.config, first_views(2)
    member = Member("run", "0", tiny, config, list("abcd"), "", 1.0, trainer.eval_model().eval())
    judge = Judge([member], views, device)
    row = torch.zeros(len(views), config.n_mels, config.n_frames, dtype=torch.float16)
    assert judge._forward([([row], ""), ([], "unreadable")]).probs.shape == (1, len(views), 2, 4)
    judge.close()


def test_memory_format_of_a_member(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the GPU that trained a member its format is training's choice, on another one the faster, on a CPU fixed."""
    saved = load_checkpoint(words / RUN / "fold0/best.pt")
    assert (saved["device"], saved["memory_format"]) == (device_name(torch.device("cpu")), "channels_last")
    timed, cuda, model = [], torch.device("cuda", 0), torch.nn.Identity()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(train.precision, "_time_passes", lambda *args: timed.append(args) or 1 / len(timed))
    config, formats = FeatureConfig(n_mels=16, n_frames=16), (torch.contiguous_format, torch.channels_last)
    for name, expected in zip(("contiguous", "channels_last"), formats, strict=True):
        there = {**saved, "device": "GeForce", "memory_format": name}
        assert memory_format_on(cuda, there, model, config) == expected
        assert memory_format_on(torch.device("cpu"), there, model, config) == torch.channels_last
    assert not timed
    for other in ({**there, "device": "Tesla"}, {}):  # another device, and a checkpoint that does not say
        timed.clear()
        assert memory_format_on(cuda, other, model, config) == torch.channels_last
        assert [args[4:] for args in timed] == [(formats[0], False), (formats[1], False)]
