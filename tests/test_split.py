"""Folds: what scikit-learn's StratifiedGroupKFold promises, and what it does not."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from cache.cli import InputError
from cache.index import NO_FOLD, TEST, TRAIN
from pipeline.clips import VALIDATION
from pipeline.names import match_names
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
    clips = clips_of(names)
    for name, side in (("test", TEST), ("validation", VALIDATION)):
        clips["split"][np.isin(clips["clip_id"], changes.pop(name, []))] = side
    labels, targets = np.unique(clips["label"], return_inverse=True)
    contents = np.zeros(len(clips), "S1")
    settings = {"contents": contents, "folds": 2, "group_by": "auto", "seed": 0, "known": {}}
    settings.update(classes=[label.decode() for label in labels.tolist()], **changes)
    return split_clips(clips, targets, **settings)


def clips_of(names: list[bytes], pattern: str | None = None) -> np.ndarray:
    listing = np.array([(name, 1) for name in names], [("clip_id", "S99"), ("stamp", "<i8")])
    return match_names(listing, pattern, Path("audio"))[0]


NAMES = [b"%b/%08x_nohash_%d.wav" % (word, s, n) for word in (b"no", b"yes") for s in range(8) for n in range(2)]


def test_test_clips_are_in_no_fold():
    """What testing_list.txt names is never trained on nor held out."""
    parts, fold = split(NAMES, test=NAMES[:4])
    assert (parts[:4] == TEST).all()
    assert (parts[4:] == TRAIN).all()
    assert ((fold == NO_FOLD) == (parts == TEST)).all()


def test_clips_for_validation_are_the_only_fold():
    """An official split has one fold; its other clips are never held out."""
    parts, fold = split(NAMES, validation=NAMES[:6], test=NAMES[6:8])
    assert (fold[:6] == 0).all()
    assert (fold[6:] == NO_FOLD).all()
    assert (parts == TEST).sum() == 2


def test_copies_share_a_fold_and_known_speakers_keep_theirs():
    """Files with the same content bring their speakers together, in the fold that one of them had before."""
    contents = np.zeros(len(NAMES), "S4")
    contents[[0, 14]] = contents[[5, 31]] = b"same"  # of speakers 0 and 7, 2 and 7
    contents[[8, 12]] = b"more"  # of speakers 4 and 6
    speaker = clips_of(NAMES)["speaker"]
    for known in (0, 1):
        fold = split(NAMES, contents=contents, known={b"%08x" % 7: known})[1]
        assert {*fold[np.isin(speaker, [b"%08x" % s for s in (0, 2, 7)])].tolist()} == {known}
        assert len({*fold[np.isin(speaker, [b"%08x" % s for s in (4, 6)])].tolist()}) == 1
        assert len({*fold.tolist()}) == 2


def test_an_error_names_some_labels_only():
    """A column of names taken for labels makes thousands of them."""
    with pytest.raises(InputError, match=r"2 folds for: 00 \(1\), .*, 07 \(1\) and 12 more; add recordings"):
        split([b"%02d/a.wav" % label for label in range(20)])


def test_group_by():
    """Speakers stay together by default, and need not with "none"; "speaker" refuses names without one."""
    speakers = clips_of(NAMES)["speaker"]
    fold = split(NAMES)[1]
    assert all(len(np.unique(fold[speakers == speaker])) == 1 for speaker in speakers)
    fold = split(NAMES, group_by="none")[1]
    assert any(len(np.unique(fold[speakers == speaker])) == 2 for speaker in speakers)
    with pytest.raises(InputError, match="no speaker is known; name them with --pattern, or use --group-by none"):
        split([b"no/a.wav", b"no/b.wav", b"yes/a.wav", b"yes/b.wav"], group_by="speaker")


def test_digest_tells_splits_apart():
    """The digest changes with any clip, content, label, fold or split, and with nothing else."""
    clips, contents = clips_of(NAMES), np.array([b"%d" % n for n in range(len(NAMES))])
    parts, fold = split(NAMES)
    digest = split_digest(clips, parts, fold, contents)
    touched = clips.copy()
    touched["stamp"] += 1
    assert split_digest(touched, parts.astype(int), fold.astype(int), contents.astype("S99")) == digest
    changed, labelled = fold.copy(), clips.copy()
    changed[0] = 1 - changed[0]
    labelled["label"][0] = labelled["label"][-1]
    others = [(clips[::-1], parts, fold, contents), (clips, 1 - parts, fold, contents)]
    others += [
        (clips, parts, changed, contents),
        (labelled, parts, fold, contents),
        (clips, parts, fold, contents[::-1]),
    ]
    assert all(split_digest(*other) != digest for other in others)


def test_a_hundred_thousand_clips_without_speakers():
    """Large corpora are planned as a whole, not clip by clip: this would take minutes otherwise."""
    targets = np.arange(100_000) % 30
    fold = assign(targets, np.array([b"%07d" % n for n in range(100_000)]))
    assert imbalance(targets, fold, 5) < 0.002
