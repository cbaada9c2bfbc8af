"""Calibrated ensembles, suspected labels, and learning from a teacher: on real runs."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.cli import InputError
from cache.files import read_sealed
from cache.find import find_cache
from cache.index import Cache
from infer.audit.__main__ import main as audit
from infer.calibrate.__main__ import main as calibrate
from infer.corpus import cached_calibration_clips
from infer.ensemble import tempered
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.measure.scoring import suspects
from infer.members import load_members
from infer.options import CalibrateOptions
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from tests.conftest import only_cache
from tests.words_run import RUN, TRAINING, rebuild
from train.calibration import RANGE, fit_temperature
from train.checkpoint import load_arrays, load_checkpoint, save_arrays, save_checkpoint
from train.folds import calibration_clips, select_fold
from train.run import main as train
from train.teacher import teacher_probs

TRAIN = TRAINING.split()


@pytest.fixture
def runs(here: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change, beside nothing else; the working directory has the corpus."""
    shutil.copytree(here / RUN, tmp_path / "runs/copy")
    return tmp_path / "runs"


def confidences(path: Path) -> list[tuple[str, float]]:
    """Label and confidence of every row."""
    with open(path, newline="") as file:
        return [(row["label"], float(row["confidence"])) for row in csv.DictReader(file)]


def test_tempering_a_mean_restores_calibration() -> None:
    """Members that err on their own make a mean that claims too little; its own temperature mends that."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 20_000)
    logits = np.eye(4)[target] * 2 + rng.standard_normal((8, 20_000, 4))
    probs = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=2, keepdims=True)  # each calibrated: signal 2, noise 1
    mean = probs.mean(axis=0)
    right = (mean.argmax(axis=1) == target).mean()
    assert abs((probs[0].max(axis=1)).mean() - (probs[0].argmax(axis=1) == target).mean()) < 0.01
    assert right - mean.max(axis=1).mean() > 0.05
    temperature = fit_temperature(np.log(mean), target)
    assert temperature < 0.8
    assert abs(tempered(mean, temperature).max(axis=1).mean() - right) < 0.01
    cold = tempered(np.float32([[0.2, 0.15, 0.65 / 3], [0, 0, 0]]), 0.01)  # no underflow; an unread file stays zero
    assert np.allclose(cold, [[0.0003, 0, 0.9997], [0, 0, 0]], atol=1e-3)


def test_a_temperature_stays_near_one_without_errors_to_fit_it_on() -> None:
    """No error, however clear or many the clips, makes nobody surer than the range allows; many errors tell all."""
    rng = np.random.default_rng(0)
    for clips in (1, 20, 2000):
        target = rng.integers(0, 4, clips)
        clear = 30 * np.eye(4)[target] + rng.standard_normal((clips, 4))
        assert fit_temperature(clear, target) == pytest.approx(1, abs=0.01)
        assert RANGE[0] <= fit_temperature(clear / 30, target) < 1
        assert 1 < fit_temperature(clear, target[::-1]) <= RANGE[1] or clips == 1
    heard = fit_temperature(2 * np.eye(4)[target], target)  # right on all of 2,000 clips
    unheard = np.exp(np.array([1.5, 0, 0, 0]) / heard)
    assert (unheard / unheard.sum()).max() < 0.995  # at 0.05 it was 1 - 3e-13
    target = rng.integers(0, 4, 20_000)
    logits = 3 * (2 * np.eye(4)[target] + rng.standard_normal((20_000, 4)))  # of which 2 / 3 are honest
    assert fit_temperature(logits, target) == pytest.approx(1.5, rel=0.03)
    assert fit_temperature(np.empty((0, 4)), np.empty(0, np.int64)) == 1
    with pytest.raises(InputError, match="not finite"):
        fit_temperature(np.where(np.arange(20_000) == 7, np.nan, logits.T).T, target)


def test_calibrating_needs_clips_and_errors(
    runs: Path, unheard: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Few clips or few errors are refused; errors enough for a guess are warned of, more are not."""
    flags = ["--run", str(runs / "copy"), "--device", "cpu", "--tta", "1", "--input"]
    assert predict([*flags, str(unheard), "--output", str(tmp_path / "judged.csv")]) == 0
    with open(tmp_path / "judged.csv", newline="") as file:
        judged = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    for clips, errors, status in ((6, 3, 2), (19, 10, 2), (60, 2, 2), (20, 3, 0), (60, 9, 0), (60, 10, 0)):
        source = tmp_path / f"{errors} of {clips}"
        for number, (name, label) in enumerate(judged[:clips]):
            own = label if number >= errors else "yes" if label != "yes" else "no"
            (source / own).mkdir(parents=True, exist_ok=True)
            shutil.copy(unheard / name, source / own / name.replace("/", "-"))
        assert calibrate([*flags, str(source)]) == status
        error = capsys.readouterr().err
        refused = f"judged wrongly: {errors} of {clips} clips; a temperature needs 3 errors or more among 20 clips"
        assert (refused in error) == (status == 2)
        assert (f"the temperature rests on {errors} errors" in error) == (status == 0 and errors < 10)


def test_calibrated_confidence_reaches_predict_evaluate_and_export(
    runs: Path, unheard: Path, tmp_path: Path, runtime, capsys: pytest.CaptureFixture
) -> None:
    """The temperature is kept for just these members and views; labels stay, confidences move, the export follows."""
    flags = ["--run", str(runs / "copy"), "--device", "cpu", "--tta", "2"]
    judge = ["--input", str(unheard), "--output"]
    assert predict([*flags, *judge, str(tmp_path / "before.csv")]) == 0
    assert "infer.calibrate" in capsys.readouterr().err
    assert calibrate([*flags, "--input", str(unheard)]) == 0
    assert "60 clips" in capsys.readouterr().out
    (kept,) = (runs / "copy").glob("ensemble-*.json")
    temperature = read_sealed(kept)["temperature"]
    assert abs(temperature - 1) > 0.01
    assert predict([*flags, *judge, str(tmp_path / "after.csv")]) == 0
    assert "infer.calibrate" not in capsys.readouterr().err
    before, after = confidences(tmp_path / "before.csv"), confidences(tmp_path / "after.csv")
    assert [label for label, _ in before] == [label for label, _ in after]
    moved = [after_ - before_ for (_, before_), (_, after_) in zip(before, after, strict=True)]
    assert all((change > -1e-4) if temperature < 1 else (change < 1e-4) for change in moved)
    assert max(map(abs, moved)) > 0.001
    assert evaluate([*flags, "--input", str(unheard), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["calibrated"]
    assert 0 <= figures["ece"] < 0.5
    given = "infer.calibrate was given 60 of these 60 recordings: their calibration error may be too low"
    assert given in capsys.readouterr().err
    export_flags = ["--run", str(runs / "copy"), "--tta", "2", "--check", str(unheard)]
    assert export([*export_flags, "--output", str(tmp_path / "model.onnx")]) == 0  # it compares itself with predict
    assert predict([*flags[:-1], "1", *judge, str(tmp_path / "other.csv")]) == 0  # other views: not calibrated
    assert "infer.calibrate" in capsys.readouterr().err
    kept.write_bytes(kept.read_bytes().replace(b"0.", b"1.", 1))
    assert predict([*flags, *judge, str(tmp_path / "damaged.csv")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_what_is_held_back_is_heard_by_no_fold(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole speakers stay out of every fold's training but not of its validation, and calibrate the ensemble."""
    cache = Cache(find_cache("data/cache", 32, 32))
    mask = calibration_clips(cache, 0.3)
    clips = cache.clips
    outside = clips[(clips["split"] == 0) & ~mask]
    assert 0.1 < mask.sum() / (clips["split"] == 0).sum() <= 0.3
    assert not set(clips["speaker"][mask]) & set(outside["speaker"])
    assert not (clips["split"][mask] == 1).any()
    for fold in ("0", "1"):
        chosen = select_fold(cache, fold, 0.3)
        assert not mask[chosen.training].any()
        assert len(chosen.validation) == (clips["fold"] == int(fold)).sum()
    assert mask[select_fold(cache, "none", 0.3).training].sum() == mask.sum()  # it trains on everything
    cache.clips = np.copy(clips)
    cache.clips["target"] = calibration_clips(cache, 0.5)  # a class of nobody else
    with pytest.raises(InputError, match="leaves fold 0 no clip of"):
        select_fold(cache, "0", 0.5)
    run = ["--runs-dir", str(tmp_path), "--name", "held", "--fold", "all", "--epochs", "2", "--hold-back", "0.3"]
    monkeypatch.setattr("train.record.FEW_ERRORS", 49)  # more than there are clips
    assert train([*TRAIN, *run]) == 0
    said = re.findall(r"held/fold(.): its temperature rests on \d+ errors among 48 held-out", capsys.readouterr().err)
    assert said == ["0", "1"]
    for trained, told in ((str(tmp_path / "held"), "--tta 4"), (RUN, "--tta 4 --input FOLDER")):
        assert predict(["--run", trained, "--device", "cpu", "--output", str(tmp_path / "table.csv")]) == 0
        assert capsys.readouterr().err.rstrip().endswith(told), "what infer.calibrate takes"
    assert calibrate(["--run", str(tmp_path / "held"), "--device", "cpu", "--tta", "2"]) == 0
    assert f"{mask.sum()} clips" in capsys.readouterr().out
    assert calibrate(["--run", RUN, "--device", "cpu"]) == 2  # two hundredths of so few clips are none
    assert "held no clips back" in capsys.readouterr().err
    for name in Path("data/audio/testing_list.txt").read_text().split():  # they are told apart too well
        (tmp_path / "tested" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("data/audio") / name, tmp_path / "tested" / name)
    assert calibrate(["--run", RUN, "--device", "cpu", "--input", str(tmp_path / "tested")]) == 2
    assert "a temperature needs 3 errors or more" in capsys.readouterr().err


def test_copies_of_what_was_trained_on_do_not_calibrate(project: Path) -> None:
    """Of two files with one content, one of which is held back, neither does."""
    before = Cache(only_cache(Path("data/cache")))
    mask = calibration_clips(before, 0.3)
    (held, *_), (other, *_) = (before.clips[mask], before.clips[~mask & (before.clips["split"] == 0)])
    name = held["clip_id"].decode()
    shutil.copy(f"data/audio/{name}", f"data/audio/{Path(name).parent}/{other['speaker'].decode()}_nohash_7.wav")
    rebuild()
    mask = calibration_clips(Cache(only_cache(Path("data/cache"))), 0.3)
    assert train([*TRAIN, "--fold", "all", "--epochs", "1", "--hold-back", "0.3", "--name", "held"]) == 0
    members = load_members(["runs/held"], "all", torch.device("cpu"))
    found = cached_calibration_clips(members, CalibrateOptions(run=("runs/held",))).names
    assert name not in found
    assert len(found) == mask.sum() - 1


@pytest.mark.parametrize("judge", [calibrate, evaluate, report])
def test_members_are_not_judged_by_clips_that_they_were_trained_on(
    judge: Callable, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Neither the corpus, nor links to it; but each fold by the clips that it held out."""
    (tmp_path / "linked").symlink_to(here / "data/audio")
    for source in ("data/audio", str(tmp_path / "linked")):
        assert judge(["--run", RUN, "--device", "cpu", "--input", source]) == 2
        assert "was trained on 48 of its 108 recordings, such as no" in capsys.readouterr().err
    clips = Cache(find_cache("data/cache", 32, 32)).clips
    for name in clips["clip_id"][clips["fold"] == 0].tolist():
        link = tmp_path / "own" / name.decode()
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(here / "data/audio" / name.decode())
    flags = ["--run", RUN, "--device", "cpu", "--input", str(tmp_path / "own")]
    assert judge([*flags, "--folds", "1"]) == 2
    assert "test_resnet-32x32/fold1/best.pt was trained on 48 of its 48" in capsys.readouterr().err
    if judge is evaluate:
        assert judge([*flags, "--folds", "0"]) == 0


def test_planted_label_errors_are_suspected() -> None:
    """Of clear clips only those with a wrong label are suspected, as many as look usual for the other label."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 5, 1000)
    probs = 0.7 * np.eye(5)[truth] + 0.3 * rng.dirichlet(np.ones(5), 1000)
    targets = truth.copy()
    wrong = rng.choice(1000, 40, replace=False)
    targets[wrong] = (truth[wrong] + 1) % 5
    found, likely = suspects(probs, targets)
    assert set(found.tolist()) <= set(wrong.tolist())
    usual = [probs[targets == label, label].mean() for label in range(5)]
    assert len(found) == sum(probs[clip, truth[clip]] >= usual[truth[clip]] for clip in wrong) > 10
    assert (likely[found] == truth[found]).all()
    margin = probs[found, targets[found]] - probs[found, likely[found]]
    assert (np.diff(margin) >= 0).all()


def test_audit_lists_a_clip_of_another_label(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A clip that its member surely takes for another label is first in the table, and in the report that is named."""
    path = runs / "copy/fold0/oof.npz"
    arrays = load_arrays(path)
    other = (arrays["target"][5] + 1) % len(arrays["classes"])
    arrays["logits"][5] = 50 * np.eye(len(arrays["classes"]))[other]
    save_arrays(path, **arrays)
    shutil.copytree("data/cache", tmp_path / "cache")
    flags = ["--run", str(runs / "copy"), "--cache-dir", str(tmp_path / "cache")]
    assert audit([*flags, "--output", str(tmp_path / "suspects.csv")]) == 0
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["file"] == arrays["clip_id"][5].decode()
    assert rows[0]["suspected"] == arrays["classes"][other]
    said = capsys.readouterr().out
    assert f"{len(rows)} of " in said
    assert "infer.report --split oof, with the same flags but for --output" in said
    assert report([*flags, "--split", "oof", "--device", "cpu", "--output", str(tmp_path / "report.html")]) == 0
    assert f'"suspected":[["{rows[0]["file"]}"' in (tmp_path / "report.html").read_text()


def test_student_learns_what_the_teacher_said(runs: Path, capsys: pytest.CaptureFixture) -> None:
    """A teacher that calls every word by the next one's name teaches just that, where it is the whole target."""
    cache = Cache(find_cache("data/cache", 32, 32))
    probs, _ = teacher_probs(runs / "copy", cache)
    free = cache.clips["split"] == 0
    assert np.allclose(probs[free].sum(axis=1), 1, atol=1e-5)
    assert not probs[~free].any()
    assert (probs[free].argmax(axis=1) == cache.clips["target"][free]).mean() > 0.9
    for path in (runs / "copy").glob("fold*/oof.npz"):
        arrays = load_arrays(path)
        names, row = np.unique(arrays["clip_id"]), 7
        expected = arrays["logits"][row] / fit_temperature(arrays["logits"], arrays["target"])
        ours = probs[cache.clips["clip_id"] == names[names == arrays["clip_id"][row]]][0]
        assert np.allclose(np.log(ours / ours[0]), expected - expected[0], atol=1e-3)
        arrays["logits"] = np.roll(arrays["logits"], 1, axis=1)
        arrays["target"] = (arrays["target"] + 1) % len(cache.classes)
        save_arrays(path, **arrays)
    flags = ["--runs-dir", str(runs), "--name", "student", "--teacher", str(runs / "copy")]
    assert train([*TRAIN, *flags, "--teacher-share", "1"]) == 0
    arrays = load_arrays(runs / "student/fold0/oof.npz")
    metrics = [json.loads(line) for line in (runs / "student/fold0/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["val_accuracy"] < 0.2
    assert metrics[-1]["train_accuracy"] < 0.2
    last = runs / "student/fold0/last.pt"
    saved = load_checkpoint(last)
    save_checkpoint(last, {**saved, "epochs_logged": 0, "state": {**saved["state"], "taught": "0" * 64}})
    capsys.readouterr()
    assert train([*TRAIN, *flags, "--teacher-share", "1"]) == 2
    assert "--teacher says another thing than before; choose another --name" in capsys.readouterr().err
    (runs / "copy/fold1/oof.npz").unlink()
    assert train([*TRAIN, *flags, "--name", "orphan"]) == 2
    assert "fold1" in capsys.readouterr().err


def test_teacher_of_another_split_is_refused(runs: Path) -> None:
    """Out-of-fold probabilities of another split are not taken."""
    cache = Cache(find_cache("data/cache", 32, 32))
    path = runs / "copy/fold0/oof.npz"
    save_arrays(path, **{**load_arrays(path), "split_digest": np.array("0" * 64)})
    with pytest.raises(InputError, match="another split"):
        teacher_probs(runs / "copy", cache)


def test_teacher_that_does_not_know_every_clip_is_refused(runs: Path) -> None:
    """A split that holds only some clips out, as the official one, has no teacher for the others."""
    cache = Cache(find_cache("data/cache", 32, 32))
    path = runs / "copy/fold0/oof.npz"
    arrays = load_arrays(path)
    save_arrays(path, **{**arrays, **{name: arrays[name][1:] for name in ("clip_id", "logits", "target")}})
    with pytest.raises(InputError, match="holds only some clips out"):
        teacher_probs(runs / "copy", cache)
