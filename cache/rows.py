"""Copying rows out of shards: a vector loop where they lie in memory, whole reads where they do not."""

import os
import resource

import numpy as np

from cache.cli import InputError
from cache.shard import MappedShard


def copy_rows(shards: list[MappedShard], rows: list[int], targets: np.ndarray) -> int:
    """Copy mapped rows; stops when page faults have to wait for the disk, and returns how many rows were copied.

    Parameters
    ----------
    shards : of each row
    rows : into `MappedShard.words` of each
    targets : [shape=(n, n_mels * n_frames), dtype=uint16], overwritten
    """
    before = _disk_faults()
    for number, (shard, row, target) in enumerate(zip(shards, rows, targets, strict=True), 1):
        np.positive(shard.words[row], target)  # a vector loop: copyto's memcpy takes a quarter longer
        if number % 16 == 0 and _disk_faults() - before > 4:
            return number
    return len(rows)


def _disk_faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def read_rows(shards: list[MappedShard], rows: list[int], targets: np.ndarray) -> None:
    """Read rows from disk, all of them asked for before the first is waited for; parameters as :func:`copy_rows`.

    A page fault reads 4 KB of a row at a time, and pages that were mapped are the last that a full memory gives up.

    Raises
    ------
    InputError : a shard was cut short since it was opened
    """
    ask_rows(shards, rows)
    for shard, row, target in zip(shards, rows, targets, strict=True):
        if os.preadv(shard.file.fileno(), [target], shard.offset + row * target.nbytes) != target.nbytes:
            raise InputError(f"{shard.file.name}: truncated while in use; check it with python -m cache.verify")


def ask_rows(shards: list[MappedShard], rows: list[int]) -> None:
    """Have the kernel read rows ahead; returns at once."""
    for shard, row in zip(shards, rows, strict=True):
        nbytes = shard.words[row].nbytes
        os.posix_fadvise(shard.file.fileno(), shard.offset + row * nbytes, nbytes, os.POSIX_FADV_WILLNEED)


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files where `count` more would not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
