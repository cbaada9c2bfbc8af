"""What the training tests share: a tiny cache, ranks as real processes, and a comparison of run folders."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, write_corpus

TIMING = ("seconds", "clips_per_second")  # of metrics.jsonl: differ from run to run
TINY = ("--n-mels", "32", "--model", "test_resnet", "--epochs", "3", "--batch-size", "12", "--device", "cpu")
_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["train.launch", "train_helpers"])


def build_tiny_cache(folder: Path) -> Path:
    """Build ``folder/cache``: 4 words of 25 clips by 5 speakers in 5 folds, 32 mels x 32 frames, 2 views."""
    from pipeline.build_cache import main

    write_corpus(folder / "audio", ["yes", "no", "up", "down"], per_word=25, speakers=5)
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


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(argv: list[str], environment: dict[str, str], log: str, folder: str) -> None:
    """Body of a forked rank: what ``python -m train.run`` does, without importing torch anew."""
    from train.run import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    status = main(argv)
    sys.stdout.flush()
    os._exit(status)


class Ranks:
    """Ranks of ``train.run`` without a torchrun above them, each a process of its own, forked where torch is loaded.

    Parameters
    ----------
    flags : of the command, after `TINY`
    count : how many ranks
    log : where all of them write
    folders : rank → working directory
    """

    def __init__(
        self,
        *flags: object,
        count: int = 1,
        log: Path,
        folders: dict[int, Path] | None = None,
    ) -> None:
        self.log, argv = log, [*TINY, *map(str, flags)]
        world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self._from = log.stat().st_size if log.exists() else 0
        self.processes = []
        for rank in range(count):
            environment = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            where = str((folders or {}).get(rank, ROOT))
            arguments = (argv, environment, str(log), where)
            self.processes.append(_SPAWN.Process(target=_rank, args=arguments, daemon=True))
        for process in self.processes:
            process.start()

    @property
    def output(self) -> str:
        """What these ranks have printed so far."""
        return self.log.read_bytes()[self._from :].decode() if self.log.exists() else ""

    def wait(self, seconds: float = 180) -> list[int]:
        """Exit statuses, by rank; ends with an error where one is still alive after `seconds`."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        if alive:
            self.kill()
            raise AssertionError(f"ranks {alive} alive after {seconds} s; output:\n{self.output}")
        return [process.exitcode for process in self.processes]

    def wait_until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until something has happened, or all ranks have ended."""
        deadline = time.monotonic() + seconds
        while not happened() and any(process.is_alive() for process in self.processes):
            assert time.monotonic() < deadline, f"not within {seconds} s; output:\n{self.output}"
            time.sleep(0.005)

    def wait_for(self, text: str) -> None:
        """Wait until the output holds `text`, or all ranks have ended."""
        self.wait_until(lambda: text in self.output)

    def kill(self, *ranks: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to some ranks (all where none is named)."""
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)


def read_until(process: subprocess.Popen, text: str) -> None:
    """Read a process's output up to the line that holds `text`."""
    lines = [process.stdout.readline()]
    while text not in lines[-1]:
        assert lines[-1], f"no {text!r} in:\n{''.join(lines)}"
        lines.append(process.stdout.readline())


def run(*flags: object, count: int = 1, log: Path) -> tuple[list[int], str]:
    """Train with some ranks to the end; returns their exit statuses and output."""
    ranks = Ranks(*flags, count=count, log=log)
    return ranks.wait(), ranks.output


def start_torchrun(
    *flags: object, count: int = 2, launch: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """Start ``torchrun --nproc_per_node count -m train.run``; `launch` holds further flags of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    command += launch or ("--standalone", "--monitor-interval", "0.1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})}
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen([*command, "-m", "train.run", *TINY, *map(str, flags)], cwd=ROOT, **settings)


def torchrun(*flags: object, count: int = 2) -> tuple[int, str]:
    """Run ``torchrun … -m train.run`` to the end; returns exit status and output."""
    process = start_torchrun(*flags, count=count)
    output, _ = process.communicate(timeout=180)
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
