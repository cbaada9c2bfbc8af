"""New words for a trained run: recordings, the clips beside them, and the run that comes of it."""

import contextlib
import dataclasses
import re
import shlex
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import EXIT_OK, InputError, say
from cache.config import FeatureConfig
from cache.files import new_folder
from cache.find import find_trained_cache
from cache.index import TRAIN, Cache
from train.calibration import fit_temperature
from train.checkpoint import load_folds, save_checkpoint
from train.folds import select_fold
from train.last_layer import Backbone, fit_last_layer
from train.options import AddWordsOptions
from train.progress import best_checkpoints
from train.record import write_config
from train.recordings import build_features
from train.stopping import ending_at_once
from train.trained_on import clip_contents, contents_trained_on
from train.world import World

_FEWEST = 5  # different recordings of a word
_LONGEST_NAME = 200  # bytes of the new run's
_OLD_CLIPS = 100  # of each word that the run knows, to fit with, and as many that its fold held out, to calibrate with
_VIEWS = 8  # of each new recording, all but the first augmented, in the way that the run was trained with
_PARTS = 3  # of the new recordings: each is judged by a layer that was fitted without it


def add_words(options: AddWordsOptions, world: World) -> int:
    """Fit a new last layer on every fold of a run, for its words and new ones; returns the exit status.

    Raises
    ------
    InputError : no such run or recordings, words that the run knows, too few recordings, or a run of that name is there
    """
    run = Path(options.run) if Path(options.run).name not in ("", "..") else Path(options.run).resolve()
    trained = _read_folds(run)
    first = next(iter(trained))
    config = FeatureConfig.from_dict(trained[first]["features"], str(first))
    old = find_trained_cache(options.cache_dir, config, trained[first]["split_digest"], first)
    if trained[first]["classes"] != old.classes:
        raise InputError(f"{run}: has new words already; add them together with these to the run that was trained")
    with recordings_as_cache(options.audio, config) as new:
        counts = check_words(new, old.classes, options)
        name = options.name or "+".join([run.name, *counts])
        if len(name.encode()) > _LONGEST_NAME:
            raise InputError(f"{name[:60]}…: too long for the new run's name; choose one with --name")
        target = run.parent / name
        _say_heard(new, trained)
        with new_folder(target) as folder:
            for path, saved in trained.items():
                content = _refit(path, saved, old, new, world)
                kept = {key: value for key, value in content.items() if key not in ("model", "heard", "version")}
                kept["added"] = {"run": str(run), "recordings": counts}
                (folder / path.parent.name).mkdir()
                write_config(folder / path.parent.name, kept, old, world)
                save_checkpoint(folder / path.parent.name / path.name, content)
    say(f"{target}: folds: {len(trained)}, labels: {len(old.classes) + len(counts)}, new: {', '.join(counts)}")
    folds = ",".join(path.parent.name.removeprefix("fold") for path in trained)
    named = f"--run {shlex.quote(str(target))} --folds {folds}"
    named += f" --cache-dir {shlex.quote(options.cache_dir)}" if options.cache_dir != "data/cache" else ""
    if any(run.glob("ensemble-*.json")):
        say(f"calibrate it as {options.run} was: python -m infer.calibrate {named} --input FOLDER")
    say(f"next: python -m infer.evaluate {named} {'--split test' if old.test_clips else '--input FOLDER'}")
    return EXIT_OK


def _read_folds(run: Path) -> dict[Path, dict[str, Any]]:
    """The checkpoints of a run's trained folds; InputError where there are none, or they are not of one kind."""
    paths = list(best_checkpoints(run).values())
    if not paths:
        raise InputError(f"{run}: no trained fold; train one with python -m train.run, or choose with --run")
    return load_folds(paths)


@contextlib.contextmanager
def recordings_as_cache(audio: str, config: FeatureConfig) -> Iterator[Cache]:
    """A folder of recordings as a cache with a run's features, which is gone when the block ends.

    Raises
    ------
    InputError : no such folder, a recording that cannot be used, or whatever the build says
    """
    if not Path(audio).is_dir() or not any(path.is_dir() for path in Path(audio).iterdir()):
        raise InputError(f"--audio {audio}: no such folder, or none in it; expected {audio}/<word>/*.wav")
    config = dataclasses.replace(config, num_views=_VIEWS)
    try:
        with ending_at_once(), tempfile.TemporaryDirectory(prefix="melshard-") as folder:
            yield build_features(audio, config, Path(folder), "--jobs=1")
    except InputError as error:
        if few := re.search(r"fewer speakers \(or clips\) than .* for: (.*?);", str(error)):  # than its folds
            raise InputError(f"{audio}: fewer than {_FEWEST} different recordings of {few[1]}; add some") from None
        raise


def check_words(new: Cache, known: list[str], options: AddWordsOptions) -> dict[str, int]:
    """How many recordings there are of each new word.

    Raises
    ------
    InputError : of some there are too few, or the run knows them
    """
    own, counts = new.clips["split"] == TRAIN, new.index["counts"]
    if counts["silent"]:
        raise InputError(f"{options.audio}: silent recordings: {counts['silent']}; remove them")
    if counts["cropped"]:
        say(f"{options.audio}: of {counts['cropped']} longer recordings the loudest part is taken", error=True)
    if not own.all():
        say(f"{options.audio}: recordings left out, for they are listed for testing: {(~own).sum()}", error=True)
    contents, targets = np.asarray(clip_contents(new))[own], new.clips["target"][own]
    different = np.unique(np.stack([contents, targets]), axis=1)
    words = dict(zip(new.classes, np.bincount(different[1], minlength=len(new.classes)).tolist(), strict=True))
    several = np.unique(different[0], return_counts=True)[1] > 1
    if several.any():
        raise InputError(f"{options.audio}: recordings under two words: {several.sum()}; leave each under one")
    spoken = {_alike(word) for word in known}
    if twice := [word for word in words if _alike(word) in spoken]:
        raise InputError(
            f"{options.audio}: {options.run} knows {', '.join(twice)} already; leave out what is not new, or train "
            "again on a corpus with these recordings"
        )
    if few := [f"{word} ({count})" for word, count in words.items() if count < _FEWEST]:
        raise InputError(f"{options.audio}: fewer than {_FEWEST} different recordings of {', '.join(few)}; add some")
    return words


def _alike(word: str) -> str:
    """One spelling of all those that look the same, or differ in their capitals only."""
    return unicodedata.normalize("NFC", word).casefold()


def _say_heard(new: Cache, trained: dict[Path, dict[str, Any]]) -> None:
    """Say on stderr which of the new recordings the run was trained on as something else."""
    heard = [saved["heard"].numpy() for saved in trained.values() if saved.get("heard") is not None]
    known = np.isin(np.asarray(clip_contents(new)), np.concatenate(heard) if heard else [])
    if known.any():
        such = new.clips["clip_id"][int(known.argmax())].decode()
        say(f"the run was trained on {known.sum()} of these under other labels, such as {such}", error=True)


def _refit(path: Path, saved: dict[str, Any], old: Cache, new: Cache, world: World) -> dict[str, Any]:
    """The content of best.pt with a new last layer, which is calibrated on clips that it was not fitted on."""
    fold = select_fold(old, saved["fold"], saved["options"].get("hold_back", 0.0))
    known, unheard = (_some_of_each(old, clips) for clips in (fold.training, fold.validation))
    for lost in np.setdiff1d(np.arange(len(old.classes)), old.clips["target"][known]).tolist():
        raise InputError(f"{path}: has no training clip of {old.classes[lost]}; train it with more recordings")
    added = np.flatnonzero(new.clips["split"] == TRAIN)
    backbone = Backbone(path, saved, world.device)
    views = [backbone.pooled(new, added, view) for view in range(new.config.num_views)]
    features = np.concatenate([backbone.pooled(old, known), *views])
    judged = len(old.classes) + new.clips["target"][added]
    targets = np.concatenate([old.clips["target"][known], *[judged] * len(views)])
    parts = np.concatenate([np.full(len(known), -1), *[_parts(new.clips[added])] * len(views)])
    weight, bias = fit_last_layer(features, targets)
    logits = np.empty((len(added), len(bias)))
    for part in range(_PARTS):
        other_weight, other_bias = fit_last_layer(features[parts != part], targets[parts != part])
        mine = parts[-len(added) :] == part
        logits[mine] = views[0][mine] @ other_weight.T + other_bias
    if len(unheard):
        logits = np.concatenate([backbone.pooled(old, unheard) @ weight.T + bias, logits])
        judged = np.concatenate([old.clips["target"][unheard], judged])
    return {
        **saved,
        "classes": [*old.classes, *new.classes],
        "heard": contents_trained_on(new, added, 0.0, [saved.get("heard")]),
        "best": {"epoch": saved["best"]["epoch"], "accuracy": None, "loss": None},
        "temperature": fit_temperature(logits, judged),
        "model": backbone.with_last_layer(weight, bias, new, added[:_FEWEST]),
    }


def _some_of_each(cache: Cache, clips: np.ndarray) -> np.ndarray:
    """The first clips of each label, in an order that is always the same but has nothing to do with their names."""
    shuffled = np.random.default_rng(0).permutation(clips)
    targets = cache.clips["target"][shuffled]
    chosen = [shuffled[targets == target][:_OLD_CLIPS] for target in range(len(cache.classes))]
    return np.sort(np.concatenate(chosen))


def _parts(clips: np.ndarray) -> np.ndarray:
    """The new recordings in parts, each of which is judged by a layer that was fitted without it [shape=(n,)].

    Of each word a part has other speakers than the rest, unless they are too few or not known.
    """
    parts = np.empty(len(clips), int)
    for target in np.unique(clips["target"]):
        own = np.flatnonzero(clips["target"] == target)
        names, speaker = np.unique(clips["speaker"][own], return_inverse=True)
        parts[own] = (speaker if len(names) >= _PARTS else np.arange(len(own))) % _PARTS
    return parts
