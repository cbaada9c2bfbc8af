"""Shards: HDF5 files whose rows lie contiguous and uncompressed, so that a reader maps them into memory.

A shard holds the dataset ``features`` (clips, views, n_mels, n_frames), the dataset ``clip_id``, and the attributes
``schema``, ``number``, ``digest`` and ``sources``. Beside it lies its sidecar ``shard-00000.json``, written after it,
with its row count, its SHA-256 and the clips it was built from. A shard is finished when both have their final names.
"""

import errno
import hashlib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np

from cache.cli import InputError, first_line
from cache.config import FeatureConfig
from cache.files import atomic_path, read_sealed, write_sealed
from cache.mapping import map_file

SCHEMA = 1
REBUILD = "rebuild with python -m pipeline.build_cache"


def shard_path(folder: Path, number: int) -> Path:
    """Path of shard `number` in a cache folder."""
    return Path(folder) / f"shard-{number:05d}.h5"


def write_shard(
    folder: Path,
    number: int,
    config: FeatureConfig,
    clip_ids: list[str],
    rows: Iterable[np.ndarray],
    sources: str | None = None,
) -> dict[str, Any]:
    """Write a shard atomically; the rows are streamed, so that memory holds one at a time.

    Parameters
    ----------
    folder : the cache folder
    clip_ids : one per row, at least one
    rows : per clip an array [shape=(num_views, n_mels, n_frames), dtype=float16]
    sources : digest of the recordings that the rows come from, so that another shard of this number is told apart

    Returns
    -------
    dict : ``rows``, ``bytes``, ``checksum`` and ``sources`` of the finished file, as they stand in its sidecar

    Raises
    ------
    OSError : the disk is full, which shows before the first row is computed
    """
    path = shard_path(folder, number)
    with atomic_path(path) as temporary:
        offset, nbytes = _create(temporary, number, config, clip_ids, sources)
        with open(temporary, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, offset + nbytes)
            checksum = hashlib.sha256(file.read(offset))
            for row in rows:
                assert (row.shape, row.dtype, row.flags.c_contiguous) == (config.row_shape, np.float16, True)
                data = row.data.cast("B")
                checksum.update(data)  # while it is in the core's own cache
                file.write(data)
            assert file.tell() == offset + nbytes, f"{path}: {file.tell() - offset} bytes of rows for {nbytes}"
    entry = {"rows": len(clip_ids), "bytes": offset + nbytes, "checksum": checksum.hexdigest()}
    return {**entry, "sources": sources} if sources else entry


def _create(
    path: Path, number: int, config: FeatureConfig, clip_ids: list[str], sources: str | None
) -> tuple[int, int]:
    """Lay out an empty shard; returns offset and size in bytes of its rows."""
    with h5py.File(path, "w", libver="earliest", locking=False, track_order=False) as file:
        file.attrs.create("schema", SCHEMA, dtype="<i4")
        file.attrs.create("number", number, dtype="<i4")
        file.attrs.create("digest", np.bytes_(config.digest))
        if sources:
            file.attrs.create("sources", np.bytes_(sources))
        names = np.array([clip_id.encode() for clip_id in clip_ids])
        file.create_dataset("clip_id", data=names, track_times=False)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        layout.set_obj_track_times(False)
        space = h5py.h5s.create_simple((len(clip_ids), *config.row_shape))
        dataset = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, space, layout)
        offset, nbytes = dataset.get_offset(), dataset.get_storage_size()
    assert path.stat().st_size <= offset + nbytes, "HDF5 puts what it allocates last at the end"
    return offset, nbytes


class MappedShard(NamedTuple):
    """A shard in memory."""

    rows: np.ndarray
    """[shape=(rows, num_views, n_mels, n_frames), dtype=float16], read-only"""
    words: np.ndarray
    """Their bits [shape=(rows * num_views, n_mels * n_frames), dtype=uint16]."""
    file: BinaryIO
    """Open for reading."""
    offset: int
    """Of the rows in the file, in bytes."""


def map_shard(folder: Path, number: int, config: FeatureConfig, rows: int, sources: str | None = None) -> MappedShard:
    """Map the rows of a shard read-only; nothing that the file points at is followed.

    Parameters
    ----------
    config : what the shard was built with, according to its index
    rows : how many rows it has, according to its index
    sources : what they come from, according to its index; None in caches of versions that did not note it

    Raises
    ------
    InputError : any other schema, number, digest, sources, layout, type or size
    OSError : no such file, no permission, too many open files
    """
    path = shard_path(folder, number)
    try:
        raw = open(path, "rb", buffering=0)  # noqa: SIM115 - stays open as long as the mapping
        with h5py.File(f"/dev/fd/{raw.fileno()}", "r", locking=False) as file:  # this file, even if replaced by now
            offset = _check_layout(path, file, number, config, rows, sources)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        if isinstance(error, InputError) or getattr(error, "filename", None):
            raise
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):  # HDF5 names no file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
        raise InputError(f"{path}: not a readable HDF5 shard ({first_line(error)}); {REBUILD}") from None
    shape = (rows, *config.row_shape)
    size, end = os.fstat(raw.fileno()).st_size, offset + 2 * math.prod(shape)
    if end > size:
        raise InputError(f"{path}: truncated: {size} bytes; {REBUILD}")
    words = map_file(raw)[offset:end].view("<u2").reshape(shape[0] * shape[1], shape[2] * shape[3])
    return MappedShard(words.view("<f2").reshape(shape), words, raw, offset)


def _check_layout(
    path: Path, file: h5py.File, number: int, config: FeatureConfig, rows: int, sources: str | None
) -> int:
    """Compare everything that makes a shard mappable with what it must be; returns the rows' offset in bytes."""

    def expect(what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise InputError(f"{path}: {what} {found}, this version reads {expected}; {REBUILD}")

    expect("schema", file.attrs.get("schema"), SCHEMA)
    expect("shard number", file.attrs.get("number"), number)
    expect("feature digest", _text(file.attrs.get("digest", b"")), config.digest)
    if _text(file.attrs.get("sources", b"")) != (sources or ""):
        raise InputError(f"{path}: not the rows that the index lists; {REBUILD}")
    link = file.id.links.get_info(b"features")
    if link.type != h5py.h5l.TYPE_HARD:
        raise InputError(f"{path}: its features are a link to elsewhere, which is not followed; {REBUILD}")
    dataset = h5py.h5o.open(file.id, b"features")
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise InputError(f"{path}: its features are no dataset; {REBUILD}")
    layout = dataset.get_create_plist()
    if layout.get_external_count():
        raise InputError(f"{path}: its features are stored in other files, which are not followed; {REBUILD}")
    expect("layout", layout.get_layout(), h5py.h5d.CONTIGUOUS)
    expect("shape", dataset.shape, (rows, *config.row_shape))
    if not dataset.get_type().equal(h5py.h5t.IEEE_F16LE):
        raise InputError(f"{path}: its features are not little-endian float16; {REBUILD}")
    offset = dataset.get_offset()
    if offset is None:
        raise InputError(f"{path}: its features are not allocated; {REBUILD}")
    return offset


def _text(value: Any) -> str:
    return bytes(value).decode("ascii", "replace")


def sidecar_path(folder: Path, number: int) -> Path:
    """Path of the sidecar of shard `number`."""
    return shard_path(folder, number).with_suffix(".json")


def write_sidecar(folder: Path, number: int, content: dict[str, Any]) -> None:
    """Write a shard's sidecar; from then on the shard counts as finished."""
    write_sealed(sidecar_path(folder, number), {"schema": SCHEMA, **content})


def shard_numbers(folder: Path) -> set[int]:
    """Numbers of the shards of which a cache folder holds the rows, the sidecar, or both."""
    found = (re.fullmatch(r"shard-(\d{5,})\.(h5|json)", path.name) for path in Path(folder).iterdir())
    return {int(match[1]) for match in found if match}


def remove_shard(folder: Path, number: int) -> None:
    """Remove a shard, its sidecar first, so that it never counts as finished without its rows."""
    sidecar_path(folder, number).unlink(missing_ok=True)
    shard_path(folder, number).unlink(missing_ok=True)


def read_sidecars(folder: Path, config: FeatureConfig) -> dict[int, dict[str, Any]]:
    """Read the sidecars of all finished shards.

    Returns
    -------
    dict : shard number → sidecar; a shard whose file is missing, has another size, or whose sidecar is unreadable
        is left out, and so will be built again
    """
    found = {}
    for number in sorted(shard_numbers(folder)):
        try:
            sidecar = read_sealed(sidecar_path(folder, number))
            if sidecar["schema"] != SCHEMA or sidecar["digest"] != config.digest:
                continue
            if sidecar["rows"] and shard_path(folder, number).stat().st_size != sidecar["bytes"]:
                continue
            found[number] = sidecar
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
