"""Results never take the place of what a command reads; a full disk and a killed writer leave no trace."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from train_helpers import mounted

from cache.files import lies_in, write_atomic
from tests.words_run import RUN

COMMANDS = {  # command → the flags that name an output
    "predict": ("--output", "--probabilities", "--windows"),
    "evaluate": ("--json",),
    "report": ("--output",),
    "audit": ("--output",),
    "export": ("--output",),
}
PLACES = {
    "a checkpoint": lambda here: f"{RUN}/fold0/best.pt",
    "nothing yet, in a fold": lambda here: f"{RUN}/fold0/new.csv",
    "nothing yet, in a run": lambda here: f"{RUN}/new.csv",
    "an index": lambda here: next(here.glob("data/cache/*/index.json")),
    "nothing yet, in a cache": lambda here: next(here.glob("data/cache/*/")) / "new.csv",
    "a list of the corpus": lambda here: "data/audio/testing_list.txt",
    "a clip": lambda here: "data/audio/yes/a0000001_nohash_0.wav",
    "nothing yet, in the corpus": lambda here: "data/audio/yes/new.csv",
    "a link to a checkpoint": lambda here: _link(here / "link.csv", here / RUN / "fold0/best.pt"),
    "a folder that is a link": lambda here: _link(here / "linked", here / RUN / "fold0") / "new.csv",
    "a link in a fold": lambda here: _link(here / RUN / "fold0/out.csv", here / "out.csv"),
}


def _link(path: Path, target: Path) -> Path:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("command", "flag"), [(name, flag) for name, flags in COMMANDS.items() for flag in flags])
def test_no_result_replaces_what_is_read(here: Path, capsys: pytest.CaptureFixture, command: str, flag: str) -> None:
    """Runs, caches, the corpus and links to them are refused in one line, before any work, and stay as they are."""
    if command == "export":
        pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    main, kept = importlib.import_module(f"infer.{command}.__main__").main, content(here / RUN)
    for name, place in PLACES.items():
        path = str(place(here))
        assert main(["--run", RUN, flag, path]) == 2, name
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {path}: "), name
        assert line.endswith("is to be read, so it is not written over or into; choose another place"), name
    (here / RUN / "fold0/out.csv").unlink()
    assert content(here / RUN) == kept


def test_no_result_replaces_a_recording(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The recordings of --input and --check, the list that names them, and the int8 file beside an exported one."""
    from infer.evaluate.__main__ import main as evaluate
    from infer.export.__main__ import main as export
    from infer.predict.__main__ import main as predict

    clip, bare = tmp_path / "in/yes/a.wav", tmp_path / "bare"
    clip.parent.mkdir(parents=True)
    for path in (clip, bare):
        shutil.copy(here / "data/audio/yes/a0000001_nohash_0.wav", path)
    (tmp_path / "list.txt").write_text(str(bare))
    _link(tmp_path / "model.int8.onnx", clip)
    listed, folder = ("--input", str(tmp_path / "list.txt")), ("--input", str(tmp_path / "in"))
    calls = [(predict, (*listed, "--output", path)) for path in (bare, tmp_path / "list.txt")]
    calls += [(predict, (*folder, "--windows", clip)), (evaluate, (*folder, "--json", clip))]
    (tmp_path / "table.txt").write_text("file,label\nbare,yes\n")
    calls += [(evaluate, ("--manifest", tmp_path / "table.txt", "--json", bare))]
    if importlib.util.find_spec("onnxruntime"):
        check = ("--check", tmp_path / "in")
        calls += [
            (export, (*check, "--output", clip)),
            (export, (*check, "--int8", "--output", tmp_path / "model.onnx")),
        ]
    before = content(tmp_path)
    for main, flags in calls:
        assert main(["--run", RUN, *map(str, flags)]) == 2
        assert "is to be read, so it is not written over" in capsys.readouterr().err
    assert content(tmp_path) == before
    assert predict(["--run", RUN, *folder, "--tta", "1", "--output", str(tmp_path / "in/new.csv")]) == 0


def test_no_result_replaces_what_other_commands_read(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Runs, caches and corpora that no flag names are known by what lies in them; a recording, by its name."""
    from infer.audit.__main__ import main

    run = shutil.copytree(here / RUN, tmp_path / "other")
    cache = shutil.copytree(next(here.glob("data/cache/*/")), tmp_path / "cache")
    (tmp_path / "link").symlink_to(run / "fold0")
    (tmp_path / "a.FLAC").touch()
    before = content(tmp_path)
    for name in (
        "other/fold0/best.pt",
        "other/new.csv",
        "link/oof.npz",
        f"cache/{next(cache.glob('*.npy')).name}",
        "a.FLAC",
    ):
        assert main(["--run", RUN, "--output", str(tmp_path / name)]) == 2
        assert "is to be read, so it is not written over or into" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_cache_and_corpus_lie_apart(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A cache in the corpus, or the corpus in the cache's own folder, is refused; beside it, it is not."""
    from pipeline.build_cache import main
    from tests.conftest import SMALL, only_cache

    flags = (*SMALL, "--jobs", "1")
    for cache_dir in (corpus, corpus / "yes", corpus / "cache"):
        assert main(["--audio-dir", str(corpus), "--cache-dir", str(cache_dir), *flags]) == 2
        assert "must lie apart; choose another --cache-dir" in capsys.readouterr().err
    assert main(["--audio-dir", str(corpus), "--cache-dir", str(tmp_path / "cache"), *flags]) == 0
    inner = only_cache(tmp_path / "cache") / "audio"
    corpus.rename(inner)
    assert main(["--audio-dir", str(inner), "--cache-dir", str(tmp_path / "cache"), *flags]) == 2
    inner.rename(tmp_path / "cache/audio")
    assert main(["--audio-dir", str(tmp_path / "cache/audio"), "--cache-dir", str(tmp_path / "cache"), *flags]) == 0


def test_lies_in_follows_links_and_needs_no_file(tmp_path: Path) -> None:
    """A place counts under whatever name, and one that is not there holds nothing."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert lies_in(tmp_path / "link/not/there", [tmp_path / "no", tmp_path / "real"]) == tmp_path / "real"
    assert lies_in(tmp_path / "real", [tmp_path / "link"]) == tmp_path / "link"
    assert lies_in(tmp_path / "file", [tmp_path / "link", "\0"]) is None
    assert os.listdir(tmp_path / "real") == []


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("predict", ("--tta", "1", "--output")),
        ("predict", ("--tta", "1", "--output", "p.csv", "--probabilities")),
        ("evaluate", ("--json",)),
        ("report", ("--split", "oof", "--output")),
        ("audit", ("--output",)),
        ("export", ("--tta", "1", "--check-clips", "1", "--output")),
    ],
)
def test_full_disk_is_named(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture, command: str, flags: tuple
) -> None:
    """Where a result does not fit on its disk, one line says which file it was, and nothing of it is left."""
    if command == "export":
        pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    main, folder = importlib.import_module(f"infer.{command}.__main__").main, tmp_path / "small"
    with mounted(folder, "64k"):
        (folder / "ballast").write_bytes(bytes(64 << 10))
        assert main(["--run", RUN, *flags, str(folder / "result")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(f"error: {folder}/"), lines
        assert lines[-1].endswith(": No space left on device; free some space, and type the same command again")
        assert [path.name for path in folder.iterdir()] == ["ballast"]


def test_full_output_is_named() -> None:
    """What cannot be printed is one line too."""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "train.recipes"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: standard output: No space left on device; free some space, and type the same command again\n"
    )


def test_a_closed_pipe_ends_in_silence() -> None:
    """As in ``python -m train.recipes | head -1``: no message, and the status that a shell gives."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        command = [sys.executable, "-m", "train.recipes"]
        done = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """The next result of that name removes it, but not what another process is writing."""
    path = tmp_path / "[table].csv"
    code = "import sys; from pathlib import Path; from cache.files import atomic_path\n"
    code += "with atomic_path(Path(sys.argv[1])) as path:\n path.write_text('theirs'); print(flush=True); input()"
    writers = []
    for _ in range(2):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        writers.append(subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, text=True, **pipes))
        writers[-1].stdout.readline()
    writers[0].kill()
    writers[0].wait()
    (tmp_path / ".other.0123abcd.tmp").touch()
    assert len(list(tmp_path.iterdir())) == 3
    write_atomic(path, b"ours")
    assert path.read_text() == "ours"
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    writers[1].communicate("\n")
    assert writers[1].returncode == 0
    assert path.read_text() == "theirs"
    assert [each.name for each in tmp_path.glob(".*.tmp")] == [".other.0123abcd.tmp"]
