"""Caches whose rows are another's, changed: to measure what the cache itself does not offer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cache.index import Cache, write_index
from cache.shard import write_shard, write_sidecar


def _scaled(rows: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    rows = rows - rows.mean(axis, keepdims=True)
    return rows / np.maximum(rows.std(axis, keepdims=True), 1e-3)


def _uint8(rows: np.ndarray) -> np.ndarray:
    """Each row (clips, views, n_mels, n_frames) through 256 levels between its smallest and largest value."""
    low, high = (edge(rows, axis=(2, 3), keepdims=True) for edge in (np.min, np.max))
    step = np.maximum(high - low, 1e-3) / 255
    return np.round((rows - low) / step) * step + low


def _band_of_clip(rows: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance for each mel band of each clip."""
    return _scaled(rows, axis=3)


DERIVED: dict[str, Callable[[np.ndarray], np.ndarray]] = {"uint8": _uint8, "band-of-clip": _band_of_clip}


def derive(source: Path, how: str) -> Path:
    """Write the cache that `how` makes of another, with the same clips, folds and row shape; returns its folder.

    Beside the changes of `DERIVED`, ``band-of-corpus`` gives each mel band zero mean and unit variance over the clean
    views of all clips.
    """
    target = Path(f"{source}-{how}")
    if (target / "index.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    cache = Cache(source)
    change = DERIVED.get(how) or _band_of_corpus(cache)
    entries = []
    for shard in cache.index["shards"]:
        number = shard["number"]
        rows = change(np.asarray(cache.features(number), np.float32)).astype(np.float16)
        names = [f"{number}/{row}" for row in range(len(rows))]
        entry = write_shard(target, number, cache.config, names, _contiguous(rows))
        write_sidecar(target, number, {"digest": cache.config.digest, **entry})
        entries.append({"number": number, **entry})
    content = {key: value for key, value in cache.index.items() if key not in ("schema", "clips")}
    write_index(target, np.array(cache.clips), {**content, "shards": entries})
    return target


def _contiguous(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(row) for row in rows)


def _band_of_corpus(cache: Cache) -> Callable[[np.ndarray], np.ndarray]:
    clean = [np.asarray(cache.features(shard["number"])[:, 0], np.float64) for shard in cache.index["shards"]]
    values = np.concatenate(clean)  # (clips, n_mels, n_frames)
    mean = values.mean(axis=(0, 2)).astype(np.float32)[:, None]
    std = values.std(axis=(0, 2)).astype(np.float32)[:, None]
    return lambda rows: (rows - mean) / std
