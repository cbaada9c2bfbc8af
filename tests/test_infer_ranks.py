"""infer's commands under torchrun: what one rank sees and another does not changes no answer."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from infer.calibrate.__main__ import main as calibrate
from infer.evaluate.__main__ import main as evaluate
from infer.predict.__main__ import main as predict
from tests.conftest import RATE, ROOT, synthesise
from tests.forked import command, start, world
from tests.words_run import RUN, WORDS
from train.checkpoint import load_checkpoint, save_checkpoint

SCRIPT = """
import importlib, json, os, sys
os.chdir(os.environ["RANK"])  # where each rank finds its own state of the files
for module, *flags in json.loads(sys.argv[-1]):
    status = importlib.import_module(f"{module}.__main__").main(flags)
    if status:
        sys.exit(status)
"""


@pytest.fixture
def views(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders 0 and 1, in which two ranks work: the same run, and recordings of which rank 1 sees one more, the first.

    Half of the recordings are too noisy to be sure.
    """
    for rank in "01":
        shutil.copytree(here / RUN, tmp_path / rank / RUN)
        for word, name in enumerate(WORDS):
            (tmp_path / rank / "in" / name).mkdir(parents=True)
            for n in range(20):
                noise = np.random.default_rng([word, n]).standard_normal(RATE) * (0.5 if n % 2 else 0)
                clip = np.float32(synthesise(word, 20 + n, n) + noise)
                soundfile.write(tmp_path / rank / f"in/{name}/{n:02}.wav", clip, RATE)
    soundfile.write(tmp_path / "1/in/no/+.wav", synthesise(0, 19, 0), RATE)
    monkeypatch.chdir(tmp_path / "0")
    return tmp_path


def torchrun(folder: Path, *commands: list[str]) -> tuple[int, str]:
    """Run commands, one after the other, on two ranks in the folders 0 and 1; returns exit status and output."""
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = ("--standalone", "--nproc_per_node", 2, folder / "script.py", json.dumps(commands))
    return command("torch.distributed.run", folder, *launch, env=environment)


def test_a_file_that_arrives_between_two_ranks_shifts_nothing(views: Path) -> None:
    """Rank 0's list of files is judged by both ranks; each command gives what it gives in one process."""
    flags = ["--run", RUN, "--device", "cpu", "--tta", "1", "--input", "in"]
    tables = [["--output", f"{views}/{n}.csv", "--windows", f"{views}/{n}w.csv"] for n in "12"]  # blocks of 8 files
    assert predict([*flags, *tables[0]]) == 0
    assert evaluate([*flags, "--json", f"{views}/1.json"]) == 0
    assert calibrate(flags) == 0
    (path,) = (views / "0" / RUN).glob("ensemble-*.json")
    alone = path.read_bytes()
    path.unlink()
    status, output = torchrun(
        views,
        ["infer.predict", *flags, *tables[1]],
        ["infer.evaluate", *flags, "--json", f"{views}/2.json"],
        ["infer.report", *flags, "--output", f"{views}/report.html", "--cache-dir", "none"],
        ["infer.calibrate", *flags],
    )
    assert status == 0, output
    for first, second in (("1.csv", "2.csv"), ("1w.csv", "2w.csv"), ("1.json", "2.json")):
        assert (views / first).read_bytes() == (views / second).read_bytes()
    with open(views / "2.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 60
    assert path.read_bytes() == alone
    assert (views / "report.html").exists()


def test_a_checkpoint_replaced_between_two_ranks_is_refused(views: Path) -> None:
    """A table of two models is not written; one line names the file."""
    path = views / "1" / RUN / "fold1/best.pt"
    save_checkpoint(path, {**load_checkpoint(path), "temperature": 1.25})
    flags = ["--run", RUN, "--device", "cpu", "--tta", "1", "--input", "in", "--output", f"{views}/out.csv"]
    ranks = [start("infer.predict", *flags, cwd=views / str(rank), env=env) for rank, env in enumerate(world(2))]
    output = "".join(rank.communicate()[0] for rank in ranks)
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"{RUN}/fold1/best.pt: rank 1 read another file than rank 0" in line
    assert all(rank.returncode for rank in ranks)
    assert not (views / "out.csv").exists()
