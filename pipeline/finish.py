"""The end of a build: folds, the clip table, the list of rejected files, and the index, which makes it complete."""

import dataclasses
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.index import Cache, clip_dtype, write_index
from cache.shard import remove_shard, shard_numbers
from cache.tables import csv_table
from pipeline import scan, split
from pipeline.lists import TESTING, VALIDATION, ClipList, spelling
from pipeline.options import BuildOptions
from pipeline.provenance import read_provenance
from pipeline.shard_task import FLAGS

REJECTED = "rejected.csv"


def finish(
    options: BuildOptions,
    config: FeatureConfig,
    folder: Path,
    listing: np.ndarray,
    earlier: Cache | None,
    lists: dict[str, ClipList],
) -> None:
    """Write the clip table, the list of rejected clips and the index; remove shards without a living row.

    Parameters
    ----------
    earlier, lists : see :func:`plan_split`
    """
    provenance = read_provenance(folder, config)
    known = provenance.match(listing)
    bad = known["reason"] != b""
    good = (known["shard"] >= 0) & ~bad
    _write_rejected(folder / REJECTED, known[bad])
    found = known[good]
    classes, targets, speakers, parts, folds, settings = plan_split(options, listing[good], earlier, lists)
    clips = np.empty(len(found), clip_dtype(listing.dtype["clip_id"].itemsize, speakers.dtype.itemsize))
    columns = (listing["clip_id"][good], speakers, targets, parts, folds, found["shard"], found["row"])
    for name, column in zip(clips.dtype.names, columns, strict=True):
        clips[name] = column
    alive = np.unique(clips["shard"]).tolist()
    keys = ("rows", "bytes", "checksum", "sources")
    sidecars = {number: provenance.shards[number] for number in alive}
    shards = [{"number": n, **{key: sidecar[key] for key in keys if key in sidecar}} for n, sidecar in sidecars.items()]
    versions = {tuple(sorted(sidecar["versions"].items())) for sidecar in sidecars.values()}
    counts = {name: int(((found["flags"] >> bit) & 1).sum()) for bit, name in enumerate(FLAGS)}
    content = {
        "config": dataclasses.asdict(config),
        "digest": config.digest,
        "audio_dir": str(Path(options.audio_dir).resolve()),
        "classes": classes,
        "split": settings,
        "counts": {**counts, "rejected": int(bad.sum())},
        "versions": [dict(pairs) for pairs in sorted(versions)],
        "shards": shards,
    }
    write_index(folder, clips, content)
    keep = set(alive) | set(known["shard"][bad].tolist())
    for number in shard_numbers(folder) - keep:
        remove_shard(folder, number)


def plan_split(
    options: BuildOptions, listing: np.ndarray, earlier: Cache | None, lists: dict[str, ClipList]
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Classes, targets, speakers, split and fold of a listing, and the index's "split" entry.

    Parameters
    ----------
    earlier : of the same folder, whose speakers keep their folds; see :func:`earlier_cache`
    lists : of :func:`pipeline.lists.read_clip_lists`
    """
    audio_dir, clip_ids = Path(options.audio_dir), listing["clip_id"]
    labels, targets = np.unique(scan.labels_of(clip_ids), return_inverse=True)
    classes = [label.decode() for label in labels.tolist()]
    if len(classes) < 2:
        found = f"one label only ({classes[0]})" if classes else "no usable recording"
        raise InputError(f"{audio_dir}: {found}; a classifier needs recordings of two or more labels")
    for label in classes:
        if any(unicodedata.category(c) == "Cc" for c in label):
            raise InputError(f"{audio_dir}: the label {label!a} holds control characters; rename its folder")
    _check_spellings(audio_dir, classes)
    speakers = scan.speakers_of(clip_ids)
    official = options.split == "official"
    named = {name: listed.clip_ids for name, listed in lists.items()}
    settings = {key: getattr(options, key) for key in ("split", "folds", "group_by", "seed")}
    settings["folds"] = 1 if official else options.folds
    parts, folds = split.split_clips(
        clip_ids,
        targets,
        speakers,
        classes=classes,
        test_ids=named.get(TESTING, set()),
        validation_ids=named.get(VALIDATION, set()) if official else None,
        folds=options.folds,
        group_by=options.group_by,
        seed=options.seed,
        known=_known_folds(earlier, settings),
    )
    settings["digest"] = split.split_digest(clip_ids, parts, folds)
    return classes, targets, speakers, parts, folds, settings


def _check_spellings(audio_dir: Path, classes: list[str]) -> None:
    """InputError where two labels look the same, because they differ in Unicode normalisation only."""
    labels: dict[str, str] = {}
    for label in classes:
        other = labels.setdefault(spelling(label), label)
        if other != label:
            raise InputError(
                f"{audio_dir}: the folders {other!a} and {label!a} are one label in two forms of Unicode; "
                "move the recordings of one into the other"
            )


def earlier_cache(folder: Path) -> Cache | None:
    """The cache that an earlier build left in a folder, if it left a readable index."""
    try:
        return Cache(folder, check_shards=False)
    except InputError:
        return None


def _known_folds(cache: Cache | None, settings: dict[str, Any]) -> dict[bytes, int]:
    """Speaker or clip_id → fold in an earlier cache with the same settings, so that they keep it."""
    if cache is None or {key: cache.index["split"].get(key) for key in settings} != settings:
        return {}
    rows = cache.clips[cache.clips["fold"] >= 0]
    keys = np.where((rows["speaker"] == b"") | (settings["group_by"] == "none"), rows["clip_id"], rows["speaker"])
    return dict(zip(keys.tolist(), rows["fold"].tolist(), strict=True))


def _write_rejected(path: Path, clips: np.ndarray) -> None:
    if not len(clips):
        path.unlink(missing_ok=True)
        return
    with csv_table(path, ["file", "reason"]) as table:
        table.writerows((name.decode(), why.decode()) for name, why in clips[["clip_id", "reason"]].tolist())
