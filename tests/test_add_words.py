"""New words for a trained run: an ordinary run comes of a few recordings, and nothing else is touched."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cache.cli import InputError
from cache.files import write_sealed
from cache.index import Cache
from infer.evaluate.__main__ import main as evaluate
from tests.conftest import RATE, ROOT, only_cache, synthesise
from tests.test_one_way import state
from tests.words_run import RUN, TRAINING, WORDS
from train import new_words
from train.add_words import main as add_words
from train.calibration import RANGE
from train.checkpoint import load_checkpoint
from train.last_layer import Backbone, fit_last_layer
from train.models import create_model
from train.options import AddWordsOptions

NEW = f"{RUN}+left+stop"
FLAGS = ["--run", RUN, "--audio", "new", "--device", "cpu"]
JUDGE = ["--run", NEW, "--device", "cpu", "--tta", "1"]


def record(folder: Path, count: int, first: int = 0) -> Path:
    """Recordings of two tones that the run of tests/words_run.py has never heard, without speakers in their names."""
    for tone, word in ((6, "left"), (8, "stop")):
        (folder / word).mkdir(parents=True)
        for n in range(first, first + count):
            soundfile.write(folder / word / f"{n}.wav", synthesise(tone, n % 5, n), RATE)
    return folder


@pytest.fixture
def new(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five recordings of each of two new words, beside a trained run of which the working directory has a copy."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the build
    return record(project / "new", 5)


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which is to be empty in the end."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    assert not list(place.iterdir())
    assert not list(Path("runs").glob(".*"))


def refused(flags: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr with which a command refuses; no run comes of it."""
    capsys.readouterr()
    before = state("runs")
    assert add_words(flags) == 2
    assert state("runs") == before
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no CUDA")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def added(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the trained run, its corpus and cache, and the run that came of five recordings of two words."""
    folder = tmp_path_factory.mktemp("added")
    for part in ("data", "runs"):
        shutil.copytree(words / part, folder / part)
    record(folder / "new", 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        before = state("data", "runs", "new")
        assert add_words(FLAGS) == 0
        after = state("data", "runs", "new")
    assert {path: content for path, content in after.items() if not path.startswith(NEW)} == before
    return folder


@pytest.fixture
def there(added: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That project as the working directory."""
    monkeypatch.chdir(added)
    return added


def test_the_new_run_is_an_ordinary_one(there: Path, tmp_path: Path, runtime, capsys: pytest.CaptureFixture) -> None:
    """It predicts, is judged, reported and exported with all its words, from other recordings of all of them."""
    from infer.export.__main__ import main as export
    from infer.predict.__main__ import main as predict
    from infer.report.__main__ import main as report

    judged = record(tmp_path / "judged", 6, first=20)
    for word in WORDS:
        (judged / word).mkdir()
        for path in Path("data/audio", word).glob("a0000008*"):
            shutil.copy(path, judged / word)
    table = tmp_path / "predictions.csv"
    assert predict([*JUDGE, "--input", str(judged), "--output", str(table)]) == 0
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    right = [row[0].split("/")[0] == row[1] for row in rows]
    assert len(right) == 2 * 6 + 3 * 3
    assert np.mean(right) > 0.9
    for flags, clips in ((["--split", "test"], 12), (["--input", str(judged)], 21)):
        capsys.readouterr()
        assert evaluate([*JUDGE, *flags]) == 0
        assert f"{clips} clips" in capsys.readouterr().out
    assert report([*JUDGE, "--split", "test", "--output", str(tmp_path / "report.html")]) == 0
    output = str(tmp_path / "model.onnx")
    assert export([*JUDGE, "--check", str(judged), "--check-clips", "8", "--output", output]) == 0
    assert "verified" in capsys.readouterr().out
    card = Path(f"{output}.md").read_text()
    assert "Words were added later, from these recordings, to the last layer only: `left` (5), `stop` (5)." in card
    commands = [line for line in card.splitlines() if line.startswith("python -m ")]
    assert [line.split()[2] for line in commands] == [
        "pipeline.build_cache",
        "train.run",
        "train.add_words",
        "infer.export",
    ]
    assert f"--run {RUN} --audio FOLDER --name {Path(NEW).name}" in commands[2]


def test_what_a_checkpoint_holds(there: Path) -> None:
    """The network's weights but for the last layer, earlier labels first, a temperature, and what it has heard."""
    for fold in "01":
        earlier, later = (load_checkpoint(Path(run) / f"fold{fold}/best.pt") for run in (RUN, NEW))
        assert later["classes"] == [*earlier["classes"], "left", "stop"]
        for name, tensor in earlier["model"].items():
            assert name.startswith("fc.") or torch.equal(tensor, later["model"][name]), name
        assert set(earlier["heard"].tolist()) < set(later["heard"].tolist())
        assert len(later["heard"]) == len(earlier["heard"]) + 10
        assert RANGE[0] <= later["temperature"] <= RANGE[1]
        assert (Path(NEW) / f"fold{fold}" / "config.json").is_file()


def test_what_cannot_judge_it(there: Path, capsys: pytest.CaptureFixture) -> None:
    """The recordings that it heard, and what training left aside: one line says what to do instead."""
    from infer.audit.__main__ import main as audit
    from infer.calibrate.__main__ import main as calibrate

    assert evaluate([*JUDGE, "--input", "new"]) == 2
    assert "was trained on 10 of its 10 recordings" in capsys.readouterr().err
    for command, flags in ((evaluate, JUDGE), (audit, JUDGE[:2]), (calibrate, JUDGE)):
        assert command(flags) == 2
        error = capsys.readouterr().err
        assert "left, stop came later, by train.add_words" in error
        assert "--split test" in error
        assert "--input FOLDER" in error


def test_it_is_no_start_of_another(there: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither are further words added to it, nor does a training under its name replace it."""
    from train.run import main as train

    assert "has new words already" in refused(["--run", NEW, *FLAGS[2:]], capsys)
    kept = (Path(NEW) / "fold0/best.pt").read_bytes()
    assert train(["--n-mels", "32", "--name", Path(NEW).name, "--model", "test_resnet", "--device", "cpu"]) == 2
    assert "choose another --name" in capsys.readouterr().err
    assert (Path(NEW) / "fold0/best.pt").read_bytes() == kept


def test_refusals(new: Path, no_leftovers: Path, capsys: pytest.CaptureFixture) -> None:
    """Each is one line that says what is wrong and what to do, and leaves nothing behind."""
    for flags, expected in (
        (["--run", "runs/none", "--audio", "new"], "runs/none: no trained fold; train one with"),
        (
            ["--run", RUN, "--audio", "nowhere"],
            "--audio nowhere: no such folder, or none in it; expected nowhere/<word>/*.wav",
        ),
        ([*FLAGS, "--cache-dir", "nowhere"], "is not there; choose with --cache-dir"),
        ([*FLAGS, "--name", Path(RUN).name], "exists and is not an empty folder; remove it or name another"),
    ):
        assert expected in refused(flags, capsys)
    soundfile.write(new / "left/silence.wav", np.zeros(RATE), RATE)
    assert "new: silent recordings: 1; remove them" in refused(FLAGS, capsys)
    (new / "left/silence.wav").unlink()
    (new / "left/4.wav").write_text("no sound")
    assert "new: recordings that cannot be used: 1, such as left/4.wav" in refused(FLAGS, capsys)


def test_words_that_cannot_be_added(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the run knows, and those of which there are too few recordings."""
    cache, options = Cache(only_cache(tiny)), AddWordsOptions(run="runs/some", audio="new")
    assert new_words.check_words(cache, ["left"], options) == {"down": 25, "no": 25, "up": 25, "yes": 25}
    with pytest.raises(InputError, match="new: runs/some knows no, yes already; leave out what is not new"):
        new_words.check_words(cache, ["left", "yes", "no"], options)
    monkeypatch.setattr(new_words, "_FEWEST", 26)
    with pytest.raises(
        InputError, match=r"new: fewer than 26 different recordings of down \(25\), no \(25\), .*; add some"
    ):
        new_words.check_words(cache, ["left"], options)


def test_recordings_that_contradict(new: Path, no_leftovers: Path, capsys: pytest.CaptureFixture) -> None:
    """One recording under two words, a word in another spelling, copies: refused; one heard as another word: said."""
    for path in new.glob("left/*.wav"):
        path.write_bytes((new / "left/0.wav").read_bytes())
    assert "new: fewer than 5 different recordings of" in refused(FLAGS, capsys)
    shutil.rmtree(new)
    record(new, 5)
    shutil.copy(new / "left/0.wav", new / "stop/copy.wav")
    assert "new: recordings under two words: 1; leave each under one" in refused(FLAGS, capsys)
    (new / "stop/copy.wav").unlink()
    (new / "stop").rename(new / "Yes")
    assert f"new: {RUN} knows Yes already" in refused(FLAGS, capsys)
    (new / "Yes").rename(new / "stop")
    soundfile.write(new / "stop/long.wav", synthesise(7, 77, 7, seconds=3), RATE)
    heard = sorted(Path("data/audio/up").glob("*_nohash_0.wav"))[0]
    shutil.copy(heard, new / "stop/heard.wav")
    assert add_words([*FLAGS, "--name", "x" * 201]) == 2
    assert "too long for the new run's name; choose one with --name" in capsys.readouterr().err
    assert add_words([*FLAGS, "--name", "../elsewhere"]) == 2
    capsys.readouterr()
    write_sealed(Path(RUN) / "ensemble-0.json", {})
    assert add_words(FLAGS) == 0
    shown = capsys.readouterr()
    assert "was trained on 1 of these under other labels, such as stop/heard.wav" in shown.err
    assert "new: of 1 longer recordings the loudest part is taken" in shown.err
    assert f"calibrate it as {RUN} was: python -m infer.calibrate --run {NEW} --folds 0,1" in shown.out
    assert f"next: python -m infer.evaluate --run {NEW} --folds 0,1 --split test" in shown.out


def test_one_word_of_recorded_speech(mini: Path, new: Path, capsys: pytest.CaptureFixture) -> None:
    """Ten speakers say a word; others who say it are understood, and so is what the run knew."""
    shutil.rmtree(new)
    recordings = sorted((mini / "happy").iterdir())
    for folder, part in (("new", recordings[:10]), ("judged", recordings[10:])):
        (new.parent / folder / "happy").mkdir(parents=True)
        for path in part:
            shutil.copy(path, new.parent / folder / "happy")
    shutil.copytree("runs/test_resnet-32x32/fold0", "runs/one/fold0")
    assert add_words(["--run", "runs/one", *FLAGS[2:]]) == 0
    for flags in (["--input", "judged"], ["--split", "test"]):
        run = ["--run", "runs/one+happy", "--folds", "0", "--device", "cpu", "--tta", "1", "--json", "figures.json"]
        assert evaluate([*run, *flags]) == 0
        assert json.loads(Path("figures.json").read_text())["soft"]["accuracy"] > 0.9


def test_words_for_a_model_of_everything(new: Path) -> None:
    """A fold that holds nothing out is calibrated on the new recordings alone, and takes the words as well."""
    from train.run import main as train

    assert train([*TRAINING.split(), "--fold", "none", "--name", "whole"]) == 0
    assert add_words(["--run", "runs/whole", *FLAGS[2:], "--name", "more"]) == 0
    saved = load_checkpoint(Path("runs/more/foldnone/best.pt"))
    assert saved["classes"][-2:] == ["left", "stop"]
    assert RANGE[0] <= saved["temperature"] <= RANGE[1]
    record(Path("judged"), 20, first=20)
    for flags, least in ((["--input", "judged"], 0.7), (["--split", "test"], 0.9)):  # the former varies by processor
        run = ["--run", "runs/more", "--folds", "none", "--device", "cpu", "--tta", "1", "--json", "figures.json"]
        assert evaluate([*run, *flags]) == 0
        assert json.loads(Path("figures.json").read_text())["soft"]["accuracy"] > least


def test_stopped_while_building(new: Path, no_leftovers: Path) -> None:
    """SIGTERM leaves neither a run nor temporary files, nor a process that goes on building."""
    command = [sys.executable, "-m", "train.add_words", *FLAGS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(no_leftovers.glob("*/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not Path(NEW).exists()


def test_a_layer_is_what_scikit_learn_says() -> None:
    """Standardising is undone in weight and bias: they judge unscaled features as the fit judged scaled ones."""
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1, 2], (80, 80, 5))
    centres = rng.standard_normal((3, 16))
    features = 50 + 20 * (centres[targets] + 0.3 * rng.standard_normal((165, 16)))
    weight, bias = fit_last_layer(features, targets)
    assert weight.shape == (3, 16)
    assert ((features @ weight.T + bias).argmax(axis=1) == targets).all()
    alike = fit_last_layer(features / 1000, targets)
    assert np.allclose(features @ weight.T + bias, features / 1000 @ alike[0].T + alike[1], atol=1e-2)


@pytest.mark.parametrize(
    "model", ["resnet10t", "dla60_res2next", "speech_embedding", "mobilenetv3_small_050", "test_vit"]
)
def test_heads_of_many_kinds(model: str, tiny: Path) -> None:
    """Linear, or a convolution, after whatever pooling: the new model says what weight and bias do."""
    backbone, cache = _backbone(model, tiny)
    clips = np.arange(4)
    features = backbone.pooled(cache, clips)
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((6, features.shape[1])), rng.standard_normal(6)
    state = backbone.with_last_layer(weight, bias, cache, clips)
    again = create_model(model, 6, (32, 32))
    again.load_state_dict(state)
    rows = cache.gather(clips, np.zeros(4, int), np.empty((4, 32, 32), np.float16))
    with torch.inference_mode():
        said = again.eval()(torch.from_numpy(rows)[:, None].float()).numpy()
    assert np.allclose(said, features @ weight.T + bias, rtol=1e-3, atol=1e-3 * np.abs(said).max())


@pytest.mark.parametrize("model", ["deit_tiny_distilled_patch16_224", "levit_128s"])
def test_heads_that_cannot_be_replaced(model: str, tiny: Path) -> None:
    """Where there are two last layers, or more than a linear layer after the pooling, one line says so."""
    backbone, cache = _backbone(model, tiny)
    features = backbone.pooled(cache, np.arange(4))
    with pytest.raises(InputError, match=f"the last layer of {model} cannot be replaced"):
        backbone.with_last_layer(np.ones((6, features.shape[1])), np.ones(6), cache, np.arange(4))


def _backbone(model: str, tiny: Path) -> tuple[Backbone, Cache]:
    """An untrained model and the tiny cache."""
    saved = {"options": {"model": model}, "classes": ["a", "b", "c"], "features": {"n_mels": 32, "n_frames": 32}}
    saved["model"] = create_model(model, 3, (32, 32)).state_dict()
    return Backbone(Path("best.pt"), saved, torch.device("cpu")), Cache(only_cache(tiny))
