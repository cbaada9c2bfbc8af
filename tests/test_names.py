"""Hostile names of files and labels: in tables, on consoles, and where they collide with the tables' own words."""

import csv
import importlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT, only_cache, write_corpus

from cache import info
from cache.cli import printable, run_main, say
from cache.files import csv_table, read_sealed, write_sealed
from cache.index import INDEX
from pipeline.clips import Rows
from tests.words_run import RUN

NAMES = [
    "a\rb",
    "a\nb",
    "a\r\nb",
    'a"b',
    "a,b",
    " a ",
    "'",
    "=1+1",
    "-1",
    "@a",
    "\x1b[31m",
    "é",
    "\u2028",
    "\udcff",
    "",
]


def test_tables_hold_any_name(tmp_path: Path) -> None:
    """What a table is given is what Python's reader gets back, cell by cell, and lines end as before."""
    path = tmp_path / "table.csv"
    with csv_table(path, ["file", *NAMES]) as table:
        table.writerows([name, *NAMES] for name in NAMES)
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.reader(file)) == [["file", *NAMES], *([name, *NAMES] for name in NAMES)]
    with csv_table(path, ["file", "label"]) as table:
        table.writerow(["a", 1])
    assert path.read_bytes() == b"file,label\na,1\n"


def test_predictions_and_rejected_files_with_carriage_returns(
    here: Path, tmp_path: Path, corpus: Path, build: Callable
) -> None:
    """Each file is one row of its table, whatever its name."""
    from infer.predict.__main__ import main

    clip = here / "data/audio/yes/a0000001_nohash_0.wav"
    (tmp_path / "in").mkdir()
    names = [f"{name}.wav" for name in ("a\rb", "a\nb", "=1+1", "\x1b[31m")]
    for name in names:
        shutil.copy(clip, tmp_path / "in" / name)
        (corpus / "yes" / name).write_text("no sound")
    tables = {flag: tmp_path / f"{flag}.csv" for flag in ("output", "probabilities", "windows")}
    flags = [part for flag, path in tables.items() for part in (f"--{flag}", str(path))]
    assert main(["--run", RUN, "--tta", "1", "--input", str(tmp_path / "in"), *flags]) == 0
    assert build()[0] == 1
    rejected = only_cache(tmp_path / "cache") / "rejected.csv"
    for path, first in ((tables["output"], ""), (tables["probabilities"], ""), (rejected, "yes/")):
        with open(path, newline="", encoding="utf-8") as file:
            assert sorted(row["file"] for row in csv.DictReader(file)) == sorted(first + name for name in names)


def test_labels_that_steer_a_terminal_are_refused(tmp_path: Path, corpus: Path, build: Callable) -> None:
    """Control characters in a label end the build in one plain line, whichever they are."""
    for label in ("\x1b[31mred", "a\rb", "a\nb", "\x9b31m"):
        write_corpus(tmp_path / "audio", [label])
        status, output = build()
        assert status == 2
        assert "holds control characters; rename it" in output
        assert printable(output.strip("\n")) == output.strip("\n")
        shutil.rmtree(tmp_path / "audio" / label)
    assert build()[0] == 0


def test_old_caches_are_shown_without_their_escapes(tmp_path: Path, corpus: Path, build: Callable, capsys) -> None:
    """What an index holds is printed escaped, whole or damaged."""
    build()
    path = only_cache(tmp_path / "cache") / INDEX
    for change in (
        {"classes": ["a\x1b[31m", "\x07b", "\ud800"], "audio_dir": "\x1b]0;title\x07"},
        {"schema": "\x1b[31m"},
    ):
        content = {key: value for key, value in read_sealed(path).items() if key != "checksum"}
        write_sealed(path, {**content, **change})
        info.main(["--cache-dir", str(tmp_path / "cache")])
        shown = capsys.readouterr()
        assert "\\x1b" in shown.out
        assert not {"\x1b", "\x07"} & {*shown.out, *shown.err}


@pytest.mark.parametrize("command", ["evaluate", "audit", "report"])
def test_escapes_in_names_are_not_printed(here: Path, tmp_path: Path, capsys, monkeypatch, command: str) -> None:
    """Labels of old runs, and names of recordings, are escaped by whoever prints them."""
    import infer.members
    from train.checkpoint import load_arrays, load_checkpoint, save_arrays, save_checkpoint

    for folder in ("runs", "data/cache"):
        shutil.copytree(here / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    (index,) = Path("data/cache").glob(f"*/{INDEX}")
    content = {key: value for key, value in read_sealed(index).items() if key != "checksum"}
    labels = [f"\x1b[31m{label}" for label in content["classes"]]
    write_sealed(index, {**content, "classes": labels})
    for fold in Path(RUN).glob("fold*"):
        save_checkpoint(fold / "best.pt", {**load_checkpoint(fold / "best.pt"), "classes": labels})
        save_arrays(fold / "oof.npz", **{**load_arrays(fold / "oof.npz"), "classes": np.array(labels)})
    assert infer.members.trained_folds(RUN, "all") == ["0", "1"]
    main = importlib.import_module(f"infer.{command}.__main__").main
    assert main(["--run", RUN]) == 0
    recording = tmp_path / "in/\x1b[31mlabel/\x1b[31m.wav"
    recording.parent.mkdir(parents=True)
    soundfile.write(recording, np.zeros(16000), 16000)
    if command != "audit":
        assert main(["--run", RUN, "--input", str(tmp_path / "in")]) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err


def test_labels_like_the_tables_own_words(here: Path, monkeypatch, capsys) -> None:
    """A table with a column twice is refused before any work; unknown may be a class."""
    from infer.options import PredictOptions
    from infer.predict.tables import check_outputs

    with pytest.raises(ValueError, match="called file, and so is a label"):
        check_outputs(PredictOptions(run=(RUN,), probabilities="p.csv"), ["file", "yes"])
    check_outputs(PredictOptions(run=(RUN,)), ["file", "yes"])
    check_outputs(PredictOptions(run=(RUN,), min_confidence=0.5), ["unknown", "yes"])


def test_what_is_said_is_one_printable_line(capsys) -> None:
    """Whatever a name holds, a result or a warning that names it stays one line that steers no terminal."""
    for error in (False, True):
        say("a\nb\x1b[31mé", error=error)
    assert capsys.readouterr() == ("a\\nb\\x1b[31mé\n",) * 2


def test_consoles_without_the_characters(tmp_path: Path) -> None:
    """On a console that knows ASCII only, output and errors are escaped."""
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "LANG": "C", "PATH": "/usr/bin:/bin"}
    calls = [(["train.recipes"], 0, "best"), (["cache.info", "--cache-dir", "é"], 2, "error: \\xe9: no such folder")]
    for flags, status, expected in calls:
        for optimise in ("-B", "-OO"):
            command = [sys.executable, optimise, "-m", *flags]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == status, done.stderr
            assert expected in done.stdout + done.stderr


def test_an_error_is_one_printable_line(monkeypatch, capsys) -> None:
    """Whatever an error message holds, it stays one line, on any stream."""
    from cache.cli import InputError

    def fail() -> int:
        raise InputError("a\nb\x1b[31m\u202e\udcffé")

    assert run_main(fail) == 2
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m\\u202e\\udcffé\n"
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", None)  # as Python starts where it is closed
    assert run_main(fail) == 2
    stream.flush()
    assert stream.buffer.getvalue().endswith(b"\\udcff\\xe9\n")


def test_names_are_no_emoji(capsys: pytest.CaptureFixture) -> None:
    """What rich would turn into a picture is printed as it is called."""
    from train.display import Display

    Display(is_main=True).line("runs/:bird:/[b]fold0")
    assert capsys.readouterr().out == "runs/:bird:/[b]fold0\n"


@pytest.mark.parametrize("other", ["Jose\u0301", "José ", "  José"])
def test_a_speaker_in_two_spellings_is_one(other: str) -> None:
    """In two forms of Unicode or with other blanks: on two sides of a split they are refused as one name is."""
    rows = Rows(grouped=True)
    rows.add((b"a.wav", 0), None, "yes", "José", "train", None, "line 2")
    with pytest.raises(ValueError, match="split") as refusal:
        rows.add((b"b.wav", 0), None, "yes", other, "test", None, "line 3")
    assert "another for the speaker José in line 2" in refusal.value.args[1]
