"""A cache larger than memory: random rows from disk, against the disk's own rate of random reads.

Run by tests.bench.cache in a process of its own, in a memory cgroup where that may be made.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from cache.index import Cache
from cache.shard import map_shard, shard_path
from tests.bench.common import Result, median_ratio
from tests.bench.reading import BATCH

NAMES = ("pread", "gather", "prefetch")
GROUP = Path("/sys/fs/cgroup/memory/melshard-bench")


def limit_memory(limit: int) -> bool:
    """Put this process into a cgroup (v1 or v2) of `limit` bytes, page cache included; False where that is refused."""
    unified = not Path("/sys/fs/cgroup/memory").is_dir()
    group = Path("/sys/fs/cgroup/melshard-bench") if unified else GROUP
    try:
        group.mkdir(exist_ok=True)
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


def drop(cache: Cache) -> None:
    """Drop the shards from the page cache; mapped pages stay, so that the caller opens them afresh."""
    os.sync()
    for path in cache.folder.glob("shard-*.h5"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    """Print, per round, rows per second of pread, of gather, and of gather with prefetch."""
    folder, limit, batches, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    print("limited" if limit_memory(limit) else "cold")
    first = Cache(folder)
    offsets = {
        s["number"]: map_shard(folder, s["number"], first.config, s["rows"]).offset for s in first.index["shards"]
    }
    for turn in range(rounds):
        order = np.random.default_rng(turn).permutation(len(first.clips))
        parts = order[: 3 * batches * BATCH].reshape(3, batches, BATCH)
        rates = {}
        for name, part in list(zip(NAMES, parts, strict=True))[:: -1 if turn % 2 else 1]:
            drop(first)
            cache = Cache(folder)
            started = time.perf_counter()
            if name == "pread":
                pread(cache, part, offsets)
            else:
                gather(cache, part, prefetch=name == "prefetch")
            rates[name] = part.size / (time.perf_counter() - started)
        print(*(rates[name] for name in NAMES), flush=True)


def pread(cache: Cache, batches: np.ndarray, offsets: dict[int, int]) -> None:
    """Read rows one by one, each with one call that asks for all of it: what the disk gives to one reader."""
    size = 2 * int(np.prod(cache.config.row_shape))
    handles = {n: os.open(shard_path(cache.folder, n), os.O_RDONLY) for n in offsets}
    for handle in handles.values():
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
    for shard, row in cache.clips[["shard", "row"]][batches.ravel()].tolist():
        os.pread(handles[shard], size, offsets[shard] + row * size)
    for handle in handles.values():
        os.close(handle)


def gather(cache: Cache, batches: np.ndarray, *, prefetch: bool) -> None:
    """Gather batches; with `prefetch` the next one is asked for while this one is copied."""
    out = np.empty((BATCH, *cache.config.row_shape[1:]), np.float16)
    views = np.zeros(BATCH, int)
    if prefetch:
        cache.prefetch(batches[0], views)
    for number, batch in enumerate(batches):
        if prefetch and number + 1 < len(batches):
            cache.prefetch(batches[number + 1], views)
        cache.gather(batch, views, out)


def parse(output: str) -> list[Result]:
    """The figures that :func:`main` printed."""
    kind, *lines = output.split("\n")
    pread, gather, prefetch = zip(*(map(float, line.split()) for line in lines if line), strict=True)
    how = "in a memory-limited cgroup" if kind == "limited" else "from a dropped page cache"
    return [
        Result(f"larger than memory, {how}: pread of random rows", statistics.median(pread), "rows/s"),
        Result("larger than memory: gather", statistics.median(gather), "rows/s"),
        Result("larger than memory: gather after prefetch", statistics.median(prefetch), "rows/s"),
        Result.at_least("larger than memory: gather / pread", 100 * median_ratio(gather, pread), 95, "%"),
    ]


if __name__ == "__main__":
    main()
