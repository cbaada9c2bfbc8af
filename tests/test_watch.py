"""Curves while training: the terminal view and the TensorBoard files of real runs."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import GUARD_SECONDS, ROOT, Halt, start
from train.live import sparkline
from train.watch import main

FLAGS = ("--n-mels", "16", "--model", "test_resnet", "--batch-size", "4", "--epochs", "4", "--name", "run")


def entry(epoch: int, accuracy: float | None) -> dict:
    """A line of metrics.jsonl."""
    judged = {"val_loss": None if accuracy is None else 1 - accuracy, "val_accuracy": accuracy}
    return {"epoch": epoch, "train_loss": 0.5, "train_accuracy": 0.75, "lr": 1e-3, "clips_per_second": 1234.5, **judged}


def write_fold(folder: Path, entries: list[dict], tail: str = "") -> None:
    """A fold's folder as training leaves it; `tail` is a line that is still being written."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries) + tail)
    (folder / "config.json").write_text(json.dumps({"options": {"epochs": 3}}))


def test_once_shows_every_fold_with_its_last_and_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Folds stand in numeric order; a half-written line is not read; fold none has no validation."""
    write_fold(tmp_path / "run/fold10", [entry(1, 0.5), entry(2, 0.75), entry(3, 0.625)])
    write_fold(tmp_path / "run/fold2", [entry(1, 0.5), entry(2, 0.25)], tail='{"epoch": 3, "val_')
    write_fold(tmp_path / "run/foldnone", [entry(1, None)])
    (tmp_path / "run/fold0").mkdir()
    assert main([str(tmp_path / "run"), "--once"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[0] for row in rows] == ["0", "2", "10", "none"]
    assert [row[1] for row in rows] == ["0/?", "2/3", "3/3", "1/3"]
    assert rows[1][5:8] == ["0.2500", "0.5000", "(1)"]
    assert rows[2][5:8] == ["0.6250", "0.7500", "(2)"]
    assert rows[2][-2:] == ["▁█▅", "done"]


def test_missing_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A wrong name ends with status 2 and names the runs that are there."""
    write_fold(tmp_path / "runs/right/fold0", [])
    assert main([str(tmp_path / "runs/wrong"), "--once"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "runs/wrong" in error
    assert error.endswith("name one of right\n")


def test_sparkline_spans_lowest_to_highest() -> None:
    """The lowest value is the lowest bar, the highest the highest, whatever the width; equal values are no error."""
    assert sparkline([0.1, 0.9, 0.5], 10) == "▁█▅"
    assert sparkline([float(value) for value in range(800)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.5, 0.5], 10) == "▁▁"
    assert sparkline([], 10) == ""


def test_terminal_view_refreshes_until_ctrl_c(tmp_path: Path) -> None:
    """On a terminal the view follows what is written, and Ctrl-C ends it with status 0."""
    write_fold(tmp_path / "run/fold0", [entry(1, 0.5)])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "train.watch", str(tmp_path / "run"), "--seconds", "0.1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=environment)

    def wait_for(text: str) -> None:
        seen, deadline = "", time.monotonic() + GUARD_SECONDS
        while text not in seen and time.monotonic() < deadline:
            seen += os.read(ours, 65536).decode(errors="replace")
        assert text in seen

    try:
        wait_for("1/3")
        with open(tmp_path / "run/fold0/metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry(2, 0.75)) + "\n")
        wait_for("2/3")
        process.send_signal(signal.SIGINT)
        assert process.wait(GUARD_SECONDS) == 0
    finally:
        process.kill()


def test_watching_a_run_that_is_killed_and_resumed(
    tmp_path: Path, corpus: Path, build: Callable, capsys: pytest.CaptureFixture
) -> None:
    """The view reads a run at any moment, and TensorBoard then shows each epoch once, where metrics.jsonl has it."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    build()
    run = tmp_path / "runs/run"
    flags = ("--cache-dir", tmp_path / "cache", "--runs-dir", tmp_path / "runs", *FLAGS, "--tensorboard")
    halt = Halt("last.pt", 3, tmp_path / "halted")
    process = start("train.run", *flags, halt=halt)
    while not halt.reached():
        assert process.poll() is None, process.stdout.read()
        if (run / "fold0").exists():
            assert main([str(run), "--once"]) == 0
    capsys.readouterr()
    assert main([str(run), "--once"]) == 0
    assert "3/4" in capsys.readouterr().out
    process.kill()
    process.wait()
    resumed = start("train.run", *flags)
    assert "resuming" in resumed.communicate()[0]
    events = EventAccumulator(str(run / "fold0"))
    events.Reload()
    logged = [json.loads(line) for line in (run / "fold0/metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 4
    for tag, key in (("accuracy/validation", "val_accuracy"), ("loss/train", "train_loss"), ("lr", "lr")):
        shown = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]
        assert [(line["step"], line[key]) for line in logged] == shown
