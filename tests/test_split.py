"""Folds: what scikit-learn's StratifiedGroupKFold promises, and what it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from cache.cli import InputError
from cache.index import NO_FOLD, TEST, TRAIN
from pipeline.scan import labels_of, speakers_of
from pipeline.split import assign_folds, split_clips, split_digest


def draw(speakers: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and groups of clips: most speakers say some of the words, a few say many."""
    rng = np.random.default_rng(seed)
    targets, groups = [], []
    for speaker in range(speakers):
        for target in rng.permutation(classes)[: rng.integers(1, classes + 1)]:
            repeats = int(rng.geometric(0.5))
            targets += [target] * repeats
            groups += [b"%08x" % speaker] * repeats
    return np.array(targets), np.array(groups)


def assign(targets, groups, folds=5, seed=0, known=None):
    classes = [f"word{c}" for c in range(targets.max() + 1)]
    return assign_folds(targets, groups, folds=folds, seed=seed, classes=classes, known=known or {})


def imbalance(targets: np.ndarray, fold: np.ndarray, folds: int) -> float:
    """Largest deviation of any class's share in any fold from an even share, as a fraction of that."""
    counts = np.zeros((folds, targets.max() + 1))
    np.add.at(counts, (fold, targets), 1)
    return float(np.abs(counts * folds / counts.sum(axis=0) - 1).max())


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 80), st.integers(2, 8), st.integers(2, 5), st.integers(0, 2**32))
def test_groups_stay_whole_and_every_fold_has_every_class(speakers, classes, folds, seed):
    """Either each group is in one fold and each class in each fold, or the corpus is refused."""
    targets, groups = draw(speakers, classes, seed)
    targets = np.unique(targets, return_inverse=True)[1]
    try:
        fold = assign(targets, groups, folds, seed)
    except InputError:
        return
    assert set(fold.tolist()) == set(range(folds))
    assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
    assert all(len(np.unique(fold[targets == target])) == folds for target in np.unique(targets))


@pytest.mark.parametrize("seed", range(5))
def test_as_even_as_scikit_learn(seed):
    """Classes are spread at least about as evenly as StratifiedGroupKFold spreads them."""
    targets, groups = draw(300, 12, seed)
    reference = np.empty(len(targets), int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(targets, targets, groups)):
        reference[held_out] = fold
    assert imbalance(targets, assign(targets, groups, seed=seed), 5) <= imbalance(targets, reference, 5) + 0.05


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_single_clips_are_spread_exactly(folds):
    """Without speakers no two folds differ by more than one clip of any class, nor much in size."""
    rng = np.random.default_rng(folds)
    targets = np.concatenate([np.arange(10).repeat(folds), rng.integers(0, 10, 997)])
    groups = np.array([b"%d" % n for n in range(len(targets))])
    fold = assign(targets, groups, folds)
    counts = np.zeros((folds, 10), int)
    np.add.at(counts, (fold, targets), 1)
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 3


def test_a_class_with_fewer_speakers_than_folds_is_refused():
    """scikit-learn silently gives folds without the class; here its name and count stand in the error."""
    targets, groups = draw(50, 3, 0)
    rare = np.array([b"00000001"] * 3 + [b"00000002"] * 3)
    targets, groups = np.concatenate([targets, np.full(6, 3)]), np.concatenate([groups, rare])
    reference = StratifiedGroupKFold(5).split(targets, targets, groups)
    assert any((targets[held_out] != 3).all() for _, held_out in reference)
    with pytest.raises(InputError, match=r"fewer speakers \(or clips\) than the 5 folds for: word3 \(2\)"):
        assign(targets, groups)


def test_the_seed_and_nothing_else_decides():
    """The same clips in another order get the same folds; another seed gives others."""
    targets, groups = draw(100, 5, 1)
    fold = assign(targets, groups)
    order = np.random.default_rng(0).permutation(len(targets))
    assert np.array_equal(assign(targets[order], groups[order]), fold[order])
    assert not np.array_equal(assign(targets, groups, seed=1), fold)


def test_known_groups_keep_their_fold():
    """Groups of an earlier split stay where they are, and the others even out what they left uneven."""
    targets, groups = draw(200, 5, 2)
    names = np.unique(groups)
    known = {name: int(number % 2) for number, name in enumerate(names[:60].tolist())}
    fold = assign(targets, groups, known=known)
    assert all((fold[groups == name] == number).all() for name, number in known.items())
    assert imbalance(targets, fold, 5) < 0.3


def split(names: list[bytes], **changes):
    clip_ids = np.array(names)
    labels, targets = np.unique(labels_of(clip_ids), return_inverse=True)
    settings = {"test_ids": set(), "validation_ids": None, "folds": 2, "group_by": "auto", "seed": 0, "known": {}}
    settings.update(classes=[label.decode() for label in labels.tolist()], **changes)
    return split_clips(clip_ids, targets, speakers_of(clip_ids), **settings)


NAMES = [b"%b/%08x_nohash_%d.wav" % (word, s, n) for word in (b"no", b"yes") for s in range(8) for n in range(2)]


def test_test_clips_are_in_no_fold():
    """What testing_list.txt names is never trained on nor held out."""
    parts, fold = split(NAMES, test_ids=set(NAMES[:4]) | {b"no/not-there.wav"})
    assert (parts[:4] == TEST).all()
    assert (parts[4:] == TRAIN).all()
    assert ((fold == NO_FOLD) == (parts == TEST)).all()


def test_a_testing_list_that_names_no_clip_is_refused():
    """Clips that are meant for the final figure are not trained on for a slip in their names."""
    with pytest.raises(InputError, match="names no clip of this corpus"):
        split(NAMES, test_ids={NAMES[0].replace(b".wav", b".flac")})


def test_group_by():
    """Speakers stay together by default, and need not with "none"; "speaker" refuses names without one."""
    speakers = speakers_of(np.array(NAMES))
    fold = split(NAMES)[1]
    assert all(len(np.unique(fold[speakers == speaker])) == 1 for speaker in speakers)
    fold = split(NAMES, group_by="none")[1]
    assert any(len(np.unique(fold[speakers == speaker])) == 2 for speaker in speakers)
    with pytest.raises(InputError, match="no file is named <8 hex>_nohash_<n>; use --group-by none"):
        split([b"no/a.wav", b"no/b.wav", b"yes/a.wav", b"yes/b.wav"], group_by="speaker")


def test_digest_tells_splits_apart():
    """The digest changes with any clip, fold or split, and with nothing else."""
    clip_ids = np.array(NAMES)
    parts, fold = split(NAMES)
    digest = split_digest(clip_ids, parts, fold)
    assert split_digest(clip_ids.astype("S99"), parts.astype(int), fold.astype(int)) == digest
    changed = fold.copy()
    changed[0] = 1 - changed[0]
    others = [(clip_ids[::-1], parts, fold), (clip_ids, 1 - parts, fold), (clip_ids, parts, changed)]
    assert all(split_digest(*other) != digest for other in others)


def test_a_hundred_thousand_clips_without_speakers():
    """Large corpora are planned as a whole, not clip by clip: this would take minutes otherwise."""
    targets = np.arange(100_000) % 30
    fold = assign(targets, np.array([b"%07d" % n for n in range(100_000)]))
    assert imbalance(targets, fold, 5) < 0.002
