"""Training that cannot go on, or must not: one clear line, and nothing lost."""

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from train_helpers import (
    Ranks,
    differing,
    free_port,
    metrics,
    mounted,
    only_error,
    run,
    start_torchrun,
    state_of,
    workers_of,
)

from cache.cli import InputError
from cache.index import Cache
from cache.shard import shard_path
from tests.forked import GUARD_SECONDS, Forked, Halt
from train.data import clips_of_step
from train.engine import Trainer
from train.folds import Fold, select_fold
from train.options import TrainOptions
from train.world import World


def _copy_with_nan(tiny: Path, tmp_path: Path, choose: Callable[[Fold], np.ndarray]) -> Cache:
    """Copy the cache to ``cache/`` and overwrite the rows of some clips of fold 0 with NaN."""
    shutil.copytree(tiny, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    cache = Cache(folder)
    for entry in cache.clips[choose(select_fold(cache, "0"))]:
        row, path = cache.features(entry["shard"])[entry["row"]].copy(), shard_path(folder, entry["shard"])
        with open(path, "r+b") as file:
            file.seek(path.read_bytes().find(row.tobytes()))
            file.write(np.full(row.size, np.nan, np.float16).tobytes())
    return cache


@pytest.mark.parametrize("count", [1, 2])
def test_loss_that_is_never_finite(count: int, tiny: Path, flags: tuple, fold: Path, tmp_path: Path) -> None:
    """Steps are skipped and counted; after 20 in a row the run stops and says which checkpoint is good."""
    _copy_with_nan(tiny, tmp_path, lambda fold: fold.training)
    more = ("--epochs", "9", "--cache-dir", tmp_path / "cache")
    statuses, output = run(*flags, *more, count=count, log=tmp_path / "log")
    assert statuses == [2] * count, output
    message = only_error(output)
    assert "20 steps in a row without a finite gradient; stopped at step 2" in message
    assert f"{fold / 'last.pt'} holds the last good checkpoint; train under another --name with a lower --lr" in message
    assert [line["skipped_steps"] for line in metrics(fold)] == [6, 12, 18]
    assert torch.load(fold / "last.pt", weights_only=True)["state"]["step"] == 18


@pytest.mark.parametrize("count", [1, 2])
def test_held_out_clip_that_is_not_finite(count: int, tiny: Path, flags: tuple[str, ...], tmp_path: Path) -> None:
    """A damaged row among the held-out clips ends the run on all ranks with a line that names the clip, not a loss."""
    cache = _copy_with_nan(tiny, tmp_path, lambda fold: fold.validation[3:4])
    name = cache.clips["clip_id"][select_fold(cache, "0").validation[3]].decode()
    statuses, output = run(*flags, "--cache-dir", tmp_path / "cache", count=count, log=tmp_path / "log")
    assert statuses == [2] * count, output
    assert f"the features of {name} are not finite; look for damage with python -m cache.verify" in only_error(output)
    assert "validation loss" not in output


def test_model_that_is_not_finite(tiny: Path) -> None:
    """Logits that overflow, of sound rows, are no figure either: the line names a clip and the precision."""
    (folder,) = tiny.iterdir()
    cache = Cache(folder)
    options = TrainOptions(model="test_resnet", batch_size=12, amp="off")
    trainer = Trainer(options, World(0, 0, 1, torch.device("cpu")), cache, select_fold(cache, "0"))
    torch.nn.init.constant_(trainer.eval_model().get_classifier().bias, torch.inf)
    name = cache.clips["clip_id"][select_fold(cache, "0").validation[0]].decode()
    with pytest.raises(InputError, match=f"{name}: the logits of this and 19 other .* not finite in float32 .* --lr"):
        trainer.validate()


def test_shard_that_is_cut_within_its_last_page(tiny: Path, tmp_path: Path) -> None:
    """Memory has zeros there, and no signal comes: an epoch that may have read them is not kept."""
    folder = Path(shutil.copytree(next(tiny.iterdir()), tmp_path / "cache"))
    options, cache = TrainOptions(model="test_resnet", batch_size=12, amp="off"), Cache(folder)
    trainer = Trainer(options, World(0, 0, 1, torch.device("cpu")), cache, select_fold(cache, "0"))
    trainer.validate()
    path = shard_path(folder, int(cache.clips["shard"][trainer.fold.validation[0]]))
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=f"{path.name}: cut short while in use; check it with"):
        trainer.validate()


def test_one_clip_that_is_not_finite(tiny: Path, flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """A poisoned clip on one rank: both skip the step and count it, and everything that is kept stays finite."""
    cache = _copy_with_nan(tiny, tmp_path, lambda fold: fold.training[17:18])
    training = select_fold(cache, "0").training
    clip = training[17]
    more = ("--cache-dir", tmp_path / "cache", "--epochs", "6", "--ema", "0.9", "--seed", "0")
    statuses, output = run(*flags, *more, count=2, log=tmp_path / "log")
    assert statuses == [0, 0], output
    hit = sum(clip in clips_of_step(training, 2, 12, 0, step)[0] for step in range(36))
    assert 0 < hit <= 6
    assert metrics(fold)[-1]["skipped_steps"] == hit
    state = torch.load(fold / "last.pt", weights_only=True)["state"]
    tensors = [*state["model"].values(), *state["ema"].values()]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert all(np.isfinite(line["val_loss"]) and np.isfinite(line["train_loss"]) for line in metrics(fold))
    assert f"{hit} steps skipped" in output


def test_one_rank_fails(tiny: Path, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Where one rank cannot read a shard, all end, and its error is the one that is shown."""
    for name in ("host0", "host1"):
        shutil.copytree(tiny, tmp_path / name / "cache")
    (damaged,) = (tmp_path / "host1").rglob("shard-00003.h5")
    with open(damaged, "r+b") as file:
        file.write(bytes(512))
    folders = {0: tmp_path / "host0", 1: tmp_path / "host1"}
    ranks = Ranks(*flags, "--cache-dir", "cache", count=2, log=tmp_path / "log", folders=folders)
    assert ranks.wait() == [1, 2], ranks.output
    assert re.search(r"error: rank 1: .*shard-00003.h5: not a readable HDF5 shard", only_error(ranks.output))


def test_rank_zero_dies_with_the_store(flags: tuple[str, ...], tmp_path: Path) -> None:
    """When the rank that holds the store is killed, the others end and say so once."""
    halt = Halt("last.pt", 1, tmp_path / "halted")
    ranks = Ranks(*flags, "--epochs", "200", count=3, log=tmp_path / "log", halt=halt)
    ranks.processes[0].wait_for(halt)
    ranks.kill(0)
    assert ranks.wait() == [-signal.SIGKILL, 1, 1]
    assert "Traceback" not in ranks.output


def test_agent_dies(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """No worker outlives its torchrun, even one that was killed: the folder is free at once."""
    halt = Halt("last.pt", 2, tmp_path / "halted")
    process = start_torchrun(*flags, "--epochs", "200", halt=halt)
    process.wait_for(halt)
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + GUARD_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in workers.values()):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.05)
    assert len(workers) == 2
    assert (fold / "last.pt").exists()


def test_full_disk(tiny: Path, tmp_path: Path) -> None:
    """A full disk stops both ranks with one line; with space freed the run continues to an undisturbed run's bits."""
    where = ("--cache-dir", tiny, "--epochs", "10", "--name", "run")
    small = ("--runs-dir", tmp_path / "small")
    assert run(*where, "--runs-dir", tmp_path / "large", count=2, log=tmp_path / "log")[0] == [0, 0]
    with mounted(tmp_path / "small", "15m"):
        ballast = tmp_path / "small" / "ballast"
        halt = Halt("metrics.jsonl", 3, tmp_path / "halted")  # with nothing that is about to be replaced
        ranks = Ranks(*where, *small, count=2, log=tmp_path / "log", halt=halt)
        ranks.processes[0].wait_for(halt)
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        ranks.kill(0, number=signal.SIGCONT)
        assert 2 in ranks.wait(), ranks.output
        expected = ": No space left on device; free some space, and type the same command again"
        assert expected in only_error(ranks.output)
        ballast.unlink()
        statuses, output = run(*where, *small, count=2, log=tmp_path / "log")
        assert (statuses, "resuming at epoch" in output) == ([0, 0], True), output
        finished, whole = tmp_path / "small" / "run" / "fold0", tmp_path / "large" / "run" / "fold0"
        assert not differing(state_of(finished), state_of(whole))


def _agents(flags: tuple[str, ...], port: int, node: int, halt: Halt) -> Forked:
    launch = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "two")
    launch += ("--rdzv-conf", f"is_host={1 - node},keep_alive_interval=3,keep_alive_max_attempt=5")
    launch += ("--local-addr", "127.0.0.1", "--max-restarts", "3", "--monitor-interval", "0.1")
    # or the agent that stayed never tells the one that came back where to meet (torch 2.15)
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return start_torchrun(*flags, count=1, launch=launch, environment=environment, halt=halt)


@pytest.mark.long  # six interpreters, and the time until an agent is missed
def test_two_nodes(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """Two agents meet over the network; one is killed and brought back, and the run ends with the same bits."""
    more = ("--epochs", "8", "--ema", "0.9", "--checkpoint-minutes", "0")
    expected = tmp_path / "expected"
    assert run(*flags, *more, "--runs-dir", expected, count=2, log=tmp_path / "log")[0] == [0, 0]
    port, halt = free_port(), Halt("last.pt", 2, tmp_path / "halted")
    agents = [_agents((*flags, *more), port, node, halt) for node in (0, 1)]
    agents[0].wait_for(halt)
    agents[1].kill()
    agents[1].wait()
    os.kill(halt.reached(), signal.SIGCONT)
    agents[1] = _agents((*flags, *more), port, 1, halt)
    outputs = [agent.communicate()[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "".join(outputs)
    assert "resuming at epoch" in "".join(outputs)
    assert not differing(state_of(fold), state_of(expected / "run" / "fold0"))
