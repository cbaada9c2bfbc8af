"""What the training tests share: a tiny cache, ranks as real processes, and a comparison of run folders."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_corpus

from tests.forked import GUARD_SECONDS, Forked, Halt, free_port, start, world

__all__ = ["free_port"]  # for the test files
TIMING = ("seconds", "clips_per_second")  # of metrics.jsonl: differ from run to run
TINY = ("--n-mels", "32", "--model", "test_resnet", "--epochs", "3", "--batch-size", "12", "--device", "cpu")
TINY += ("--mixup", "0.2", "--spec-augment", "0.15")  # so that resuming has all streams to continue


def build_tiny_cache(folder: Path, per_word: int = 25) -> Path:
    """Build ``folder/cache``: 4 words of 25 clips by 5 speakers in 5 folds, 32 mels x 32 frames, 2 views."""
    from pipeline.build_cache import main

    write_corpus(folder / "audio", ["yes", "no", "up", "down"], per_word=per_word, speakers=5)
    flags = "--n-mels 32 --n-fft 1024 --num-views 2 --clips-per-shard 16 --folds 5 --jobs 1".split()
    assert main(["--audio-dir", str(folder / "audio"), "--cache-dir", str(folder / "cache"), *flags]) == 0
    return folder / "cache"


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own on `folder`."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def only_error(output: str) -> str:
    """The one line that starts with ``error:``; there is no traceback."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    return line


class Ranks:
    """Ranks of ``train.run`` without a torchrun above them, each a process of its own, forked where torch is loaded.

    Parameters
    ----------
    flags : of the command, after `TINY`
    count : how many ranks
    log : where all of them write
    folders : rank → working directory
    halt : where rank 0 halts
    """

    def __init__(
        self,
        *flags: object,
        count: int = 1,
        log: Path,
        folders: dict[int, Path] | None = None,
        halt: Halt | None = None,
    ) -> None:
        self.log, self.processes = log, []
        self._from = log.stat().st_size if log.exists() else 0
        environments = world(count) if count > 1 else [{**os.environ}]
        with open(log, "ab") as output:
            for rank, environment in enumerate(environments):
                settings = {"cwd": (folders or {}).get(rank, ROOT), "env": environment, "stdout": output.fileno()}
                self.processes.append(start("train.run", *TINY, *flags, halt=None if rank else halt, **settings))

    @property
    def output(self) -> str:
        """What these ranks have printed so far."""
        return self.log.read_bytes()[self._from :].decode()

    def wait(self, seconds: float = GUARD_SECONDS) -> list[int]:
        """Exit statuses, by rank; ends with an error where one is still alive after `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.0, deadline - time.monotonic())) for process in self.processes]
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; output:\n{self.output}") from None

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened, or all ranks have ended."""
        deadline = time.monotonic() + GUARD_SECONDS
        while not happened() and any(process.poll() is None for process in self.processes):
            assert time.monotonic() < deadline, f"not within {GUARD_SECONDS} s; output:\n{self.output}"
            time.sleep(0.005)

    def wait_for(self, text: str) -> None:
        """Wait until the output holds `text`, or all ranks have ended."""
        self.wait_until(lambda: text in self.output)

    def kill(self, *ranks: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to some ranks (all where none is named)."""
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].send_signal(number)


def run(*flags: object, count: int = 1, log: Path) -> tuple[list[int], str]:
    """Train with some ranks to the end; returns their exit statuses and output."""
    ranks = Ranks(*flags, count=count, log=log)
    return ranks.wait(), ranks.output


def start_torchrun(
    *flags: object,
    count: int = 2,
    launch: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    halt: Halt | None = None,
) -> Forked:
    """Start ``torchrun --nproc_per_node count -m train.run``; `launch` holds further flags of torchrun.

    The agent is forked; its workers are processes that begin with ``python``, of which the first to reach it halts.
    """
    launch = launch or ("--standalone", "--monitor-interval", "0.1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    module = ("-m", "tests.forked", halt, "-m", "train.run") if halt else ("-m", "train.run")
    arguments = ("--nproc_per_node", count, *launch, *module, *TINY, *flags)
    return start("torch.distributed.run", *arguments, env=environment)


def torchrun(*flags: object, count: int = 2) -> tuple[int, str]:
    """Run ``torchrun … -m train.run`` to the end; returns exit status and output."""
    process = start_torchrun(*flags, count=count)
    output, _ = process.communicate()
    return process.returncode, output


def workers_of(agent: int) -> dict[int, int]:
    """Process ids of the workers of a torchrun agent, by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == agent:
                environment = dict(item.split("=", 1) for item in (path / "environ").read_text().split("\0") if item)
                if "RANK" in environment:
                    found[int(environment["RANK"])] = int(path.name)
    return found


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl but for the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def flat(content: Any, where: str = "") -> dict[str, Any]:
    """Leaves of nested dicts and lists by path; tensors as (dtype, shape, bytes)."""
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, (list, tuple)):
        pairs = enumerate(content)
    elif isinstance(content, torch.Tensor):
        content = content.contiguous()
        return {where: (str(content.dtype), tuple(content.shape), content.numpy().tobytes())}
    else:
        return {where: content}
    return {path: leaf for key, value in pairs for path, leaf in flat(value, f"{where}/{key}").items()}


def state_of(folder: Path) -> dict[str, Any]:
    """Everything a finished fold leaves behind, to the bit: last.pt, best.pt, oof.npz and the metrics."""
    content = {}
    for name in ("last.pt", "best.pt"):
        loaded = torch.load(folder / name, weights_only=True)
        for key in ("name", "runs_dir", "checkpoint_minutes"):
            loaded["options"].pop(key)
        content[name] = loaded
    with np.load(folder / "oof.npz", allow_pickle=False) as arrays:
        content["oof"] = {name: torch.from_numpy(arrays[name]) for name in ("logits", "target")}
    return flat({**content, "metrics": metrics(folder)})


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Paths at which two results of :func:`state_of` differ."""
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
