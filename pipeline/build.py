"""Building a cache: scan, compare with what is there, build the difference, write the index last."""

import csv
import dataclasses
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import exclusive_lock, remove_leftovers, write_atomic
from cache.index import Cache, clip_dtype, write_index
from cache.shard import shard_path
from pipeline import scan, split
from pipeline.options import BuildOptions
from pipeline.sources import Sources, content_changed, read_sources
from pipeline.shard_task import FLAGS

LOCK = ".lock"
_MARGIN = 64 << 20  # bytes that a build leaves free


@dataclasses.dataclass
class Summary:
    """What a build found and did."""

    folder: Path
    clips: int
    rejected: int
    labels: int
    speakers: int
    views: int
    test: int
    built: int
    shards: int
    bytes: int
    seconds: float
    flags: dict[str, int]
    ignored: dict[str, int]


def build_cache(options: BuildOptions, progress: Callable[[int, int, int], None]) -> Summary:
    """Bring the cache of a configuration up to date with its corpus.

    Parameters
    ----------
    options : the command's flags
    progress : called with (clips done, rejected among them, clips to do), first with nothing done

    Returns
    -------
    Summary

    Raises
    ------
    InputError, OSError : nothing already built is lost; the next build continues
    """
    started = time.monotonic()
    audio_dir = Path(options.audio_dir)
    listing, ignored = scan.scan_corpus(audio_dir)
    _check_labels(listing["clip_id"])
    config = feature_config(options)
    folder = Path(options.cache_dir) / config.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another build is at work here; wait for it, it builds the same cache"
    with exclusive_lock(folder / LOCK, busy=busy):
        remove_leftovers(folder)
        sources = read_sources(folder, config)
        _check_same_corpus(folder, audio_dir, listing, sources)
        if options.check_content:
            for number in content_changed(sources, listing, audio_dir):
                shard_path(folder, number).with_suffix(".json").unlink()
            sources = read_sources(folder, config)
        known = sources.match(listing)
        _plan_split(options, listing[known.reason_of(sources) == b""], folder)  # refuse before any work
        todo = listing[known.index < 0]
        tasks = _plan(folder, audio_dir, config, todo, sources, options)
        _check_space(folder, config, len(todo))
        built = rejected = 0
        progress(0, 0, len(todo))
        from pipeline.pool import run_tasks

        for _, clips, refused in run_tasks(
            tasks, jobs=options.jobs, backend=options.backend, scheduler=options.scheduler
        ):
            built, rejected = built + clips, rejected + refused
            progress(built, rejected, len(todo))
        summary = _finish(options, config, folder, listing)
    return dataclasses.replace(summary, built=built, ignored=ignored, seconds=time.monotonic() - started)


def feature_config(options: BuildOptions) -> FeatureConfig:
    """The FeatureConfig that some flags mean for a corpus; checks the filterbank."""
    from pipeline.features import mel_filterbank

    augmented = options.num_views > 1 and options.augment != "none"
    mixes = augmented and options.augment == "more"
    config = FeatureConfig(
        n_fft=options.n_fft,
        n_mels=options.n_mels,
        n_frames=options.width or options.n_mels,
        num_views=options.num_views if augmented else 1,
        augment=options.augment if augmented else "none",
        noise=scan.noise_digest(scan.noise_files(Path(options.audio_dir))) if mixes else "",
        seed=options.seed,
    )
    mel_filterbank(config)
    return config


def _check_labels(clip_ids: np.ndarray) -> None:
    labels = np.unique(scan.labels_of(clip_ids))
    if len(labels) < 2:
        raise InputError(f"one label only ({labels[0].decode()}); a classifier needs recordings of two or more labels")


def _check_same_corpus(folder: Path, audio_dir: Path, listing: np.ndarray, sources: Sources) -> None:
    if len(sources.clips) and not np.isin(listing["clip_id"], sources.clips["clip_id"]).any():
        raise InputError(f"{folder}: holds another corpus than {audio_dir}; use another --cache-dir")


def _plan(
    folder: Path, audio_dir: Path, config: FeatureConfig, todo: np.ndarray, sources: Sources, options: BuildOptions
) -> dict[int, tuple[Any, ...]]:
    """Cut the clips to build into shards, which take the lowest free numbers.

    An interrupted plan is cut into the same shards again: finished ones hold whole pieces of it.
    """
    size = options.clips_per_shard
    used, tasks, number = set(sources.shards), {}, 0
    parent = os.getpid() if options.backend == "loky" and options.jobs != 1 else None
    for first in range(0, len(todo), size):
        while number in used:
            number += 1
        tasks[number] = (str(folder), number, str(audio_dir), config, todo[first : first + size], parent)
        number += 1
    return tasks


def _check_space(folder: Path, config: FeatureConfig, clips: int) -> None:
    needed = clips * 2 * int(np.prod(config.row_shape)) + _MARGIN
    free = shutil.disk_usage(folder).free
    if clips and needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; "
            "free some, use another --cache-dir, fewer --num-views or fewer --n-mels"
        )


def _plan_split(
    options: BuildOptions, listing: np.ndarray, folder: Path
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Classes, targets, speakers, split and fold of a listing, and the index's "split" entry."""
    audio_dir, clip_ids = Path(options.audio_dir), listing["clip_id"]
    labels, targets = np.unique(scan.labels_of(clip_ids), return_inverse=True)
    classes = [label.decode() for label in labels.tolist()]
    speakers = scan.speakers_of(clip_ids)
    official = options.split == "official"
    settings = {
        "split": options.split,
        "folds": 1 if official else options.folds,
        "group_by": options.group_by,
        "seed": options.seed,
    }
    parts, folds = split.split_clips(
        clip_ids,
        targets,
        speakers,
        classes=classes,
        test_ids=scan.read_list(audio_dir, "testing_list.txt"),
        validation_ids=scan.read_list(audio_dir, "validation_list.txt") if official else None,
        folds=options.folds,
        group_by=options.group_by,
        seed=options.seed,
        known=_known_folds(folder, settings),
    )
    settings["digest"] = split.split_digest(clip_ids, parts, folds)
    return classes, targets, speakers, parts, folds, settings


def _known_folds(folder: Path, settings: dict[str, Any]) -> dict[bytes, int]:
    """Speaker or clip_id → fold in an earlier index with the same settings, so that they keep it."""
    try:
        cache = Cache(folder, check_shards=False)
    except InputError:
        return {}
    if {key: cache.index["split"].get(key) for key in settings} != settings:
        return {}
    rows = cache.clips[cache.clips["fold"] >= 0]
    keys = np.where((rows["speaker"] == b"") | (settings["group_by"] == "none"), rows["clip_id"], rows["speaker"])
    return dict(zip(keys.tolist(), rows["fold"].tolist(), strict=True))


def _finish(options: BuildOptions, config: FeatureConfig, folder: Path, listing: np.ndarray) -> Summary:
    """Write the clip table, the list of rejected clips and the index; remove shards without a living row."""
    sources = read_sources(folder, config)
    match = sources.match(listing)
    reason = match.reason_of(sources)
    good = (match.index >= 0) & (reason == b"")
    found = sources.clips[match.index[good]]
    classes, targets, speakers, parts, folds, settings = _plan_split(options, listing[good], folder)
    clips = np.empty(len(found), clip_dtype(listing.dtype["clip_id"].itemsize, speakers.dtype.itemsize))
    columns = (listing["clip_id"][good], speakers, targets, parts, folds, found["shard"], found["row"])
    for name, column in zip(clips.dtype.names, columns, strict=True):
        clips[name] = column
    alive = np.unique(clips["shard"]).tolist()
    keys = ("rows", "bytes", "checksum")
    shards = [{"number": n, **{key: sources.shards[n][key] for key in keys}} for n in alive]
    versions = {tuple(sorted(sources.shards[n]["versions"].items())) for n in alive}
    flags = {name: int(((found["flags"] >> bit) & 1).sum()) for bit, name in enumerate(FLAGS)}
    bad = ~good & (match.index >= 0)
    _write_rejected(folder / "rejected.csv", listing["clip_id"][bad], reason[bad])
    content = {
        "config": dataclasses.asdict(config),
        "digest": config.digest,
        "audio_dir": str(Path(options.audio_dir).resolve()),
        "classes": classes,
        "split": settings,
        "counts": {"rejected": int(bad.sum()), **flags},
        "versions": [dict(pairs) for pairs in sorted(versions)],
        "shards": shards,
    }
    write_index(folder, clips, content)
    keep = set(alive) | set(np.unique(sources.clips["shard"][match.index[bad]]).tolist())
    for number in set(sources.shards) - keep:
        shard_path(folder, number).with_suffix(".json").unlink(missing_ok=True)
        shard_path(folder, number).unlink(missing_ok=True)
    return Summary(
        folder=folder,
        clips=len(clips),
        rejected=int(bad.sum()),
        labels=len(classes),
        speakers=len(np.unique(speakers[speakers != b""])),
        views=config.num_views,
        test=int((parts == split.TEST).sum()),
        built=0,
        shards=len(shards),
        bytes=sum(shard["bytes"] for shard in shards),
        seconds=0.0,
        flags=flags,
        ignored={},
    )


def _write_rejected(path: Path, clip_ids: np.ndarray, reasons: np.ndarray) -> None:
    if not len(clip_ids):
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "reason"])
    writer.writerows((name.decode(), why.decode()) for name, why in zip(clip_ids, reasons, strict=True))
    write_atomic(path, text.getvalue().encode())
