"""From the flags to the clips that they mean."""

import dataclasses
from pathlib import Path

import numpy as np

from cache.index import TEST
from pipeline.clips import VALIDATION
from pipeline.lists import TESTING, ClipList, read_clip_lists
from pipeline.lists import VALIDATION as VALIDATING
from pipeline.long import cut_long
from pipeline.manifest import read_manifest
from pipeline.names import match_names
from pipeline.options import BuildOptions
from pipeline.scan import scan_corpus
from pipeline.wake_words import add_negatives, add_silence, keep_labels


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The clips to build, and what there is to say of them."""

    clips: np.ndarray
    """As in `pipeline.clips`, sorted by clip_id."""
    folds: int
    """How many folds the corpus names; 0 where it names none."""
    ignored: dict[str, int]
    """Suffix → files that are no recordings."""
    notes: list[str]
    """What the user should know."""
    lists: dict[str, ClipList]


def read_corpus(options: BuildOptions) -> Corpus:
    """Find the clips that the flags mean.

    Raises
    ------
    InputError : nothing there, or nothing that the flags fit
    """
    audio_dir, ignored = Path(options.audio_dir), dict[str, int]()
    if options.manifest:
        clips, folds, notes = read_manifest(Path(options.manifest), audio_dir, options)
    else:
        listing, ignored = scan_corpus(audio_dir)
        clips, folds, notes = match_names(listing, options.pattern, audio_dir, grouped=options.group_by != "none")
    lists = read_clip_lists(options, clips["clip_id"])
    for name, side in ((VALIDATING, VALIDATION), (TESTING, TEST)):
        if name in lists:
            clips["split"][np.isin(clips["clip_id"], np.array(sorted(lists[name].clip_ids), bytes))] = side
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
    return Corpus(clips[np.argsort(clips["clip_id"], kind="stable")], len(folds), ignored, notes, lists)
