"""Start-up time, and what more ranks give and send."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.common import Result
from tests.bench.train_data import random_cache

ROOT = Path(__file__).parents[2]


def _command(ranks: int | None, work: Path, device, *flags: object) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks else []
    where = ["--cache-dir", work, "--runs-dir", work / "runs", "--device", device.type]
    return [sys.executable, *launcher, "-m", "train.run", *map(str, where), *map(str, flags)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def start_up(work: Path, options, device) -> list[Result]:
    """Seconds from the command to the end of the first step, less the model's construction, on 50,000 clips."""
    import torch

    from train.models import create_model

    random_cache(work, 50_000, 16, num_views=1)
    started = time.perf_counter()
    create_model("test_resnet", 30, (16, 16))
    construction, results = time.perf_counter() - started, []
    for ranks in (None, 1, 2) if device.type == "cpu" else (None, torch.cuda.device_count()):
        times = [_first_step(_command(ranks, work, device), work) for _ in range(options.rounds // 2 + 1)]
        seconds = statistics.median(times[1:]) - construction
        how = f"torchrun, {ranks} ranks" if ranks else "python -m train.run"
        results.append(Result.at_most(f"command to first step, 50,000 clips, {how}", seconds, 5.0, "s"))
    return results


def _first_step(command: list[str], work: Path) -> float:
    """Seconds until the first checkpoint of a run that is then ended: every step writes one here, a small one."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    flags = "--n-mels 16 --model test_resnet --batch-size 32 --checkpoint-minutes 0 --name start".split()
    started = time.perf_counter()
    run = subprocess.Popen([*command, *flags], env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (work / "runs" / "start" / "fold0" / "last.pt").exists():
        assert run.poll() is None, f"{command} ended with status {run.returncode}"
        time.sleep(0.005)
    seconds = time.perf_counter() - started
    run.terminate()
    run.wait()
    return seconds


def scaling(work: Path, options, device) -> list[Result]:
    """Weak and strong scaling over ranks."""
    import torch

    most = torch.cuda.device_count() if device.type == "cuda" else 5
    worlds = sorted({1, 2, 5, most} & set(range(1, most + 1)))
    name, size, batch = ("resnet18", 64, 320) if device.type == "cuda" else ("test_resnet", 32, 40)
    random_cache(work, 4096 if device.type == "cuda" else 2048, size)
    model = ("--model", name, "--n-mels", size)
    results, rates = [], {}
    for ranks in worlds:
        for kind, batch_size in (("strong", batch), ("weak", batch * ranks)):
            flags = (*model, "--epochs", 3, "--batch-size", batch_size, "--name", f"{kind}{ranks}")
            entry, _ = _train(_command(ranks, work, device, *flags), work / "runs" / f"{kind}{ranks}")
            rates[kind, ranks] = entry["clips_per_second"]
            what = f"{kind} scaling, {ranks} ranks, {name} {size}x{size}, global batch {batch_size}"
            results.append(Result(f"{what} ({os.cpu_count()} cores)", rates[kind, ranks], "clips/s"))
            if ranks > 1:
                results.append(Result(f"{what}: beside 1 rank", rates[kind, ranks] / rates[kind, 1], "x"))
    return results


def _train(command: list[str], folder: Path, wrap: tuple[str, ...] = ()) -> tuple[dict, str]:
    environment = {**_environment(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*wrap, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "fold0" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1]), done.stdout


def volume(work: Path, options, device) -> list[Result]:
    """Bytes that a step sends over gloo beside the gradient's size, in float32 and with --compress-gradients.

    They are counted on the loopback device of a network of its own: the slope over steps of two runs.
    """
    from train.models import create_model

    script = 'ip link set lo up && "$@" >&2 && grep lo: /proc/net/dev'
    wrap = ("unshare", "--net", "sh", "-c", script, "sh")
    if device.type != "cpu" or subprocess.run([*wrap, "true"], capture_output=True).returncode:
        return []
    random_cache(work, 2048, 32)
    model, results = ("--model", "test_resnet", "--n-mels", 32, "--batch-size", 40), []
    parameters = sum(p.numel() for p in create_model("test_resnet", 30, (32, 32)).parameters())
    for ranks in (2, 5):
        for size, compress in ((4, ()), (2, ("--compress-gradients",))):
            sent = {}
            for epochs in (1, 4):
                flags = (*model, *compress, "--epochs", epochs, "--name", f"volume{ranks}-{size}-{epochs}")
                entry, output = _train(_command(ranks, work, device, *flags), work / "runs" / flags[-1], wrap)
                sent[epochs] = int(output.split("lo:")[1].split()[0]), entry["step"]
            (few, first), (many, last) = sent[1], sent[4]
            each = (many - few) / (last - first) / ranks
            ring = 2 * (ranks - 1) / ranks * size * parameters
            what = (
                f"sent per rank and step, {ranks} ranks, {size * parameters / 1e6:.2f} MB of gradients in fp{8 * size}"
            )
            results.append(Result(what, each / 1e6, "MB"))
            results.append(Result.at_most(f"{what}, beside a ring all-reduce", each / ring, 1.2, "x"))
    return results
