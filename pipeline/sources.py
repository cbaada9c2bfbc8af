"""What finished shards were built from, and which of it still matches the corpus."""

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.shard import read_sidecars
from pipeline.decode import read_file


@dataclasses.dataclass(frozen=True)
class Match:
    """Which source belongs to each clip of a listing."""

    index: np.ndarray
    """Into `Sources.clips` [shape=(n_listed,)]; -1 where the clip is new or modified."""

    def reason_of(self, sources: "Sources") -> np.ndarray:
        """Why each listed clip was refused; empty for good and for new ones [shape=(n_listed,), dtype=bytes]."""
        if not len(sources.clips):
            return np.zeros(len(self.index), "S1")
        return np.where(self.index >= 0, sources.clips["reason"][self.index], b"")


@dataclasses.dataclass(frozen=True)
class Sources:
    """The clips that finished shards hold."""

    shards: dict[int, dict[str, Any]]
    """Shard number → its sidecar without the clips."""
    clips: np.ndarray
    """clip_id, size, mtime_ns, sha256, flags, reason, shard, row; sorted by clip_id, the refused before the good."""

    def match(self, listing: np.ndarray) -> Match:
        """Find each listed clip by clip_id, size and modification time."""
        index = np.full(len(listing), -1, np.int64)
        if len(self.clips):
            first = np.searchsorted(self.clips["clip_id"], listing["clip_id"], "left")
            last = np.searchsorted(self.clips["clip_id"], listing["clip_id"], "right")
            for step in range(int((last - first).max(initial=0))):  # a modified clip stands in several shards
                at = np.minimum(first + step, len(self.clips) - 1)
                here = (first + step < last) & (self.clips["size"][at] == listing["size"])
                here &= self.clips["mtime_ns"][at] == listing["mtime_ns"]
                index[here] = at[here]
        return Match(index)

    def unread(self, match: Match) -> np.ndarray:
        """Which listed clips the system refused to read, as for want of permission: worth another try."""
        if not len(self.clips):
            return np.zeros(len(match.index), bool)
        return (match.index >= 0) & (self.clips["sha256"][match.index] == b"")


def read_sources(folder: Path, config: FeatureConfig) -> Sources:
    """Read the sidecars of a cache folder into arrays."""
    sidecars = read_sidecars(folder, config)
    columns: dict[str, list[np.ndarray]] = {}
    for number, sidecar in sidecars.items():
        clips = sidecar.pop("clips")
        reasons = np.array([reason.encode() for reason in clips["reason"]])
        good = reasons == b""
        values = {
            "clip_id": np.array([name.encode() for name in clips["clip_id"]]),
            "size": np.array(clips["size"], np.int64),
            "mtime_ns": np.array(clips["mtime_ns"], np.int64),
            "sha256": np.array([digest.encode() for digest in clips["sha256"]], "S16"),
            "flags": np.array(clips["flags"], np.uint8),
            "reason": reasons,
            "shard": np.full(len(good), number, np.int32),
            "row": np.where(good, np.cumsum(good) - 1, -1).astype(np.int32),
        }
        for name, column in values.items():
            columns.setdefault(name, []).append(column)
    merged = {name: np.concatenate(parts) for name, parts in columns.items()}
    if not merged:
        return Sources({}, np.empty(0, [("clip_id", "S1"), ("shard", "<i4"), ("row", "<i4"), ("flags", "u1")]))
    table = np.empty(len(merged["shard"]), [(name, column.dtype) for name, column in merged.items()])
    for name, column in merged.items():
        table[name] = column
    table = table[np.argsort(table["reason"] == b"", kind="stable")]
    return Sources(sidecars, table[np.argsort(table["clip_id"], kind="stable")])


def content_changed(sources: Sources, listing: np.ndarray, audio_dir: Path) -> list[int]:
    """Numbers of the shards that hold a clip whose content changed although size and time did not."""
    match = sources.match(listing)
    listed = np.flatnonzero(match.index >= 0)

    def changed(position: int) -> bool:
        path = Path(audio_dir) / listing["clip_id"][position].decode()
        try:
            digest = hashlib.sha256(read_file(str(path))).hexdigest()[:16]
        except (InputError, OSError):
            return True  # building it again says why it cannot be read
        return digest.encode() != sources.clips["sha256"][match.index[position]]

    with ThreadPoolExecutor() as pool:
        wrong = listed[np.fromiter(pool.map(changed, listed.tolist()), bool, len(listed))]
    return np.unique(sources.clips["shard"][match.index[wrong]]).tolist()
