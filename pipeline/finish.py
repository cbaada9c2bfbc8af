"""The end of a build: folds, the clip table, the list of rejected files, and the index, which makes it complete."""

import collections
import contextlib
import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import InputError, counted
from cache.config import FeatureConfig
from cache.files import csv_table
from cache.index import TRAIN, Cache, clip_dtype, write_index
from cache.shard import remove_shard, shard_numbers
from pipeline import split
from pipeline.clips import VALIDATION
from pipeline.lists import spelling
from pipeline.options import BuildOptions
from pipeline.provenance import read_provenance
from pipeline.scan import NOISE_FOLDER, files_of
from pipeline.shard_task import FLAGS

REJECTED, COPIES = "rejected.csv", "copies.csv"
_AS_FLOAT = re.compile(r"^(\d+)\.0$")
_SEPARATOR = re.compile(r"\s*[,;|]\s*")


def finish(
    options: BuildOptions, config: FeatureConfig, folder: Path, listing: np.ndarray, earlier: Cache | None, folds: int
) -> list[str]:
    """Write the clip table, the lists of rejected and of identical clips, and the index; remove dead shards.

    Parameters
    ----------
    earlier, folds : see :func:`plan_split`

    Returns
    -------
    what the user should know of the recordings
    """
    provenance = read_provenance(folder, config)
    known = provenance.match(listing, Path(options.audio_dir))
    bad = known["reason"] != b""
    good = (known["shard"] >= 0) & ~bad
    _write_rejected(folder / REJECTED, known[bad])
    found = known[good]
    listing = listing[good]
    with naming_rejected(int(bad.sum()), folder):
        classes, targets, parts, fold_of, settings = plan_split(options, listing, found, earlier, folds)
    clips = np.empty(len(found), clip_dtype(*(listing.dtype[name].itemsize for name in ("clip_id", "speaker"))))
    columns = (listing["clip_id"], listing["speaker"], targets, parts, fold_of, found["shard"], found["row"])
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
        "command": options.command,
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
    background = () if options.manifest else (NOISE_FOLDER,)  # a table may name clips there
    notes = [*_describe_cancelled(found), *list_copies(folder / COPIES, listing, _contents(found), clips, background)]
    return [*notes, *_describe_split(clips, classes, settings)]


@contextlib.contextmanager
def naming_rejected(count: int, folder: Path) -> Iterator[None]:
    """Add to an error that some recordings are missing for, and where the reasons stand."""
    try:
        yield
    except InputError as error:
        if not count:
            raise
        raise InputError(f"{error}; {counted(count, 'recording')} cannot be used, see {folder / REJECTED}") from None


def plan_split(
    options: BuildOptions, listing: np.ndarray, known: np.ndarray, earlier: Cache | None, folds: int
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Classes, targets, split and fold of a listing, and the index's "split" entry.

    Parameters
    ----------
    listing : as in `pipeline.clips`
    known : what `pipeline.provenance` knows of these clips
    earlier : the cache that an earlier build left in the folder, whose speakers keep their folds
    folds : that the corpus names; 0 where it names none
    """
    audio_dir = Path(options.audio_dir)
    labels, targets = np.unique(listing["label"], return_inverse=True)
    classes = [label.decode() for label in labels.tolist()]
    if len(classes) < (1 if options.one_label else 2):
        found = f"one label only ({classes[0]})" if classes else "no usable recording"
        raise InputError(f"{audio_dir}: {found}; a classifier needs recordings of two or more labels")
    _check_labels(audio_dir, classes)
    settings = {key: getattr(options, key) for key in ("split", "folds", "group_by", "seed")}
    if (listing["split"] == VALIDATION).any():
        settings |= {"split": "official", "folds": 1}
    elif options.split == "official":
        raise InputError("--split official: validation_list.txt names no clip of this corpus; use --split kfold")
    elif folds:
        settings |= {"split": "given", "folds": folds}
    parts, fold_of = split.split_clips(
        listing,
        targets,
        classes=classes,
        contents=_contents(known),
        folds=settings["folds"],
        group_by=options.group_by,
        seed=options.seed,
        known=_known_folds(earlier, settings),
    )
    if not (parts == TRAIN).any():
        raise InputError(f"{audio_dir}: no clip is left to train on; all are for testing")
    settings["digest"] = split.split_digest(listing, parts, fold_of, known["sha256"])
    return classes, targets, parts, fold_of, settings


def _contents(known: np.ndarray) -> np.ndarray:
    """Of each clip the digest of its file, but empty where it is silent: silent files are all the same."""
    return np.where((known["flags"] >> FLAGS.index("silent")) & 1, b"", known["sha256"])


def _describe_split(clips: np.ndarray, classes: list[str], settings: dict[str, Any]) -> list[str]:
    """Labels that are lists, and what a given split does that one of ours would not: speakers on two sides and such."""
    notes = []
    parts = {name: _SEPARATOR.split(name) for name in classes}
    uses = collections.Counter(part for own in parts.values() for part in {*own})
    if lists := [name for name, own in parts.items() if len(own) > 1 and any(uses[part] > 1 for part in own)]:
        notes.append(f"labels that are lists of others: {len(lists):,}, such as {lists[0]!r}; each is one of its own")
    alike = collections.Counter(map(str.casefold, classes))
    if twins := [name for name in classes if alike[name.casefold()] > 1]:
        notes.append(f"labels that differ in capitals only: {', '.join(twins[:4])}; each is one of its own")
    for fold in range(settings["folds"]):
        heard = clips["target"][(clips["split"] == TRAIN) & (clips["fold"] != fold)]
        if lacking := [classes[target] for target in np.setdiff1d(np.arange(len(classes)), heard).tolist()]:
            notes.append(f"fold {fold} has no clip to train on of {len(lacking):,} labels: {', '.join(lacking[:5])}")
        if not (clips["fold"] == fold).any():
            notes.append(f"fold {fold} holds nothing out")
    spoken = clips[clips["speaker"] != b""]
    if settings["group_by"] != "none" and len(spoken):
        names, speaker = np.unique(spoken["speaker"], return_inverse=True)
        sides = np.unique((speaker << 17) + 2 * spoken["fold"].astype(np.int64) + spoken["split"] + 2)
        if two := names[np.bincount(sides >> 17) > 1].tolist():
            notes.append(f"speakers on two sides of the given split: {len(two):,}, such as {two[0].decode()}")
    return notes


def _describe_cancelled(found: np.ndarray) -> list[str]:
    names = [name.decode() for name in found["clip_id"][(found["flags"] >> FLAGS.index("cancelled")) & 1 == 1].tolist()]
    if not names:
        return []
    return [f"recordings whose channels cancel to silence: {len(names):,}, such as {', '.join(names[:3])}"]


def list_copies(
    path: Path, listing: np.ndarray, contents: np.ndarray, clips: np.ndarray, background: tuple[str, ...]
) -> list[str]:
    """Write the recordings whose content another file has, too; says how many there are, and which should not be.

    Parameters
    ----------
    clips : of the clip table, like `listing`
    background : folders whose recordings are not looked at
    """
    files = files_of(listing["clip_id"])
    sound = np.flatnonzero(contents != b"")
    _, first = np.unique(files[sound], return_index=True)  # parts of a file are no copies
    first = sound[first]
    for folder in background:
        first = first[~np.char.startswith(files[first], f"{folder}/".encode())]
    _, group, counts = np.unique(contents[first], return_inverse=True, return_counts=True)
    first, group = first[counts[group] > 1], group[counts[group] > 1]
    if not len(first):
        path.unlink(missing_ok=True)
        return []
    order = np.argsort(group, kind="stable")
    rows, two_labels, two_sides = list[tuple[str, ...]](), list[str](), list[str]()
    for same in np.split(first[order], np.flatnonzero(np.diff(group[order])) + 1):
        names, labels = ([text.decode() for text in column[same].tolist()] for column in (files, listing["label"]))
        rows += [(name, label, names[0], labels[0]) for name, label in zip(names[1:], labels[1:], strict=True)]
        sides = clips[["split", "fold"]][same].tolist()
        for several, values in ((two_labels, labels), (two_sides, sides)):
            if others := [at for at, value in enumerate(values) if value != values[0]]:
                several.append(f"{names[0]} ({labels[0]}) = {names[others[0]]} ({labels[others[0]]})")
    with csv_table(path, ["file", "label", "same_as", "its_label"]) as table:
        table.writerows(sorted(rows, key=lambda row: (row[2], row[0])))
    share = "" if two_sides else ", with which they share a fold"
    notes = [f"recordings that are copies of others{share}: {len(rows):,}, see {path}"]
    if two_labels:
        notes.append(f"recordings under two labels: {len(two_labels):,}, such as {'; '.join(two_labels[:3])}")
    if two_sides:
        notes.append(
            "recordings with copies on another side of the given split, so that its figures are too high: "
            f"{len(two_sides):,}, such as {'; '.join(two_sides[:3])}"
        )
    return notes


def _check_labels(audio_dir: Path, classes: list[str]) -> None:
    """InputError where a label holds control characters, or two differ in Unicode's forms, blanks, or as 1 and 1.0."""
    labels: dict[str, str] = {}
    for label in classes:
        if any(unicodedata.category(c) == "Cc" for c in label):
            raise InputError(f"{audio_dir}: the label {label!a} holds control characters; rename it")
        other = labels.setdefault(spelling(_AS_FLOAT.sub(r"\1", " ".join(label.split()))), label)
        if other != label:
            raise InputError(
                f"{audio_dir}: the labels {other!a} and {label!a} are one in two spellings, such as two forms of "
                "Unicode, other blanks, 1 and 1.0; use one (of two folders: move the recordings of one into the other)"
            )


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
