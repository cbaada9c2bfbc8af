"""What training refuses to do: each in one clear line with its remedy, before anything is lost."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import SMALL, start, write_corpus
from train_helpers import (
    TINY,
    Ranks,
    build_tiny_cache,
    differing,
    metrics,
    mounted,
    only_error,
    run,
    state_of,
    torchrun,
)

from pipeline.build_cache import main as build


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--batch-size", "320"], "--batch-size 320 is larger than the 80 training clips"),
        (["--batch-size", "1"], "--batch-size 1: test_resnet has batch normalisation.*use 2 or more"),
        (["--fold", "9"], "--fold 9: .* has folds 0 to 4"),
        (["--fold", "first"], "--fold first; expected a number, all or none"),
        (["--model", "resnet8"], "unknown model 'resnet8'; similar: "),
        (["--recipe", "bets"], "unknown recipe 'bets'; known: smoke"),
        (["--model", "dla34", "--drop-path", "0.1"], "--drop-path 0.1: dla34 has no stochastic depth"),
        (["--model", "dla34", "--drop-path", "0.1", "--pretrained"], "--drop-path 0.1: dla34 has no stochastic depth"),
        (["--teacher", "nowhere"], "nowhere/fold0/oof.npz is not there; the teacher needs all folds"),
        (["--loss", "hinge"], "unknown loss 'hinge'; known: cross_entropy"),
        (["--n-mels", "64"], "no finished cache of 64 mels x 64 frames .*mel32x32.*build_cache --n-mels 64"),
        (["--weights", "nowhere.pt"], "--weights nowhere.pt: no such file"),
        (["--weights", "nowhere.pt", "--pretrained"], "--pretrained and --weights are two starts; use one"),
        (["--fold", "none", "--hold-back", "0.1"], "--fold none trains on everything.*leave out --hold-back"),
        (["--name", ".."], r"--name \.\.: expected a name"),
        (["--amp", "fp16"], "--amp fp16 needs a CUDA device"),
        (["--cache-dir", "nowhere"], "nowhere"),
    ],
)
def test_refused(more: list[str], expected: str, flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """What cannot work is refused before any step, in one line that names the remedy, with status 2."""
    (status,), output = run(*flags, *more, log=tmp_path / "log")
    assert status == 2, output
    assert re.search(expected, only_error(output))
    assert not (fold / "last.pt").exists()


def test_batch_that_does_not_divide_over_ranks(flags: tuple[str, ...]) -> None:
    """Under torchrun the error is shown once, and again as the root cause of torchrun's own summary."""
    status, output = torchrun(*flags, "--batch-size", "15")
    message = "--batch-size 15 does not divide by 2 ranks; use --batch-size 14 or 16"
    assert status == 1
    assert sum(line.startswith("error:") and message in line for line in output.splitlines()) == 1
    root_cause = output.partition("Root Cause")[2]
    assert f"traceback : {message}" in root_cause
    assert "To enable traceback" not in root_cause


def test_pretrained_without_network(flags: tuple[str, ...]) -> None:
    """``--pretrained`` on a machine that reaches nothing asks for a local file."""
    process = start("train.run", *TINY, *flags, "--pretrained", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "--pretrained: no weights of test_resnet" in only_error(output)
    assert "is there a network? Download them elsewhere and pass --weights FILE" in output


def test_other_arguments_are_named(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """A run is not continued with other arguments, but with those that only say where and how long, it is."""
    assert run(*flags, log=tmp_path / "log")[0] == [0]
    before = state_of(fold)
    (status,), output = run(*flags, "--lr", "0.1", "--mixup", "0", log=tmp_path / "log")
    assert status == 2
    expected = "--lr 0.004 (now 0.1), --mixup 0.2 (now 0.0); use the same, or choose another --name"
    assert expected in only_error(output)
    assert not differing(state_of(fold), before)
    (status,), output = run(*flags, "--checkpoint-minutes", "1", "--patience", "9", log=tmp_path / "log")
    assert (status, "is finished" in output) == (0, True)


def test_results_that_are_gone_or_of_another_fold(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """A fold whose training has ended is not called finished without its results, nor with another fold's."""
    assert run(*flags, log=tmp_path / "log")[0] == [0]
    shutil.copytree(fold, fold.with_name("fold1"))
    (status,), output = run(*flags, "--fold", "1", log=tmp_path / "log")
    assert (status, "fold1/last.pt: is of fold 0; move" in only_error(output)) == (2, True), output
    for name in ("oof.npz", "best.pt"):
        (fold / name).rename(fold / "away")
        (status,), output = run(*flags, log=tmp_path / "log")
        assert (status, f"{name}: is gone, but training has ended; move its folder" in only_error(output)) == (2, True)
        (fold / "away").rename(fold / name)
    (status,), output = run(*flags, log=tmp_path / "log")
    assert (status, "is finished" in output) == (0, True)


def test_a_cache_of_one_label(tmp_path: Path) -> None:
    """It is for train.add_words; nothing is trained from it."""
    write_corpus(tmp_path / "audio", ["yes"])
    assert build(["--audio-dir", str(tmp_path / "audio"), "--cache-dir", str(tmp_path), *SMALL, "--one-label"]) == 0
    (status,), output = run("--cache-dir", str(tmp_path), "--n-mels", "16", log=tmp_path / "log")
    assert (status, "one label only (yes)" in only_error(output)) == (2, True), output


def test_other_features_and_split(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """A checkpoint of another feature configuration or split is refused."""
    assert run(*flags, log=tmp_path / "log")[0] == [0]
    whole = (fold / "last.pt").read_bytes()
    for key, what in (("feature_digest", "feature configuration"), ("split_digest", "split")):
        (fold / "last.pt").write_bytes(whole)
        content = torch.load(fold / "last.pt", weights_only=True)
        torch.save({**content, key: "0" * 64}, fold / "last.pt")
        (status,), output = run(*flags, log=tmp_path / "log")
        assert (status, f"was trained on another {what} (000000000000" in only_error(output)) == (2, True)


def test_second_run_is_locked_out(flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """Two runs never share a folder; the first one does not notice the second."""
    first = Ranks(*flags, "--epochs", "5000", log=tmp_path / "log")
    first.wait_for("epoch   1")
    (status,), output = run(*flags, "--epochs", "5000", log=tmp_path / "second")
    assert (status, "another run is at work here" in only_error(output)) == (2, True)
    first.kill(0, number=signal.SIGTERM)
    assert first.wait() == [143]
    epochs = [entry["epoch"] for entry in metrics(fold)]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize("damage", ["truncated", "empty", "version", "pickle"])
def test_damaged_checkpoint(damage: str, flags: tuple[str, ...], fold: Path, tmp_path: Path) -> None:
    """A checkpoint that cannot be continued is named with the reason and the remedy, and nothing in it is executed."""
    assert run(*flags, log=tmp_path / "log")[0] == [0]
    path, mark = fold / "last.pt", tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    content = torch.load(path, weights_only=True)
    if damage == "version":
        torch.save({**content, "version": 7}, path)
    elif damage == "pickle":
        torch.save({**content, "best": Malicious()}, path)
    else:
        path.write_bytes(path.read_bytes()[:2000] if damage == "truncated" else b"")
    (status,), output = run(*flags, log=tmp_path / "log")
    reason = "checkpoint version 7, this version reads 1" if damage == "version" else "not a readable checkpoint"
    assert status == 2
    assert re.search(f"last.pt: {reason}.*move {fold} away to start this fold again", only_error(output))
    assert f"the best epoch's weights are in {fold / 'best.pt'}" in output
    assert not mark.exists()
    path.unlink()
    best = (fold / "best.pt").read_bytes()
    (status,), output = run(*flags, log=tmp_path / "log")
    assert status == 2
    assert re.search(f"last.pt is gone, but not .*best.pt; move {fold} away", only_error(output))
    assert (fold / "best.pt").read_bytes() == best


def test_read_only_run_folder(tiny: Path, tmp_path: Path) -> None:
    """A folder that cannot be written is named, with the remedy."""
    with mounted(tmp_path / "runs", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "runs")], check=True)
        (status,), output = run("--cache-dir", tiny, "--runs-dir", tmp_path / "runs", log=tmp_path / "log")
    assert status == 2
    assert ": Read-only file system; name another place" in only_error(output)


def test_hosts_that_do_not_share_the_run_folder(flags: tuple[str, ...], tmp_path: Path) -> None:
    """A rank that sees another checkpoint than rank 0 is an error, not a silently different run."""
    assert run(*flags, log=tmp_path / "log")[0] == [0]
    relative = [str(flag).replace(str(tmp_path), ".") for flag in flags]
    (tmp_path / "elsewhere").mkdir()
    folders = {0: tmp_path, 1: tmp_path / "elsewhere"}
    ranks = Ranks(*relative, count=2, log=tmp_path / "log", folders=folders)
    assert ranks.wait() == [2, 2], ranks.output
    assert "ranks see different checkpoints" in only_error(ranks.output)


def test_ranks_that_see_different_caches(tmp_path: Path) -> None:
    """A cache that was rebuilt between two ranks' opening it is an error: clips would be mixed up."""
    folders = {rank: build_tiny_cache(tmp_path / str(rank), per_word=25 + rank).parent for rank in range(2)}
    ranks = Ranks("--cache-dir", "cache", count=2, log=tmp_path / "log", folders=folders)
    assert ranks.wait() == [2, 2], ranks.output
    assert "ranks see different clip tables" in only_error(ranks.output)
