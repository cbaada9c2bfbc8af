"""The whole chain on recorded speech, by the commands that a user types."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

MODEL = ("--model", "test_resnet", "--n-mels", "32")
TRAINING = ("--fold", "all", "--epochs", "12", "--batch-size", "32", "--mixup", "0")


def test_build_train_predict_evaluate(mini: Path, tmp_path: Path) -> None:
    """Eight words of 56 real speakers: build, torchrun with two ranks, predict and evaluate, far above chance."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/audio").symlink_to(mini)
    torchrun = (str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2")
    python = (sys.executable,)
    for command in (
        (*python, "-m", "pipeline.build_cache", "--n-mels", "32", "--folds", "2"),
        (*torchrun, "-m", "train.run", *MODEL, *TRAINING, "--device", "cpu"),
        (*python, "-m", "infer.predict", *MODEL, "--folds", "all", "--tta", "4", "--input", "data/audio"),
        (*python, "-m", "infer.evaluate", *MODEL, "--json", "oof.json"),
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(mini.glob("*/*.flac")))
    assert not any(row["error"] for row in rows)
    figures = json.loads((tmp_path / "oof.json").read_text())
    assert figures["clips"] == len(rows)
    assert figures["single"]["accuracy"] > 0.25  # twice chance
