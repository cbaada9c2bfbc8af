"""Data flows one way: no command of infer changes what it reads, the corpus, the cache and the runs.

There is one exception: infer.calibrate keeps the temperature that it fits in a run's folder, as ``ensemble-*.json``,
because the other commands look for it beside the members that it belongs to.
"""

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import RATE, synthesise
from tests.words_run import RUN, WORDS

ONE_VIEW = ("--run", RUN, "--tta", "1")
CALLS = {
    "audit": ("--run", RUN),
    "evaluate": (*ONE_VIEW, "--split", "test", "--json", "figures.json"),
    "export": (*ONE_VIEW, "--check-clips", "2"),
    "predict": (*ONE_VIEW, "--probabilities", "matrix.csv", "--windows", "windows.csv"),
    "report": ONE_VIEW,
}


def state(*folders: str) -> dict[str, bytes | None]:
    """Every file below some folders with its content, and every folder."""
    paths = [path for folder in folders for path in Path(folder).rglob("*")]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("command", CALLS)
def test_a_command_changes_nothing_that_it_reads(command: str, project: Path, request: pytest.FixtureRequest) -> None:
    """Names and bytes in data/ and runs/ are the same before and after; results lie beside them."""
    if command == "export":
        request.getfixturevalue("runtime")
    before, beside = state("data", "runs"), {path.name for path in project.iterdir()}
    assert importlib.import_module(f"infer.{command}.__main__").main(list(CALLS[command])) == 0
    assert state("data", "runs") == before
    assert {path.name for path in project.iterdir()} > beside


def test_calibrate_adds_one_file_to_one_run(project: Path) -> None:
    """Nothing else changes, and calibrating again changes nothing at all."""
    for word, name in enumerate(WORDS):
        (project / "own" / name).mkdir(parents=True)
        for n in range(20):
            noise = np.random.default_rng([word, n]).standard_normal(RATE) * (0.5 if n % 2 else 0)
            clip = np.float32(synthesise(word, 20 + n, n) + noise)
            soundfile.write(project / "own" / name / f"{n}.wav", clip, RATE)
    shutil.copytree(RUN, "runs/other")
    flags = ["--run", RUN, "--run", "runs/other", "--tta", "1", "--input", "own"]
    before = state("data", "runs", "own")
    main = importlib.import_module("infer.calibrate.__main__").main
    assert main(flags) == 0
    after = state("data", "runs", "own")
    (added,) = after.keys() - before.keys()
    assert Path(added).match("runs/*/ensemble-*.json")
    assert {name: content for name, content in after.items() if name != added} == before
    assert main(flags) == 0
    assert state("data", "runs", "own") == after
