"""Warnings on stderr, results on stdout: what could not be read, in every command that reads recordings."""

import shutil
from pathlib import Path

import pytest
import soundfile

from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.predict.__main__ import main as predict
from infer.report.__main__ import main as report
from pipeline.build_cache import main as build
from tests.conftest import RATE, SMALL, synthesise
from tests.words_run import RUN, WORDS


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of labelled recordings, one of which is none."""
    for word, name in enumerate(WORDS):
        (tmp_path / "in" / name).mkdir(parents=True)
        for n in range(4):
            soundfile.write(tmp_path / "in" / name / f"{n}.wav", synthesise(word, 20, n), RATE)
    (tmp_path / "in" / "yes" / "bad.wav").write_text("no recording")
    return tmp_path / "in"


COMMANDS = {
    "predict": (predict, ("--input", "in", "--output", "p.csv"), "1 could not be read: see the column error\n"),
    "windows": (predict, ("--input", "in", "--output", "p.csv", "--windows", "w.csv"), "1 could not be read"),
    "evaluate": (evaluate, ("--input", "in"), "1 recording could not be read: not counted; yes/bad.wav: not"),
    "calibrate": (calibrate, ("--input", "in"), "1 recording could not be read: not counted; yes/bad.wav: not"),
    "report": (report, ("--input", "in", "--output", "r.html"), "1 recording could not be read: not counted"),
    "export": (export, ("--check", "in", "--output", "m.onnx"), "1 recording could not be read"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_unreadable_recordings_are_told_on_stderr(
    words: Path, recordings: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each command says it there, and only there; the status tells that the result is incomplete."""
    shutil.copytree(words / "runs", recordings.parent / "runs")
    monkeypatch.chdir(recordings.parent)
    if name == "export":
        pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    command, flags, expected = COMMANDS[name]
    device = () if name == "export" else ("--device", "cpu")
    status = command(["--run", RUN, "--cache-dir", str(words / "data/cache"), "--tta", "1", *device, *flags])
    shown = capsys.readouterr()
    assert status == {"export": 0, "calibrate": 2}.get(name, 1)  # which judges other clips, and too well
    assert expected in shown.err
    assert "could not be read" not in shown.out


def test_rejected_files_are_told_on_stderr(recordings: Path, capsys: pytest.CaptureFixture) -> None:
    """The summary counts them on stdout; that there are some, and where it says why, is a warning."""
    cache_dir = recordings.parent / "cache"
    assert build(["--audio-dir", str(recordings), "--cache-dir", str(cache_dir), "--jobs", "1", *SMALL]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("1 file rejected; why: ")
    assert shown.err.strip().endswith("rejected.csv")
    assert "1 rejected" in shown.out
    assert "rejected.csv" not in shown.out
