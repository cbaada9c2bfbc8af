"""How long from a folder of recordings to predictions on speakers that nobody trained on, and how right they are.

python -m tests.bench.race --audio-dir data/audio --course balanced

The clock runs from an empty cache folder to the table of predictions of the test split. What is then said of them
(accuracies, robustness) is not in the time. A line is added to docs/race.md.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cache.cli import InputError, command, flag
from cache.cores import usable_cores
from tests.bench.common import cpu_name
from train.speech_embedding import BUILD_FLAGS

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Course:
    """The flags of the commands between the recordings and their predictions."""

    build: tuple[str, ...]
    """Of each cache in turn."""
    train: tuple[str, ...]
    """Of each run in turn."""
    folds: str = "0"
    """Of each run, those that judge."""


_ONE_OF_20 = "--augment speed --folds 20"  # one model, trained on 95% of the clips; the others choose its best epoch
_SMALL = f"--n-mels 32 --width 64 {_ONE_OF_20}"
_PRETRAINED = f"{BUILD_FLAGS} {_ONE_OF_20}"
COURSES = {
    "start": Course(("--n-mels 32 --width 64 --n-fft 2048",), ("--recipe balanced --epochs 20 --fold all",), "all"),
    "fast": Course((_SMALL,), ("--recipe fast",)),
    "balanced": Course((_SMALL,), ("--recipe balanced",)),
    "pretrained": Course((_PRETRAINED,), ("--recipe pretrained",)),
    "both": Course((_SMALL, _PRETRAINED), ("--recipe balanced --epochs 16", "--recipe pretrained")),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.race``."""

    audio_dir: str = flag("data/audio", "the corpus, with a testing_list.txt")
    work: str = flag("data/race", "caches, runs and predictions")
    course: str = flag("balanced", "which commands run", choices=tuple(COURSES))
    page: str = flag("docs/race.md", "the table that a line is added to")
    ranks: int = flag(0, "processes that train (default: one per GPU, or per core)")


@command(Options)
def main(options: Options) -> int:
    """Run the course; print and note what it took and gave."""
    return run(options)


def run(options: Options) -> int:
    """From the recordings to the line of the table."""
    course, work = COURSES[options.course], Path(options.work) / options.course
    if work.exists():
        raise InputError(f"{work}: is there already, but the clock runs from an empty folder; remove it")
    ranks = options.ranks or _devices()
    launcher = f"torch.distributed.run --standalone --nproc_per_node {ranks}"
    caches, members = f"--cache-dir {work}/cache", " ".join(f"--run {work}/{name}" for name in _names(course))
    judge = f"{members} --folds {course.folds} {caches} --tta 4"
    listed = f"--input {options.audio_dir}/testing_list.txt --output {work}/predictions.csv"
    build = f"pipeline.build_cache --audio-dir {options.audio_dir} {caches}"
    minutes = {"build": sum(_minutes(f"{build} {flags}") for flags in course.build)}
    minutes["train"] = sum(
        _minutes(f"{launcher} -m train.run {caches} --runs-dir {work} --name {name} {flags}")
        for name, flags in zip(_names(course), course.train, strict=True)
    )
    minutes["calibrate"] = _minutes(f"infer.calibrate {judge}")
    minutes["predict"] = _minutes(f"infer.predict {judge} {listed}")
    _minutes(f"infer.evaluate {judge} --split test --robustness --json {work}/figures.json")
    row = _row(options, ranks, minutes, json.loads((work / "figures.json").read_text()))
    print(row)
    with open(options.page, "a") as page:
        page.write(row + "\n")
    return 0


def _names(course: Course) -> list[str]:
    return [f"run{number}" for number in range(len(course.train))]


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or usable_cores()


def _minutes(command: str) -> float:
    """Run a module with its flags; returns how long it took."""
    print(f"$ python -m {command}", flush=True)
    started = time.monotonic()
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if "torch.distributed" in command else {})}
    status = subprocess.run([sys.executable, "-m", *shlex.split(command)], env=environment).returncode
    if status:
        raise InputError(f"python -m {command} ended with status {status}")
    return (time.monotonic() - started) / 60


def _row(options: Options, ranks: int, minutes: dict[str, float], figures: dict[str, Any]) -> str:
    import torch

    def accuracy(key: str) -> str:
        return "{accuracy:.4f} ({low:.4f} to {high:.4f})".format(**figures[key])

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{ranks} cores of {cpu_name()}"
    stages = ", ".join(f"{name} {took:.1f}" for name, took in minutes.items())
    error = f"{figures['ece']:.1%}"
    cells = [options.course, f"**{sum(minutes.values()):.1f}** ({stages})", accuracy("single"), accuracy("soft_tta")]
    cells += [error, f"{figures['robustness']['score']:.3f}", device, _commit()]
    return f"| {' | '.join(cells)} |"


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "?"


if __name__ == "__main__":
    raise SystemExit(main())
