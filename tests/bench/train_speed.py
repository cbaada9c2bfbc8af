"""Clips per second: the loop against the same step on one batch, against its rivals, and compiled."""

import os
import statistics
import time
from pathlib import Path

import torch

from cache.cli import InputError
from tests.bench.common import Result, interleaved, median_ratio, write_recordings
from tests.bench.train_data import cpu_seconds, random_cache
from train.engine import Trainer
from train.folds import select_fold
from train.options import TrainOptions
from train.world import World

_PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312}  # bf16, dense, of the data sheet


def make_trainer(work: Path, model: tuple[str, int, int], options, device: torch.device, **flags) -> Trainer:
    """A trainer with the command's defaults on a cache of random features, ready for its first step."""
    name, size, batch_size = model
    clips = max(3 * batch_size, 1280) if size == 224 else 4096
    cache = random_cache(work, clips, size)
    settings = TrainOptions(model=name, n_mels=size, batch_size=batch_size, epochs=1000, **flags)
    return Trainer(settings, World(0, 0, 1, device), cache, select_fold(cache, "0"))


class Loop:
    """Turns of a trainer's own loop, as the session runs it, and of its ceiling."""

    def __init__(self, trainer: Trainer, steps: int) -> None:
        self.trainer, self.steps = trainer, steps
        self._batches = trainer.batches.steps(0, 1_000_000)
        features, clips = next(self._batches)
        self._held = features.clone(), clips.clone()

    def fed(self) -> None:
        """Steps on batches from the cache."""
        for _ in range(self.steps):
            self.trainer.train_step(*next(self._batches))
            self.trainer.peek()
        self._finish()

    def ceiling(self) -> None:
        """The same steps on one batch that lies on the device."""
        for _ in range(self.steps):
            self.trainer.train_step(*self._held)
        self._finish()

    def refill(self) -> None:
        """Steps of the fed loop that no turn counts: they use up what the ceiling's turn let it fetch ahead."""
        for _ in range(
            3 if self.trainer.world.device.type == "cuda" else 0
        ):  # beside a CPU's step, fetching is nothing
            self.trainer.train_step(*next(self._batches))
        self._finish()

    def close(self) -> None:
        """End the thread that fetches."""
        self._batches.close()

    def _finish(self) -> None:
        if self.trainer.world.device.type == "cuda":
            torch.cuda.synchronize()


def loop_against_ceiling(work: Path, model: tuple[str, int, int], options, device: torch.device) -> list[Result]:
    """The loop fed from the cache beside the same step on one batch; mapped, and where there is one, resident."""
    import train.data

    name, size, batch_size = model
    results, share = [], train.data._RESIDENT_SHARE
    for place in ("mapped", "on the device") if device.type == "cuda" else ("mapped",):
        train.data._RESIDENT_SHARE = 0.0 if place == "mapped" else share
        trainer = make_trainer(work, model, options, device)
        loop = Loop(trainer, options.steps)
        turns = {"refill": loop.refill, "fed": loop.fed, "ceiling": loop.ceiling}
        seconds = interleaved(turns, options.rounds, on_gpu=device.type == "cuda")
        loop.close()
        clips = options.steps * batch_size
        rate = clips / statistics.median(seconds["ceiling"])
        what = f"{name} {size}x{size}, batch {batch_size}, {place}"
        share_of_ceiling = median_ratio(seconds["ceiling"], seconds["fed"])
        results.append(Result.at_least(f"loop / ceiling, {what}", share_of_ceiling, 0.97, ""))
        results.append(Result(f"loop, {what}", clips / statistics.median(seconds["fed"]), "clips/s"))
        results.append(Result(f"ceiling, {what}", rate, "clips/s"))
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else ""
        for peak in [tflops for known, tflops in _PEAK_TFLOPS.items() if known in gpu]:
            used = rate * _flops(trainer, size) / peak / 1e12
            results.append(Result(f"ceiling / the GPU's {peak} TFLOP/s, {what}", used, ""))
    train.data._RESIDENT_SHARE = share
    return results


def _flops(trainer: Trainer, size: int) -> float:
    """Floating-point operations of one clip, forward and backward, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(2, 1, size, size, device=trainer.world.device)
    with FlopCounterMode(display=False) as counter:
        trainer.model(x).sum().backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(x)


def against_rivals(work: Path, model: tuple[str, int, int], options, device: torch.device) -> list[Result]:
    """Clips per second and CPU seconds beside the predecessor's way and the usual cached way."""
    from tests.bench.train_rivals import plain_loop, predecessor

    name, size, batch_size = model
    trainer = make_trainer(work, model, options, device)
    loop, dtype, workers = Loop(trainer, options.steps), trainer.dtype, min(8, os.cpu_count())
    paths = sorted(write_recordings(work / "audio", 512).rglob("*.wav"))
    used: dict[str, list[float]] = {"ours": [], "h5py": [], "librosa": []}
    seconds: dict[str, list[float]] = {"ours": [], "h5py": [], "librosa": []}
    common = (batch_size, options.steps, workers, device, dtype)
    for turn in range(max(3, options.rounds // 2) + 1):
        loop.refill()
        used_before, started = cpu_seconds(), time.perf_counter()
        loop.fed()
        took_ours = time.perf_counter() - started, cpu_seconds() - used_before
        for way, took in (
            ("ours", took_ours),
            ("h5py", plain_loop(random_cache(work, 4096, size), name, *common)),
            ("librosa", predecessor(paths, size, name, *common)),
        ):
            if turn:
                seconds[way].append(took[0])
                used[way].append(took[1])
    loop.close()
    clips, results = options.steps * batch_size, []
    labels = {"ours": "our loop", "h5py": "DataLoader over h5py", "librosa": "librosa per item, Lightning"}
    for way, label in labels.items():
        what = f"{label}, {name} {size}x{size}, batch {batch_size}"
        results.append(Result(what, clips / statistics.median(seconds[way]), "clips/s"))
        results.append(Result(f"{what}, CPU time", 1000 * statistics.median(used[way]) / clips, "s per 1,000 clips"))
        if way != "ours":
            results.append(Result(f"our loop / {label}", median_ratio(seconds[way], seconds["ours"]), "x"))
    return results


def gain_of(
    label: str, flags: tuple[dict, dict], model: tuple[str, int, int], work: Path, options, device: torch.device
) -> list[Result]:
    """Steps per second with the second flags over those with the first."""
    name, size, batch_size = model
    try:
        loops = [Loop(make_trainer(work, model, options, device, **given), options.steps) for given in flags]
        seconds = interleaved({str(number): loop.ceiling for number, loop in enumerate(loops)}, options.rounds)
    except (RuntimeError, InputError) as error:
        return [Result(f"{label}: not measured ({str(error).splitlines()[0][:60]})", 0, "")]
    for loop in loops:
        loop.close()
    gain = median_ratio(seconds["0"], seconds["1"])
    return [Result(f"{label}, {name} {size}x{size}, batch {batch_size}", gain, "x")]
