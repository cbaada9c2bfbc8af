"""NaN is no answer: what is not finite becomes an error that names the clip, in every command and in exported files."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cache.find import find_cache
from cache.index import Cache
from infer.audit.__main__ import main as audit
from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.export.graph import WaveformEnsemble
from infer.judge import Judge
from infer.members import load_members
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from infer.views import first_views
from tests.conftest import RATE, synthesise
from tests.words_run import RUN, WORDS
from train.checkpoint import load_arrays, load_checkpoint, save_arrays, save_checkpoint
from train.run import main as train

NAN, FLAGS = float("nan"), ["--device", "cpu", "--amp", "off", "--tta", "2"]


@pytest.fixture
def run(here: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change; the working directory has its corpus and cache."""
    return Path(shutil.copytree(here / RUN, tmp_path / "runs/copy"))


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Labelled recordings of words that nobody has heard, one longer than a clip."""
    for word, name in enumerate(WORDS):
        (tmp_path / "spoken" / name).mkdir(parents=True)
        for n in range(2):
            clip = np.concatenate([synthesise(word, 20, n)] * (1 + n))
            soundfile.write(tmp_path / f"spoken/{name}/{n}.wav", clip, RATE)
    return tmp_path / "spoken"


class Deaf(torch.nn.Module):
    """A member whose logits are not finite for silence, as where a sum overflows: infinite for one class."""

    def __init__(self, model: torch.nn.Module, logit: float) -> None:
        super().__init__()
        self.model, self.logit = model, logit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        silent = (x == 0).all(dim=3).all(dim=2)  # (batch, 1)
        return torch.where(silent & (torch.arange(logits.shape[1]) == 1), self.logit, logits)


@pytest.mark.parametrize("logit", [NAN, float("inf"), -float("inf")])
def test_one_clip_s_logits_cost_that_clip_only(run: Path, logit: float) -> None:
    """The clip's error names the member; the others' probabilities stay as they are, to the bit."""
    members = load_members([str(run)], "all", torch.device("cpu"))
    clips = np.stack([synthesise(word, 20, 0) for word in range(3)])
    clips[1] = 0
    answers = []
    for judged in (members, [members[0], dataclasses.replace(members[1], model=Deaf(members[1].model, logit))]):
        judge = Judge(judged, first_views(2), torch.device("cpu"))
        answers += judge.judge([clips])
        judge.close()
    before, after = answers
    assert before.errors == ["", "", ""]
    assert after.errors == ["", "copy/fold1: logits that are not finite", ""]
    assert np.array_equal(before.probs[:, :, [0, 2]], after.probs[:, :, [0, 2]])
    assert not after.probs[:, :, 1].any()


def test_a_model_that_overflows_answers_with_errors_only(
    run: Path, spoken: Path, tmp_path: Path, runtime, capsys: pytest.CaptureFixture
) -> None:
    """Predict writes a row with the reason per file, with windows too; what would print a figure names a clip."""
    path = run / "fold1/best.pt"
    saved = load_checkpoint(path)
    weights = next(name for name in reversed(saved["model"]) if name.endswith("weight"))  # of the classifier
    saved["model"][weights].fill_(3e38)
    save_checkpoint(path, saved)
    flags = ["--run", str(run), *FLAGS, "--input", str(spoken)]
    for more in ([], ["--windows", str(tmp_path / "w.csv")]):
        assert predict([*flags, "--output", str(tmp_path / "p.csv"), *more]) == 1
        with open(tmp_path / "p.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6
        assert {(row["label"], row["confidence"], row["error"]) for row in rows} == {
            ("", "", "copy/fold1: logits that are not finite")
        }
    assert len((tmp_path / "w.csv").read_text().splitlines()) == 1
    capsys.readouterr()
    for judge in (evaluate, calibrate, report):
        assert judge(flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "none of 6 recordings could be judged; the first: no/0.wav: copy/fold1: logits that are" in line
    output = tmp_path / "model.onnx"
    assert export(["--run", str(run), "--check", str(spoken), "--output", str(output)]) == 2
    assert "the first: no/0.wav: copy/fold1: logits that are not finite" in capsys.readouterr().err
    assert not output.exists()


def test_a_recording_that_costs_its_figure_is_named(
    run: Path, spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What evaluate leaves out is counted and the first of it named, on stderr."""
    soundfile.write(spoken / "up/nan.wav", np.full(RATE, NAN, np.float32), RATE, subtype="FLOAT")
    flags = ["--run", str(run), *FLAGS, "--input", str(spoken), "--json", str(tmp_path / "figures.json")]
    assert evaluate(flags) == 1
    assert "not counted; up/nan.wav: samples that are not finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "figures.json").read_text())["clips"] == 6


@pytest.mark.parametrize("judge", [evaluate, audit, report, train])
def test_a_held_out_row_that_is_not_finite_is_named(
    judge: Callable, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Whoever reads oof.npz refuses it with one line that names the clip."""
    path = run / "fold1/oof.npz"
    arrays = load_arrays(path)
    arrays["logits"][5, 1] = NAN
    save_arrays(path, **arrays)
    flags = ["--run", str(run), *([] if judge is audit else ["--device", "cpu"])]
    if judge is report:
        flags += ["--split", "oof", "--output", str(tmp_path / "report.html")]
    if judge is train:
        flags = "--model test_resnet --n-mels 32 --batch-size 12 --device cpu --epochs 1 --name student".split()
        flags += ["--runs-dir", str(tmp_path / "runs"), "--teacher", str(run)]
    assert judge(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: what it says of 1 clips, such as {arrays['clip_id'][5].decode()}, is not finite" in line


def test_names_and_targets_of_held_out_clips_are_the_clip_table_s(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A run folder cannot have a file outside the corpus opened, nor a clip counted twice or under another label."""
    outside = tmp_path / "outside.wav"
    soundfile.write(outside, synthesise(1, 30, 0), RATE)
    path, corpus = run / "fold0/oof.npz", Path(Cache(find_cache("data/cache", 32, 32)).index["audio_dir"])
    arrays = load_arrays(path)
    flags = ["--run", str(run), "--device", "cpu", "--split", "oof", "--output", str(tmp_path / "report.html")]
    first = arrays["clip_id"][1].decode()
    for name in (str(outside), f"yes/../../../{outside}", "testing_list.txt", f"./{first}", f"{corpus}/{first}", first):
        changed = arrays["clip_id"].astype("S200")
        changed[0] = name.encode()
        save_arrays(path, **{**arrays, "clip_id": changed})
        assert report(flags) == 2
        assert f"{path}: not clips of " in capsys.readouterr().err
    other = load_arrays(run / "fold1/oof.npz")
    for kept in (arrays["clip_id"][1:], other["clip_id"]):
        save_arrays(
            path, **{**arrays, **{key: arrays[key][: len(kept)] for key in ("logits", "target")}, "clip_id": kept}
        )
        assert report(flags) == 2
        assert "not the clips that fold 0 of" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
    for targets in (arrays["target"], 1 - arrays["target"] % 2):
        save_arrays(path, **{**arrays, "target": targets})
        assert evaluate(["--run", str(run), "--device", "cpu", "--json", str(tmp_path / "figures.json")]) == 0
        assert json.loads((tmp_path / "figures.json").read_text())["single"]["accuracy"] == 1
    save_arrays(path, **{**arrays, "logits": np.sign(arrays["logits"]) * np.float32(3e38)})  # 6e38 at a half of 1
    saved = load_checkpoint(run / "fold0/best.pt")
    save_checkpoint(run / "fold0/best.pt", {**saved, "temperature": 0.5})
    assert evaluate(["--run", str(run), "--device", "cpu", "--json", str(tmp_path / "figures.json")]) == 0
    assert "NaN" not in (tmp_path / "figures.json").read_text()


@pytest.mark.parametrize("logit", [NAN, float("inf"), -float("inf")])
def test_the_graph_gives_nan_where_a_member_s_logits_are_not_finite(here: Path, logit: float) -> None:
    """A member that overflows for one clip takes that clip's answer only."""
    members = load_members([RUN], "all", torch.device("cpu"))
    clips = torch.from_numpy(np.stack([synthesise(0, 20, 0), np.zeros(RATE, np.float32)]))
    members[1] = dataclasses.replace(members[1], model=Deaf(members[1].model, logit))
    with torch.inference_mode():
        probs = WaveformEnsemble(members, first_views(2)).eval()(clips)
    assert torch.isnan(probs).all(dim=1).tolist() == [False, True]
