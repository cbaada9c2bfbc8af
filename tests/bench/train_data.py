"""What the training benchmarks share: caches of random features, and CPU time."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.index import Cache, clip_dtype, write_index
from cache.shard import write_shard, write_sidecar

CLASSES = 30


def random_cache(folder: Path, clips: int, n_mels: int, *, num_views: int = 2, per_shard: int = 512) -> Cache:
    """A finished cache of random features below `folder`; one that is there is opened."""
    config = FeatureConfig(n_mels=n_mels, n_frames=n_mels, num_views=num_views, seed=clips)
    folder = Path(folder) / config.folder_name
    try:
        return Cache(folder)
    except InputError:
        folder.mkdir(parents=True, exist_ok=True)
    rng, shards = np.random.default_rng(0), []
    ids = [f"label{i % CLASSES:02d}/{i:08x}_nohash_0.wav" for i in range(clips)]
    block = rng.standard_normal((min(per_shard, 64), *config.row_shape), dtype=np.float32).astype(np.float16)
    for number, first in enumerate(range(0, clips, per_shard)):
        names = ids[first : first + per_shard]
        content = write_shard(folder, number, config, names, (block[i % len(block)] for i in range(len(names))))
        write_sidecar(folder, number, {"digest": config.digest, **content})
        shards.append({"number": number, **content})
    table = np.zeros(clips, clip_dtype(len(ids[0]), 8))
    number = np.arange(clips)
    table["clip_id"], table["target"], table["fold"] = ids, number % CLASSES, number % 5
    table["shard"], table["row"] = number // per_shard, number % per_shard
    classes = [f"label{i:02d}" for i in range(CLASSES)]
    split = {"split": "kfold", "group_by": "none", "folds": 5, "digest": "0" * 64}
    content = {"config": dataclasses.asdict(config), "classes": classes, "split": split, "shards": shards}
    write_index(folder, table, {**content, "counts": {}, "audio_dir": ""})
    return Cache(folder)


def cpu_seconds() -> float:
    """CPU time that this process and its descendants have used so far."""
    parents, used = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
        used[int(path.parent.name)] = sum(map(int, fields[11:15]))  # its own, and of children that have ended
    family, size = {os.getpid()}, 0
    while size != len(family):
        size = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(used[pid] for pid in family if pid in used) / os.sysconf("SC_CLK_TCK")
