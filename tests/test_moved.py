"""Where the recordings lie now: a project or a corpus that has moved, recordings that are gone, runs that go on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from tests.words_run import RUN, rebuild
from train.checkpoint import load_arrays, load_checkpoint, save_arrays, save_checkpoint

FLAGS = ["--run", RUN, "--device", "cpu", "--tta", "1"]


@pytest.fixture
def mistaken(project: Path) -> Path:
    """The project, built where it lies, with four held-out clips that were judged wrongly."""
    rebuild()
    path = project / RUN / "fold0/oof.npz"
    arrays = load_arrays(path)
    arrays["logits"][:4] = 10 * np.eye(4)[(arrays["target"][:4] + 1) % 4]
    save_arrays(path, **arrays)
    return project


def worst(page: str) -> list[dict[str, Any]]:
    """The clips that a report embeds, out of fold."""
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', Path(page).read_text())[1]
    return json.loads(data)["sources"][-1]["worst"]


def warnings(error: str) -> str:
    """What is on stderr, but for the line about a run that is not calibrated yet."""
    kept = [line for line in error.splitlines(keepends=True) if "until you run python -m infer.calibrate" not in line]
    return "".join(kept)


def test_a_moved_project_keeps_its_recordings(
    mistaken: Path, runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every command that reads the corpus finds it where it lies beside the cache now."""
    shutil.move(mistaken, mistaken.with_name("moved"))
    monkeypatch.chdir(mistaken.with_name("moved"))
    capsys.readouterr()
    assert report([*FLAGS, "--output", "report.html"]) == 0
    assert all(clip["audio"] for clip in worst("report.html"))
    assert len(worst("report.html")) == 4
    assert evaluate([*FLAGS, "--split", "test"]) == 0
    assert predict(FLAGS) == 0
    assert export(["--run", RUN, "--check-clips", "2"]) == 0
    out, error = capsys.readouterr()
    assert "2 clips of the cache's test split" in out
    assert warnings(error) == ""


@pytest.mark.parametrize("judge", [evaluate, predict, report, calibrate, export])
def test_a_moved_corpus_is_found_by_audio_dir(
    judge: Callable, mistaken: Path, runtime, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without the flag stderr says what is missing and names the flag; with it everything is found."""
    shutil.move("data/audio", tmp_path / "speech")
    for fold in (0, 1) if judge is calibrate else ():  # as if half of the clips had been held back
        path = Path(RUN) / f"fold{fold}/best.pt"
        saved = load_checkpoint(path)
        saved["options"]["hold_back"], saved["held_back"] = 0.5, 48
        save_checkpoint(path, {**saved, "heard": saved["heard"][:0]})
    flags = ["--run", RUN, "--check-clips", "2"] if judge is export else FLAGS
    flags = [*flags, "--split", "test"] if judge is evaluate else flags
    capsys.readouterr()
    status = judge(flags)
    error = capsys.readouterr().err
    assert status == (0 if judge is report else 2)
    assert error.count("\n") == 1
    assert "name their --audio-dir" in error
    if judge is report:
        assert "4 of 4 clips have neither sound nor picture, such as " in error
        assert ": No such file or directory; name" in error
        assert not any("audio" in clip for clip in worst("report.html"))
    status = judge([*flags, "--audio-dir", str(tmp_path / "speech")])
    out, error = capsys.readouterr()
    if judge is calibrate:  # found, but judged too well
        assert "judged wrongly: " in error
    else:
        assert (status, warnings(error)) == (0, "")
    if judge is report:
        assert all(clip["audio"] for clip in worst("report.html"))
    if judge is export:
        assert "clips of the cache's test split" in out


def test_recordings_that_are_gone_are_counted(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Of a test split with gaps the rest is judged."""
    rebuild()
    for path in list((project / "data/audio").glob("*/a0000008_nohash_0.wav"))[:3]:
        path.unlink()
    assert evaluate([*FLAGS, "--split", "test"]) == 1
    assert "3 of 12 clips are missing; name their --audio-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "patience", "expected"),
    [(6, 0, True), (6, 3, False), (6, 4, True), (20, 0, False), (0, 0, False)],
)
def test_weights_of_a_run_in_training_are_named(
    lines: int, patience: int, expected: bool, project: Path, capsys: pytest.CaptureFixture
) -> None:
    """Predict says whose epoch's weights it has, until all epochs are done or patience has run out."""
    fold = project / RUN / "fold1"
    saved = load_checkpoint(fold / "best.pt")
    saved["best"]["epoch"], saved["options"]["patience"] = 3, patience
    save_checkpoint(fold / "best.pt", saved)
    metrics = (fold / "metrics.jsonl").read_text().splitlines(keepends=True)
    (fold / "metrics.jsonl").write_text("".join(metrics[:lines]))
    assert predict(FLAGS) == 0
    line = f"{RUN}/fold1/best.pt: the weights of epoch 3; training is at epoch 6 of 20\n"
    assert warnings(capsys.readouterr().err) == (line if expected else "")
