"""Building: against the plain way and against the FFT alone, two workers against one, memory, a million clips."""

import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.common import RATE, Result, interleaved, median_ratio, one_core, write_recordings


def plain_build(files: list[Path], target: Path, size: int) -> None:
    """What a user would write without this project: librosa's calls per clip, rows written through h5py."""
    import h5py
    import librosa
    import soundfile

    hop = -(-RATE // (size - 1))
    with h5py.File(target, "w") as file:
        features = file.create_dataset("features", (len(files), size, size), "float16")
        for row, path in enumerate(files):
            samples, rate = soundfile.read(path, dtype="float32")
            samples = librosa.util.fix_length(samples, size=hop * (size - 1))
            power = librosa.feature.melspectrogram(
                y=samples, sr=rate, n_fft=2048, hop_length=hop, n_mels=size, pad_mode="constant"
            )
            decibels = librosa.power_to_db(power, top_db=80)
            features[row] = (decibels - decibels.mean()) / decibels.std()


def against_plain(work: Path, size: int, rounds: int, clips: tuple[int, int]) -> list[Result]:
    """Clips per second of one pinned core, start-up taken out by the difference of two corpus sizes."""
    import torch

    from pipeline.build import build_cache
    from pipeline.options import BuildOptions

    one_core()
    corpora = {count: write_recordings(work / f"audio{count}", count) for count in clips}
    listings = {count: sorted(folder.glob("*/*.wav")) for count, folder in corpora.items()}
    numbers = itertools.count()

    def ours(count: int) -> None:
        target = work / f"cache{next(numbers)}"
        options = BuildOptions(
            audio_dir=str(corpora[count]), cache_dir=str(target), n_mels=size, num_views=1, augment="none", jobs=1
        )
        build_cache(options, lambda *_: None)
        remove(target)

    def plain(count: int) -> None:
        target = work / "plain.h5"
        plain_build(listings[count], target, size)
        target.unlink()

    frames = torch.randn(size, 2048)
    many = clips[1] - clips[0]

    def transforms() -> None:
        for _ in range(many):
            torch.fft.rfft(frames)

    contestants: dict[str, Callable[[], None]] = {"fft": transforms}
    for count in clips:
        contestants[f"ours{count}"] = lambda count=count: ours(count)
        contestants[f"plain{count}"] = lambda count=count: plain(count)
    seconds = interleaved(contestants, rounds)
    rows = {
        name: [large - small for small, large in zip(*(seconds[f"{name}{count}"] for count in clips), strict=True)]
        for name in ("ours", "plain")
    }
    name = f"build {size}x{size}"
    results = [
        Result(f"{name}, one core", many / statistics.median(rows["ours"]), "clips/s"),
        Result(f"{name}, plain way", many / statistics.median(rows["plain"]), "clips/s"),
        Result.at_least(f"{name} / plain way", median_ratio(rows["plain"], rows["ours"]), 5 if size == 224 else 4),
    ]
    share = 100 * median_ratio(seconds["fft"], rows["ours"])
    if size == 224:
        return [*results, Result.at_least(f"{name} / its FFTs alone", share, 40, "%")]
    return [*results, Result(f"{name} / its FFTs alone", share, "%")]


def rates(rounds: int) -> list[Result]:
    """Log-mels against librosa's calls at other rates and lengths, on one pinned core, and how equal they are."""
    import librosa
    import numpy as np
    import torch

    from cache.config import FeatureConfig
    from cache.memory import keep_freed_memory
    from pipeline.features import LogMel

    one_core()
    keep_freed_memory()  # as workers do; librosa profits as well
    results = []
    for rate, seconds, frames in (
        (8000, 0.5, 64),
        (22050, 4, 224),
        (32000, 5, 313),
        (44100, 5, 431),
        (48000, 10, 1000),
    ):
        n_mels = 64 if rate == 8000 else 224 if rate < 44100 else 192
        config = FeatureConfig(
            sample_rate=rate, clip_seconds=float(seconds), n_mels=n_mels, n_frames=frames, fmax=rate / 2
        )
        samples = (0.1 * np.random.default_rng(0).standard_normal(config.samples)).astype(np.float32)
        log_mel = LogMel(config)
        out = torch.empty(log_mel.at_once, n_mels, frames, dtype=torch.float16)

        def plain(samples=samples, config=config) -> np.ndarray:
            padded = librosa.util.fix_length(samples, size=config.hop_length * (config.n_frames - 1))
            power = librosa.feature.melspectrogram(
                y=padded,
                sr=config.sample_rate,
                n_fft=config.n_fft,
                hop_length=config.hop_length,
                n_mels=config.n_mels,
                pad_mode="constant",
            )
            decibels = librosa.power_to_db(power, top_db=80)
            return ((decibels - decibels.mean()) / decibels.std()).astype(np.float16)

        def ours(samples=samples, log_mel=log_mel, out=out) -> None:
            log_mel([samples] * len(out), out)

        taken = interleaved({"ours": ours, "plain": plain}, rounds)
        ratio = len(out) * median_ratio(taken["plain"], taken["ours"])
        name = f"log-mel {n_mels}x{frames} of {seconds:g} s at {rate:,} Hz"
        error = np.abs(out[0].numpy().astype(float) - plain()).max()
        results += [Result.at_least(f"{name} / librosa", ratio, 6), Result(f"{name}, largest difference", error, "")]
    return results


def remove(folder: Path) -> None:
    """Remove a cache folder and what is in it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def run_build(audio: Path, target: Path, jobs: int) -> tuple[float, float]:
    """Seconds, and the largest PSS of a worker in MB, of a whole build with 4 views."""
    command = [sys.executable, "-m", "pipeline.build_cache", "--audio-dir", audio, "--cache-dir", target]
    started = time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--jobs", str(jobs)], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max([peak, *map(pss, workers_of(process.pid))])
        time.sleep(0.5)
    assert process.returncode == 0
    seconds = time.perf_counter() - started
    remove(target)
    return seconds, peak


def workers_of(parent: int) -> list[int]:
    """Process ids of the loky workers of a build: the children of its fork server."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"multiprocessing.forkserver" in (entry / "cmdline").read_bytes():
                above = re.search(r"\nPPid:\t(\d+)\n", (entry / "status").read_text())
                children.setdefault(int(above[1]), []).append(int(entry.name))
    return [worker for server in children.get(parent, []) for worker in children.get(server, [])]


def pss(process: int) -> float:
    """Proportional set size of a process in MB; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def workers(work: Path, rounds: int, clips: tuple[int, int]) -> list[Result]:
    """Two workers against one, and what a worker needs."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    corpora = [write_recordings(work / f"audio{count}", count) for count in clips]
    seconds: dict[tuple[int, int], list[float]] = {}
    peaks = [[], []]
    for _ in range(rounds):
        for jobs, which in itertools.product((1, 2), (0, 1)):
            took, peak = run_build(corpora[which], work / "cache", jobs)
            seconds.setdefault((jobs, which), []).append(took)
            peaks[which].append(peak)
    one, two = (
        [large - small for small, large in zip(seconds[jobs, 0], seconds[jobs, 1], strict=True)] for jobs in (1, 2)
    )
    return [
        Result.at_least("two workers / one worker", statistics.median(one) / statistics.median(two), 1.85),
        Result.at_most(f"memory of a worker (PSS), {clips[0]:,} clips", max(peaks[0]), 400, "MB"),
        Result.at_most(f"memory of a worker (PSS), {clips[1]:,} clips", max(peaks[1]), 400, "MB"),
    ]


def million(work: Path, clips: int) -> list[Result]:
    """Listing a corpus of a million files, and planning its folds and shards, in a process of its own."""
    script = Path(__file__).with_name("plan_million.py")
    audio = work / "million"
    for n in range(30):
        (audio / f"word{n:02d}").mkdir(parents=True)
    for n in range(clips):
        os.close(os.open(audio / f"word{n % 30:02d}" / f"{n // 20:08x}_nohash_{n}.wav", os.O_CREAT | os.O_WRONLY))
    table = work / "million.csv"
    with open(table, "w") as file:
        file.write("filename,category,client_id,start_s,end_s\n")
        for n in range(clips):
            file.write(f"{n // 20:08x}_nohash_{n}.wav,word{n % 30:02d},speaker{n // 20},,\n")
    results = []
    for kind, manifest, most in (("clips", [], 20), ("rows of a table", [str(table)], 30)):
        command = [sys.executable, str(script), str(audio), str(work / "cache"), *manifest]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        listing, planning, before, size, peak = map(float, done.stdout.split())
        name = f"{clips:,} {kind}"
        results += [
            Result.at_most(f"listing and planning {name}", listing + planning, most, "s"),
            Result(f"of which listing {name}", listing, "s"),
            Result(f"table of {name}", size, "MB"),
            Result(f"peak memory of the parent with {name} (without: {before:.0f} MB)", peak, "MB"),
        ]
    for folder in audio.iterdir():
        remove(folder)
    audio.rmdir()
    return results
