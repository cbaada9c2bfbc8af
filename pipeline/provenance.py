"""What finished shards were built from, and which of it still matches the corpus."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from cache.clip_id import file_of
from cache.config import FeatureConfig
from cache.files import read_sealed, write_sealed
from cache.shard import read_sidecars, sidecar_path
from pipeline.sound_files import content_digests


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The clips that finished shards hold."""

    shards: dict[int, dict[str, Any]]
    """Shard number → its sidecar without the clips."""
    clips: np.ndarray
    """clip_id, stamp, sha256, flags, reason, shard, row; sorted by clip_id, the refused before the good."""

    def match(self, listing: np.ndarray, audio_dir: Path) -> np.ndarray:
        """What is known of each listed clip, found by clip_id and stamp, or where the stamp is another, by content.

        Returns
        -------
        np.ndarray [shape=(n_listed,)] : rows of `clips`; zeros, but shard -1, where a clip is new or modified
        """
        first, last = (np.searchsorted(self.clips["clip_id"], listing["clip_id"], side) for side in ("left", "right"))
        found = np.zeros(len(listing), self.clips.dtype)
        found["shard"] = -1

        def take(column: str, wanted: np.ndarray, rest: np.ndarray) -> None:
            for step in range(int((last - first).max(initial=0))):  # a modified clip stands in several shards
                at = np.minimum(first + step, len(self.clips) - 1)
                here = rest & (first + step < last) & (self.clips[column][at] == wanted)
                found[here] = self.clips[at[here]]

        take("stamp", listing["stamp"], first < last)
        rest = (first < last) & (found["sha256"] == b"")
        contents = np.zeros(len(listing), "S16")
        files = [os.path.join(audio_dir, file_of(name.decode())) for name in listing["clip_id"][rest].tolist()]
        contents[rest] = content_digests(files)
        take("sha256", contents, rest & (contents != b""))
        return found


def note_stamps(folder: Path, listing: np.ndarray, known: np.ndarray) -> None:
    """Write into the sidecars how clips that were found by their content are known from now on.

    Parameters
    ----------
    listing, known : as in :meth:`Provenance.match`
    """
    moved = (known["sha256"] != b"") & (known["stamp"] != listing["stamp"])
    for number in np.unique(known["shard"][moved]).tolist():
        sidecar = read_sealed(sidecar_path(folder, number))
        here = listing[moved & (known["shard"] == number)]
        stamps = dict(zip(here["clip_id"].tolist(), here["stamp"].tolist(), strict=True))
        clips = sidecar["clips"]
        before = clips.get("stamp", [-2 - number] * len(clips["clip_id"]))
        names = [name.encode() for name in clips["clip_id"]]
        clips["stamp"] = [stamps.get(name, stamp) for name, stamp in zip(names, before, strict=True)]
        write_sealed(sidecar_path(folder, number), sidecar)


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
    return Provenance(shards, table[np.lexsort((table["reason"] == b"", table["clip_id"]))])


def _table_of(number: int, clips: dict[str, list]) -> np.ndarray:
    """The clips of a sidecar, as rows of `Provenance.clips`."""
    texts = (clips[key] for key in ("clip_id", "sha256", "reason"))
    names, digests, reasons = (np.array([text.encode() for text in column], bytes) for column in texts)
    rows = np.where(reasons == b"", np.cumsum(reasons == b"") - 1, -1)
    table = np.empty(len(names), _clip_dtype(names.dtype.itemsize, reasons.dtype.itemsize))
    columns = (names, clips.get("stamp", -2 - number), digests, clips["flags"], reasons, number, rows)
    for name, column in zip(table.dtype.names, columns, strict=True):
        table[name] = column
    return table


def _clip_dtype(name_bytes: int, reason_bytes: int) -> np.dtype:
    facts = [("clip_id", f"S{name_bytes}"), ("stamp", "<i8"), ("sha256", "S16"), ("flags", "u1")]
    return np.dtype([*facts, ("reason", f"S{reason_bytes}"), ("shard", "<i4"), ("row", "<i4")])
