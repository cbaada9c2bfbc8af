"""Reading random batches from a warm cache: against memcpy, h5py, a DataLoader, webdataset and mosaicml-streaming."""

import dataclasses
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cache.config import FeatureConfig
from cache.index import Cache, clip_dtype, write_index
from cache.shard import shard_path, write_shard, write_sidecar
from tests.bench.common import Result, median_ratio, one_core

CONFIG = FeatureConfig(num_views=1, augment="none")
ROWS = 512  # in a shard
BATCH = 256


def write_cache(folder: Path, clips: int, config: FeatureConfig = CONFIG) -> Cache:
    """A cache of random rows, written by the project's own writer."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for number in range(-(-clips // ROWS)):
        count = min(ROWS, clips - ROWS * number)
        rows = rng.standard_normal((count, *config.row_shape), dtype=np.float32).astype(np.float16)
        entry = write_shard(folder, number, config, [f"w/{number}-{n}.wav" for n in range(count)], iter(rows))
        write_sidecar(folder, number, {"digest": config.digest, **entry})
        entries.append({"number": number, **entry})
    table = np.zeros(clips, clip_dtype(40, 8))
    table["clip_id"] = [b"w/%d-%d.wav" % divmod(n, ROWS) for n in range(clips)]
    table["shard"], table["row"] = np.divmod(np.arange(clips), ROWS)
    split = {"split": "kfold", "group_by": "none", "folds": 1, "digest": ""}
    content = {"config": dataclasses.asdict(config), "classes": ["w"], "split": split, "shards": entries}
    write_index(folder, table, {**content, "counts": {}, "audio_dir": ""})
    return Cache(folder)


class Rows(torch.utils.data.Dataset):
    """The rows of a cache through h5py calls, as a user would wrap them for a DataLoader."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips
        self.files: dict[int, h5py.Dataset] = {}

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(index, ROWS)
        if shard not in self.files:
            self.files[shard] = h5py.File(shard_path(self.folder, shard), "r")["features"]
        return self.files[shard][row, 0]


def webdataset_batches(folder: Path, source: Cache, workers: int) -> Iterator[Any]:
    """The same rows in tar files, shuffled over shards and through a buffer."""
    import webdataset

    if not folder.exists():
        folder.mkdir()
        for shard in range(len(source.index["shards"])):
            with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
                for n, row in enumerate(source.features(shard)):
                    file = io.BytesIO()
                    np.save(file, row[0])
                    entry = tarfile.TarInfo(f"{shard:05d}-{n:05d}.npy")
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
    urls = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode().to_tuple("npy").batched(BATCH)
    return iter(webdataset.WebLoader(data, batch_size=None, num_workers=workers))


def streaming_batches(folder: Path, source: Cache, workers: int) -> Iterator[Any]:
    """The same rows in MDS shards, with mosaicml-streaming's own shuffle."""
    import streaming

    if not folder.exists():
        columns = {"x": f"ndarray:float16:{CONFIG.n_mels},{CONFIG.n_frames}"}
        with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
            for shard in range(len(source.index["shards"])):
                for row in source.features(shard):
                    writer.write({"x": np.array(row[0])})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return iter(torch.utils.data.DataLoader(data, batch_size=BATCH, num_workers=workers))


def forever(make: Callable[[], Iterator[Any]]) -> Callable[[], int]:
    """Rows of the next batch, starting again where an epoch ends; the caller has started the first."""
    state = {"batches": make()}

    def step() -> int:
        try:
            batch = next(state["batches"])
        except StopIteration:
            state["batches"] = make()
            batch = next(state["batches"])
        first = batch["x"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
        return len(first)

    return step


def readers(work: Path, source: Cache) -> dict[str, Callable[[], int]]:
    """What reads one batch, by name; each returns the number of rows it read."""
    clips, rng = len(source.clips), np.random.default_rng(1)
    out = np.empty((BATCH, CONFIG.n_mels, CONFIG.n_frames), np.float16)
    views = np.zeros(BATCH, int)
    rows = Rows(source.folder, clips)
    straight = np.ones((clips // BATCH, *out.shape), np.float16)
    turn = iter(range(1 << 60))

    def memcpy() -> int:
        np.copyto(out, straight[next(turn) % len(straight)])
        return BATCH

    def ours() -> int:
        source.gather(rng.integers(0, clips, BATCH), views, out)
        return BATCH

    def h5py_rows() -> int:
        for target, index in zip(out, rng.integers(0, clips, BATCH).tolist(), strict=True):
            target[:] = rows[index]
        return BATCH

    def loader(workers: int) -> Iterator[Any]:
        return iter(torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True, num_workers=workers))

    found = {"memcpy in order": memcpy, "this cache": ours, "h5py rows": h5py_rows}
    for n in (0, 2):
        found[f"DataLoader over h5py, {n} workers"] = forever(lambda n=n: loader(n))
        found[f"webdataset, {n} workers"] = forever(lambda n=n: webdataset_batches(work / "tar", source, n))
        found[f"mosaicml-streaming, {n} workers"] = forever(lambda n=n: streaming_batches(work / "mds", source, n))
    return found


def reading(work: Path, clips: int, rounds: int, seconds: float) -> list[Result]:
    """Samples per second of each reader, in turns of some seconds."""
    one_core()
    source = write_cache(work / "cache", clips)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # workers, where a reader has them, get the other cores
    speeds: dict[str, list[float]] = {}
    contestants = readers(work, source)
    for turn in range(rounds + 1):
        for name, step in contestants.items():
            step()
            count, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                count += step()
            if turn:
                speeds.setdefault(name, []).append(count / (time.perf_counter() - started))
    results = [Result(f"read: {name}", statistics.median(values), "rows/s") for name, values in speeds.items()]
    ours = speeds["this cache"]
    percent = 100 * median_ratio(ours, speeds["memcpy in order"])
    results.append(Result.at_least("read / memcpy in order", percent, 60, "%"))
    for name in speeds.keys() - {"this cache", "memcpy in order"}:
        results.append(Result.at_least(f"read / {name}", median_ratio(ours, speeds[name]), 5))
    return results


def opening(work: Path, clips: int, rounds: int) -> list[Result]:
    """Opening a cache of 50,000 small clips, checks included."""
    folder = write_cache(work / "open", clips, FeatureConfig(n_mels=4, n_frames=4, num_views=1, augment="none")).folder
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        Cache(folder)
        seconds.append(time.perf_counter() - started)
    return [Result.at_most(f"opening a cache of {clips:,} clips", 1000 * statistics.median(seconds), 50, "ms")]
