"""What finished shards were built from, and which of it still matches the corpus."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cache.config import FeatureConfig
from cache.shard import read_sidecars


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The clips that finished shards hold."""

    shards: dict[int, dict[str, Any]]
    """Shard number → its sidecar without the clips."""
    clips: np.ndarray
    """clip_id, size, mtime_ns, sha256, flags, reason, shard, row; sorted by clip_id, the refused before the good."""

    def match(self, listing: np.ndarray) -> np.ndarray:
        """What is known of each listed clip, found by clip_id, size and modification time.

        Returns
        -------
        np.ndarray [shape=(n_listed,)] : rows of `clips`; zeros, but shard -1, where a clip is new or modified
        """
        first, last = (np.searchsorted(self.clips["clip_id"], listing["clip_id"], side) for side in ("left", "right"))
        found = np.zeros(len(listing), self.clips.dtype)
        found["shard"] = -1
        for step in range(int((last - first).max(initial=0))):  # a modified clip stands in several shards
            at = np.minimum(first + step, len(self.clips) - 1)
            here = (first + step < last) & (self.clips["size"][at] == listing["size"])
            here &= self.clips["mtime_ns"][at] == listing["mtime_ns"]
            found[here] = self.clips[at[here]]
        return found


def read_provenance(folder: Path, config: FeatureConfig) -> Provenance:
    """Read the sidecars of a cache folder into arrays; a shard whose sidecar is not what a build writes is left out."""
    shards, tables = {}, [np.empty(0, _clip_dtype(1, 1))]
    for number, sidecar in read_sidecars(folder, config).items():
        with contextlib.suppress(AttributeError, KeyError, OverflowError, TypeError, ValueError):
            table = _table_of(number, sidecar.pop("clips"))
            texts = [*sidecar["versions"].values(), sidecar["checksum"], sidecar.get("sources", "")]
            if np.count_nonzero(table["row"] >= 0) == sidecar["rows"] and all(map(str.isprintable, texts)):
                shards[number] = sidecar
                tables.append(table)
    table = np.concatenate(tables)
    table = table[np.argsort(table["reason"] == b"", kind="stable")]
    return Provenance(shards, table[np.argsort(table["clip_id"], kind="stable")])


def _table_of(number: int, clips: dict[str, list]) -> np.ndarray:
    """The clips of a sidecar, as rows of `Provenance.clips`."""
    texts = (clips[key] for key in ("clip_id", "sha256", "reason"))
    names, digests, reasons = (np.array([text.encode() for text in column], bytes) for column in texts)
    rows = np.where(reasons == b"", np.cumsum(reasons == b"") - 1, -1)
    table = np.empty(len(names), _clip_dtype(names.dtype.itemsize, reasons.dtype.itemsize))
    columns = (names, clips["size"], clips["mtime_ns"], digests, clips["flags"], reasons, number, rows)
    for name, column in zip(table.dtype.names, columns, strict=True):
        table[name] = column
    return table


def _clip_dtype(name_bytes: int, reason_bytes: int) -> np.dtype:
    facts = [("clip_id", f"S{name_bytes}"), ("size", "<i8"), ("mtime_ns", "<i8"), ("sha256", "S16"), ("flags", "u1")]
    return np.dtype([*facts, ("reason", f"S{reason_bytes}"), ("shard", "<i4"), ("row", "<i4")])
