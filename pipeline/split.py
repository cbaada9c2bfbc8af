"""Folds: stratified by label and grouped by speaker, once, at build time."""

import hashlib

import numpy as np

from cache.cli import InputError
from cache.index import NO_FOLD, TEST, TRAIN
from pipeline.clips import VALIDATION
from pipeline.scan import random_keys

_NAMED = 8  # labels in an error


def assign_folds(
    targets: np.ndarray, groups: np.ndarray, *, folds: int, seed: int, classes: list[str], known: dict[bytes, int]
) -> np.ndarray:
    """Distribute groups over folds so that every fold has about the same share of every class.

    Greedy, largest group first: a group goes to the fold that has least of the group's classes, as in
    scikit-learn's StratifiedGroupKFold. Groups of one clip come last, a class at a time, as a whole.

    Parameters
    ----------
    targets : class of each clip [shape=(n,), dtype=int]
    groups : speaker (or clip_id) of each clip [shape=(n,), dtype=bytes]
    folds : number of folds, 2 or more
    seed : orders groups of equal size
    known : group → fold, from an earlier build; they keep it

    Returns
    -------
    np.ndarray [shape=(n,), dtype=int16]

    Raises
    ------
    InputError : a class is missing from a fold, because it has fewer groups than folds
    """
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    pairs, counts = np.unique(group_of * len(classes) + targets, return_counts=True)  # sorted by group, then class
    pair_class = pairs % len(classes)
    few = np.bincount(pair_class, minlength=len(classes))
    if (few < folds).any():
        lacking = [f"{classes[c]} ({few[c]})" for c in np.flatnonzero(few < folds)]
        more = f" and {len(lacking) - _NAMED:,} more" if len(lacking) > _NAMED else ""
        raise InputError(
            f"fewer speakers (or clips) than the {folds} folds for: {', '.join(lacking[:_NAMED])}{more}; add "
            "recordings, remove the class, or use fewer --folds or --group-by none"
        )
    total = np.bincount(targets, minlength=len(classes))
    share = counts / total[pair_class]
    first = np.searchsorted(pairs, np.arange(len(names) + 1) * len(classes))  # of each group's pairs
    fold_of = np.full(len(names), NO_FOLD, np.int16)
    if known:
        fold_of[:] = [known.get(name, NO_FOLD) for name in names.tolist()]
    fold_of[fold_of >= folds] = NO_FOLD
    filled = np.zeros((folds, len(classes)))
    placed = fold_of[group_of] != NO_FOLD
    np.add.at(filled, (fold_of[group_of[placed]], targets[placed]), 1 / total[targets[placed]])
    ties = random_keys(names, seed)
    order = np.lexsort((ties, -sizes))
    order = order[fold_of[order] == NO_FOLD]
    for group in order[sizes[order] > 1].tolist():
        part = slice(first[group], first[group + 1])
        level = filled[:, pair_class[part]] @ share[part]
        fold = np.lexsort((filled.sum(axis=1), level))[0]
        fold_of[group] = fold
        filled[fold, pair_class[part]] += share[part]
    singles = order[sizes[order] == 1]
    single_class = pair_class[first[singles]]
    for target in np.unique(single_class).tolist():
        chosen = singles[single_class == target]
        fold_of[chosen] = _level_up(filled[:, target] * total[target], filled.sum(axis=1), len(chosen))
        filled[:, target] += np.bincount(fold_of[chosen], minlength=folds) / total[target]
    result = fold_of[group_of]
    _check_folds(result, targets, folds, classes)
    return result


def _level_up(level: np.ndarray, tie: np.ndarray, count: int) -> np.ndarray:
    """The folds that `count` clips of a class go to, each to the fold that then has fewest of it.

    Parameters
    ----------
    level : clips of the class that each fold has [shape=(folds,)]
    tie : of folds at the same level, the one with the smallest comes first [shape=(folds,)]
    """
    slots = np.ceil(level.max() - level + count / len(level)).astype(int) + 1
    fold = np.repeat(np.arange(len(level)), slots)
    height = level[fold] + np.arange(len(fold)) - np.repeat(np.cumsum(slots) - slots, slots)
    return fold[np.lexsort((tie[fold], height))[:count]]


def _check_folds(folds_of: np.ndarray, targets: np.ndarray, folds: int, classes: list[str]) -> None:
    for fold in range(folds):
        missing = np.setdiff1d(np.arange(len(classes)), targets[folds_of == fold])
        if len(missing):
            names = ", ".join(classes[c] for c in missing)
            raise InputError(f"fold {fold} would hold no clip of: {names}; use fewer --folds or --group-by none")


def split_clips(
    clips: np.ndarray,
    targets: np.ndarray,
    *,
    classes: list[str],
    contents: np.ndarray,
    folds: int,
    group_by: str,
    seed: int,
    known: dict[bytes, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The split and the fold of every clip.

    Parameters
    ----------
    clips : as in `pipeline.clips`; clips for validation become the only fold, given folds are kept
    targets : class of each clip [shape=(n,), dtype=int]
    contents : digest of each clip's file, empty where it is not known [shape=(n,), dtype=bytes]; where two files are
        the same, their speakers share a fold
    group_by : "auto" (speakers where any is known), "speaker" or "none"
    known : speaker or clip_id → fold, from an earlier build with the same settings; they keep it, unless a fold were
        left without a class

    Returns
    -------
    split : np.ndarray [shape=(n,), dtype=uint8]
    fold : np.ndarray [shape=(n,), dtype=int16], NO_FOLD for clips that are never held out
    """
    split = np.where(clips["split"] == TEST, TEST, TRAIN).astype(np.uint8)
    fold, speakers = np.where(split == TEST, NO_FOLD, clips["fold"]), clips["speaker"]
    validation = clips["split"] == VALIDATION
    if validation.any():
        fold[:] = NO_FOLD
        fold[validation] = 0
        return split, fold
    if group_by == "speaker" and not (speakers != b"").any():
        raise InputError("--group-by speaker: no speaker is known; name them with --pattern, or use --group-by none")
    free = np.flatnonzero((split == TRAIN) & (fold == NO_FOLD))
    if not len(free):
        return split, fold
    groups = clips["clip_id"] if group_by == "none" else np.where(speakers == b"", clips["clip_id"], speakers)
    groups, known = _joined(groups[free], contents[free], known)
    present, numbers = np.unique(targets[free], return_inverse=True)
    names = [classes[target] for target in present.tolist()]
    try:
        fold[free] = assign_folds(numbers, groups, folds=folds, seed=seed, classes=names, known=known)
    except InputError:
        if not known:
            raise
        fold[free] = assign_folds(numbers, groups, folds=folds, seed=seed, classes=names, known={})
    return split, fold


def _joined(groups: np.ndarray, contents: np.ndarray, known: dict[bytes, int]) -> tuple[np.ndarray, dict[bytes, int]]:
    """Groups that share a content, as one; and their known folds."""
    copies = np.flatnonzero(contents != b"")
    _, content, counts = np.unique(contents[copies], return_inverse=True, return_counts=True)
    copies, content = copies[counts[content] > 1], content[counts[content] > 1]
    if not len(copies):
        return groups, known
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, group = np.unique(groups, return_inverse=True)
    nodes = len(names) + int(content.max()) + 1
    edges = coo_array((np.ones(len(copies)), (group[copies], len(names) + content)), (nodes, nodes))
    component = connected_components(edges, directed=False)[1][: len(names)]
    _, first = np.unique(component, return_index=True)
    name_of = names[first[component]]  # the first by name stands for all
    folds: dict[bytes, int] = {}
    for name, shared in zip(names.tolist(), name_of.tolist(), strict=True):
        if name in known:
            folds.setdefault(shared, known[name])
    return name_of[group], folds


def split_digest(clips: np.ndarray, split: np.ndarray, fold: np.ndarray, contents: np.ndarray) -> str:
    """SHA-256 over which clip is what: content, label, split and fold; equal digests mean equal splits of one corpus.

    Parameters
    ----------
    clips : as in `pipeline.clips`
    contents : digest of each clip's file [shape=(n,), dtype=bytes]
    """
    digest = hashlib.sha256()
    for first in range(0, len(clips), 65536):
        for column in (clips["clip_id"], clips["label"], contents):
            digest.update(b"\n".join(column[first : first + 65536].tolist()) + b"\n")
    digest.update(split.astype("u1").tobytes())
    digest.update(fold.astype("<i2").tobytes())
    return digest.hexdigest()
