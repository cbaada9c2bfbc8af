"""Prediction and evaluation: real members, real files, real processes."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import RATE, ROOT, SMALL, write_corpus
from tests.forked import Halt, command, ranks, start

WORDS = ["no", "up", "yes"]
MODEL = ("--model", "test_resnet", "--n-mels", "16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, its cache, and two runs of two folds, made by the commands a user types."""
    folder = tmp_path_factory.mktemp("trained")
    audio = write_corpus(folder / "data/audio", WORDS, per_word=16, speakers=8)
    tested = [f"{word}/{7 + 0xA0000000:08x}_nohash_{n}.wav" for word in WORDS for n in range(2)]
    (audio / "testing_list.txt").write_text("\n".join(tested))
    assert command("pipeline.build_cache", folder, *SMALL)[0] == 0
    for seed in (0, 1):
        flags = (*MODEL, "--fold", "all", "--epochs", 3, "--batch-size", 8, "--seed", seed, "--name", f"run{seed}")
        status, output = command("train.run", folder, *flags)
        assert status == 0, output
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_takes_the_test_split_where_there_is_no_data_test(trained: Path) -> None:
    """Without data/test the cache's test split is judged, in input order, and the command says so."""
    status, output = command("infer.predict", trained, "--run", "runs/run0", "--folds", "all", "--tta", 4)
    assert status == 0
    assert "data/test does not exist: judging the cache's test split" in output
    rows = rows_of(trained / "predictions.csv")
    assert [row["file"] for row in rows] == sorted(row["file"] for row in rows)
    assert len(rows) == 6
    assert all(row["label"] in WORDS and 0 < float(row["confidence"]) <= 1 and not row["error"] for row in rows)


def test_soft_ensemble_is_the_mean_of_softmaxes_taken_once(trained: Path) -> None:
    """The probabilities equal one softmax per view and member, averaged: computed here with timm and librosa alone."""
    import librosa
    import timm

    from infer.views import VIEWS
    from pipeline.decode import read_clip
    from train.checkpoint import load_checkpoint

    out = trained / "matrix.csv"
    flags = ("--run", "runs/run0", "--run", "runs/run1", "--probabilities", out, "--output", trained / "p.csv")
    assert command("infer.predict", trained, *flags, "--amp", "off", "--tta", 3)[0] == 0
    path = trained / "data/audio" / rows_of(out)[0]["file"]
    expected = []
    for run in ("run0", "run1"):
        for fold in (0, 1):
            saved = load_checkpoint(trained / "runs" / run / f"fold{fold}" / "best.pt")
            model = timm.create_model("test_resnet", in_chans=1, num_classes=3)
            model.load_state_dict(saved["model"])
            config = dict(saved["features"])
            hop = -(-RATE // (config["n_frames"] - 1))
            for view in VIEWS[:3]:
                from cache.config import FeatureConfig

                samples = view(read_clip(str(path), FeatureConfig(**config)).samples)
                padded = np.pad(samples.astype(float), (0, hop * (config["n_frames"] - 1) - RATE))
                power = librosa.feature.melspectrogram(
                    y=padded, sr=RATE, n_fft=config["n_fft"], hop_length=hop, n_mels=16, pad_mode="constant"
                )
                mel = librosa.power_to_db(power, top_db=80)
                x = torch.tensor((mel - mel.mean()) / mel.std(), dtype=torch.float32)[None, None]
                with torch.no_grad():
                    expected.append((model.eval()(x)[0] / saved["temperature"]).softmax(dim=0).numpy())
    found = [float(rows_of(out)[0][word]) for word in WORDS]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=2e-3)


def test_bf16_judges_as_float32_does(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Rounding shows in the probabilities, not in the labels; fp16 needs a GPU."""
    from infer.predict.__main__ import main as predict
    from tests.words_run import RUN

    judged = {}
    for amp in ("off", "bf16"):
        flags = ["--run", RUN, "--input", "data/audio", "--device", "cpu", "--amp", amp, "--tta", "1"]
        flags += ["--output", str(tmp_path / "p.csv"), "--probabilities", str(tmp_path / f"{amp}.csv")]
        assert predict(flags) == 0
        with open(tmp_path / f"{amp}.csv", newline="") as file:
            judged[amp] = np.array([row[1:] for row in csv.reader(file)][1:], float)
    difference = np.abs(judged["off"] - judged["bf16"])
    assert 0 < difference.max() < 0.05
    assert (judged["off"].argmax(axis=1) == judged["bf16"].argmax(axis=1)).all()
    assert predict([*flags, "--amp", "fp16"]) == 2
    assert "--amp fp16 needs a CUDA device" in capsys.readouterr().err


def test_votes() -> None:
    """Soft is the mean; hard counts members and views, and a tie goes to the higher mean probability."""
    from infer.ensemble import hard_vote, soft_vote

    probs = np.array([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0]], np.float32)[:, None, None, :]
    np.testing.assert_allclose(soft_vote(probs)[0], [0.4, 0.6, 0.0], atol=1e-6)
    assert hard_vote(probs)[0].argmax() == 0
    tie = probs[[0, 2]]
    assert hard_vote(tie)[0].argmax() == 1
    np.testing.assert_allclose(hard_vote(tie)[0], [0.5, 0.5, 0.0], atol=1e-5)
    assert hard_vote(tie).max() == 0.5
    assert hard_vote(probs[:2]).max() == 1


def test_tied_votes_go_to_the_higher_mean_however_close() -> None:
    """Of classes with as many votes that of the higher mean wins, by one step of float32 too, wherever it stands."""
    from infer.ensemble import hard_vote

    rng = np.random.default_rng(0)
    for members in (2, 4, 10):
        probs = np.zeros((members, 1, 300, 5), np.float32)
        for clip in range(300):
            first, second = rng.permutation(5)[:2]
            probs[: members // 2, 0, clip, first] = probs[members // 2 :, 0, clip, second] = 0.6
            probs[-1, 0, clip, second] = np.nextafter(np.float32(0.6), np.float32(clip % 2))
        exact = probs[:, 0].astype(np.float64).sum(axis=0)
        shares = hard_vote(probs)
        assert (shares.argmax(axis=1) == exact.argmax(axis=1)).all()
        assert (shares.max(axis=1) == 0.5).all()
        assert hard_vote(probs[:, :, :, ::-1]).argmax(axis=1).tolist() == (4 - exact.argmax(axis=1)).tolist()


def test_ranks_give_the_bytes_of_one_process(trained: Path, tmp_path: Path) -> None:
    """Under torchrun with two ranks the table is identical to one process's, over several blocks of files."""
    audio = trained / "data/audio"
    listed = [str(path) for path in sorted(audio.glob("*/*.wav"))] * 30
    names = tmp_path / "list.txt"
    names.write_text("\n".join(listed) + "\n")
    flags = ("--run", "runs/run0", "--input", names)
    assert command("infer.predict", trained, *flags, "--output", tmp_path / "one.csv")[0] == 0
    statuses, output = ranks(2, "infer.predict", trained, *flags, "--output", tmp_path / "two.csv")
    assert statuses == [0, 0], output
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert [row["file"] for row in rows_of(tmp_path / "two.csv")] == listed


def test_bad_files_cost_one_row_each(trained: Path, tmp_path: Path) -> None:
    """A garbage, an empty and a missing file give rows with an error and exit status 1; the others are judged."""
    good = next((trained / "data/audio").glob("yes/*.wav"))
    (tmp_path / "garbage.wav").write_bytes(b"RIFF, or so it says")
    (tmp_path / "empty.wav").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo.wav")
    names = tmp_path / "list.txt"
    names.write_text("\n".join(f"{tmp_path}/{n}.wav" for n in ("garbage", "missing", "empty", "fifo")) + f"\n{good}\n")
    status, output = command(
        "infer.predict", trained, "--run", "runs/run0", "--input", names, "--output", tmp_path / "out.csv"
    )
    assert status == 1
    assert "4 could not be read" in output
    rows = rows_of(tmp_path / "out.csv")
    assert [bool(row["error"]) for row in rows] == [True] * 4 + [False]
    assert rows[4]["label"] in WORDS
    assert "No such file" in rows[1]["error"]
    assert rows[3]["error"] == "not a regular file"


def test_odd_names_are_judged_alike_with_and_without_windows(trained: Path, tmp_path: Path) -> None:
    """A name that is not UTF-8, a linked label folder and a level beyond full scale change nothing or one row."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(trained / "data/audio/yes")
    long = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    with open(os.fsencode(tmp_path) + b"/in/a\xff.wav", "wb") as file:
        soundfile.write(file, long, RATE, format="WAV", subtype="FLOAT")
    soundfile.write(tmp_path / "in/beyond.wav", long * 2.0**40, RATE, subtype="FLOAT")
    flags = ("--run", "runs/run0", "--tta", 1, "--input", tmp_path / "in", "--output")
    assert command("infer.predict", trained, *flags, tmp_path / "a.csv")[0] == 1
    assert command("infer.predict", trained, *flags, tmp_path / "b.csv", "--windows", tmp_path / "w.csv")[0] == 1
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    lines = (tmp_path / "a.csv").read_bytes().splitlines()[1:]
    assert len(lines) == 18
    assert [line for line in lines if b"beyond 2.147" in line] == [line for line in lines if b"beyond.wav" in line]
    assert lines[0].startswith(b"a\xff.wav,")


def test_what_is_read_is_never_written_over(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A table replaces neither a recording, a list, a device nor another table of the same prediction."""
    from infer.evaluate.__main__ import main as evaluate
    from infer.predict.__main__ import main

    clip = shutil.copy(next((trained / "data/audio").glob("yes/*.wav")), tmp_path / "clip.wav")
    names, pipe = tmp_path / "list.txt", tmp_path / "pipe"
    names.write_text(f"{clip}\n")
    os.mkfifo(pipe)
    run = ("--run", str(trained / "runs/run0"), "--cache-dir", str(trained / "data/cache"), "--device", "cpu")
    for more, expected in (
        (("--output", str(clip)), "is to be read"),
        (("--output", str(names)), "is to be read"),
        (("--output", str(pipe)), "not a regular file"),
        (("--output", str(tmp_path)), "not a regular file"),
        (("--output", f"{tmp_path}/x.csv", "--probabilities", f"{tmp_path}/./x.csv"), "name the same file"),
    ):
        assert main([*run, "--input", str(names), *more]) == 2
        assert expected in capsys.readouterr().err
    for path in (pipe, "/dev/full", tmp_path / "no/such.json"):
        assert evaluate([*run, "--json", str(path)]) == 2
    assert pipe.is_fifo()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_prediction_leaves_no_table(trained: Path, tmp_path: Path, number: int) -> None:
    """Interrupted or killed while it writes, it leaves older tables alone; the next writes the same bytes as ever."""
    tables = [tmp_path / name for name in ("out.csv", "windows.csv", "matrix.csv")]
    for table in tables:
        table.write_text("older")
    flags = [word for pair in zip(("--output", "--windows", "--probabilities"), tables, strict=True) for word in pair]
    flags += ["--run", trained / "runs/run0", "--input", trained / "data/audio", "--tta", 1]
    halt = Halt(".tmp", 1, tmp_path / "halted")
    process = start("infer.predict", *flags, halt=halt)
    process.wait_for(halt)
    process.send_signal(number)
    assert process.wait() == (130 if number == signal.SIGINT else -number)
    assert [table.read_text() for table in tables] == ["older"] * 3
    assert command("infer.predict", tmp_path, *flags)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"halted", *(table.name for table in tables)}
    assert len(rows_of(tables[0])) == len(rows_of(tables[2])) == 48


@pytest.mark.long
def test_100_000_files_in_constant_memory(trained: Path, tmp_path: Path) -> None:
    """Judging 100,000 files takes no more memory than 5,000 but for their names and what the table's rows take."""
    paths = [str(path) for path in sorted((trained / "data/audio").glob("*/*.wav"))]
    peak = {}
    for count in (5_000, 100_000):
        names = tmp_path / f"{count}.txt"
        names.write_text("\n".join(paths[n % len(paths)] for n in range(count)) + "\n")
        out = tmp_path / f"{count}.csv"
        flags = ("--run", trained / "runs/run0", "--tta", 1, "--input", names, "--output", out)
        arguments = [sys.executable, "-m", "infer.predict", *map(str, flags)]
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, process.stdout.read()
        peak[count] = usage.ru_maxrss / 1024
        with open(out, encoding="utf-8") as file:
            assert sum(1 for _ in file) == count + 1
    print(f"peak memory: {peak} MB")
    assert peak[100_000] - peak[5_000] < 60


def test_evaluate_out_of_fold_judges_every_clip_once(trained: Path) -> None:
    """Out-of-fold accuracy equals the share of right argmaxes over the folds' held-out clips, each counted once."""
    status, output = command("infer.evaluate", trained, "--run", "runs/run0", "--json", "oof.json")
    assert status == 0, output
    figures = json.loads((trained / "oof.json").read_text())
    arrays = [np.load(trained / f"runs/run0/fold{fold}/oof.npz") for fold in (0, 1)]
    clip_ids = np.concatenate([a["clip_id"] for a in arrays])
    assert len(np.unique(clip_ids)) == len(clip_ids) == figures["clips"] == 42
    right = sum(int((a["logits"].argmax(axis=1) == a["target"]).sum()) for a in arrays)
    assert figures["single"]["accuracy"] == pytest.approx(right / 42)
    assert figures["hard"] is figures["soft"] is figures["soft_tta"] is None
    runs = ("--run", "runs/run0", "--run", "runs/run1", "--run", "runs/../runs/run0", "--folds", "0,1,0")
    assert command("infer.evaluate", trained, *runs, "--json", "oof.json")[0] == 0
    both = json.loads((trained / "oof.json").read_text())
    assert (both["clips"], len(both["members"])) == (42, 4)
    assert sum(row["clips"] for row in both["recall"]) == 42
    together = sum(row["clips"] * row["recall"] for row in both["recall"]) / 42
    assert both["soft"]["accuracy"] == pytest.approx(together), "what two runs say together"


def test_votes_are_evaluated_as_predict_gives_them(trained: Path, tmp_path: Path) -> None:
    """With --ensemble hard, figures and recalls are those of predict's labels, and cannot go onto a card of means."""
    flags = ("--run", "runs/run0", "--run", "runs/run1", "--tta", 2, "--ensemble", "hard")
    assert command("infer.predict", trained, *flags, "--output", tmp_path / "p.csv")[0] == 0
    status, output = command("infer.evaluate", trained, *flags, "--split", "test", "--json", tmp_path / "f.json")
    assert status == 0, output
    figures, judged = json.loads((tmp_path / "f.json").read_text()), rows_of(tmp_path / "p.csv")
    right = sum(row["file"].startswith(row["label"] + "/") for row in judged)
    assert figures["hard_tta"]["accuracy"] == pytest.approx(right / len(judged))
    assert sum(row["clips"] * row["recall"] for row in figures["recall"]) == pytest.approx(right)
    assert figures["soft_tta"]["low"] < figures["soft_tta"]["high"]
    assert "expected calibration error of hard + 2 TTA: " in output
    again = ("--run", "runs/run0", "--run", "runs/run1", "--tta", 2, "--figures", tmp_path / "f.json")
    status, output = command("infer.export", trained, *again, "--format", "safetensors", "--check-clips", 2)
    assert (status, "figures of --ensemble hard, but the file gives means" in output) == (2, True), output


def test_parts_of_recordings_are_averaged_by_file() -> None:
    """Files of numbers are told apart, pieces of background stand alone, and a file of two labels has no mean."""
    from infer.labelled import JudgedClips
    from infer.measure.figures import _per_recording

    def accuracy(names: list[str], targets: list[int], judged: list[int]) -> dict | None:
        verdict = np.eye(20)[judged]
        clips = JudgedClips(names, [f"a/{name}" for name in names], np.array(targets), np.zeros((1, 1, len(names), 20)))
        return _per_recording(clips, verdict)

    assert accuracy(["2", "21"], [11, 1], [11, 1]) is None
    assert accuracy(["_background_noise_/x.wav#t=0,1", "_background_noise_/x.wav#t=1,2"], [3, 3], [3, 3]) is None
    assert accuracy(["x.wav#t=0,1", "x.wav#t=1,2"], [3, 4], [3, 4]) is None
    found = accuracy(["x.wav#t=0,1", "x.wav#t=1,2", "x.wav#t=2,3", "y.wav"], [3, 3, 3, 4], [3, 3, 5, 5])
    assert (found["recordings"], found["accuracy"]) == (2, 0.5)


def test_evaluate_test_split_and_folder_agree(trained: Path, tmp_path: Path) -> None:
    """The split test and the same clips in <label>/ folders give the same figures."""
    for row in (trained / "data/audio/testing_list.txt").read_text().split():
        (tmp_path / "in" / row).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / "data/audio" / row, tmp_path / "in" / row)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert command("infer.evaluate", trained, "--run", "runs/run0", "--split", "test", "--json", one)[0] == 0
    assert command("infer.evaluate", trained, "--run", "runs/run0", "--input", tmp_path / "in", "--json", two)[0] == 0
    first, second = json.loads(one.read_text()), json.loads(two.read_text())
    assert first["clips"] == 6
    for key in ("single", "hard", "soft", "soft_tta"):
        assert first[key] == second[key]
        assert 0 <= first[key]["low"] <= first[key]["accuracy"] <= first[key]["high"] <= 1
    (tmp_path / "in/_background_noise_").mkdir()
    shutil.copy(next((trained / "data/audio").glob("*/*.wav")), tmp_path / "in/_background_noise_/a.wav")
    background = ("--run", "runs/run0", "--input", tmp_path / "in")
    status, output = command("infer.evaluate", trained, *background)
    assert (status, "1 recording in folders such as _background_noise_ left out" in output) == (0, True)
    (tmp_path / "only").mkdir()
    shutil.copytree(tmp_path / "in/_background_noise_", tmp_path / "only/_background_noise_")
    status, output = command("infer.evaluate", trained, "--run", "runs/run0", "--input", tmp_path / "only")
    assert (status, "left out, and no other is there" in output) == (2, True)
    next((tmp_path / "in").glob("[!_]*")).joinpath("empty.wav").touch()
    flags = ("--run", "runs/run0", "--input", tmp_path / "in", "--json", two)
    assert command("infer.evaluate", trained, *flags)[0] == 1
    again = json.loads(two.read_text())
    assert (again["clips"], again["unreadable"], again["soft"]) == (6, 1, first["soft"])


def test_the_only_run_need_not_be_named(trained: Path, tmp_path: Path, capsys) -> None:
    """Without a flag that names a run, the only one is taken; one that was asked for by its model is not replaced."""
    from infer.predict.__main__ import main

    shutil.copytree(trained / "runs" / "run0", tmp_path / "only")
    flags = ("--runs-dir", str(tmp_path), "--cache-dir", str(trained / "data/cache"), "--device", "cpu")
    where = ("--input", str(trained / "data/audio"), "--output", str(tmp_path / "out.csv"))
    assert main([*flags, *where]) == 0
    assert main([*flags, *where, "--model", "resnet50"]) == 2
    assert f"{tmp_path}/resnet50-224x224: no such run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--run", "runs/none"), "choose with --run (there: runs/run0, runs/run1"),
        ((), "runs: several runs; choose with --run runs/run0 or --run runs/run1"),
        (("--runs-dir", "nowhere"), "nowhere: no trained run; train one with python -m train.run, or use --run"),
        (("--run", "runs/run0", "--min-confidence", "60"), "--min-confidence 60; expected 0 to 1"),
        (("--run", "runs/run0", "--hop-seconds", "0.1"), "--hop-seconds needs --windows"),
        (("--run", "runs/run0", "--window-confidence", "0.9"), "--window-confidence needs --windows"),
        (("--run", "runs/run0", "--folds", "0,7"), "not trained: fold 7"),
        (("--run", "runs/run0", "--tta", "9"), "there are 4 views"),
        (("--run", "runs/run0", "--input", "nowhere"), "no such folder or file"),
        (("--run", "runs/run0", "--input", "runs"), "no recordings"),
        (("--run", "runs/run0", "--folds", "x"), "not trained: fold x (there: 0, 1)"),
        (("--run", "runs/run0", "--output", "no/such/folder.csv"), "there is no folder"),
    ],
)
def test_bad_flags_are_one_clear_line(trained, monkeypatch, capsys, flags: tuple[str, ...], expected: str) -> None:
    """Each mistake gives exit status 2 and one line that names it."""
    from infer.predict.__main__ import main

    monkeypatch.chdir(trained)
    assert main([*flags, "--device", "cpu"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert expected in error


def test_another_split_is_refused(trained: Path, tmp_path: Path) -> None:
    """A run is not evaluated against a cache whose split changed since."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    assert command("pipeline.build_cache", folder, *SMALL, "--folds", 3)[0] == 0
    status, output = command("infer.evaluate", folder, "--run", "runs/run0")
    assert status == 2
    assert "not the split that" in output


def test_a_run_that_knows_the_test_clips_is_refused(trained: Path, tmp_path: Path) -> None:
    """Of several runs none is judged on a split test that it was trained on; other features and folds are no matter."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    listed = folder / "data/audio/testing_list.txt"
    evaluate = ("--run", "runs/run0", "--folds", "0,1", "--split", "test", "--run")
    for mels, cache_dir, tested, expected in (
        (24, "data/cache", listed.read_text(), None),
        (16, "other", "", "the split test: runs/run16/fold[01]/best.pt was trained on 6 of its 6 recordings"),
        (20, "data/cache", "", "the split test: runs/run20/fold[01]/best.pt was trained on 6 of its 6 recordings"),
    ):
        listed.write_text(tested)
        flags = ("--n-mels", mels, "--cache-dir", cache_dir)
        assert command("pipeline.build_cache", folder, *SMALL, *flags, "--folds", 3)[0] in (0, 1)
        train = ("--model", "test_resnet", "--epochs", 1, "--batch-size", 8, "--name", f"run{mels}")
        for fold in (0, 1):  # one of which, at least, does not hold the only speaker of the split test out
            assert command("train.run", folder, *flags, *train, "--fold", fold)[0] == 0
        status, output = command("infer.evaluate", folder, *evaluate, f"runs/run{mels}")
        assert (status, bool(re.search(expected or "", output))) == (2 if expected else 0, True), output


def test_pickle_in_a_checkpoint_is_not_executed(trained: Path, tmp_path: Path) -> None:
    """A checkpoint that carries code is refused with one line, and the code does not run."""
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple:
            return open, (str(tmp_path / "exploded"), "w")

    folder = tmp_path / "runs/evil/fold0"
    folder.mkdir(parents=True)
    with open(folder / "best.pt", "wb") as file:
        pickle.dump(Bomb(), file)
    status, output = command("infer.predict", trained, "--run", folder.parent)
    assert status == 2
    assert "not a readable checkpoint" in output
    assert not (tmp_path / "exploded").exists()


def test_unsure_clips_become_unknown(trained: Path, tmp_path: Path) -> None:
    """With --min-confidence just those rows whose confidence is lower carry the label unknown."""
    plain, strict = tmp_path / "plain.csv", tmp_path / "strict.csv"
    assert command("infer.predict", trained, "--run", "runs/run0", "--output", plain)[0] == 0
    limit = float(np.median([float(row["confidence"]) for row in rows_of(plain)]))
    flags = ("--run", "runs/run0", "--min-confidence", limit, "--output", strict)
    assert command("infer.predict", trained, *flags)[0] == 0
    labels = [row["label"] for row in rows_of(strict)]
    assert 0 < labels.count("unknown") < len(labels)
    for before, after in zip(rows_of(plain), labels, strict=True):
        assert after in ("unknown", before["label"])
        assert (after == "unknown") <= (float(before["confidence"]) <= limit)
