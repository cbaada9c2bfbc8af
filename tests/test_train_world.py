"""Ranks that fail, fall silent or are asked to stop: what each says, and that none ends another's work."""

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from train_helpers import TINY

import train.world
from cache import cores
from cache.cli import InputError
from train.data import Batches
from train.run import main
from train.world import World, is_out_of_memory, run_in_world

NCCL_REMOTE = (
    "NCCL error in: ../ProcessGroupNCCL.cpp:94, remote process exited or there was a network error, NCCL version 2.28\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer host<39812>\n"
    "Exception raised from checkForNCCLErrors at ../ProcessGroupNCCL.cpp:94\nframe #0: c10::Error::Error()"
)
NCCL_OWN = (
    "NCCL error in: ../ProcessGroupNCCL.cpp:94, unhandled cuda error, NCCL version 2.28\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
    "Cuda failure 217 'peer access is not supported between these two devices'"
)
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:34567. See the log"


def shown(error: Exception, world_size: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed where a rank of so many ends with an error."""

    def body(world: World) -> int:
        world.world_size = world_size
        raise error

    assert run_in_world("cpu", body) in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize("error", [dist.DistBackendError(NCCL_REMOTE), RuntimeError(GLOO)])
def test_lost_rank(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a peer is gone, one line says so in the library's own words; a lone rank has lost none: a traceback."""
    own = [line for line in str(error).splitlines() if "frame" not in line and "raised from" not in line]
    line = shown(error, 2, capsys)
    assert line == f"error: lost another rank ({type(error).__name__}: {' '.join(own)})\n"
    assert "Traceback" in shown(error, 1, capsys)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("error", [dist.DistBackendError(NCCL_OWN), RuntimeError("no peer for this connection")])
def test_errors_that_are_no_lost_rank(error: Exception, world_size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Other errors of NCCL, and of anybody, keep their words and their traceback with any number of ranks."""
    output = shown(error, world_size, capsys)
    assert "lost another rank" not in output
    assert "Traceback" in output
    assert str(error) in output


def _raised(allocate: Callable) -> Exception:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        _raised(lambda: torch.empty(1 << 48)),
        _raised(lambda: np.empty(1 << 48)),
        _raised(lambda: bytearray(1 << 60)),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    ],
)
def test_out_of_memory_is_known_by_its_type(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever runs out of memory: one line, with the cause and what to do."""
    output = shown(error, 1, capsys)
    assert output.startswith(f"error: out of memory on cpu ({type(error).__name__}")
    assert all(word in output for word in str(error).split())
    assert output.endswith("); use a smaller --batch-size\n")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("out of memory"),
        RuntimeError("the word for it is out of memory"),
        ValueError("Unable to allocate"),
        dist.DistBackendError("ncclUnhandledCudaError: Cuda failure 2 'out of memory'"),
    ],
)
def test_words_about_memory_are_no_lack_of_it(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """An error that merely mentions memory keeps its traceback."""
    assert not is_out_of_memory(error)
    assert "Traceback" in shown(error, 1, capsys)


def test_out_of_memory_beside_a_resident_fold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Where the fold lives on the device, the line names the flag that takes it off; with that flag it does not."""
    monkeypatch.setattr(Batches, "_load_resident", lambda self: torch.zeros(1))

    def body(resident: str, world: World) -> int:
        world.device = torch.device("cuda", 0)
        cache = type("Cache", (), {"bytes": 0})
        Batches(world, cache, np.arange(8), 4, 0, resident)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for resident, advice in (("auto", "use --resident off, or a smaller --batch-size"), ("off", "use a smaller --b")):
        assert run_in_world("cpu", lambda world, resident=resident: body(resident, world)) == 2
        assert f"); {advice}" in capsys.readouterr().err


def test_handshake_has_a_deadline() -> None:
    """A rank that finds an earlier attempt's prefix in the store, and no rank 0 that answers, gives up in time."""
    store = dist.HashStore()
    store.set("melshard", "of an earlier attempt")
    with pytest.raises(InputError, match=r"rank 0 gave no sign within 1 s; is it running\?"):
        train.world._fresh_store(store, 1, 2, datetime.timedelta(seconds=1))


def test_clips_per_second_counts_what_the_device_still_does(
    flags: tuple[str, ...], fold: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of an epoch stops after the epoch's sums have arrived, which is when the device has finished."""
    gather = World.gather

    def slow(self: World, value: object) -> list:
        if isinstance(value, torch.Tensor):
            time.sleep(1.5)
        return gather(self, value)

    monkeypatch.setattr(World, "gather", slow)
    assert main([*TINY, *flags, "--epochs", "1", "--amp", "off"]) == 0
    (entry,) = map(json.loads, (fold / "metrics.jsonl").read_text().splitlines())
    assert entry["seconds"] >= 1.5
    assert entry["clips_per_second"] == pytest.approx(72 / entry["seconds"], abs=0.1)


def test_usable_cores() -> None:
    """Affinity and torchrun's ranks on the host limit the threads of prediction and of a cache's check."""
    script = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]); "
    script += "from cache.cores import usable_cores; print(usable_cores())"
    environment = {**os.environ, "LOCAL_WORLD_SIZE": "1"}
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert output.stdout == "1\n", output.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_ranks_share_cores(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a host's ranks takes its share of the cores, and at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(cores, "quotas", lambda: [float("inf")])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert cores.usable_cores() == max(1, 8 // ranks)
    monkeypatch.setattr(cores, "quotas", lambda: [4.0, 3.5])
    assert cores.usable_cores() == max(1, 4 // ranks)


def test_quotas_of_control_groups(tmp_path: Path) -> None:
    """Limits of both versions are found in the process's group and those above it; "max" and -1 are none."""
    (tmp_path / "own").write_text("3:cpu,cpuacct:/slice\n1:memory:/else\n0::/pod/box\n")
    for name, content in {
        "cpu.max": "max 100000",
        "pod/cpu.max": "250000 100000",
        "pod/box/cpu.max": "300000 100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "cpu/slice/cpu.cfs_quota_us": "150000",
        "cpu/slice/cpu.cfs_period_us": "100000",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert sorted(cores.quotas(tmp_path, tmp_path / "own")) == [1.5, 2.5, 3.0, float("inf")]
    assert cores.quotas(tmp_path / "none", tmp_path / "none") == [float("inf")]
