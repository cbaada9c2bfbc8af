"""What the benchmarks share: corpora, interleaved timing, and the report."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE = 16000


class Result(NamedTuple):
    """A measured figure beside its target."""

    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None

    @classmethod
    def at_least(cls, what: str, value: float, target: float, unit: str = "x") -> "Result":
        """A figure that should not be smaller."""
        return cls(what, value, unit, f"at least {target:g}", value >= target)

    @classmethod
    def at_most(cls, what: str, value: float, target: float, unit: str) -> "Result":
        """A figure that should not be larger."""
        return cls(what, value, unit, f"at most {target:g}", value <= target)


def write_recordings(folder: Path, clips: int) -> Path:
    """A corpus of `clips` one-second recordings, 16-bit mono WAV, in two labels."""
    import soundfile

    rng = np.random.default_rng(0)
    for label in ("no", "yes"):
        (folder / label).mkdir(parents=True, exist_ok=True)
    for n in range(clips):
        samples = 0.1 * rng.standard_normal(RATE, dtype=np.float32)
        path = folder / ("no", "yes")[n % 2] / f"{n // 2 % 20:08x}_nohash_{n}.wav"
        soundfile.write(path, samples, RATE, subtype="PCM_16")
    return folder


def one_core() -> None:
    """Pin this process to one core, and every numeric library in it to one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    threadpool_limits(1)


def interleaved(
    contestants: dict[str, Callable[[], Any]], rounds: int, *, on_gpu: bool = False
) -> dict[str, list[float]]:
    """Seconds of each contestant in each of some rounds, in which all take their turn; one round warms up.

    On the CPU these are CPU seconds, which leave out what other processes on a shared machine took of the core; a GPU
    is not in them, so there it is wall time.
    """
    clock = time.perf_counter if on_gpu else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            started = clock()
            run()
            if turn:
                seconds[name].append(clock() - started)
    return seconds


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the rounds of the ratio within each round."""
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def print_table(results: list[Result]) -> None:
    """The figures as a Markdown table."""
    print("| what | measured | target | met |\n| --- | --- | --- | --- |")
    for result in results:
        met = {None: "", True: "yes", False: "**no**"}[result.met]
        print(f"| {result.what} | {show(result.value)} {result.unit} | {result.target} | {met} |")


def show(value: float) -> str:
    """Three significant digits, thousands grouped."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(path: Path, results: list[Result]) -> None:
    """The figures with what they were measured on."""
    import h5py
    import librosa
    import torch

    content = {
        "machine": {"cores": os.cpu_count(), "cpu": cpu_name(), "system": platform.platform()},
        "versions": {module.__name__: module.__version__ for module in (np, torch, librosa, h5py)},
        "results": [result._asdict() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def cpu_name() -> str:
    """The processor, as the system calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
