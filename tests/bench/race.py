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
    """Of each training; they run at once where there is a device for each."""
    judge: str
    """Which members judge."""


# one model of 20 is trained on 95% of the clips; the others choose its best epoch
_SMALL = "--n-mels 32 --width 64 --folds 20"
_SPEECH = f"{BUILD_FLAGS} --folds 20"
COURSES = {
    "start": Course(
        ("--n-mels 32 --width 64 --n-fft 2048",),
        ("--recipe balanced --epochs 20 --name small --fold all",),
        "--run small",
    ),
    "fast": Course((f"{_SMALL} --num-views 2",), ("--recipe fast --name small",), "--run small --folds 0"),
    "fast-pretrained": Course(
        (f"{_SPEECH} --num-views 2",), ("--recipe pretrained --epochs 2 --name speech",), "--run speech --folds 0"
    ),
    "balanced": Course(
        (f"{_SMALL} --augment speed",),
        ("--recipe balanced --name small --fold 0", "--recipe balanced --name small --fold 1"),
        "--run small --folds 0,1",
    ),
    "balanced-pretrained": Course(
        (f"{_SMALL} --augment speed", f"{_SPEECH} --augment speed"),
        ("--recipe balanced --name small", "--recipe pretrained --epochs 5 --name speech"),
        "--run small --run speech --folds 0",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.race``."""

    audio_dir: str = flag("data/audio", "the corpus, with a testing_list.txt")
    work: str = flag("data/race", "caches, runs and predictions")
    course: str = flag("balanced", "which commands run", choices=tuple(COURSES))
    page: str = flag("docs/race.md", "the table that a line is added to")
    devices: int = flag(0, "how many train (default: all GPUs, or cores)")


@command(Options)
def main(options: Options) -> int:
    """Run the course; print and note what it took and gave."""
    return run(options)


def run(options: Options) -> int:
    """From the recordings to the line of the table."""
    course, work = COURSES[options.course], Path(options.work) / options.course
    if work.exists():
        raise InputError(f"{work}: is there already, but the clock runs from an empty folder; remove it")
    devices = options.devices or _devices()
    at_once = devices >= len(course.train)
    launcher = f"torch.distributed.run --nproc_per_node {devices // len(course.train) if at_once else devices}"
    caches = f"--cache-dir {work}/cache"
    judge = f"{course.judge.replace('--run ', f'--run {work}/')} {caches} --tta 4"
    listed = f"--input {options.audio_dir}/testing_list.txt --output {work}/predictions.csv"
    builds = [f"pipeline.build_cache --audio-dir {options.audio_dir} {caches} {flags}" for flags in course.build]
    trainings = [
        f"{launcher} --master_port {29500 + number} -m train.run {caches} --runs-dir {work} {flags}"
        for number, flags in enumerate(course.train)
    ]
    minutes = {"build": _minutes(builds), "train": _minutes(trainings, at_once=at_once)}
    minutes |= {
        "calibrate": _minutes([f"infer.calibrate {judge}"]),
        "predict": _minutes([f"infer.predict {judge} {listed}"]),
    }
    _minutes([f"infer.evaluate {judge} --split test --robustness --json {work}/figures.json"])
    row = _row(options, devices, minutes, json.loads((work / "figures.json").read_text()))
    print(row)
    with open(options.page, "a") as page:
        page.write(row + "\n")
    return 0


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or usable_cores()


def _minutes(commands: list[str], *, at_once: bool = False) -> float:
    """Run modules with their flags, in turn or at once; returns how long it took."""
    started = time.monotonic()
    running: list[subprocess.Popen] = []
    for line in commands:
        print(f"$ python -m {line}", flush=True)
        threads = {"OMP_NUM_THREADS": "1"} if "torch.distributed" in line else {}
        running.append(subprocess.Popen([sys.executable, "-m", *shlex.split(line)], env={**os.environ, **threads}))
        if not at_once:
            running[-1].wait()
    for line, process in zip(commands, running, strict=True):
        if process.wait():
            raise InputError(f"python -m {line} ended with status {process.returncode}")
    return (time.monotonic() - started) / 60


def _row(options: Options, devices: int, minutes: dict[str, float], figures: dict[str, Any]) -> str:
    import torch

    def accuracy(key: str) -> str:
        return "{accuracy:.4f} ({low:.4f} to {high:.4f})".format(**figures[key])

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{devices} cores of {cpu_name()}"
    stages = ", ".join(f"{name} {took:.1f}" for name, took in minutes.items())
    error = f"{figures['ece']:.1%}"
    cells = [options.course, f"**{sum(minutes.values()):.1f}** ({stages})", accuracy("single"), accuracy("soft_tta")]
    cells += [error, f"{figures['robustness']['score']:.3f}", device, _commit()]
    return f"| {' | '.join(cells)} |"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "?"


if __name__ == "__main__":
    raise SystemExit(main())
