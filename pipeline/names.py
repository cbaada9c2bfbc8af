"""What the paths of recordings say: label, speaker, fold, split."""

import re
from pathlib import Path

import numpy as np

from cache.cli import InputError, counted
from pipeline.clips import Rows

SPEECH_COMMANDS = r"^(?P<label>[^/]+)/(?:.*/)?(?:(?P<speaker>[0-9a-f]{8})_nohash_[0-9]+\.[^/]*$)?"
_GROUPS = ("label", "speaker", "fold", "split")
_SPLIT_LIKE = re.compile(r"(?:train|training|valid|validation|val|dev|test|testing|fold[-_]?\d+)", re.IGNORECASE)


def compile_pattern(pattern: str | None) -> re.Pattern:
    """The expression that says what a path tells; Speech Commands' where none is given.

    Raises
    ------
    InputError : no regular expression, or one without a named group that means something
    """
    try:
        compiled = re.compile(pattern or SPEECH_COMMANDS)
    except re.error as error:
        raise InputError(f"--pattern {pattern}: {error}") from None
    unknown = set(compiled.groupindex) - set(_GROUPS)
    if unknown or not compiled.groupindex:
        raise InputError(
            f"--pattern {pattern}: {'the group ' + sorted(unknown)[0] if unknown else 'no named group'}; expected "
            f"some of {', '.join(f'(?P<{name}>…)' for name in _GROUPS)}"
        )
    return compiled


def match_names(
    listing: np.ndarray, pattern: str | None, audio_dir: Path, *, grouped: bool = True
) -> tuple[np.ndarray, list[str], list[str]]:
    """Labels and more from the paths of files.

    Parameters
    ----------
    listing : of :func:`pipeline.scan.scan_corpus`
    pattern : a regular expression; without the group "label" the first folder is the label
    grouped : refuse speakers on two sides of a split that the names tell

    Returns
    -------
    (clips, as of `Corpus`; names of their folds; notes)
    """
    compiled, rows, unmatched = compile_pattern(pattern), Rows(grouped=grouped), []
    deep = 0
    for file in listing.tolist():
        name = file[0].decode()
        found = compiled.search(name)
        said = found.groupdict("") if found else {}
        label = said.get("label", name.partition("/")[0] if found and "/" in name else "")
        if not label:
            unmatched.append(name)
            continue
        deep += name.count("/") > 1
        try:
            rows.add(file, None, label, said.get("speaker", ""), said.get("split", ""), said.get("fold"), name)
        except ValueError as error:
            raise InputError(
                f"{audio_dir}/{name}: the {error.args[0]} by --pattern {pattern}: {error.args[1]}"
            ) from None
    if len(unmatched) == len(listing):
        raise InputError(
            f"{audio_dir}: none of {len(listing):,} recordings fits "
            + (f"--pattern {pattern}" if pattern else "<label>/…; name what their paths say with --pattern")
            + f", such as {unmatched[0]}"
        )
    clips, folds = rows.clips()
    notes = []
    if unmatched:
        where = "outside --pattern" if pattern else "in no folder <label>/"
        notes.append(f"left out: {counted(len(unmatched), 'recording')} {where}, such as {unmatched[0]}")
    names = [label.decode() for label in np.unique(clips["label"]).tolist()]
    if not pattern and all(map(_SPLIT_LIKE.fullmatch, names)):
        kind = "fold" if names[0].lower().startswith("fold") else "split"
        deeper = f"--pattern '(?P<{kind}>[^/]+)/(?P<label>[^/]+)/', or with " if 2 * deep > len(clips) else ""
        notes.append(f"the labels are {', '.join(names[:4])}: if these are {kind}s, build with {deeper}--manifest")
    notes.append(_describe_speakers(clips, pattern, deep))
    return clips, folds, notes


def _describe_speakers(clips: np.ndarray, pattern: str | None, deep: int) -> str:
    known = int((clips["speaker"] != b"").sum())
    if known:
        return f"speakers: from {'--pattern' if pattern else '<speaker>_nohash_ in the names'}, of {known:,} clips"
    if not pattern and 2 * deep > len(clips):
        example = clips["clip_id"][0].decode()
        return (
            f"speakers: none known; if the folders below a label are speakers ({example}), build with "
            "--pattern '^(?P<label>[^/]+)/(?P<speaker>[^/]+)/'"
        )
    return "speakers: none known, so that one may stand on both sides of a fold; name them with --pattern or --manifest"
