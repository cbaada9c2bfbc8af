"""The index of a cache, its clip table, and the reader.

``index.json`` is written last: a folder that has one holds a complete cache. The clip table lies beside it as a
structured NumPy array whose file name is its checksum, so that table and index always change together.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import file_checksum, read_sealed, write_atomic, write_sealed
from cache.mapping import map_file
from cache.rows import allow_open_files, ask_rows, copy_rows, read_rows
from cache.shard import REBUILD, SCHEMA, MappedShard, map_shard, shard_path

INDEX = "index.json"
TRAIN, TEST = 0, 1  # values of the column "split"
NO_FOLD = -1
_COLD_BATCHES = 64


def clip_dtype(clip_id_bytes: int, speaker_bytes: int) -> np.dtype:
    """Type of the clip table's rows; strings are UTF-8."""
    return np.dtype(
        [
            ("clip_id", f"S{max(1, clip_id_bytes)}"),
            ("speaker", f"S{max(1, speaker_bytes)}"),
            ("target", "<i4"),
            ("split", "u1"),
            ("fold", "<i2"),
            ("shard", "<i4"),
            ("row", "<i4"),
        ]
    )


def write_index(folder: Path, clips: np.ndarray, content: dict[str, Any]) -> None:
    """Write the clip table and then the index; an unchanged index is left alone.

    Parameters
    ----------
    clips : np.ndarray [shape=(n_clips,), dtype=clip_dtype(…)]
    content : the index but for ``schema`` and ``clips``
    """
    data = io.BytesIO()
    np.save(data, clips, allow_pickle=False)
    checksum = hashlib.sha256(data.getbuffer()).hexdigest()
    table = _table_path(folder, checksum)
    write_atomic(table, data.getbuffer())
    content = {"schema": SCHEMA, **content, "clips": {"count": len(clips), "checksum": checksum}}
    write_sealed(Path(folder) / INDEX, content, indent=1)
    for old in set(Path(folder).glob("clips-*.npy")) - {table}:
        old.unlink()


def _table_path(folder: Path, checksum: str) -> Path:
    return Path(folder) / f"clips-{checksum[:16]}.npy"


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check ``index.json``.

    Raises
    ------
    InputError : no index, another schema, or garbage
    """
    path = Path(folder) / INDEX
    try:
        index = read_sealed(path)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no finished cache (no {INDEX}); finish it with python -m pipeline.build_cache"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: damaged: {error}; {REBUILD}") from None
    if index.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema {index.get('schema')}, this version reads {SCHEMA}; {REBUILD}")
    if not _well_formed(index):
        raise InputError(f"{path}: entries missing or of the wrong type; {REBUILD}")
    return index


def _well_formed(index: dict[str, Any]) -> bool:
    try:
        shards, split = index["shards"], index["split"]
        counts = [index["clips"]["count"], *index["counts"].values()]
        counts += [shard[key] for shard in shards for key in ("number", "rows", "bytes")]
        texts = [*index["classes"], *index["counts"], index["audio_dir"], index["clips"]["checksum"]]
        texts.append(index.get("command", ""))
        texts += [split[key] for key in ("split", "group_by", "digest")]
        texts += [text for shard in shards for text in (shard["checksum"], shard.get("sources", ""))]
        return (
            type(index["classes"]) is list
            and type(split["folds"]) is int
            and split["folds"] >= 1
            and all(type(n) is int and 0 <= n < 1 << 63 for n in counts)
            and all(type(text) is str and "\0" not in text for text in texts)
        )
    except (AttributeError, KeyError, TypeError):
        return False


class Cache:
    """A finished cache, opened for reading. Shards are mapped at first use, once per process.

    Parameters
    ----------
    folder : the cache folder, which holds ``index.json``
    check_shards : check that every shard is there with its size

    Raises
    ------
    InputError : incomplete, damaged, or from another version
    """

    def __init__(self, folder: str | Path, *, check_shards: bool = True) -> None:
        self.folder = Path(folder)
        while True:
            self.index = read_index(self.folder)
            try:
                self._open(check_shards)
                break
            except InputError:
                if read_index(self.folder) == self.index:  # else a build has replaced it meanwhile, and its files
                    raise

    def _open(self, check_shards: bool) -> None:
        self.config = FeatureConfig.from_dict(self.index.get("config"), str(self.folder / INDEX))
        self.classes: list[str] = self.index["classes"]
        self.clips = self._read_table()
        self._listed = {shard["number"]: shard for shard in self.index["shards"]}
        self._mapped: dict[int, MappedShard] = {}
        self._cold_batches = 0  # to read from disk before the mapping is tried again
        allow_open_files(len(self._listed))
        if check_shards:
            self._check_shards()

    def _read_table(self) -> np.ndarray:
        expected, names = self.index["clips"], clip_dtype(1, 1).names
        path = _table_path(self.folder, expected["checksum"])
        try:
            if file_checksum(path) != expected["checksum"]:
                raise InputError(f"{path}: checksum differs from the index; {REBUILD}")
            with open(path, "rb", buffering=0) as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.names != names or dtype != clip_dtype(dtype["clip_id"].itemsize, dtype["speaker"].itemsize):
                    raise InputError(f"{path}: not a clip table of this version; {REBUILD}")
                clips = map_file(file)[file.tell() :].view(dtype)
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: unreadable clip table ({error}); {REBUILD}") from None
        if not clips.shape == shape == (expected["count"],):
            raise InputError(f"{path}: not the index's clip table; {REBUILD}")
        limits = {"target": (0, len(self.classes)), "split": (0, 2), "fold": (NO_FOLD, self.index["split"]["folds"])}
        for name, (low, high) in limits.items():
            if len(clips) and not (clips[name].min() >= low and clips[name].max() < high):
                raise InputError(f"{path}: its column {name} leaves the range of {low} to {high - 1}; {REBUILD}")
        return clips

    def _check_shards(self) -> None:
        for shard in self.index["shards"]:
            path = shard_path(self.folder, shard["number"])
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                found = "missing" if size is None else f"{size} bytes, expected {shard['bytes']}"
                raise InputError(
                    f"{path}: {found}; repair with python -m pipeline.build_cache and the flags it was built with"
                )
        rows = np.zeros(max(self._listed, default=0) + 1, np.int64)
        for number, listed in self._listed.items():
            rows[number] = listed["rows"]
        shard, row = self.clips["shard"], self.clips["row"]
        if len(shard) and (shard.min() < 0 or shard.max() >= len(rows) or row.min() < 0 or (row >= rows[shard]).any()):
            raise InputError(f"{self.folder}: the clip table points outside the shards; {REBUILD}")

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard["bytes"] for shard in self.index["shards"])

    @property
    def speakers(self) -> int:
        """How many speakers are known; a recording that stands for its own parts is none."""
        files, speakers = self.clips["clip_id"], self.clips["speaker"]
        itself = (files == speakers) | np.char.startswith(files, np.char.add(speakers, b"#t="))
        return len(np.unique(speakers[(speakers != b"") & ~itself]))

    @property
    def test_clips(self) -> int:
        """How many clips the split "test" has."""
        return int((self.clips["split"] == TEST).sum())

    def features(self, shard: int) -> np.ndarray:
        """Mapped rows of a shard [shape=(rows, num_views, n_mels, n_frames), dtype=float16], read-only."""
        return self._map(shard).rows

    def _map(self, shard: int) -> MappedShard:
        if shard not in self._mapped:
            listed = self._listed[shard]
            try:
                mapped = map_shard(self.folder, shard, self.config, listed["rows"], listed.get("sources"))
            except (InputError, FileNotFoundError):
                if read_index(self.folder) == self.index:
                    raise
                path = shard_path(self.folder, shard)
                raise InputError(f"{path}: rebuilt since the cache was opened; run the same command again") from None
            self._mapped[shard] = mapped
        return self._mapped[shard]

    def check_mapped(self) -> None:
        """Look whether mapped shards have their length: what is cut within a page reads as zeros, without a signal.

        Raises
        ------
        InputError : a shard is shorter than its rows
        """
        for shard in self._mapped.values():
            if os.fstat(shard.file.fileno()).st_size < shard.offset + shard.rows.nbytes:
                raise InputError(f"{shard.file.name}: cut short while in use; check it with python -m cache.verify")

    def gather(self, clips: np.ndarray, views: np.ndarray | int, out: np.ndarray | None = None) -> np.ndarray:
        """Copy one view of each of some clips; where rows are not in memory, some batches are read from disk.

        Parameters
        ----------
        clips : indices into the clip table [shape=(n,)]
        views : the view of each [shape=(n,)], or of all
        out : [shape=(n, n_mels, n_frames), dtype=float16], overwritten and returned; None: a new array
        """
        out = np.empty((len(clips), *self.config.row_shape[1:]), np.float16) if out is None else out
        assert out.flags.c_contiguous, "its rows are written through flat views"
        targets = out.view(np.uint16).reshape(len(out), self.config.n_mels * self.config.n_frames)
        shards, rows = self._locate(clips, views)
        copied = 0 if self._cold_batches else copy_rows(shards, rows, targets)
        if copied < len(rows):
            self._cold_batches = (self._cold_batches or _COLD_BATCHES) - 1
            read_rows(shards[copied:], rows[copied:], targets[copied:])
        return out

    def prefetch(self, clips: np.ndarray, views: np.ndarray) -> None:
        """Ask the kernel to read some rows ahead, whole rows at a time; returns at once."""
        ask_rows(*self._locate(clips, views))

    def _locate(self, clips: np.ndarray, views: np.ndarray | int) -> tuple[list[MappedShard], list[int]]:
        """Shard, and row among the shard's rows of one view, of each clip."""
        shards = [self._mapped.get(shard) or self._map(shard) for shard in self.clips["shard"][clips].tolist()]
        return shards, (self.clips["row"][clips] * self.config.num_views + views).tolist()
