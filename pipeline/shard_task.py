"""What a worker does: one shard, from files to finished. Importable wherever joblib sends it."""

import dataclasses
import functools
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.clip_id import split_clip_id
from cache.config import FeatureConfig
from cache.files import WORKERS_LOCK, file_lock
from cache.memory import keep_freed_memory
from cache.shard import write_shard, write_sidecar
from pipeline.decode import Clip, read_clip, read_noise
from pipeline.scan import noise_files
from pipeline.sound_files import content_digest, read_file, reason_of

FLAGS = Clip._fields[1:]  # of a clip, as bits in a sidecar


@dataclasses.dataclass(frozen=True, eq=False)
class ShardTask:
    """All that a worker needs to know to build a shard."""

    folder: Path
    """The cache folder."""
    number: int
    audio_dir: Path
    config: FeatureConfig
    filters: np.ndarray
    """The mel filterbank, so that workers need not import librosa."""
    listing: np.ndarray
    """The clips, as in `pipeline.clips`."""


def build_shard(task: ShardTask) -> tuple[int, int, int]:
    """Decode some clips, compute all their views, and write one shard with its sidecar.

    A clip that cannot be decoded becomes a line in the sidecar instead of a row. A shard left without rows has a
    sidecar only.

    Returns
    -------
    (number, clips, rejected clips)
    """
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    keep_freed_memory()
    with threadpool_limits(1), file_lock(task.folder / WORKERS_LOCK, shared=True):
        _stop_if_orphan()
        names = [name.decode() for name in task.listing["clip_id"].tolist()]
        loaded = [_load(task, name) for name in names]
        _read.cache_clear()
        clips = [(name, samples) for name, (samples, *_) in zip(names, loaded, strict=True) if samples is not None]
        _, hashes, flags, reasons = zip(*loaded, strict=True)
        entry: dict[str, Any] = {"rows": 0, "bytes": 0, "checksum": ""}
        if clips:
            heard = [name for name, _ in clips]
            read = hashlib.sha256("\0".join([*names, *hashes]).encode()).hexdigest()
            entry = write_shard(task.folder, task.number, task.config, heard, _render(task, clips), read)
        sources = {"clip_id": names, "stamp": task.listing["stamp"].tolist()}
        sources |= {"sha256": hashes, "flags": flags, "reason": reasons}
        content = {"digest": task.config.digest, **entry, "versions": library_versions(), "clips": sources}
        write_sidecar(task.folder, task.number, content)
    return task.number, len(names), len(names) - len(clips)


def _stop_if_orphan() -> None:
    parent = multiprocessing.parent_process()
    if parent and not parent.is_alive():
        os._exit(1)  # the build was killed: leave no late files behind


def _load(task: ShardTask, name: str) -> tuple[np.ndarray | None, str, int, str]:
    """Decode one clip; returns samples or None, its file's digest, flag bits, and the reason of a refusal or ""."""
    file, part = split_clip_id(name)
    digest = ""
    try:
        data, digest = _read(os.path.join(task.audio_dir, file))
        clip = read_clip(data, task.config, part)
    except InputError as error:
        return None, digest or "-", 0, str(error)
    except OSError as error:
        return None, "", 0, reason_of(error)  # without a hash: the next build tries it again
    return clip.samples, digest, sum(done << bit for bit, done in enumerate(clip[1:])), ""


@functools.lru_cache(maxsize=1)  # parts of a recording follow each other
def _read(path: str) -> tuple[bytes, str]:
    """The content of a file, and its digest."""
    data = read_file(path)
    return data, content_digest(data)


def _render(task: ShardTask, clips: list[tuple[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield the row of each clip, in reused memory [shape=(num_views, n_mels, n_frames), dtype=float16]."""
    import torch

    from pipeline.augment import render_view
    from pipeline.features import LogMel

    config = task.config
    log_mel, noises = LogMel(config, task.filters), _noises(task.audio_dir, config)
    together = max(1, log_mel.at_once // config.num_views)  # clips
    buffer = torch.empty(together, *config.row_shape, dtype=torch.float16)
    out, rows = buffer.flatten(0, 1).unbind(), buffer.numpy()
    for first in range(0, len(clips), together):
        _stop_if_orphan()
        views = [
            render_view(samples, config, name, view, noises)
            for name, samples in clips[first : first + together]
            for view in range(config.num_views)
        ]
        log_mel(views, out)
        yield from rows[: len(views) // config.num_views]


@functools.lru_cache(maxsize=1)
def _noises(audio_dir: Path, config: FeatureConfig) -> list[np.ndarray]:
    """Background recordings at the clip's sample rate, each at least as long as a clip."""
    if not config.noise:
        return []
    return [read_noise(str(path), config) for path in noise_files(audio_dir)]


def library_versions() -> dict[str, str]:
    """Versions of what decides the features' bits."""
    from importlib.metadata import version

    import soundfile
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "libsndfile": soundfile.__libsndfile_version__,
        "librosa": version("librosa"),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
