"""From the flags to the clips that they mean."""

import collections
import dataclasses
import os
from pathlib import Path

import numpy as np

from cache.cli import InputError, counted
from cache.index import TRAIN
from pipeline.clips import LISTS, VALIDATION
from pipeline.lists import read_lines, spelling, spellings
from pipeline.long import cut_long
from pipeline.manifest import read_manifest
from pipeline.names import match_names
from pipeline.options import BuildOptions
from pipeline.scan import files_of, scan_corpus
from pipeline.sound_files import CONVERT, FOREIGN
from pipeline.wake_words import add_negatives, add_silence, keep_labels


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The clips to build, and what there is to say of them."""

    clips: np.ndarray
    """As in `pipeline.clips`, sorted by clip_id."""
    folds: int
    """How many folds the corpus names; 0 where it names none."""
    notes: list[str]
    """What the user should know."""
    warnings: list[str]
    """What the user asked to go on without."""


def read_corpus(options: BuildOptions) -> Corpus:
    """Find the clips that the flags mean.

    Raises
    ------
    InputError : nothing there, or nothing that the flags fit
    """
    audio_dir, ignored = Path(options.audio_dir), list[str]()
    if options.manifest:
        clips, folds, notes = read_manifest(Path(options.manifest), audio_dir, options)
    else:
        listing, counts = scan_corpus(audio_dir)
        ignored = _describe_ignored(counts)
        clips, folds, notes = match_names(listing, options.pattern, audio_dir, grouped=options.group_by != "none")
    listed, warnings = _apply_lists(clips, options)
    notes = [*listed, *ignored, *notes]
    if options.long == "split":  # before some are chosen, by the number of clips
        clips = cut_long(clips, options)
    if options.keep:
        clips, note = keep_labels(clips, options)
        notes.append(note)
    if options.long == "error":
        clips = cut_long(clips, options)
    if options.negatives:
        clips = add_negatives(clips, options)
    if options.silence:
        clips = add_silence(clips, options, len(folds))
    folds = [] if (clips["split"] == VALIDATION).any() else folds  # which is the only fold then
    if folds and folds != [str(number) for number in range(len(folds))]:
        notes.append("folds as given: " + ", ".join(f"{name} is --fold {at}" for at, name in enumerate(folds)))
    clips = clips[np.argsort(clips["clip_id"], kind="stable")]
    if len(twice := np.flatnonzero(clips["clip_id"][1:] == clips["clip_id"][:-1])):
        raise InputError(
            f"{audio_dir}: clips that come twice: {len(twice):,}, such as {clips['clip_id'][twice[0]].decode()}: parts "
            "that overlap are cut alike; correct the table, or leave out --long split"
        )
    return Corpus(clips, len(folds), notes, warnings)


def _describe_ignored(ignored: dict[str, int]) -> list[str]:
    names = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
    notes = [f"ignored files that are no recordings: {names}"] if ignored else []
    return notes + [f"some of these hold sound; {CONVERT}"] * any(suffix in ignored for suffix in FOREIGN)


def _apply_lists(clips: np.ndarray, options: BuildOptions) -> tuple[list[str], list[str]]:
    """Put what the corpus's lists name on their side of the split.

    Parameters
    ----------
    clips : of all recordings, whether or not they can be decoded; the column "split" is written to

    Returns
    -------
    (what each list holds; of each that has lines which name no clip, how many)

    Raises
    ------
    InputError : lines that name no clip, which are then trained on, or are expected to be there and are not
    """
    notes, warnings, before = list[str](), list[str](), clips["split"].copy()
    for name, side in LISTS.items():
        path = os.path.join(options.audio_dir, name)
        if not os.path.lexists(path) or (side == VALIDATION and options.split != "official"):
            continue
        lines = read_lines(path)
        listed, missing = _find_clips(lines, clips["clip_id"], options.audio_dir)
        other = listed & (clips["split"] != side)
        if moved := int((other & ((clips["split"] != TRAIN) | (before != TRAIN).any())).sum()):
            warnings.append(f"{name}: takes {counted(moved, 'clip')} from another split")
        clips["split"][listed] = side
        before_keep = " before --keep" if options.keep else ""
        notes.append(f"{name}: {counted(len(lines), 'line')}, {counted(listed.sum(), 'clip')}{before_keep}")
        if missing and not (options.ignore_missing and listed.any()):
            remedy = ", or go on without them with --ignore-missing" if listed.any() else ""
            raise InputError(
                f"{options.audio_dir}/{notes[-1]}; {len(missing):,} lines name no clip of this corpus, such as "
                f"{missing[0]!r} (clips are named as {clips['clip_id'][0].decode()!r}): correct them{remedy}"
            )
        if missing:
            warnings.append(f"{name}: {len(missing):,} lines name no clip: {missing[0]}, ...")
    return notes, warnings


def _find_clips(lines: list[str], clip_ids: np.ndarray, audio_dir: str) -> tuple[np.ndarray, list[str]]:
    """Which clips some lines name, or the files of [shape=(n,), dtype=bool], and the lines that name none."""
    files, wanted = files_of(clip_ids), {line.encode() for line in lines}
    pairs = zip(clip_ids, files, strict=True)
    listed = np.fromiter((name in wanted or file in wanted for name, file in pairs), bool, len(clip_ids))
    exact = {*clip_ids[listed].tolist(), *files[listed].tolist()}
    others = {line: spellings(line, audio_dir) for line in lines if line.encode() not in exact}
    meant, here = {name for names in others.values() for name in names}, collections.defaultdict[str, list[int]](list)
    for at, pair in enumerate(zip(clip_ids, files, strict=True) if meant else ()):
        for name in {spelling(each.decode()) for each in pair} & meant:
            here[name].append(at)
    found = {line: next((here[name] for name in names if name in here), []) for line, names in others.items()}
    listed[[at for clips in found.values() for at in clips]] = True
    return listed, [line for line, clips in found.items() if not clips]
