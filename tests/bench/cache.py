"""Benchmark the cache: building and reading, each against what it replaces.

python -m tests.bench.cache
"""

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cache.cli import command, flag

SECTIONS = ("build", "rates", "workers", "million", "read", "open", "larger")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Flags of ``python -m tests.bench.cache``."""

    work: str = flag("/dev/shm", "where to work; in memory, so that cores are measured and not the disk")
    disk: str = flag("/var/tmp", "where the cache that is larger than memory goes")
    json: str = flag("data/bench-cache.json", "where the figures go")
    rounds: int = flag(5, "rounds, of which medians are taken")
    clips: int = flag(1024, "clips of the larger corpus of a build")
    worker_clips: int = flag(4096, "clips of the larger corpus for two workers and memory")
    million: int = flag(1_000_000, "clips to list and plan")
    rows: int = flag(20_480, "rows to read from, 100 KB each")
    seconds: float = flag(1.0, "seconds of each turn of a reader")
    only: tuple[str, ...] = flag((), "section to run", type=str, action="append", choices=SECTIONS)


@command(BenchOptions)
def main(options: BenchOptions) -> int:
    """Run the sections, print the table, write the JSON; exit status 1 if a target was missed."""
    return bench(options)


def bench(options: BenchOptions) -> int:
    """Run each section in a folder of its own."""
    from tests.bench.common import print_table, write_json

    results = []
    for section in options.only or SECTIONS:
        parent = options.disk if section == "larger" else options.work
        with tempfile.TemporaryDirectory(dir=parent, prefix="melshard-bench-") as folder:
            results += run_section(section, Path(folder), options)
    print_table(results)
    write_json(Path(options.json), results)
    return int(any(result.met is False for result in results))


def run_section(section: str, work: Path, options: BenchOptions) -> list:
    """The figures of one section."""
    from tests.bench import building, larger, reading

    if section == "build":
        results = []
        for size in (224, 64, 32):
            clips = options.clips if size == 224 else 2 * options.clips
            results += building.against_plain(work / str(size), size, options.rounds, (clips // 4, clips))
            shutil.rmtree(work / str(size))
        return results
    if section == "rates":
        return building.rates(options.rounds)
    if section == "workers":
        return building.workers(work, options.rounds, (options.worker_clips // 4, options.worker_clips))
    if section == "million":
        return building.million(work, options.million)
    if section == "read":
        return reading.reading(work, options.rows, options.rounds, options.seconds)
    if section == "open":
        return reading.opening(work, 50_000, 5 * options.rounds)
    reading.write_cache(work / "cache", options.rows)
    batches = options.rows // reading.BATCH // 4
    command = [sys.executable, "-m", "tests.bench.larger", work / "cache", 400 << 20, batches, options.rounds]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return larger.parse(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
