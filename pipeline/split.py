"""Folds: stratified by label and grouped by speaker, once, at build time."""

import hashlib

import numpy as np

from cache.cli import InputError
from cache.index import NO_FOLD, TEST, TRAIN


def assign_folds(
    targets: np.ndarray, groups: np.ndarray, *, folds: int, seed: int, classes: list[str], known: dict[bytes, int]
) -> np.ndarray:
    """Distribute groups over folds so that every fold has about the same share of every class.

    Greedy, largest group first: a group goes to the fold that has least of the group's classes, as in
    scikit-learn's StratifiedGroupKFold, but in one pass of small products and with groups that keep their fold.

    Parameters
    ----------
    targets : class of each clip [shape=(n,), dtype=int]
    groups : speaker (or clip_id) of each clip [shape=(n,), dtype=bytes]
    folds : number of folds, 2 or more
    seed : orders groups of equal size
    known : group → fold, from an earlier build

    Returns
    -------
    np.ndarray [shape=(n,), dtype=int16]

    Raises
    ------
    InputError : a class is missing from a fold, because it has fewer groups than folds
    """
    names, group_of = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (group_of, targets), 1)
    few = [f"{classes[c]} ({n})" for c, n in enumerate((counts > 0).sum(axis=0)) if n < folds]
    if few:
        raise InputError(
            f"fewer speakers (or clips) than the {folds} folds for: {', '.join(few)}; "
            "add recordings, remove the class, or use fewer --folds or --group-by none"
        )
    share = counts / counts.sum(axis=0)
    filled = np.zeros((folds, len(classes)))
    fold_of = np.full(len(names), NO_FOLD, np.int16)
    ties = [hashlib.sha256(b"%d/%b" % (seed, name)).digest()[:8] for name in names.tolist()]
    order = sorted(range(len(names)), key=lambda g: (-counts[g].sum(), ties[g]))
    for group in order:
        fold = known.get(bytes(names[group]), NO_FOLD)
        if 0 <= fold < folds:
            fold_of[group] = fold
            filled[fold] += share[group]
    for group in order:
        if fold_of[group] == NO_FOLD:
            level = filled @ share[group]
            fold = int(np.lexsort((filled.sum(axis=1), level))[0])
            fold_of[group] = fold
            filled[fold] += share[group]
    result = fold_of[group_of]
    for fold in range(folds):
        missing = np.setdiff1d(np.arange(len(classes)), targets[result == fold])
        if len(missing):
            names_missing = ", ".join(classes[c] for c in missing)
            raise InputError(
                f"fold {fold} would hold no clip of: {names_missing}; use fewer --folds or --group-by none"
            )
    return result


def split_clips(
    clip_ids: np.ndarray,
    targets: np.ndarray,
    speakers: np.ndarray,
    *,
    classes: list[str],
    test_ids: set[bytes],
    validation_ids: set[bytes] | None,
    folds: int,
    group_by: str,
    seed: int,
    known: dict[bytes, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The split and the fold of every clip.

    Parameters
    ----------
    test_ids : clips of the split "test", which belong to no fold
    validation_ids : the corpus's official validation list, which becomes the only fold; or None for `folds` folds
    group_by : "auto" (speakers where any file name carries one), "speaker" or "none"
    known : speaker or clip_id → fold, from an earlier build with the same settings

    Returns
    -------
    split : np.ndarray [shape=(n,), dtype=uint8]
    fold : np.ndarray [shape=(n,), dtype=int16], NO_FOLD for clips that are never held out
    """
    split = np.where([name in test_ids for name in clip_ids.tolist()], TEST, TRAIN).astype(np.uint8)
    fold = np.full(len(clip_ids), NO_FOLD, np.int16)
    free = split == TRAIN
    if validation_ids is not None:
        held_out = free & np.array([name in validation_ids for name in clip_ids.tolist()])
        if not held_out.any():
            raise InputError("--split official: validation_list.txt names no clip of this corpus; use --split kfold")
        fold[held_out] = 0
        return split, fold
    if group_by == "speaker" and not (speakers != b"").any():
        raise InputError("--group-by speaker: no file is named <8 hex>_nohash_<n>; use --group-by none")
    groups = clip_ids if group_by == "none" else np.where(speakers == b"", clip_ids, speakers)
    fold[free] = assign_folds(targets[free], groups[free], folds=folds, seed=seed, classes=classes, known=known)
    return split, fold


def split_digest(clip_ids: np.ndarray, split: np.ndarray, fold: np.ndarray) -> str:
    """SHA-256 over which clip is in which split and fold; equal digests mean equal splits."""
    digest = hashlib.sha256(b"\n".join(clip_ids.tolist()))
    digest.update(split.astype("u1").tobytes())
    digest.update(fold.astype("<i2").tobytes())
    return digest.hexdigest()
