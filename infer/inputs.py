"""What is to be judged: recordings in a folder, in a list, or in a cache's test split."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.index import TEST, Cache, list_caches
from infer.members import Member
from pipeline.decode import EXTENSIONS
from pipeline.lists import find_files, read_lines, spelling
from pipeline.scan import walk
from train.folds import held_back, select_fold


@dataclasses.dataclass(frozen=True)
class Recordings:
    """Files in order, with the names under which they are reported."""

    paths: list[str]
    names: list[str]
    """Relative to the input folder, with ``/``; as written in a list."""

    def labels(self, known: list[str]) -> list[str]:
        """The label of each file: its first folder.

        Raises
        ------
        InputError : a file outside such a folder, or a label that no member knows
        """
        spelt = {spelling(label): label for label in known}
        folders = [name.split("/")[0] if "/" in name else "" for name in self.names]
        labels = [spelt.get(spelling(folder), folder) for folder in folders]
        unknown = sorted(set(labels) - set(known))
        if unknown:
            raise InputError(
                f"not the label of any class: {', '.join(name or '(no folder)' for name in unknown[:8])}; "
                f"expected <label>/ folders named {', '.join(known)}"
            )
        return labels


def list_recordings(source: str) -> Recordings:
    """Recordings of a folder (searched below, sorted), of a text file with a path per line, or one recording.

    Raises
    ------
    InputError : nothing there
    """
    path = Path(source)
    if path.is_dir():
        prefix = len(os.path.join(path, ""))
        names = sorted(e.path[prefix:] for e in walk(str(path)) if e.name.lower().endswith(EXTENSIONS))
        recordings = Recordings([str(path / name) for name in names], names)
    elif path.is_file() and path.name.lower().endswith(EXTENSIONS):
        recordings = Recordings([source], [path.name])
    elif path.is_file():
        try:
            names = read_lines(path)
        except InputError as error:
            raise InputError(f"{error}; nor is it a recording ({', '.join(EXTENSIONS)})") from None
        recordings = Recordings(find_files(names, path.parent), names)
        there = sum(map(os.path.lexists, recordings.paths))
        print(f"{source}: {len(names):,} lines, {there:,} files", flush=True)
    else:
        raise InputError(f"{source}: no such folder or file")
    if not recordings.paths:
        raise InputError(f"{source}: no recordings ({', '.join(EXTENSIONS)})")
    return recordings


def list_unheard(source: str, members: list[Member], cache_dir: str) -> Recordings:
    """Recordings as of :func:`list_recordings`, to judge members by.

    Raises
    ------
    InputError : a member was trained on some of them, as far as the caches that are there tell
    """
    recordings = list_recordings(source)
    places = np.array([os.fsencode(os.path.realpath(path)) for path in recordings.paths])
    for member in members:
        try:
            cache = find_member_cache(member, cache_dir)
        except InputError:
            continue
        corpus = os.fsencode(cache.index["audio_dir"])
        training = cache.clips["clip_id"][select_fold(cache, member.fold, member.hold_back).training]
        heard = np.isin(places, [os.path.join(corpus, name) for name in training.tolist()])
        if heard.any():
            raise InputError(
                f"{source}: {member.path} was trained on {heard.sum():,} of its {len(heard):,} recordings, such as "
                f"{recordings.names[int(heard.argmax())]}; judge it by others, or by --split oof"
            )
    return recordings


def find_member_cache(member: Member, cache_dir: str) -> Cache:
    """The cache that a member was trained from.

    Raises
    ------
    InputError : it is not there, or holds another split by now
    """
    folder = next((path for path in list_caches(cache_dir) if path.name == member.config.folder_name), None)
    if folder is None:
        raise InputError(
            f"{cache_dir}: the cache {member.config.folder_name} of {member.path} is not there; use --input"
        )
    cache = Cache(folder)
    if cache.index["split"]["digest"] != member.split_digest:
        raise InputError(
            f"{folder}: not the split that {member.path} was trained on: another corpus (choose with --cache-dir), or "
            "one that changed since (train again); or use --input"
        )
    return cache


def cached_test_split(members: list[Member], cache_dir: str) -> Recordings:
    """The clips of the split "test", as files of the corpus.

    Raises
    ------
    InputError : there are none, or a member was trained with others
    """
    cache = find_member_cache(members[0], cache_dir)
    recordings = _cached(cache, cache.clips["split"] == TEST)
    for member in {m.split_digest: m for m in members if m.split_digest != members[0].split_digest}.values():
        other = find_member_cache(member, cache_dir)
        if _cached(other, other.clips["split"] == TEST).names != recordings.names:
            raise InputError(
                f"{member.path}: trained with another split test than {members[0].path}; use --input FOLDER of "
                "recordings that neither was trained on"
            )
    if not recordings.names:
        raise InputError(f"{cache.folder}: the corpus names no test clips (testing_list.txt); use --input FOLDER")
    return recordings


def cached_held_back(members: list[Member], cache_dir: str) -> Recordings:
    """The clips that no member was trained on, as files of the corpus.

    Raises
    ------
    InputError : there are none, or the members' splits differ
    """
    cache = find_member_cache(members[0], cache_dir)
    if any(member.split_digest != members[0].split_digest for member in members):
        raise InputError("the runs were trained on different splits and hold back different clips; use --input FOLDER")
    share = min(member.hold_back for member in members)
    recordings = _cached(cache, held_back(cache, share))
    if not recordings.names:
        raise InputError(
            f"{cache.folder}: training held no clips back (--hold-back {share:g}); use --input FOLDER of labelled "
            "recordings that no member was trained on, or train with a larger --hold-back"
        )
    return recordings


def _cached(cache: Cache, mask: np.ndarray) -> Recordings:
    names = [name.decode() for name in cache.clips["clip_id"][mask].tolist()]
    return Recordings(cached_paths(cache, names), names)


def cached_paths(cache: Cache, clip_ids: list[str]) -> list[str]:
    """Where the recordings lie that the cache was built from."""
    return [os.path.join(cache.index["audio_dir"], clip_id) for clip_id in clip_ids]
