"""Files that were edited, emptied or made by something else: one line that names the file, never a traceback."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.check import check_cache
from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import read_sealed, write_sealed
from cache.find import find_cache
from cache.index import INDEX, Cache
from cache.info import describe
from cache.shard import sidecar_path
from infer.corpus import find_member_cache
from infer.ensemble import Ensemble
from infer.labelled import out_of_fold
from infer.members import load_members
from infer.report.data import read_curves
from pipeline.build_cache import main as build
from pipeline.provenance import read_provenance
from tests.words_run import RUN, TRAINING
from train.checkpoint import load_arrays, load_checkpoint, save_arrays, save_checkpoint, taking_over
from train.engine import Trainer
from train.folds import select_fold
from train.options import TrainOptions
from train.record import Record
from train.trained_on import contents_trained_on
from train.world import World

ODD = (None, "text", -1, 1.5, math.nan, 10**30, True, [], {}, [[]], ["\0"], "\ud800\x1b[31m")
CPU = torch.device("cpu")


def edited(content: Any, depth: int = 9, where: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every copy of nested plain values in which one entry is missing, or something else; and the entry's path."""
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(entries):
        for odd in ODD:
            yield (*where, key, repr(odd)), _with(content, key, odd)
        less = copy.copy(content)
        del less[key]
        yield (*where, key, "missing"), less
        for path, inner in edited(value, depth - 1, (*where, key)) if depth > 1 else ():
            yield path, _with(content, key, inner)


def _with(content: Any, key: Any, value: Any) -> Any:
    content = copy.copy(content)
    content[key] = value
    return content


def check_refusals(
    copies: Iterator[tuple[tuple, Any]], write: Callable[[Any], None], read: Callable[[], Any], names: str
) -> set[str]:
    """Whatever is edited, reading works or is refused in one line that names the file; returns what may not miss."""
    refused = {}
    for path, other in copies:
        write(other)
        try:
            read()
        except InputError as error:
            refused[path] = str(error)
    for path, line in refused.items():
        assert names in line, (path, line)
        assert "\n" not in line, (path, line)
    return {path[0] for path in refused if path[1:] == ("missing",)}


@pytest.fixture
def run(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run and its cache to edit, in the working directory."""
    for folder in ("runs", "data/cache"):
        shutil.copytree(here / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cache.files._fsync", lambda path: None)  # hundreds of copies need not survive a power cut
    return Path(RUN)


def test_any_index(run: Path) -> None:
    """Each entry of an index missing or of another kind, with a seal that fits."""
    (folder,) = Path("data/cache").iterdir()
    member, index = load_members([RUN], "0", CPU)[0], read_sealed(folder / INDEX)

    def read() -> None:
        describe(folder)
        find_cache("data/cache", 32, 32)
        select_fold(find_member_cache(member, "data/cache"), "0", 0.02)

    def write(other: dict[str, Any]) -> None:
        write_sealed(folder / INDEX, other)

    assert check_refusals(edited(index), write, read, "data/cache") >= index.keys() - {"versions", "digest", "command"}
    for path, other in edited(index, depth=1):
        write(other)
        assert all("\n" not in damage.why for damage in check_cache(folder)), path


@pytest.mark.parametrize("column", ["target", "fold", "split", "shard", "row"])
def test_any_clip_table(run: Path, column: str) -> None:
    """A clip table with values that point nowhere, or with other columns, is refused when it is opened."""
    from cache.index import write_index

    (folder,) = Path("data/cache").iterdir()
    cache = Cache(folder)
    content = {key: value for key, value in cache.index.items() if key not in ("schema", "clips")}
    for value in (-2, 9999):
        clips = np.array(cache.clips)
        clips[column][3] = value % 256 if column == "split" else value
        write_index(folder, clips, content)
        with pytest.raises(InputError, match="clip"):
            Cache(folder)
    others = [(name, "<f4" if name == column else kind) for name, kind in cache.clips.dtype.descr]
    for table in (cache.clips.astype(others), cache.clips[[column]].copy(), np.zeros((2, 2))):
        write_index(folder, table, content)
        with pytest.raises(InputError, match="clip"):
            Cache(folder)


def test_any_sidecar(here: Path, run: Path) -> None:
    """A shard whose sidecar was edited counts as unfinished, for the build as for training; nothing else is lost."""
    (folder,) = Path("data/cache").iterdir()
    cache, path = Cache(folder), sidecar_path(folder, 0)
    sidecar, audio = read_sealed(path), str(here / "data/audio")
    for key in ("clip_id", "stamp", "sha256", "flags", "reason"):
        sidecar["clips"][key] = sidecar["clips"][key][:2]  # else there are thousands of edits
    sidecar["rows"], missing = 2, set()
    write_sealed(path, sidecar)
    assert 0 in read_provenance(folder, cache.config).shards
    for where, other in edited(sidecar):
        write_sealed(path, other)
        if 0 not in read_provenance(folder, cache.config).shards and where[-1] == "missing":
            missing.add(where[0])
        contents_trained_on(cache, np.arange(3), 0, [])
    assert missing == sidecar.keys() - {"sources"}
    write_sealed(path, {**sidecar, "rows": 3})
    flags = "--n-mels 32 --n-fft 1024 --num-views 2 --folds 2 --jobs 1".split()
    assert build(["--audio-dir", audio, *flags]) == 0
    assert not check_cache(folder)


def test_any_best_checkpoint(run: Path) -> None:
    """Each entry of best.pt, temperature 0 and NaN among them, and each tensor of its model."""
    path = run / "fold0/best.pt"
    content = load_checkpoint(path)
    first = next(iter(content["model"]))

    def read() -> None:
        saved = load_checkpoint(path)
        FeatureConfig.from_dict(saved["features"], str(path))
        assert 0 < saved["temperature"] < math.inf

    optional = ("heard", "held_back", "device", "memory_format")  # not in checkpoints of earlier versions
    others = {key: content[key] for key in content.keys() - {"model", "version", "options", *optional}}
    others |= {"options": {"model": "test_resnet", "hold_back": 0.02}, "model": {}}
    assert check_refusals(edited(others), lambda other: save_checkpoint(path, other), read, "best.pt") == others.keys()
    save_checkpoint(path, {**content, "options": {"model": "no such"}})
    with pytest.raises(InputError, match=r"best\.pt"):
        load_members([RUN], "0", CPU)
    for model in (None, 3, {}, {"a": 1}, _with(content["model"], first, 3)):
        save_checkpoint(path, {**content, "model": model})
        with pytest.raises(InputError, match=r"best\.pt"):
            load_members([RUN], "0", CPU)


def test_any_last_checkpoint(run: Path) -> None:
    """Each entry of last.pt and of the state in it is refused or taken over."""
    (folder,) = Path("data/cache").iterdir()
    path, cache, world = run / "fold0/last.pt", Cache(folder), World(0, 0, 1, CPU)
    saved = load_checkpoint(path)
    options = TrainOptions(**saved["options"])
    trainer = Trainer(options, world, cache, select_fold(cache, "0", options.hold_back))
    record, state = Record(options, cache, "0"), saved["state"]

    def read() -> None:
        content = record.load()
        with taking_over(path):
            trainer.restore(content["state"])

    def write(other: dict[str, Any]) -> None:
        edited_state = {key: state[key] if value == 7 else value for key, value in other.items()}
        save_checkpoint(path, {**others, "state": edited_state})

    others = {key: value for key, value in saved.items() if key not in ("state", "heard", "version")}
    for key in others:
        save_checkpoint(path, {**others, "state": state, key: None})
        with pytest.raises(InputError, match=r"last\.pt"):
            record.load()
    copies = (
        pair for pair in edited(dict.fromkeys(state, 7), 1) if pair[0][-1] in ("missing", "None", "[]", str(10**30))
    )
    assert check_refusals(copies, write, read, "last.pt") == state.keys() - {"amp", "taught", "threads"}


def test_any_out_of_fold_file(run: Path) -> None:
    """Each array of oof.npz missing, of another type, shape or length."""
    path = run / "fold0/oof.npz"
    arrays, (member,) = load_arrays(path), load_members([RUN], "0", CPU)
    for name, array in arrays.items():
        others = [np.array(3), np.array("text"), np.zeros(0), np.zeros((2, 2, 2)), array[None], np.array([b"\xff"])]
        others += [array[:-1], array[:0], array.astype("S9" if array.dtype.kind == "U" else "U9")] if array.ndim else []
        gone = [] if name == "epoch" else [{}]  # which files of earlier versions lack
        for changed in [*gone, *({name: other} for other in others)]:
            save_arrays(path, **{key: value for key, value in arrays.items() if key != name}, **changed)
            with pytest.raises(InputError, match=r"oof\.npz"):
                out_of_fold([member], "data/cache")


def test_any_ensemble_file(run: Path) -> None:
    """Each entry of the file that infer.calibrate keeps; the temperature is positive or refused."""
    members = load_members([RUN], "all", CPU)
    path = Ensemble(members, 4).path

    def read() -> None:
        assert 0 < Ensemble(members, 4).temperature < math.inf

    copies = edited({"temperature": 1.25, "members": ["a"], "before": {"ece": 0.5}})
    assert check_refusals(copies, lambda other: write_sealed(path, other), read, path.name) == {"temperature"}


def test_any_metrics_line(run: Path) -> None:
    """Each number of a line of metrics.jsonl, and lines that are no objects."""
    path = run / "fold0/metrics.jsonl"
    line = json.loads(path.read_text().splitlines()[0])

    def read() -> None:
        json.dumps(read_curves([RUN]), allow_nan=False)

    shown = {"epoch", "lr", "train_loss", "train_accuracy", "clips_per_second", "val_loss", "val_accuracy"}
    write = lambda other: path.write_text(json.dumps(other) + "\n")  # noqa: E731
    assert check_refusals(edited(line), write, read, "metrics.jsonl") == shown
    for text in ("3", "[]", "null", '"epoch"', "{", "\x1b[31m", "[" * 100_000):
        path.write_text(text + "\n")
        with pytest.raises(InputError, match=r"metrics\.jsonl"):
            read()


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "oof.npz", "metrics.jsonl", "config.json"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"text\n", b"PK\x03\x04"], ids=["empty", "zeros", "text", "zip"])
def test_empty_and_foreign_files(run: Path, capsys: pytest.CaptureFixture, name: str, content: bytes) -> None:
    """Every command that reads a fold's files ends well or with one line, whatever lies there."""
    from infer.audit.__main__ import main as audit
    from infer.evaluate.__main__ import main as evaluate
    from train.run import main as train

    (run / f"fold0/{name}").write_bytes(content)
    again = TRAINING.split()
    for main, flags in ((evaluate, ["--run", RUN, "--device", "cpu"]), (audit, ["--run", RUN]), (train, again)):
        capsys.readouterr()
        status = main(flags)
        error = capsys.readouterr().err
        assert (status, error.count("\n")) in ((0, 0), (2, 1)), error
        assert not error or f"fold0/{name}: " in error
