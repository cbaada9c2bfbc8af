"""Whole training runs, as processes: what they leave behind, and that resumed ones end with the same bits."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import start
from train_helpers import (
    TINY,
    Ranks,
    build_tiny_cache,
    differing,
    metrics,
    run,
    start_torchrun,
    state_of,
    torchrun,
    workers_of,
)

from cache.index import Cache, write_index
from tests.forked import Halt
from train.models import create_model
from train.run import main

VALIDATION_CLIPS = 20  # of a fold of the tiny cache; 80 train: 6 steps of 12 clips per epoch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The tiny cache, built once."""
    (folder,) = build_tiny_cache(tmp_path_factory.mktemp("tiny")).iterdir()
    return Cache(folder)


@pytest.fixture
def flags(tiny: Cache, tmp_path: Path) -> tuple[str, ...]:
    """Where the cache is, and runs in the test's folder."""
    return "--cache-dir", str(tiny.folder.parent), "--runs-dir", str(tmp_path / "runs")


@pytest.fixture(scope="module")
def undisturbed(tiny: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """The bits that an uninterrupted run with some flags leaves behind; each is run once."""
    done: dict[tuple, dict] = {}

    def bits(*more: str, count: int) -> dict:
        if (more, count) not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            where = "--cache-dir", tiny.folder.parent, "--runs-dir", folder, "--name", "run"
            statuses, output = run(*where, *more, count=count, log=folder / "log")
            assert statuses == [0] * count, output
            done[more, count] = state_of(folder / "run" / "fold0")
        return done[more, count]

    return bits


def test_the_command(flags: tuple[str, ...], tmp_path: Path) -> None:
    """``python -m train.run`` trains, writes all files, names the next command, and then says that it is finished."""
    process = start("train.run", *TINY, *flags)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    folder = tmp_path / "runs" / "test_resnet-32x32" / "fold0"
    names = {path.name for path in folder.iterdir()}
    assert names == {"last.pt", "best.pt", "oof.npz", "metrics.jsonl", "config.json", ".lock"}
    where = f"--run {tmp_path}/runs/test_resnet-32x32 --cache-dir {flags[1]}"
    assert f"next: python -m infer.predict --folds 0 {where} --tta 4" in output
    assert [line["epoch"] for line in metrics(folder)] == [1, 2, 3]
    before = state_of(folder)
    (status,), output = run(*flags, log=tmp_path / "log")
    assert (status, "is finished" in output) == (0, True)
    assert not differing(state_of(folder), before)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_validation_is_exact(count: int, tiny: Cache, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Each held-out clip is judged once for any number of ranks, also one that does not divide, by the saved model."""
    statuses, output = run(*flags, "--fold", "2", "--amp", "off", count=count, log=tmp_path / "log")
    assert statuses == [0] * count, output
    folder = tmp_path / "runs" / "test_resnet-32x32" / "fold2"
    held_out = np.flatnonzero(tiny.clips["fold"] == 2)
    oof, best = np.load(folder / "oof.npz"), torch.load(folder / "best.pt", weights_only=True)
    assert len(held_out) == VALIDATION_CLIPS
    assert oof["clip_id"].tolist() == tiny.clips["clip_id"][held_out].tolist()
    assert oof["target"].tolist() == tiny.clips["target"][held_out].tolist()
    model = create_model("test_resnet", 4, (32, 32)).eval()
    model.load_state_dict(best["model"])
    rows = tiny.gather(held_out, np.zeros(20, np.int64), np.empty((20, 32, 32), np.float16))
    with torch.inference_mode():
        logits = model(torch.from_numpy(rows)[:, None].float())
    np.testing.assert_allclose(oof["logits"], logits.numpy(), rtol=1e-4, atol=1e-5)
    entry = metrics(folder)[best["best"]["epoch"] - 1]
    assert entry["val_accuracy"] == np.mean(oof["logits"].argmax(axis=1) == oof["target"])
    assert entry["val_clips"] == VALIDATION_CLIPS


def test_gradients_are_equal_across_world_sizes(flags: tuple[str, ...], tmp_path: Path) -> None:
    """One step's gradients on a model without BatchNorm agree for 1, 2, 3 and 5 ranks to floating-point noise."""
    plain = "--model test_vit --mixup 0 --spec-augment 0 --time-roll 0 --batch-size 60 --epochs 1 --amp off".split()
    gradients = {}
    for count in (1, 2, 3, 5):
        statuses, output = run(*flags, *plain, "--name", count, count=count, log=tmp_path / f"log{count}")
        assert statuses == [0] * count, output
        saved = torch.load(tmp_path / "runs" / str(count) / "fold0" / "last.pt", weights_only=True)
        moments = [state["exp_avg"] for _, state in sorted(saved["state"]["optimizer"]["state"].items())]
        gradients[count] = torch.cat([moment.flatten() for moment in moments])  # 0.1 · gradient after one step
    scale = gradients[1].abs().max()
    assert scale > 0
    for count in (2, 3, 5):
        assert (gradients[count] - gradients[1]).abs().max() < 1e-5 * scale, f"{count} ranks"


def test_torchrun(flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]) -> None:
    """Under torchrun with two ranks the bits are those of two bare ranks, and every line is printed once."""
    status, output = torchrun(*flags, "--name", "run")
    assert status == 0, output
    assert output.count("fold 0:") == output.count("epoch   3") == output.count("next: ") == 1
    assert not differing(state_of(tmp_path / "runs" / "run" / "fold0"), undisturbed(count=2))


def test_fold_all_and_none(flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]) -> None:
    """``--fold all`` leaves for each fold what a run of that fold alone leaves; ``none`` trains on every clip."""
    (status,), output = run(*flags, "--fold", "all", "--name", "run", log=tmp_path / "log")
    assert status == 0, output
    folders = sorted(path.name for path in (tmp_path / "runs" / "run").iterdir())
    assert folders == [f"fold{fold}" for fold in range(5)]
    alone, together = undisturbed(count=1), state_of(tmp_path / "runs" / "run" / "fold0")
    assert {key.rsplit("/", 1)[1] for key in differing(together, alone)} == {"fold"}
    (status,), output = run(*flags, "--fold", "none", "--name", "run", log=tmp_path / "log")
    assert (status, "100 training and 0 validation clips" in output) == (0, True), output
    assert metrics(tmp_path / "runs" / "run" / "foldnone")[2]["val_accuracy"] is None


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _kill_at_random(flags, folder: Path, *, count: int, kills: int, rng: random.Random, expected: dict) -> int:
    """Train again and again, killing all ranks or one at random moments; returns how often a run resumed."""
    log, last, resumed = folder / "log", folder / "runs" / "run" / "fold0" / "last.pt", 0
    while kills > 0:
        shutil.rmtree(folder / "runs", ignore_errors=True)
        ended = False
        while not ended:
            ranks = Ranks(*flags, "--name", "run", count=count, log=log)
            if rng.random() < 0.8:  # else: while it starts
                before = _time_of(last)
                ranks.wait_until(lambda before=before: _time_of(last) != before)
            time.sleep(rng.uniform(0, 0.3))
            ended = kills == 0 or all(process.poll() is not None for process in ranks.processes)
            if not ended:
                met = "fold 0: test_resnet" in ranks.output  # before, it takes a torchrun to notice that one is missing
                ranks.kill(*rng.choice([(), (rng.randrange(count),)] if met else [()]))
                kills -= 1
            statuses = ranks.wait()  # a rank that lost another ends too
            assert "Traceback" not in ranks.output, ranks.output
            assert set(statuses) <= {0, 1, -signal.SIGKILL}, ranks.output
            ended = ended or statuses == [0] * count
            resumed += "resuming at epoch" in ranks.output
        ranks = Ranks(*flags, "--name", "run", count=count, log=log)
        assert ranks.wait() == [0] * count, ranks.output
        assert not differing(state_of(folder / "runs" / "run" / "fold0"), expected)
    return resumed


@pytest.mark.parametrize(
    ("count", "kills"),
    [(1, 4), (2, 4), pytest.param(1, 30, marks=pytest.mark.long), pytest.param(2, 30, marks=pytest.mark.long)],
)
def test_killed_at_random_moments(
    count: int, kills: int, flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]
) -> None:
    """SIGKILL of all ranks or of one, at any moment: the run resumes and ends with an undisturbed run's bits."""
    more = ("--epochs", "8", "--ema", "0.9")
    expected = undisturbed(*more, count=count)
    every = (*flags, *more, "--checkpoint-minutes", "0")
    resumed = _kill_at_random(every, tmp_path, count=count, kills=kills, rng=random.Random(kills), expected=expected)
    assert resumed >= kills // 2


def test_one_rank_killed_under_torchrun(
    flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]
) -> None:
    """``torchrun --max-restarts`` brings the run back, which resumes unasked and ends with the same bits."""
    more = ("--epochs", "8", "--ema", "0.9")
    launch = ("--standalone", "--max-restarts", "3", "--monitor-interval", "0.1")
    halt = Halt("last.pt", 2, tmp_path / "halted")
    process = start_torchrun(*flags, *more, "--name", "run", launch=launch, halt=halt)
    process.wait_for(halt)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    os.kill(halt.reached(), signal.SIGCONT)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "resuming at epoch" in output
    assert "Traceback" not in output
    assert not differing(state_of(tmp_path / "runs" / "run" / "fold0"), undisturbed(*more, count=2))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal(
    count: int, number: int, flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]
) -> None:
    """SIGTERM and Ctrl-C: checkpoint within an epoch, exit with 143 or 130, continue to the same bits, also of bf16."""
    more = ("--epochs", "8", "--ema", "0.9", "--amp", "bf16" if count == 1 else "off")
    halt = Halt("last.pt", 2, tmp_path / "halted")
    ranks = Ranks(*flags, *more, "--name", "run", count=count, log=tmp_path / "log", halt=halt)
    ranks.processes[0].wait_for(halt)
    ranks.kill(number=number)
    assert ranks.wait() == [128 + number] * count, ranks.output
    assert ranks.output.count("stopped at step") == 1
    statuses, output = run(*flags, *more, "--name", "run", count=count, log=tmp_path / "log")
    assert (statuses, "resuming at epoch" in output) == ([0] * count, True)
    assert not differing(state_of(tmp_path / "runs" / "run" / "fold0"), undisturbed(*more, count=count))


def test_agent_stopped_by_a_signal(flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]) -> None:
    """SIGTERM to torchrun, as a cluster sends it, reaches the ranks, which write a checkpoint before they end."""
    more = ("--epochs", "8", "--ema", "0.9")
    halt = Halt("last.pt", 2, tmp_path / "halted")
    process = start_torchrun(*flags, *more, "--name", "run", halt=halt)
    process.wait_for(halt)
    process.terminate()
    os.kill(halt.reached(), signal.SIGCONT)
    output, _ = process.communicate()
    assert output.count("stopped at step") == 1, output
    statuses, output = run(*flags, *more, "--name", "run", count=2, log=tmp_path / "log")
    assert (statuses, "resuming at epoch" in output) == ([0, 0], True)
    assert not differing(state_of(tmp_path / "runs" / "run" / "fold0"), undisturbed(*more, count=2))


def test_compressed_gradients(flags: tuple[str, ...], tmp_path: Path, undisturbed: Callable[..., dict]) -> None:
    """With gradients in fp16 two ranks under torchrun, stopped and resumed, end with an undisturbed run's bits."""
    more = ("--epochs", "4", "--compress-gradients", "--amp", "off")
    halt = Halt("last.pt", 2, tmp_path / "halted")
    process = start_torchrun(*flags, *more, "--name", "run", halt=halt)
    process.wait_for(halt)
    process.terminate()
    os.kill(halt.reached(), signal.SIGCONT)
    assert "stopped at step" in process.communicate()[0]
    status, output = torchrun(*flags, *more, "--name", "run")
    assert (status, "resuming at epoch" in output) == (0, True), output
    compressed = state_of(tmp_path / "runs" / "run" / "fold0")
    assert not differing(compressed, undisturbed(*more, count=2))
    plain = undisturbed("--epochs", "4", "--amp", "off", count=2)
    assert any("/state/model/" in key for key in differing(compressed, plain)), "the flag changes nothing"
    fold = tmp_path / "runs" / "run" / "fold0"
    content = torch.load(fold / "last.pt", weights_only=True)
    del content["options"]["compress_gradients"]  # as of a run that began before the flag was there
    torch.save(content, fold / "last.pt")
    (status,), output = run(*flags, *more, "--name", "run", log=tmp_path / "log")
    assert (status, "--compress-gradients False (now True)" in output) == (2, True), output
    assert run(*flags, "--epochs", "4", "--amp", "off", "--name", "run", log=tmp_path / "log")[0] == [0]


def test_other_number_of_ranks(flags: tuple[str, ...], tmp_path: Path) -> None:
    """A run may go on with other ranks: it says that bits will differ, and the metrics have no gap or duplicate."""
    more = ("--epochs", "6", "--name", "run")
    halt = Halt("last.pt", 2, tmp_path / "halted")
    first = Ranks(*flags, *more, log=tmp_path / "log", halt=halt)
    first.processes[0].wait_for(halt)
    first.kill(number=signal.SIGTERM)
    assert first.wait() == [143]
    statuses, output = run(*flags, *more, count=3, log=tmp_path / "log")
    assert statuses == [0, 0, 0], output
    assert "with 3 ranks instead of 1: the bits will differ" in output
    lines = metrics(tmp_path / "runs" / "run" / "fold0")
    assert [(line["epoch"], line["step"]) for line in lines] == [(epoch, 6 * epoch) for epoch in range(1, 7)]


@pytest.fixture
def contrary(tiny: Cache, flags: tuple[str, ...], tmp_path: Path) -> tuple[str, ...]:
    """Flags of a run whose held-out clips have others' labels: the more it learns, the worse its validation."""
    folder = tmp_path / "cache" / tiny.folder.name
    shutil.copytree(tiny.folder, folder)
    clips = np.copy(tiny.clips)
    clips["target"][clips["fold"] == 0] ^= 1
    write_index(folder, clips, {key: value for key, value in tiny.index.items() if key not in ("schema", "clips")})
    more = ("--epochs", "40", "--warmup-epochs", "0", "--lr", "0.003", "--ema", "0", "--name", "run")
    return (*flags, "--cache-dir", str(folder.parent), *more)


def test_patience(contrary: tuple[str, ...], tmp_path: Path) -> None:
    """A run ends when so many epochs were not better than the best; with more patience it goes on."""
    for patience in (2, 3):
        statuses, output = run(*contrary, "--patience", patience, count=2, log=tmp_path / "log")
        assert statuses == [0, 0], output
        lines = metrics(tmp_path / "runs" / "run" / "fold0")
        ranked = [(line["val_accuracy"], -line["val_loss"]) for line in lines]
        assert len(lines) < 40
        assert len(lines) - 1 - ranked.index(max(ranked)) == patience
        assert "is finished" in run(*contrary, "--patience", patience, log=tmp_path / "log")[1]


def test_a_run_keeps_its_precision(
    contrary: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that began in float32 goes on in it on a CPU that has instructions for bf16."""
    for able, patience, expected in ((False, 1, "epoch   1"), (True, 2, "resuming at epoch ")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able}, raising=False)
        assert main([*TINY, *contrary, "--patience", str(patience)]) == 0
        output = capsys.readouterr().out
        assert expected in output
        assert "epoch  40" not in output
        assert "1 x cpu, float32" in output


@pytest.mark.long
@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])  # without BatchNorm, and with
def test_whole_runs_are_statistically_equal(model: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Over ten seeds, runs with two ranks end with losses that a t-test does not tell from those with one."""
    from scipy.stats import ttest_ind

    losses: dict[int, list[float]] = {1: [], 2: []}
    more = ("--model", model, "--batch-size", 24, "--epochs", 16, "--ema", 0.9)
    for seed in range(10):
        for count, found in losses.items():
            name, log = f"ranks{count}-seed{seed}", tmp_path / f"{count}-{seed}.log"
            ranks = Ranks(*flags, *more, "--name", name, "--seed", seed, count=count, log=log)
            assert ranks.wait() == [0] * count, ranks.output
            found.append(metrics(tmp_path / "runs" / name / "fold0")[-1]["val_loss"])
    test = ttest_ind(losses[1], losses[2], equal_var=False)
    print(f"validation losses with 1 rank {losses[1]}, with 2 {losses[2]}: p = {test.pvalue:.3f}")
    assert test.pvalue > 0.001
    assert abs(np.mean(losses[1]) - np.mean(losses[2])) < np.std(losses[1])
