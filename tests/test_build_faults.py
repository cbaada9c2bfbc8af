"""Builds that are killed, starved and doubled: real processes, killed for real."""

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, checksums, only_cache, start, write_corpus

from cache.check import check_cache
from tests.forked import GUARD_SECONDS, Forked, Halt

FLAGS = ("--n-mels", 64, "--n-fft", 1024, "--num-views", 6, "--clips-per-shard", 4, "--folds", 2)


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """A corpus that makes 36 shards."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "audio", ["yes", "no", "up"], per_word=48, speakers=8)


@pytest.fixture(scope="module")
def undisturbed(audio, tmp_path_factory) -> dict[str, bytes]:
    """Every file of the cache that a build makes when it is left alone."""
    cache_dir = tmp_path_factory.mktemp("undisturbed")
    finish(audio, cache_dir)
    return checksums(cache_dir)


def begin(audio: Path, cache_dir: Path, jobs: int = 1, halt: Halt | None = None) -> Forked:
    flags = ("--audio-dir", audio, "--cache-dir", cache_dir, "--jobs", jobs)
    return start("pipeline.build_cache", *flags, *FLAGS, halt=halt)


def finish(audio: Path, cache_dir: Path, jobs: int = 1) -> str:
    process = begin(audio, cache_dir, jobs)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def wait_for(condition: Callable[[], object], process: Forked) -> None:
    """Wait until a condition holds, at most until the process ends."""
    limit = time.monotonic() + GUARD_SECONDS
    while not condition() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.001)


def finished(cache_dir: Path) -> dict[str, int]:
    """Inode of each shard that has its sidecar."""
    sidecars = cache_dir.glob("*/shard-*.json")
    return {path.stem: path.with_suffix(".h5").stat().st_ino for path in sidecars}


def working(cache_dir: Path) -> bool:
    return any(cache_dir.glob("*/.shard-*.tmp"))


def kill_at_random_moments(audio: Path, folder: Path, times: int) -> list[dict[str, bytes]]:
    """Kill builds at work; a cache that is nearly done is finished, and the next one begun; returns their checksums."""
    rng, struck, ends = random.Random(times), 0, []
    while struck < times:
        cache_dir = folder / str(len(ends))
        cache_dir.mkdir(exist_ok=True)
        process = begin(audio, cache_dir, jobs=1 + struck % 2)
        before = finished(cache_dir)
        wait_for(lambda cache_dir=cache_dir: working(cache_dir), process)
        time.sleep(rng.uniform(0, 0.15))
        struck += process.poll() is None
        process.kill()
        process.wait()
        damages = [damage for cache in cache_dir.iterdir() for damage in check_cache(cache)]
        assert not damages, "what has its final name is whole at any moment"
        after = finished(cache_dir)
        assert before.items() <= after.items(), "what was finished was not written again"
        if len(after) > 24 or struck == times:
            finish(audio, cache_dir, jobs=2)
            assert after.items() <= finished(cache_dir).items()
            assert not list(only_cache(cache_dir).glob(".*.tmp"))
            ends.append(checksums(cache_dir))
    return ends


def test_killed_builds_end_with_the_same_bits(audio, tmp_path, undisturbed):
    """SIGKILL at a few random moments: finished shards stay untouched, and the end equals an undisturbed build."""
    ends = kill_at_random_moments(audio, tmp_path, 5)
    assert ends == [undisturbed] * len(ends) != []


@pytest.mark.long
def test_killed_50_times_ends_with_the_same_bits(audio, tmp_path, undisturbed):
    """The same at 50 random moments, over as many caches as that takes."""
    ends = kill_at_random_moments(audio, tmp_path, 50)
    assert ends == [undisturbed] * len(ends) != []


def workers(parent: int) -> list[int]:
    """Process ids of a build's loky workers: the children of its fork server."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if b"multiprocessing.forkserver" in (entry / "cmdline").read_bytes():
                children.setdefault(int(status[1]), []).append(int(entry.name))
    return [worker for server in children.get(parent, []) for worker in children.get(server, [])]


def test_killed_workers_are_replaced(audio, tmp_path, undisturbed):
    """SIGKILL of single workers: the pool is rebuilt and the build ends well, with the same bits."""
    process = begin(audio, tmp_path, jobs=2)
    killed = 0
    for goal in (4, 16):
        wait_for(lambda goal=goal: len(finished(tmp_path)) >= goal and workers(process.pid), process)
        for worker in workers(process.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert killed == 2
    assert checksums(tmp_path) == undisturbed


@pytest.mark.long
def test_workers_that_keep_dying_end_the_build(audio, tmp_path, undisturbed):
    """When no worker lives long enough to finish a shard, the build gives up in one line and loses nothing."""
    process = begin(audio, tmp_path, jobs=2)
    wait_for(lambda: len(finished(tmp_path)) >= 4, process)
    while process.poll() is None:
        for worker in workers(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.01)
    assert process.returncode == 2
    assert "workers died 6 times in a row" in process.stdout.read()
    before = finished(tmp_path)
    finish(audio, tmp_path)
    assert before.items() <= finished(tmp_path).items()
    assert checksums(tmp_path) == undisturbed


def test_two_builds_at_once(audio, tmp_path, undisturbed):
    """The second says that the first is at work, changes nothing, and the first ends well."""
    halt = Halt(".json", 4, tmp_path / "halted")
    first = begin(audio, tmp_path, halt=halt)
    first.wait_for(halt)
    second = begin(audio, tmp_path)
    output, _ = second.communicate()
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert "another build is at work here" in output
    assert first.wait() == 0
    assert checksums(tmp_path) == undisturbed


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def check_full_disk(audio: Path, cache_dir: Path, process: Forked) -> set[tuple[str, int]]:
    """A build that met a full disk said so in one line and kept what was finished; returns that."""
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert "No space left on device; free some space, and type the same command again" in output
    assert len([line for line in output.splitlines() if line.strip()]) == 1
    assert not list(only_cache(cache_dir).glob(".*.tmp")), "the space of what was in flight is free again"
    assert not check_cache(only_cache(cache_dir))
    kept = finished(cache_dir)
    assert 0 < len(kept) < 36
    return set(kept.items())


def test_disk_full_of_files(audio, tmp_path, undisturbed):
    """No room for another file in the middle of a build: one line, nothing lost, and the next build goes on."""
    with small_disk(tmp_path, "size=512m,nr_inodes=20"):
        kept = check_full_disk(audio, tmp_path, begin(audio, tmp_path, jobs=2))
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", tmp_path], check=True)
        finish(audio, tmp_path)
        assert kept <= finished(tmp_path).items()
        assert checksums(tmp_path) == undisturbed


def test_disk_full_of_bytes(audio, tmp_path, undisturbed):
    """No room for another shard's rows: it shows before they are computed, with the same outcome."""
    with small_disk(tmp_path, "size=100m"):
        halt = Halt(".json", 4, tmp_path / "halted")
        process = begin(audio, tmp_path, halt=halt)
        process.wait_for(halt)
        with open(tmp_path / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(1 << 16)):
                pass
        os.kill(process.pid, signal.SIGCONT)
        kept = check_full_disk(audio, tmp_path, process)
        (tmp_path / "filler").unlink()
        finish(audio, tmp_path)
        assert kept <= finished(tmp_path).items()
        assert checksums(tmp_path) == undisturbed


def test_too_little_space_is_refused_before_the_start(audio, tmp_path):
    """The size that will be needed is compared with what is free, and both are named."""
    with small_disk(tmp_path, "size=40m"):
        process = begin(audio, tmp_path)
        output, _ = process.communicate()
        assert process.returncode == 2
        assert "0.1 GB needed, 0.0 GB free" in output
        assert not list(only_cache(tmp_path).glob("shard-*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_shared_memory_that_cannot_be_written(tmp_path, jobs):
    """Without semaphores a build works in one process, whatever the number of jobs."""
    write_corpus(tmp_path / "audio", ["yes", "no"])
    flags = ["--audio-dir", tmp_path / "audio", "--cache-dir", tmp_path, "--jobs", jobs, *FLAGS]
    command = shlex.join([sys.executable, "-m", "pipeline.build_cache", *map(str, flags)])
    sealed = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs -o ro tmpfs /dev/shm || exit 77; {command}"]
    done = subprocess.run(sealed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("no permission to mount a file system over /dev/shm")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "built 16 clips" in done.stdout
