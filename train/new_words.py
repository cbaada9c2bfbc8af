"""New words for a trained run: recordings, the clips beside them, and the run that comes of it."""

import contextlib
import csv
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache.cli import EXIT_OK, InputError, say
from cache.config import FeatureConfig
from cache.files import new_folder
from cache.find import find_trained_cache, list_caches
from cache.index import TRAIN, Cache
from train.calibration import fit_temperature
from train.checkpoint import load_checkpoint, save_checkpoint
from train.folds import select_fold
from train.last_layer import Backbone, fit_last_layer
from train.options import AddWordsOptions
from train.record import describe_surroundings, write_config
from train.trained_on import contents_trained_on
from train.world import World

_FEWEST = 5  # recordings of a word
_OLD_CLIPS = 100  # of each word that the run knows, to fit with, and as many that its fold held out, to calibrate with
_VIEWS = 8  # of each new recording, all but the first augmented, in the way that the run was trained with
_PARTS = 3  # of the new recordings: each is judged by a layer that was fitted without it


def add_words(options: AddWordsOptions, world: World) -> int:
    """Fit a new last layer on every fold of a run, for its words and new ones; returns the exit status.

    Raises
    ------
    InputError : no such run or recordings, words that the run knows, too few recordings, or a run of that name is there
    """
    run, trained = Path(options.run), _read_folds(Path(options.run))
    first = next(iter(trained))
    config = FeatureConfig.from_dict(trained[first]["features"], str(first))
    old = find_trained_cache(options.cache_dir, config, trained[first]["split_digest"], first)
    if trained[first]["classes"] != old.classes:
        raise InputError(f"{run}: has new words already; add them together with these to the run that was trained")
    with recordings_as_cache(options.audio, config) as new:
        counts = check_words(new, old.classes, options)
        target = run.parent / (options.name or "+".join([run.name, *counts]))
        with new_folder(target) as folder:
            for path, saved in trained.items():
                content = _refit(path, saved, old, new, world)
                origin = {"added": {"run": str(run), "recordings": counts}, **describe_surroundings(old, world)}
                kept = {key: value for key, value in content.items() if key not in ("model", "heard", "version")}
                (folder / path.parent.name).mkdir()
                write_config(folder / path.parent.name, {**kept, **origin})
                save_checkpoint(folder / path.parent.name / path.name, content)
    say(f"{target}: folds: {len(trained)}, labels: {len(old.classes) + len(counts)}, new: {', '.join(counts)}")
    say(f"next: python -m infer.evaluate --run {shlex.quote(str(target))} --split test")
    return EXIT_OK


def _read_folds(run: Path) -> dict[Path, dict[str, Any]]:
    """The checkpoints of a run's trained folds; InputError where there are none, or they are not of one kind."""
    trained = {path: load_checkpoint(path) for path in sorted(run.glob("fold*/best.pt"))}
    if not trained:
        raise InputError(f"{run}: no trained fold; train one with python -m train.run, or choose with --run")
    for key in ("features", "split_digest", "classes"):
        if any(saved[key] != next(iter(trained.values()))[key] for saved in trained.values()):
            raise InputError(f"{run}: its folds were not trained on the same {key}; train them again")
    return trained


@contextlib.contextmanager
def recordings_as_cache(audio: str, config: FeatureConfig) -> Iterator[Cache]:
    """A folder of recordings as a cache with a run's features, which is gone when the block ends.

    It is built by a process of its own: training itself needs no audio library.

    Raises
    ------
    InputError : no such folder, a recording that cannot be used, or whatever the build says
    """
    if not Path(audio).is_dir():
        raise InputError(f"--audio {audio}: no such folder; expected {audio}/<word>/*.wav")
    names = "sample_rate clip_seconds n_fft n_mels fmin fmax top_db normalize".split()
    flags = {name: getattr(config, name) for name in names}
    flags |= {"width": config.n_frames, "win_length": config.win_length or config.n_fft}
    flags |= {"num_views": _VIEWS, "augment": config.augment, "folds": 2, "group_by": "none"}
    flags |= {"audio_dir": audio, "jobs": 1}
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # or nothing is cleared away
    try:
        with tempfile.TemporaryDirectory(prefix="melshard-") as folder:
            command = [sys.executable, "-m", "pipeline.build_cache", "--one-label", f"--cache-dir={folder}"]
            command += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode:
                raise InputError(_describe_failure(audio, Path(folder), done.stderr))
            cache = Cache(list_caches(folder)[0])
            if cache.config.view_config != config.view_config:
                raise InputError(f"{audio}: this version makes other features than the run's; train the run again")
            yield cache
    finally:
        signal.signal(signal.SIGTERM, previous)


def _describe_failure(audio: str, folder: Path, said: str) -> str:
    """Why a build failed, in one line."""
    for path in folder.glob("*/rejected.csv"):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rejected = list(csv.DictReader(file))
        such = f"{rejected[0]['file']} ({rejected[0]['reason']})"
        return f"{audio}: recordings that cannot be used: {len(rejected)}, such as {such}; repair or remove them"
    lines = said.strip().splitlines() or ["no reason given"]
    known = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return known[-1] if known else f"{audio}: its features could not be computed ({lines[-1]})"


def check_words(new: Cache, known: list[str], options: AddWordsOptions) -> dict[str, int]:
    """How many recordings there are of each new word.

    Raises
    ------
    InputError : of some there are too few, or the run knows them
    """
    targets = new.clips["target"][new.clips["split"] == TRAIN]
    counts = dict(zip(new.classes, np.bincount(targets, minlength=len(new.classes)).tolist(), strict=True))
    if twice := [word for word in counts if word in known]:
        raise InputError(
            f"{options.audio}: {options.run} knows {', '.join(twice)} already; leave out what is not new, or train "
            "again on a corpus with these recordings"
        )
    if few := [f"{word} ({count})" for word, count in counts.items() if count < _FEWEST]:
        raise InputError(f"{options.audio}: fewer than {_FEWEST} recordings of {', '.join(few)}; add some")
    return counts


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
        "heard": contents_trained_on(new, added, 0.0, [saved]),
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
