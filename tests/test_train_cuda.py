"""What only a CUDA device can show; skipped, with the reason, where there is none."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from train_helpers import build_tiny_cache, torchrun

from cache.index import Cache
from train.data import Batches
from train.engine import Trainer
from train.folds import select_fold
from train.options import TrainOptions
from train.world import World, run_in_world

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The tiny cache, built once."""
    (folder,) = build_tiny_cache(tmp_path_factory.mktemp("tiny")).iterdir()
    return Cache(folder)


def make_trainer(tiny: Cache, **flags: object) -> Trainer:
    """A trainer of fold 0 on the first CUDA device."""
    options = TrainOptions(**{"model": "test_resnet", "n_mels": 32, "epochs": 3, "batch_size": 12, **flags})
    return Trainer(options, World(0, 0, 1, torch.device("cuda", 0)), tiny, select_fold(tiny, "0"))


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_no_step_waits_for_the_device(tiny: Cache, amp: str) -> None:
    """Steps, their batches included, make no call that synchronises the host with the device."""
    trainer = make_trainer(tiny, amp=amp)
    batches = trainer.batches.steps(0, 12)
    for _ in range(3):  # cuDNN's choice of algorithms and the first allocations do wait
        trainer.train_step(*next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for features, clips in batches:
            trainer.train_step(features, clips)
            trainer.peek()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert trainer.step == 12


@pytest.mark.parametrize("amp", ["auto", "bf16", "fp16", "off"])
def test_precisions_learn(tiny: Cache, amp: str) -> None:
    """Every precision brings the loss down, and skips no step once fp16's scale has settled."""
    trainer = make_trainer(tiny, amp=amp, epochs=12)
    losses = []
    for epoch in range(12):
        for features, clips in trainer.batches.steps(epoch * 6, epoch * 6 + 6):
            trainer.train_step(features, clips)
        loss, _, clips = trainer.sums.tolist()
        losses.append(loss / max(1, clips))
        trainer.sums.zero_()
    assert losses[-1] < 0.8 * max(losses[:3])
    assert trainer.skipped[1] == 0


def test_resident_fold_is_the_mapped_one(tiny: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches from a fold that lives on the device equal those gathered from the mapped shards, bit for bit."""
    world, training = World(0, 0, 1, torch.device("cuda", 0)), select_fold(tiny, "0").training
    resident = Batches(world, tiny, training, 12, 0)
    monkeypatch.setattr("train.data._RESIDENT_SHARE", 0.0)
    mapped = Batches(world, tiny, training, 12, 0)
    assert (resident.resident, mapped.resident) == (True, False)
    for ours, theirs in zip(resident.steps(0, 12), mapped.steps(0, 12), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_skipped_step_leaves_no_trace(tiny: Cache) -> None:
    """A batch that is not finite leaves weights, moments and BatchNorm's statistics as they were."""
    trainer = make_trainer(tiny, amp="fp16")
    for features, clips in trainer.batches.steps(0, 6):
        trainer.train_step(features, clips)
    before = copy.deepcopy({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()["state"]})
    trainer.train_step(torch.full_like(features, torch.nan), clips)
    after = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()["state"]}
    for name, value in before["model"].items():
        assert torch.equal(value, after["model"][name]) or "num_batches_tracked" in name
    for key, state in before["optimizer"].items():
        assert all(torch.equal(state[name], after["optimizer"][key][name]) for name in state)
    assert trainer.skipped[1] == 1


def test_compiled_step_is_the_plain_one(tiny: Cache) -> None:
    """``--compile`` computes the same losses to rounding."""
    plain, compiled = (make_trainer(tiny, amp="off", compile=flag, mixup=0.0) for flag in (False, True))
    for trainer in (plain, compiled):
        for features, clips in trainer.batches.steps(0, 6):
            trainer.train_step(features, clips)
    np.testing.assert_allclose(plain.sums.cpu(), compiled.sums.cpu(), rtol=1e-2)


def test_out_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit the device ends with one line that says what to do."""
    assert run_in_world("cuda", lambda world: torch.empty(1 << 48, device=world.device)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: out of memory on cuda:0 (OutOfMemoryError: CUDA out of memory.")
    assert line.endswith("); use a smaller --batch-size\n")


def test_nccl(tiny: Cache, tmp_path: Path) -> None:
    """torchrun with one rank trains over NCCL on the device."""
    where = ("--cache-dir", tiny.folder.parent, "--runs-dir", tmp_path / "runs", "--device", "cuda")
    status, output = torchrun(*where, count=1)
    assert status == 0, output
    assert "1 x cuda" in output
    assert "on the device" in output
