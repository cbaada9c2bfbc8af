"""A build over a Dask cluster of two worker processes, one of which is killed half-way."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import checksums, start, write_corpus

from tests.forked import GUARD_SECONDS, Forked, free_port

pytest.importorskip("distributed", reason="pip install -e '.[dask]'")
FLAGS = ("--n-mels", 64, "--n-fft", 1024, "--num-views", 6, "--clips-per-shard", 4, "--folds", 2)


def dask(*arguments: str) -> Forked:
    """Start one of Dask's own commands, as a user would."""
    with open(os.devnull, "w") as nowhere:
        return start("distributed.cli." + arguments[0], *arguments[1:], stdout=nowhere.fileno())


@contextlib.contextmanager
def cluster(workers: int, scratch: Path) -> Iterator[tuple[str, list[Forked]]]:
    """A scheduler and its workers on this machine; yields its address and the worker processes."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    processes = [dask("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")]
    try:
        flags = (
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            str(scratch),
        )
        processes += [dask("dask_worker", address, *flags) for _ in range(workers)]
        from distributed import Client

        limit = time.monotonic() + GUARD_SECONDS
        while True:
            with contextlib.suppress(OSError, TimeoutError), Client(address, timeout=2) as client:
                client.wait_for_workers(workers, timeout=GUARD_SECONDS)
                break
            assert time.monotonic() < limit
        yield address, processes[1:]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_same_bits_as_the_local_build_although_a_worker_dies(tmp_path: Path):
    """One of two Dask workers is killed early: the other takes over, and every file equals the local build's."""
    audio = write_corpus(tmp_path / "audio", ["yes", "no", "up"], per_word=48, speakers=8)
    local = start("pipeline.build_cache", "--audio-dir", audio, "--cache-dir", tmp_path / "local", "--jobs", 1, *FLAGS)
    output, _ = local.communicate()
    assert local.returncode == 0, output
    with cluster(2, tmp_path) as (address, workers):
        spread = ("--backend", "dask", "--scheduler", address)
        build = start("pipeline.build_cache", "--audio-dir", audio, "--cache-dir", tmp_path / "dask", *spread, *FLAGS)
        while len(list(tmp_path.glob("dask/*/shard-*.json"))) < 2 and build.poll() is None:
            time.sleep(0.001)
        workers[0].kill()
        done_before = len(list(tmp_path.glob("dask/*/shard-*.json")))
        output, _ = build.communicate()
        assert build.returncode == 0, output
        assert workers[1].poll() is None
    assert done_before < 36, "the worker was killed half-way"
    assert checksums(tmp_path / "dask") == checksums(tmp_path / "local")
