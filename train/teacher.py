"""What a teacher says of clips: out of fold of those with labels, and all its folds together of those without."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, counted, say
from cache.config import FeatureConfig
from cache.files import LOCK, file_checksum, file_lock
from cache.index import TRAIN, Cache
from cache.joined import JoinedCache
from train.calibration import fit_temperature
from train.checkpoint import AGAIN, load_folds
from train.data import judge_clips
from train.held_out import read_held_out
from train.models import load_trained
from train.options import TrainOptions
from train.recordings import build_features
from train.trained_on import clip_contents
from train.world import World

_BATCH = 64
_NO_LABEL = r"(?P<label>\.)(?P<fold>[^.])[^.]*$"  # one label; and a fold as given, which a single recording may have


@dataclasses.dataclass
class Lessons:
    """What a student learns beside labels, and from which clips."""

    cache: Cache
    """The run's, whose clip table may go on with clips without labels."""
    unlabelled: np.ndarray
    """These, as indices into it [shape=(n,)]."""
    contents: np.ndarray
    """Of each of these, see `train.trained_on` [shape=(n,), dtype=int64]."""
    probs: np.ndarray
    """What the teacher says of every clip [shape=(n_clips, classes), dtype=float32]; zero for the split "test"."""
    share: np.ndarray
    """The share of a clip's target that this is [shape=(n_clips, 1), dtype=float32]."""
    digest: str
    """Of what the teacher said out of fold and, where there are clips without labels, of its weights and of these."""


def read_lessons(options: TrainOptions, cache: Cache, world: World) -> Lessons:
    """What the flags' teachers say of a cache's clips, and of recordings without labels; call on all ranks.

    Of several runs it is the mean.

    Raises
    ------
    InputError : as :func:`teacher_probs`; or recordings whose features cannot be computed, or which the cache holds
    """
    runs, folder = list(map(Path, options.teacher)), options.unlabelled
    if folder and not Path(folder).is_dir():
        raise InputError(f"--unlabelled {folder}: no such folder")
    taught, digests = zip(*(teacher_probs(run, cache) for run in runs), strict=True)
    probs = np.mean(taught, axis=0)
    share = np.full((len(probs), 1), options.teacher_share, np.float32)
    if not folder:
        return Lessons(cache, np.empty(0, np.int64), np.empty(0, np.int64), probs, share, _joined(*digests))
    teachers = [_read_folds(run, cache) for run in runs]
    more = _features(folder, cache.config, cache, world)
    heard = {cache.config.view_config: more}
    for config, _ in teachers:  # they may have features of their own
        if config not in heard:
            heard[config] = _features(folder, config, cache, world)
            if not np.array_equal(heard[config].clips["clip_id"], more.clips["clip_id"]):
                raise InputError(f"{folder}: changed meanwhile; run this again")
    known, contents = clip_contents(cache), clip_contents(more)
    if known is None or contents is None:
        raise InputError(f"{cache.folder}: does not say which recordings it holds; build it again")
    new = np.flatnonzero((more.clips["split"] == TRAIN) & ~np.isin(contents, known))
    if not len(new):
        raise InputError(f"--unlabelled {folder}: holds no other recordings than {cache.folder}")
    if world.is_main:
        left_out, unusable = len(contents) - len(new), more.index["counts"]["rejected"]
        note = f"{folder}: {counted(len(new), 'clip')} without labels"
        note += f", {left_out:,} left out that the corpus has, or a list for testing" if left_out else ""
        note += f", {unusable:,} that cannot be used: {more.folder}/rejected.csv" if unusable else ""
        say(note)
    folds = [[_judge(*fold, heard[config], new, world) for fold in trained.items()] for config, trained in teachers]
    said = np.mean(folds, axis=(0, 1))
    weights = [file_checksum(path) for _, trained in teachers for path in trained]
    return Lessons(
        cache=JoinedCache(cache, more, new, said.argmax(axis=1)),
        unlabelled=len(probs) + np.arange(len(new)),
        contents=contents[new],
        probs=np.concatenate([probs, said]),
        share=np.concatenate([share, np.ones_like(said[:, :1])]),
        digest=_joined(*digests, *weights, hashlib.sha256(contents[new].tobytes()).hexdigest()),
    )


def _joined(*digests: str) -> str:
    """One digest of several, or the only one."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _read_folds(run: Path, cache: Cache) -> tuple[FeatureConfig, dict[Path, dict[str, Any]]]:
    """What a teacher's folds hear, and their checkpoints by path; InputError where they belong to another split."""
    trained = load_folds([run / f"fold{fold}" / "best.pt" for fold in range(cache.index["split"]["folds"])])
    path, first = next(iter(trained.items()))
    if (first["split_digest"], first["classes"]) != (cache.index["split"]["digest"], cache.classes):
        raise InputError(f"{path}: belongs to another split than {cache.folder}; train again")
    return FeatureConfig.from_dict(first["features"], str(path)).view_config, trained


def _features(folder: str, config: FeatureConfig, cache: Cache, world: World) -> Cache:
    """A cache of recordings without labels, which lies beside the labelled ones' and is built as far as it is not."""
    name = hashlib.sha256(f"{os.path.realpath(folder)} {config.digest}".encode()).hexdigest()[:12]
    cache_dir = cache.folder.absolute().parent / "unlabelled" / name

    def build() -> str:
        """Build, and say where; only one rank does."""
        say(f"{folder}: computing the features that are not in {cache_dir}")
        cache_dir.mkdir(parents=True, exist_ok=True)
        try:
            with file_lock(cache_dir / LOCK):  # of two runs that begin together one builds
                return str(build_features(folder, config, cache_dir, "--skip-bad", f"--pattern={_NO_LABEL}").folder)
        except InputError as error:
            remedy = f"; to begin anew remove {cache_dir}" if "holds another corpus" in str(error) else ""
            raise InputError(f"--unlabelled {folder}: {error}{remedy}") from None

    return Cache(world.decide(build))


def _judge(path: Path, saved: dict[str, Any], cache: Cache, clips: np.ndarray, world: World) -> np.ndarray:
    """What a member says of some clips, on every rank [shape=(n, classes), dtype=float32]."""
    model = load_trained(path, saved).to(world.device)
    logits = judge_clips(model, len(saved["classes"]), cache, clips, _BATCH, world)
    probs = torch.from_numpy(logits / saved["temperature"]).softmax(dim=1).numpy()
    if not np.isfinite(probs).all():
        raise InputError(f"{path}: what it says of {cache.folder} is not finite; {AGAIN}, with a lower --lr")
    return probs


def teacher_probs(run: Path, cache: Cache) -> tuple[np.ndarray, str]:
    """Out-of-fold probabilities of a run (Hinton, Vinyals & Dean 2015), each fold's at its own temperature.

    A clip's probabilities are those of the member of its own fold, which did not train on it. The members together
    have heard every speaker, so a student's validation is flattered: judge it on the split "test".

    Parameters
    ----------
    run : a run folder whose folds are all trained on this cache's split
    cache : the opened cache

    Returns
    -------
    np.ndarray [shape=(n_clips, classes), dtype=float32], zero for the split "test"; and a digest of what was read

    Raises
    ------
    InputError : a fold is missing, damaged or of another split, or the split holds only some clips out
    """
    probs, digest = np.zeros((len(cache.clips), len(cache.classes)), np.float32), hashlib.sha256()
    for fold in range(cache.index["split"]["folds"]):
        path = run / f"fold{fold}" / "oof.npz"
        if not path.exists():
            raise InputError(f"--teacher: {path} is not there; the teacher needs all folds: train.run --fold all")
        clips, logits = read_held_out(path, cache)
        digest.update(clips.tobytes() + logits.tobytes())
        temperature = fit_temperature(logits, cache.clips["target"][clips])
        probs[clips] = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    if not probs[cache.clips["split"] == TRAIN].any(axis=1).all():
        raise InputError(f"--teacher: the split of {cache.folder} holds only some clips out; it needs --split kfold")
    return probs, digest.hexdigest()
