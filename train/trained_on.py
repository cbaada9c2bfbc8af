"""What a model was trained on, by content: kept in its checkpoint, so that nobody judges it by the same recordings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, say
from cache.index import TEST, Cache
from cache.shard import read_sidecars
from train.checkpoint import load_checkpoint
from train.folds import Fold, calibration_clips


def contents_trained_on(cache: Cache, training: np.ndarray, share: float, heard: list[Any]) -> torch.Tensor | None:
    """The contents of the clips that a fold trains on, and of what its weights have heard besides.

    A content is the first 64 bits of a file's SHA-256, as the sidecars of the cache's shards have it. One that a clip
    of the split "test", or held back, shares is left out: public corpora hold copies, and a test clip stays one.

    Parameters
    ----------
    training : indices into the clip table [shape=(n,)]
    share : of the clips that is held back, see `train.folds.calibration_clips`
    heard : further contents, such as those of a checkpoint that training goes on from; None where it does not say

    Returns
    -------
    torch.Tensor [shape=(m,), dtype=int64], sorted; None where a sidecar is gone or odd, or one of `heard` is None
    """
    contents = clip_contents(cache)
    if contents is None or any(part is None for part in heard):
        return None
    kept = (cache.clips["split"] == TEST) | calibration_clips(cache, share)
    kept[training] = False  # the fold "none" trains on what others hold back
    own = np.setdiff1d(contents[training], contents[kept])
    return torch.from_numpy(np.unique(np.concatenate([own, *map(np.asarray, heard)])))


def as_contents(digests: Iterable[str]) -> np.ndarray:
    """Contents [shape=(n,), dtype=int64] from 16 hexadecimal digits each."""
    return np.array([int(digest, 16) for digest in digests], np.uint64).view(np.int64)


def heard_by(weights: str | None) -> list[torch.Tensor | None]:
    """What ``--weights`` were trained on, in a list: empty where they are not ours, of None where they do not say."""
    try:
        return [load_checkpoint(Path(weights)).get("heard")] if weights else []
    except InputError:  # somebody else's weights
        return []


def check_unheard(weights: str, cache: Cache, folds: list[Fold]) -> None:
    """Refuse weights of ours that were trained on what one of some folds holds out; says where a file does not tell.

    Raises
    ------
    InputError : that fold's figures would be too high
    """
    contents, heard = clip_contents(cache), (heard_by(weights) or [None])[0]
    if contents is None or heard is None:
        say(
            f"--weights {weights}: does not say what it was trained on; if on these recordings, figures are too high",
            error=True,
        )
        return
    for fold in folds:
        held_out = contents[fold.validation]
        known = np.isin(held_out, heard) & ~np.isin(held_out, contents[fold.training])
        if known.any():
            name = cache.clips["clip_id"][fold.validation[known.argmax()]].decode()
            raise InputError(
                f"--weights {weights}: was trained on {known.sum():,} of {len(known):,} clips that a fold holds out, "
                f"such as {name}; begin with weights of the same fold, or train with --fold none"
            )


def clip_contents(cache: Cache) -> np.ndarray | None:
    """The content of every clip of a cache [shape=(n_clips,), dtype=int64]; None where a sidecar is gone or odd."""
    sidecars = read_sidecars(cache.folder, cache.config)
    first = np.zeros(1 + max((shard["number"] for shard in cache.index["shards"]), default=0), np.int64)
    digests: list[str] = []
    try:
        for shard in cache.index["shards"]:
            sidecar = sidecars[shard["number"]]
            if sidecar["checksum"] != shard["checksum"]:
                return None
            first[shard["number"]] = len(digests)
            clips = sidecar["clips"]
            digests += [digest for digest, reason in zip(clips["sha256"], clips["reason"], strict=True) if not reason]
        return as_contents(digests)[first[cache.clips["shard"]] + cache.clips["row"]]
    except (LookupError, OverflowError, TypeError, ValueError):  # of a sidecar that no build wrote
        return None
