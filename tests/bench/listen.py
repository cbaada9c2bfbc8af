"""Listening: how late detections are printed, and what share of a core it takes.

    python -m tests.bench.listen --run runs/resnet10t-32x64 --folds 0 --input talk.wav
    python -m tests.bench.listen --onnx model.onnx --input talk.wav

The recording (16-bit mono WAV) is written to a pipe as fast as it was spoken.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time

import soundfile

from cache.cli import Flags, InputError, command, flag
from tests.bench.common import Result, print_table

_BLOCK_S = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Flags of ``python -m tests.bench.listen``."""

    run: str | None = flag(None, "a run", metavar="FOLDER")
    folds: str = flag("all", "of the run")
    onnx: str | None = flag(None, "an exported file instead", metavar="FILE")
    tta: int = flag(4, "test-time views of the run's members")
    input: str = flag("talk.wav", "the recording")
    seconds: float = flag(60.0, "of it")


def measure(options: Options, *flags: str) -> list[Result]:
    """Lateness after a detection's last sample was written, and the share of a core in steady state."""
    samples, rate = soundfile.read(options.input, dtype="int16", frames=round(options.seconds * 48000))
    samples = samples[: round(options.seconds * rate)]
    model = ["--onnx", options.onnx] if options.onnx else ["--run", options.run, "--folds", options.folds]
    model += [] if options.onnx else ["--tta", str(options.tta)]
    command = [sys.executable, "-m", "infer.listen", "-", "--json", "--rate", str(rate), *model, *flags]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    late: list[float] = []
    began: list[float] = []

    def read() -> None:
        for line in process.stdout:
            late.append(time.monotonic() - began[0] - json.loads(line)["end_s"])

    silence = b"\0" * (2 * rate)
    began.append(time.monotonic())
    process.stdin.write(silence)  # read once everything is loaded
    process.stdin.flush()
    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(15)  # loading
    if process.poll() is not None:
        raise InputError(process.stderr.read().decode().strip())
    began[0] = time.monotonic() - 1
    before = _cpu_seconds(process.pid)
    block = round(_BLOCK_S * rate)
    for first in range(0, len(samples), block):
        due = began[0] + 1 + (first + block) / rate
        time.sleep(max(0.0, due - time.monotonic()))
        process.stdin.write(samples[first : first + block].tobytes())
        process.stdin.flush()
    share = (_cpu_seconds(process.pid) - before) / (time.monotonic() - began[0] - 1)
    process.stdin.close()
    process.wait()
    reader.join()
    process.stderr.close()
    process.stdout.close()
    late = late[1:-1]  # the first came before the clock, the last may have come with the end
    what = " ".join(flags) or "as predict --windows"
    return [
        Result(f"{what}: late, median", statistics.median(late), "s"),
        Result(f"{what}: late, 95%", sorted(late)[int(0.95 * len(late))], "s"),
        Result(f"{what}: of one core", 100 * share, "%"),
    ]


def _cpu_seconds(pid: int) -> float:
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()  # noqa: SIM115
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@command(Options)
def main(options: Options) -> int:
    """Measure both ways of listening."""
    print_table([*measure(options), *measure(options, "--eager")])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
