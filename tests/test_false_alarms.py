"""False alarms: counted as predict --windows finds them, thresholds chosen by them, and used by every command."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from cache.files import read_sealed
from cache.find import find_cache
from cache.index import Cache
from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.labelled import JudgedClips
from infer.measure.false_alarms import FalseAlarms, list_negatives
from infer.members import load_members
from infer.onnx_model import OnnxModel
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from pipeline.build_cache import main as build_cache
from tests.conftest import RATE, synthesise
from tests.forked import ranks
from tests.words_run import RUN, WORDS, hiss

MEMBERS = ("--run", RUN, "--tta", "1", "--device", "cpu")


@pytest.fixture
def negatives(tmp_path: Path) -> Path:
    """Two recordings, 30 s together, with tones that are no word but may pass for one."""
    folder = tmp_path / "negatives"
    folder.mkdir()
    for n in range(2):
        samples = hiss(15, n)
        for at in range(7):
            samples[(2 * at) * RATE :][:RATE] += synthesise(at % 3, 11 + n, at)
        soundfile.write(folder / f"{n}.flac", samples, RATE)
    return folder


def rows(path: str) -> list[dict[str, str]]:
    """Of a CSV."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@given(st.lists(st.integers(0, 1000), max_size=40), st.floats(0.1, 50), st.floats(0.05, 100))
def test_a_threshold_is_the_lowest_that_lets_no_more_through(found: list[int], hours: float, wanted: float) -> None:
    """At it there are as many false alarms as wanted or fewer; a step lower, and from 0.5 on, there were more."""
    alarms = FalseAlarms("", [], hours, {"yes": np.sort(np.array(found) / 1000)[::-1]})
    threshold = alarms.threshold("yes", wanted)
    assert threshold >= 0.5
    assert alarms.per_hour("yes", threshold) <= wanted + 1e-6
    assert threshold == 0.5 or alarms.per_hour("yes", threshold - 2e-6) > wanted


def test_false_alarms_are_what_predict_finds(project: Path, negatives: Path, unheard: Path) -> None:
    """At every threshold, per label and hour, those of windows.csv; misses are counted from predict's table."""
    flags = ("--input", str(unheard), "--negatives", str(negatives), "--json", "f.json")
    assert evaluate([*MEMBERS, *flags]) == 0
    measured = json.loads(Path("f.json").read_text())["false_alarms"]
    assert measured["hours"] == pytest.approx(30 / 3600)
    windows = ("--windows", "w.csv", "--window-confidence", "0")
    assert predict([*MEMBERS, "--input", str(negatives), "--output", "n.csv", *windows]) == 0
    assert predict([*MEMBERS, "--input", str(unheard), "--output", "u.csv"]) == 0
    found, judged = rows("w.csv"), rows("u.csv")
    assert {row["label"] for row in measured["labels"]} == {*WORDS, "noise"}
    assert measured["all"]["false_alarms_per_hour"][0] > 0
    for row in measured["labels"]:
        for threshold, rate, misses in zip(
            measured["thresholds"], row["false_alarms_per_hour"], row["misses"], strict=True
        ):
            if abs(threshold * 1e4 - round(threshold * 1e4)) > 1e-6:
                continue  # the tables have four digits
            counted = [r for r in found if r["label"] == row["label"] and float(r["confidence"]) >= threshold]
            assert rate == pytest.approx(len(counted) * 120, abs=121), "but for one at the last digit"
            said = [r for r in judged if r["file"].startswith(f"{row['label']}/")]
            right = [r for r in said if r["label"] == row["label"] and float(r["confidence"]) >= threshold]
            assert not said or misses == pytest.approx(1 - len(right) / len(said), abs=1 / len(said) + 1e-6)
    assert measured["all"]["clips"] == 60
    (silent,) = [row for row in measured["labels"] if row["label"] == "noise"]
    assert silent["clips"] == 0
    assert {silent["at"]["misses"], *silent["misses"]} == {None}, "nothing of it could be missed"
    assert measured["all"]["at"]["threshold"] is None
    (negatives.parent / "twice.txt").write_text("\n".join(2 * sorted(map(str, negatives.iterdir()))))
    assert evaluate([*MEMBERS, *flags[:2], "--negatives", str(negatives.parent / "twice.txt"), *flags[4:]]) == 0
    again = json.loads(Path("f.json").read_text())["false_alarms"]
    assert again == {**measured, "source": again["source"]}


def test_two_ranks_count_the_same(project: Path, negatives: Path, unheard: Path) -> None:
    """Under torchrun the figures are those of one process."""
    flags = [*MEMBERS, "--input", str(unheard), "--negatives", str(negatives), "--json"]
    assert evaluate([*flags, "one.json"]) == 0
    statuses, output = ranks(2, "infer.evaluate", project, *flags, "two.json")
    assert statuses == [0, 0], output
    assert Path("one.json").read_text() == Path("two.json").read_text()


def test_thresholds_are_kept_and_used_by_all(
    project: Path, negatives: Path, unheard: Path, runtime, capsys: pytest.CaptureFixture
) -> None:
    """predict, windows, evaluate, report and exported files go by them; flags win; another calibration drops them."""
    chosen = ("--input", str(unheard), "--negatives", str(negatives), "--false-alarms-per-hour", "120")
    assert calibrate([*MEMBERS, *chosen]) == 0
    said = capsys.readouterr().out
    (kept,) = Path(RUN).glob("ensemble-*.json")
    thresholds = read_sealed(kept)["thresholds"]
    assert thresholds.keys() == {*WORDS, "noise"}
    assert f"{max(thresholds.values()):g}" in said
    evaluated = ("--input", str(unheard), "--negatives", str(negatives), "--json", "f.json")
    assert evaluate([*MEMBERS, *evaluated]) == 0
    at = {row["label"]: row["at"] for row in json.loads(Path("f.json").read_text())["false_alarms"]["labels"]}
    said = capsys.readouterr().err
    assert "of these 60 recordings: their calibration error may be too low" in said
    assert "was given 2 of these 2 recordings: their false alarms may be too low" in said
    assert {label: row["threshold"] for label, row in at.items()} == thresholds
    assert all(row["false_alarms_per_hour"] <= 120 for row in at.values())

    windows = ("--output", "p.csv", "--windows", "w.csv")
    assert predict([*MEMBERS, "--input", str(negatives), *windows]) == 0
    assert all(float(row["confidence"]) >= thresholds[row["label"]] - 1e-4 for row in rows("w.csv"))
    assert predict([*MEMBERS, "--input", str(unheard), "--output", "p.csv"]) == 0
    assert "unknown, for their confidence is below their labels' thresholds in" in capsys.readouterr().out
    assert predict([*MEMBERS, "--input", str(unheard), "--output", "all.csv", "--min-confidence", "0"]) == 0
    for row, best in zip(rows("p.csv"), rows("all.csv"), strict=True):
        sure = float(best["confidence"]) >= thresholds[best["label"]]
        assert row["label"] == (best["label"] if sure else "unknown"), row
    assert {row["label"] for row in rows("p.csv")} > {"unknown"}

    assert export([*MEMBERS, "--check-clips", "2"]) == 0
    assert OnnxModel("model.onnx").thresholds == thresholds
    (command,) = [line for line in Path("model.onnx.md").read_text().splitlines() if "infer.calibrate --" in line]
    assert "--negatives FOLDER --false-alarms-per-hour 120" in command
    capsys.readouterr()
    other = ["--run", RUN, "--tta", "2", "--device", "cpu"]
    for use in (
        lambda: predict([*other, "--input", str(unheard), "--output", "one.csv"]),
        lambda: export([*other, "--check-clips", "2", "--output", "one.onnx"]),
        lambda: evaluate([*other, "--input", str(unheard)]),
    ):
        assert use() == 0
        assert "its thresholds are of other folds, views or an earlier training; run" in "".join(capsys.readouterr())
    assert report([*MEMBERS, "--input", str(unheard), "--negatives", str(negatives)]) == 0
    assert '"false_alarms_per_hour"' in Path("report.html").read_text()
    capsys.readouterr()
    hard = ["--ensemble", "hard", "--output", "h.csv"]
    assert predict([*MEMBERS, "--input", str(unheard), *hard]) == 0
    assert "its thresholds are of --ensemble soft, and not used for votes" in "".join(capsys.readouterr())
    assert calibrate([*MEMBERS, "--input", str(unheard)]) == 0
    assert "are dropped; add --negatives" in capsys.readouterr().err
    assert "thresholds" not in read_sealed(kept)


def test_thresholds_need_no_errors(project: Path, negatives: Path, unheard: Path, capsys) -> None:
    """Where too few clips are judged wrongly for a temperature, it stays 1, and thresholds are chosen nevertheless."""
    for path in sorted(unheard.glob("*/*.wav"))[::6]:
        (project / "few" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, project / "few" / path.parent.name)
    flags = [*MEMBERS, "--input", "few"]
    assert calibrate(flags) == 2
    capsys.readouterr()
    assert calibrate([*flags, "--negatives", str(negatives), "--false-alarms-per-hour", "120"]) == 0
    assert "the temperature stays what it is; judged wrongly" in capsys.readouterr().err
    (kept,) = Path(RUN).glob("ensemble-*.json")
    content = read_sealed(kept)
    assert (content["temperature"], content["fitted"]) == (1, False)
    assert calibrate([*MEMBERS, "--input", str(unheard)]) == 0
    before = read_sealed(kept)
    assert calibrate([*flags, "--negatives", str(negatives), "--false-alarms-per-hour", "120"]) == 0
    content = read_sealed(kept)
    assert content["thresholds"]
    for key in ("temperature", "fitted", "clips", "before", "after"):
        assert content[key] == before[key], "what an earlier temperature was fitted on stays"
    assert content["thresholds"].keys() == {*WORDS, "noise"}


def test_what_cannot_tell_is_refused(
    project: Path, negatives: Path, unheard: Path, capsys: pytest.CaptureFixture
) -> None:
    """Too short, half a question, trained on, unreadable, or out of fold: one line, and nothing is kept."""
    both = ("--input", str(unheard), "--negatives", str(negatives))

    def refused(command, *flags: str) -> str:
        assert command([*MEMBERS, *flags]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    with pytest.MonkeyPatch.context() as patch:  # before hours are judged
        patch.setattr("infer.measure.false_alarms.judge_in_windows", None)
        assert "do not show whether there are 1 false alarms in an hour; it takes 1.0 hours" in refused(
            calibrate, *both, "--false-alarms-per-hour", "1"
        )
        assert "takes a number above 0" in refused(calibrate, *both, "--false-alarms-per-hour", "0")
    assert "belong together" in refused(calibrate, *both)
    assert "belong together" in refused(calibrate, "--false-alarms-per-hour", "1")
    assert "--negatives judges recordings" in refused(evaluate, "--negatives", str(negatives))
    assert "no such folder" in refused(evaluate, "--split", "test", "--negatives", "nowhere")
    (negatives.parent / "parts.csv").write_text(f"file,start_s,end_s\n{negatives}/0.flac,0,10\n")
    assert "a part of a recording; windows are of whole ones" in refused(
        evaluate, *both[:2], "--negatives", str(negatives.parent / "parts.csv")
    )
    assert "leave out --ensemble hard" in refused(evaluate, *both, "--ensemble", "hard")
    word = next(unheard.rglob("*.wav"))
    shutil.copy(word, negatives / "copy.wav")
    assert "1 of its recordings are also given as words, such as copy.wav" in refused(evaluate, *both)
    (negatives / "copy.wav").unlink()
    with pytest.MonkeyPatch.context() as patch:  # too large for a recording that is held as a whole
        patch.setattr("pipeline.sound_files.MAX_BYTES", 1000)
        nothing = JudgedClips([], [], np.zeros(0, int), np.zeros(0))
        members = load_members([RUN], "0", torch.device("cpu"))
        assert len(list_negatives(str(negatives), members, nothing).paths) == 2
    (trained,) = sorted(Path("data/audio/yes").glob("a0000001_nohash_0.wav"))
    shutil.copy(trained, negatives / "copy.wav")
    assert "was trained on 1 of its 3 recordings, such as copy.wav" in refused(evaluate, "--split", "test", *both[2:])
    (negatives / "copy.wav").write_text("no sound")
    assert "copy.wav: not decodable" in refused(evaluate, "--split", "test", *both[2:])
    assert not list(Path(RUN).glob("ensemble-*.json"))


def test_parts_of_negatives_become_unknown(project: Path, negatives: Path, capsys: pytest.CaptureFixture) -> None:
    """What predict --windows finds in them: each a clip, all parts of a file in one fold, the features of that part."""
    shutil.copytree(negatives, "data/audio/_negatives_")
    windows = ("--windows", "mined.csv", "--output", "p.csv", "--window-confidence", "0.2")
    assert predict([*MEMBERS, "--input", "data/audio/_negatives_", *windows]) == 0
    flags = (
        "--n-mels 32 --n-fft 1024 --num-views 2 --folds 2 --jobs 1 --cache-dir data/mined --negatives mined.csv".split()
    )
    assert build_cache(flags) == 0
    cache = Cache(find_cache("data/mined", 32, 32))
    mined = cache.clips[cache.clips["target"] == cache.classes.index("unknown")]
    expected = {(row["file"], float(row["start_s"])) for row in rows("mined.csv")}
    found = [name.decode().removeprefix("_negatives_/").split("#t=") for name in mined["clip_id"].tolist()]
    assert {(name, float(part.split(",")[0])) for name, part in found} == expected
    for file in ("0.flac", "1.flac"):
        folds = {int(row["fold"]) for row, (name, _) in zip(mined, found, strict=True) if name == file}
        assert len(folds) == 1
    tested = Path("data/audio/testing_list.txt").read_text().split()[0]
    shutil.copy(Path("data/audio") / tested, "data/audio/_negatives_/copy.wav")
    Path("copied.csv").write_text("file,start_s\n0.flac,1\n1.flac,1\ncopy.wav,0\n")
    assert build_cache([*flags[:-1], "copied.csv", "--cache-dir", "data/copied"]) == 0
    said = capsys.readouterr().out
    assert "recordings with copies on another side of the given split" in said
    assert "recordings under two labels: 1, such as _negatives_/copy.wav (unknown) = " in said
    Path("mined.csv").write_text("file,start_s\n0.flac,1\nother.flac,1\n")
    assert build_cache(flags) == 2
    assert "mined.csv, line 3, column file: no file 'other.flac'" in capsys.readouterr().err
    assert build_cache([*flags, "--pattern", r"(?P<label>\w+)/.*"]) == 2
    assert "name the parts as rows of label unknown" in capsys.readouterr().err
    shutil.rmtree("data/audio/_negatives_")
    assert build_cache(flags) == 2
    assert "data/audio/_negatives_: no such folder" in capsys.readouterr().err
