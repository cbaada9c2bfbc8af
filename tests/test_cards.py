"""The card beside an exported model: true, whole, and not broken by what users call their labels."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from cache.cli import InputError
from cache.files import write_sealed
from infer.ensemble import Ensemble
from infer.evaluate.__main__ import main as evaluate
from infer.export.__main__ import main as export
from infer.export.card import read_figures
from infer.members import Member, load_members
from infer.options import ExportOptions
from tests.conftest import RATE, only_cache, synthesise
from tests.test_edited_files import check_refusals, edited
from tests.words_run import RUN, WORDS
from train.checkpoint import load_checkpoint, save_checkpoint

EXPORT = ["--run", RUN, "--format", "safetensors", "--check-clips", "2"]
CALIBRATION = {
    "temperature": 1.25,
    "clips": 40,
    "before": {"accuracy": 0.9, "confidence": 0.7, "ece": 0.2},
    "after": {"accuracy": 0.9, "confidence": 0.85, "ece": 0.05},
}


def members(folds: str = "all") -> list[Member]:
    """The members of the run in the working directory."""
    return load_members([RUN], folds, torch.device("cpu"))


def loaded(path: str = "model.safetensors.md") -> ModelCard:
    """A card, after a look at whether it is the same once loaded and written again."""
    text = Path(path).read_text(encoding="utf-8")
    card = ModelCard.load(path)
    header = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert str(card) == text
    assert ModelCardData(**header).to_dict() == header == card.data.to_dict()
    return card


def test_a_card_says_what_files_say(project: Path) -> None:
    """Data, figures with intervals, robustness and calibration are those of cache, oof.npz and the two JSON files."""
    kept = CALIBRATION | {"thresholds": {"no": 0.5, "yes": 0.875}, "false_alarms_per_hour": 0.5}
    write_sealed(Ensemble(members(), 4).path, kept)
    assert evaluate(["--run", RUN, "--split", "test", "--robustness", "--json", "figures.json"]) == 0
    assert export([*EXPORT, "--figures", "figures.json"]) == 0
    figures, card = json.loads(Path("figures.json").read_text()), loaded()
    held_out, tested = card.data.eval_results
    assert (held_out.metric_value, held_out.metric_args["clips"]) == (1, 96)
    assert tested.metric_value == round(figures["soft_tta"]["accuracy"], 4)
    assert tested.metric_args["low"] == round(figures["soft_tta"]["low"], 4)
    assert (card.data.library_name, card.data.labels) == ("melshard", sorted([*WORDS, "noise"]))
    for said in (
        "108 clips of 9 speakers, 12 of the clips for testing",
        "| the split test | 12 | mean of the members over 4 views | ",
        f"mean accuracy {figures['robustness']['score']:.4f}",
        "Of the mean: 1.250, fitted on 40 clips",
        "from 0.7000 to 0.8500",
        "Thresholds for 0.5 false alarms of each label in an hour: `no` 0.5, `yes` 0.875.",
        "no label `unknown`",
        f"torch `{torch.__version__}`",
    ):
        assert said in card.text
    assert "not calibrated" not in card.text


def test_its_commands_make_the_model_again(project: Path) -> None:
    """The commands on a card build the same cache and mean the same training."""
    from cache.cli import parse_flags
    from cache.index import Cache
    from pipeline.build_cache import main as build
    from train.options import TrainOptions, options_from

    shutil.move(RUN, "runs/another name")
    assert export(["--run", "runs/another name", *EXPORT[2:], "--folds", "1"]) == 0
    commands = [shlex.split(line)[2:] for line in loaded().text.splitlines() if line.startswith("python -m ")]
    assert [command[0] for command in commands] == ["pipeline.build_cache", "train.run", "infer.export"]
    assert build([*commands[0][1:], "--cache-dir", "again", "--jobs", "1"]) == 0
    before, after = only_cache(Path("data/cache")), only_cache(Path("again"))
    assert (before.name, Cache(before).index["split"]) == (after.name, Cache(after).index["split"])
    options = options_from(parse_flags(TrainOptions, commands[1][1:], prog="", description=""))
    saved = load_checkpoint(Path("runs/another name/fold1/best.pt"))["options"]
    assert options.resume_key().items() <= saved.items()
    assert (options.run_name, options.fold) == ("another name", "1")
    assert export([*commands[2][1:], "--check-clips", "2"]) == 0


def test_labels_are_data(project: Path) -> None:
    """Labels that are Markdown or YAML stand in a card as they are; where clips were judged does not."""
    labels = ["# no: [", "a`b``c`", "| x", "---"]
    path = Path(RUN) / "fold0/best.pt"
    save_checkpoint(path, {**load_checkpoint(path), "classes": labels})
    for word, label in enumerate(labels):
        (project / "own" / label).mkdir(parents=True)
        soundfile.write(project / "own" / label / "a.wav", synthesise(word, 30, 1), RATE)
    one = ["--run", RUN, "--folds", "0", "--tta", "1"]
    assert evaluate([*one, "--input", str(project / "own"), "--json", "figures.json"]) == 0
    assert export([*one, *EXPORT[2:], "--check", "own", "--cache-dir", "gone", "--figures", "figures.json"]) == 0
    card = loaded()
    assert card.data.labels == labels
    assert "\nLabels: `# no: [`, ``` a`b``c` ```, `| x`, `---`\n" in card.text
    lines = card.text.splitlines()
    assert [line for line in lines if line.startswith("#")][1:] == [
        f"## {name}" for name in ("Data", "Training", "Accuracy", "Calibration", "Limits", "Versions")
    ]
    assert {line.count("|") for line in lines if line.startswith("|")} == {6}
    assert "other labelled recordings" in card.text
    assert "cache is gone or has changed" in card.text
    assert not re.search(rf"{re.escape(str(project))}|{re.escape(str(Path.home()))}|/tmp", str(card))


def test_any_figures_file(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Figures that are damaged, of other types, or of other members are refused in one line, before any work."""
    assert evaluate(["--run", RUN, "--split", "test", "--json", "figures.json"]) == 0
    path = project / "figures.json"
    whole, judged = json.loads(path.read_text()), members()
    shown = {"source", "clips", "members", "single", "recall"}
    parts = {key: whole[key] for key in (*shown, "hard", "soft", "soft_tta", "tta")}
    refused = check_refusals(
        edited(parts),
        lambda other: path.write_text(json.dumps({**dict.fromkeys(("hard", "soft", "soft_tta")), **other})),
        lambda: read_figures(path, judged, ExportOptions()),
        "figures.json",
    )
    assert refused == shown
    for content in (b"", b"\xff", b"[" * 100_000, b"3", b'{"clips": NaN}'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"figures\.json"):
            read_figures(path, judged, ExportOptions())
    path.write_text(json.dumps(whole))
    for folds, again in (("0", False), ("all", True)):
        if again:
            best = Path(RUN) / "fold0/best.pt"
            save_checkpoint(best, {**load_checkpoint(best), "temperature": 1.25})
        capsys.readouterr()
        assert export([*EXPORT, "--folds", folds, "--figures", "figures.json"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: figures.json: figures of other members, or of an earlier training; ")
    assert not list(project.glob("model.*"))


def test_damaged_calibrations_and_settings_are_named(project: Path, capsys: pytest.CaptureFixture) -> None:
    """What a card takes from infer.calibrate's file and config.json is checked; the error is one line."""
    path = Ensemble(members(), 4).path
    wrong = [{"clips": "40"}, {"before": None}, {"after": {"confidence": float("nan"), "ece": 0.1}}]
    wrong += [{"thresholds": {"no": "low"}}, {"thresholds": [0.5]}, {"false_alarms_per_hour": float("nan")}]
    for each in wrong:
        write_sealed(path, CALIBRATION | each)
        assert export(EXPORT) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"error: {path}: ")
        assert next(iter(each)) in line
    path.unlink()
    config = Path(RUN) / "fold0/config.json"
    config.write_text('{"versions": {"python": 3}}')
    assert export(EXPORT) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {config}: its entry versions ")
    assert not list(project.glob("model.*"))


def test_a_card_replaces_cards_only(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Of an earlier export it does; a page, a list or figures of that name, and the model itself, stay as they are."""
    assert export(EXPORT) == 0
    first = Path("model.safetensors.md").read_bytes()
    assert export([*EXPORT, "--folds", "0"]) == 0
    assert Path("model.safetensors.md").read_bytes() != first
    clip = project / "data/audio/yes/a0000008_nohash_0.wav"
    for content in (b"# Mine\n", b"---\nlibrary_name: timm\n---\n", b"---\n[\n---\n", b"", b"\xff", str(clip).encode()):
        Path("model.safetensors.md").write_bytes(content)
        assert export([*EXPORT, *(("--check", "model.safetensors.md") if content == str(clip).encode() else ())]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(
            "error: model.safetensors.md: would be replaced by the card of model.safetensors; choose another"
        )
        assert Path("model.safetensors.md").read_bytes() == content
    Path("figures.json").write_text("{}")
    assert export([*EXPORT, "--output", "figures.json", "--figures", "figures.json"]) == 2
    assert "figures.json is to be read, so it is not written over" in capsys.readouterr().err
