"""What a worker does: one shard, from files to finished. Importable wherever joblib sends it."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import WORKERS_LOCK, shared_lock
from cache.shard import write_shard, write_sidecar

FLAGS = ("padded", "cropped", "resampled", "silent")  # of a clip, as bits in a sidecar


def build_shard(
    folder: str, number: int, audio_dir: str, config: FeatureConfig, listing: np.ndarray, parent: int | None
) -> tuple[int, int, int]:
    """Decode some clips, compute all their views, and write one shard with its sidecar.

    A clip that cannot be decoded becomes a line in the sidecar instead of a row. A shard left without rows has a
    sidecar only.

    Parameters
    ----------
    folder : the cache folder
    number : of the shard
    listing : the clips, as `pipeline.scan.scan_corpus` lists them
    parent : process id of the build; the work is dropped when it is no longer the parent (None: not checked)

    Returns
    -------
    (number, clips, rejected clips)
    """
    import torch

    torch.set_num_threads(1)
    with shared_lock(Path(folder) / WORKERS_LOCK):
        rejected = _build(Path(folder), number, audio_dir, config, listing, parent)
    return number, len(listing), rejected


def _build(
    folder: Path, number: int, audio_dir: str, config: FeatureConfig, listing: np.ndarray, parent: int | None
) -> int:
    names = [name.decode() for name in listing["clip_id"].tolist()]
    clips, hashes, flags, reasons = [], [], [], []
    for name in names:
        _stop_if_orphan(parent)
        clip, digest, flag, reason = _load(os.path.join(audio_dir, name), config)
        hashes.append(digest)
        flags.append(flag)
        reasons.append(reason)
        if clip is not None:
            clips.append((name, clip))
    entry: dict[str, Any] = {"rows": 0, "bytes": 0, "checksum": ""}
    if clips:
        rows = _render(clips, config, audio_dir, parent)
        entry = write_shard(folder, number, config, [name for name, _ in clips], rows)
    sources = {
        "clip_id": names,
        "size": listing["size"].tolist(),
        "mtime_ns": listing["mtime_ns"].tolist(),
        "sha256": hashes,
        "flags": flags,
        "reason": reasons,
    }
    content = {"digest": config.digest, **entry, "versions": library_versions(), "clips": sources}
    write_sidecar(folder, number, content)
    return len(names) - len(clips)


def _stop_if_orphan(parent: int | None) -> None:
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # the build was killed: leave no late files behind


def _load(path: str, config: FeatureConfig) -> tuple[np.ndarray | None, str, int, str]:
    """Decode one file; returns samples or None, content hash, flag bits, and the reason of a refusal or ""."""
    from pipeline.decode import read_clip

    digest = ""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:16]
        clip = read_clip(path, config)
    except InputError as error:
        return None, digest, 0, str(error)
    except OSError as error:
        return None, digest, 0, error.strerror or str(error)
    return clip.samples, digest, sum(getattr(clip, name) << bit for bit, name in enumerate(FLAGS)), ""


def _render(clips: list[tuple[str, np.ndarray]], config: FeatureConfig, audio_dir: str, parent: int | None):
    """Yield the row of each clip, in one reused buffer [shape=(num_views, n_mels, n_frames), dtype=float16]."""
    import torch

    from pipeline.augment import augment_view

    log_mel, noises = _log_mel(config), _noises(audio_dir, config)
    out = torch.empty(config.row_shape, dtype=torch.float16)
    for name, samples in clips:
        _stop_if_orphan(parent)
        log_mel(samples, out[0])
        for view in range(1, config.num_views):
            augmented = augment_view(samples, config.augment, seed=config.seed, clip_id=name, view=view, noises=noises)
            log_mel(augmented, out[view])
        yield out.numpy()


@functools.lru_cache(maxsize=1)
def _log_mel(config: FeatureConfig):
    from pipeline.features import LogMel

    return LogMel(config)


@functools.lru_cache(maxsize=1)
def _noises(audio_dir: str, config: FeatureConfig) -> list[np.ndarray]:
    """Background recordings at the clip's sample rate, each at least as long as a clip."""
    if not config.noise:
        return []
    from pipeline.decode import read_noise
    from pipeline.scan import noise_files

    return [read_noise(str(path), config) for path in noise_files(Path(audio_dir))]


def library_versions() -> dict[str, str]:
    """Versions of what decides the features' bits."""
    import librosa
    import soundfile
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "libsndfile": soundfile.__libsndfile_version__,
        "librosa": librosa.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
