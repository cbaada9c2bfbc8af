"""The corpus that members were trained on: its cache, what they may be judged by, and where its recordings lie now."""

import contextlib
import os
import re
from pathlib import Path

import numpy as np

from cache.cli import InputError, counted, say
from cache.clip_id import file_of
from cache.find import find_trained_cache
from cache.index import TEST, TRAIN, Cache
from infer.members import Member
from infer.options import CalibrateOptions, EnsembleOptions, LabelledOptions
from infer.recordings import Recordings, list_recordings
from pipeline.lists import spelling
from pipeline.names import SPEECH_COMMANDS
from pipeline.sound_files import content_digests
from pipeline.wake_words import NO_WORDS
from train.folds import calibration_clips, select_fold
from train.trained_on import as_contents, clip_contents


def labelled_recordings(members: list[Member], options: LabelledOptions | CalibrateOptions) -> Recordings:
    """The recordings to judge members by: those of ``--input``, or clips that training left aside.

    Left aside are the split "test" and, for infer.calibrate, the clips that ``--hold-back`` kept from every fold.

    Raises
    ------
    InputError : there are none, or a member was trained on some of them
    """
    if options.source:
        source, recordings = options.source, list_recordings(options.source, options)
        if recordings.labels is None:
            recordings = _without_background(recordings, members[0].classes, source)
    elif isinstance(options, CalibrateOptions):
        source, recordings = "what training held back", cached_calibration_clips(members, options)
    else:
        source, recordings = "the split test", cached_test_split(members, options)
    check_not_trained_on(recordings, members, source)
    if options.source:
        _say_speakers_heard(recordings, members, options)
    return recordings


def _say_speakers_heard(recordings: Recordings, members: list[Member], options: EnsembleOptions) -> None:
    """Say on stderr how many recordings are of speakers that were trained on, as far as names and caches tell."""
    found = [re.match(SPEECH_COMMANDS, name) for name in recordings.names]
    speakers = np.array([(match and match["speaker"]) or "" for match in found], bytes)
    heard = np.zeros(len(speakers), bool)
    for member in members:
        with contextlib.suppress(InputError):  # its cache is not there, or another by now
            cache = find_member_cache(member, options.cache_dir)
            training = select_fold(cache, member.fold, member.options.get("hold_back", 0.0)).training
            heard |= (speakers != b"") & np.isin(speakers, cache.clips["speaker"][training])
    if heard.any():
        what = f"{heard.sum():,} of its recordings are of speakers that were trained on"
        say(f"{options.source}: {what}; figures may be too high", error=True)


def _without_background(recordings: Recordings, classes: list[str], source: str) -> Recordings:
    """Recordings in <label>/ folders, without those in folders that a build leaves out; says how many these are."""
    known = {spelling(label) for label in classes}
    kept = [
        at
        for at, name in enumerate(recordings.names)
        if not is_background(name) or spelling(name.partition("/")[0]) in known
    ]
    if len(kept) < len(recordings.names):
        count = counted(len(recordings.names) - len(kept), "recording")
        left = f"{count} in folders such as _background_noise_ left out"
        if not kept:
            raise InputError(f"{source}: {left}, and no other is there")
        say(f"{source}: {left}", error=True)
    return recordings.select(kept)


def check_not_trained_on(recordings: Recordings, members: list[Member], source: str) -> np.ndarray:
    """Refuse recordings that a member was trained on, whatever their names and wherever they lie.

    Returns
    -------
    what was compared: their contents, see :func:`contents_of`

    Raises
    ------
    InputError : a member was trained on some
    """
    contents = contents_of(recordings.paths)
    for member in members:
        if member.trained_on is None:
            why = "which it does not say (an older version trained it, or sidecars were missing)"
            say(f"{source}: not checked against what {member.path} was trained on, {why}", error=True)
            continue
        known = np.isin(contents, member.trained_on)
        if known.any():
            raise InputError(
                f"{source}: {member.path} was trained on {known.sum():,} of its {len(known):,} recordings, such as "
                f"{recordings.names[int(known.argmax())]}; judge it by others, or out of fold (infer.evaluate)"
            )
    return contents


def is_background(name: str) -> bool:
    """Whether a recording lies in a folder such as _background_noise_, but for _unknown_ and _silence_."""
    folder, _, within = name.partition("/")
    return folder.startswith("_") and bool(within) and folder.strip("_") not in NO_WORDS


def contents_of(paths: list[str]) -> np.ndarray:
    """The content of each file as of `train.trained_on` [shape=(n,), dtype=int64]; zero where there is no telling."""
    return as_contents(digest or "0" for digest in content_digests([file_of(path) for path in paths]))


def find_member_cache(member: Member, cache_dir: str) -> Cache:
    """The cache that a member was trained from.

    Raises
    ------
    InputError : it is not there, or holds another split by now
    """
    return find_trained_cache(cache_dir, member.config, member.split_digest, member.path, "use --input")


def check_no_words_added(member: Member, cache: Cache) -> None:
    """Refuse a member that has learnt words after its training: what training held out or back tells nothing of them.

    Raises
    ------
    InputError : it knows other labels than its cache
    """
    added = [label for label in member.classes if label not in cache.classes]
    if added:
        raise InputError(
            f"{member.path}: {', '.join(added)} came later, by train.add_words, so what training left aside cannot "
            "judge it; use infer.evaluate --split test (the earlier words), or --input FOLDER with recordings of all"
        )


def cached_test_split(members: list[Member], options: EnsembleOptions) -> Recordings:
    """The clips of the first member's split "test", as files of the corpus; InputError where there are none."""
    cache = find_member_cache(members[0], options.cache_dir)
    tested = cache.clips["split"] == TEST
    nothing = "the corpus names no test clips (testing_list.txt); use --input FOLDER"
    if copies := int(_copies(cache, tested, cache.clips["split"] == TRAIN).sum()):
        say(f"{copies:,} of the clips for testing are copies of clips that are trained on", error=True)
    return _recordings(cache, tested, options, nothing)


def cached_clips(members: list[Member], options: EnsembleOptions) -> tuple[str, Recordings]:
    """Clips of the first member's cache, and what they are: of the split "test", or all where it has none."""
    cache = find_member_cache(members[0], options.cache_dir)
    tested = cache.clips["split"] == TEST
    source, chosen = ("the cache's test split", tested) if tested.any() else ("the cache", ~tested)
    return source, _recordings(cache, chosen, options, "no clip")


def cached_calibration_clips(members: list[Member], options: EnsembleOptions) -> Recordings:
    """The clips that no fold was trained on, as files of the corpus; InputError where there are none."""
    cache = find_member_cache(members[0], options.cache_dir)
    check_no_words_added(members[0], cache)
    share = min(member.options.get("hold_back", 0.0) for member in members)
    held_back = calibration_clips(cache, share if all(member.held_back for member in members) else 0.0)
    copies = _copies(cache, held_back, (cache.clips["split"] == TRAIN) & ~held_back)
    but = f", but for {copies.sum():,} of recordings that were trained on, too" if copies.any() else ""
    why, more = f"--hold-back {share:g}{but}", ", or train with a larger --hold-back"
    if any(member.fold == "none" for member in members):
        why, more = "fold none trains on all", ""
    elif cache.index["split"]["split"] == "official":
        why, more = "the split is the corpus's official one", ""
    nothing = f"training held no clips back ({why}); use --input FOLDER of labelled recordings that no member was "
    return _recordings(cache, held_back & ~copies, options, f"{nothing}trained on{more}")


def _copies(cache: Cache, clips: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Which of `clips` have the same content as one of `trained`; all three are masks of the clip table.

    Clips cut from background never count: they share their file.
    """
    contents = clip_contents(cache)
    if contents is None:
        return np.zeros(len(clips), bool)
    return clips & np.isin(contents, contents[trained]) & ~np.char.startswith(cache.clips["clip_id"], b"_")


def _names(cache: Cache, chosen: np.ndarray) -> list[str]:
    return [name.decode() for name in cache.clips["clip_id"][chosen].tolist()]


def _recordings(cache: Cache, mask: np.ndarray, options: EnsembleOptions, nothing: str) -> Recordings:
    """Clips as files of the corpus; says how many files are not there.

    Raises
    ------
    InputError : no file is there, or the mask chooses no clip: then with the words `nothing`
    """
    if not mask.any():
        raise InputError(f"{cache.folder}: {nothing}")
    names, folder = _names(cache, mask), find_corpus(cache, options.audio_dir)
    labels = [cache.classes[target] for target in cache.clips["target"][mask].tolist()]
    recordings = Recordings([str(folder / name) for name in names], names, labels=labels)
    missing = sum(not os.path.exists(file_of(path)) for path in recordings.paths)
    if missing == len(names):
        raise InputError(f"{folder}: holds none of {missing:,} clips of {cache.folder}; name their --audio-dir")
    if missing:
        say(f"{folder}: {missing:,} of {len(names):,} clips are missing; name their --audio-dir", error=True)
    return recordings


def find_corpus(cache: Cache, audio_dir: str | None) -> Path:
    """The folder that a cache's clips lie in now.

    Parameters
    ----------
    audio_dir : the folder, where the user names it

    Returns
    -------
    Path : where the cache was built from; if the clips are not there any more, the folder of the same name near the
        cache that has some, as where a project has moved with data/audio and data/cache
    """
    if audio_dir:
        return Path(audio_dir)
    built = Path(cache.index["audio_dir"])
    near = [
        parent.joinpath(*built.parts[-depth:])
        for parent in cache.folder.resolve().parents
        for depth in range(1, len(built.parts))
    ]
    some = _names(cache, np.linspace(0, len(cache.clips) - 1, 16).astype(int))
    return next((folder for folder in (built, *near) if any((folder / file_of(name)).exists() for name in some)), built)
