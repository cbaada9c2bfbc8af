"""The card of an exported model: what it is, what it was made from, how well it does and where not.

`card.md` is its text. Everything in it is taken from files. Names that users chose, such as labels, could be Markdown.
So they stand in code spans, and in no table. Places on this machine are left out.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from cache.cli import InputError, command_line, printable
from infer.corpus import find_member_cache
from infer.ensemble import Ensemble
from infer.labelled import out_of_fold
from infer.measure.figures import out_of_fold_figures
from infer.members import Member
from infer.options import CalibrateOptions, ExportOptions
from pipeline.options import BuildOptions
from train.checkpoint import fits
from train.options import AddWordsOptions, TrainOptions

LIBRARY = "melshard"
# the least that is read of each file, as in `train.checkpoint`
_SHARES = {"accuracy": 0.0, "low": 0.0, "high": 0.0}
_CONDITION = {"changed": "", "value": -1e9, "accuracy": 0.0}
_FIGURES: dict[str, Any] = {"source": "", "clips": 1, "tta": (1, ...), "members": [{"member": "", "digest": ""}]}
_FIGURES |= {"single": _SHARES, **dict.fromkeys(("hard", "soft", "soft_tta"), (_SHARES, None))}
_FIGURES |= {"recall": [{"label": "", "clips": 1, "recall": 0.0}]}
_FIGURES |= {"robustness": ({"score": 0.0, "clean": _SHARES, "conditions": [_CONDITION]}, ...)}
_CERTAINTY = {"confidence": 0.0, "ece": 0.0}
_CALIBRATION = {"clips": 1, "before": _CERTAINTY, "after": _CERTAINTY, "false_alarms_per_hour": (0.0, ...)}
_CONFIG: dict[str, Any] = {"versions": {"python": "", "torch": "", "timm": ""}, "git_commit": ("", None)}
_CONFIG |= {"added": ({"run": "", "recordings": {}}, ...)}


def card_path(output: Path) -> Path:
    """Where the card of a model lies.

    Raises
    ------
    InputError : something else lies there
    """
    path = output.with_name(f"{output.name}.md")
    try:
        ours = not path.exists() or (metadata_load(path) or {}).get("library_name") == LIBRARY
    except (ValueError, YAMLError):
        ours = False
    if not ours:
        raise InputError(f"{path}: would be replaced by the card of {output}; choose another --output, or move it away")
    return path


def read_figures(path: Path, members: list[Member], options: ExportOptions) -> dict[str, Any]:
    """Read what ``infer.evaluate --json`` wrote.

    Raises
    ------
    InputError : not such a file, or figures of other members or views
    """
    again = "write it with python -m infer.evaluate --json FILE"
    figures = _read(path, _FIGURES, again)
    if figures.get("tta", options.tta) != options.tta:
        raise InputError(
            f"{path}: figures of {figures['tta']} views, the file has {options.tta}; use --tta {figures['tta']}"
        )
    if figures.get("hard_tta"):
        raise InputError(f"{path}: figures of --ensemble hard, but the file gives means; {again}")
    judged = sorted((row["member"], row["digest"]) for row in figures["members"])
    if judged != sorted((member.name, member.digest) for member in members):
        raise InputError(f"{path}: figures of other members, or of an earlier training; {again}")
    known = figures["source"] in ("out of fold", "the split test")  # else a path of this machine
    return figures if known else figures | {"source": "other labelled recordings"}


def write_card(output: Path, members: list[Member], ensemble: Ensemble, options: ExportOptions) -> str:
    """The card of the model in `output`, as Markdown with a YAML header.

    Raises
    ------
    InputError : a file that it is taken from is damaged, or ``--figures`` are of other members
    """
    classes = members[0].classes
    firsts = [member for n, member in enumerate(members) if member.run not in [each.run for each in members[:n]]]
    corpora = [(member, _unless_gone(find_member_cache, member, options.cache_dir)) for member in firsts]
    clips = _unless_gone(out_of_fold, members, options.cache_dir)
    measured = [out_of_fold_figures(members, *clips)] if clips else []
    measured += [read_figures(Path(options.figures), members, options)] if options.figures else []
    figures = list({each["source"]: each for each in measured}.values())
    least = _CALIBRATION | {"thresholds": (dict.fromkeys(classes, (0.0, ...)), ...)}
    data = ModelCardData(
        model_name=printable(", ".join(Path(member.run).name for member in firsts)),
        library_name=LIBRARY,
        pipeline_tag="audio-classification",
        tags=["timm", options.format],
        metrics=["accuracy"],
        eval_results=list(map(_result, figures)) or None,
        labels=list(map(printable, classes)),
    )
    facts: dict[str, Any] = {"file": output.name, "members": members, "classes": classes, "config": members[0].config}
    facts |= {"options": options, "ensemble": ensemble, "corpora": corpora, "figures": figures}
    calibration = _read(ensemble.path, least, "run infer.calibrate again") if ensemble.path.exists() else None
    configs = {member.run: member.path.with_name("config.json") for member in firsts}
    read = {run: _read(path, _CONFIG, "remove it, or train again") for run, path in configs.items() if path.exists()}
    added = {run: config["added"] for run, config in read.items() if "added" in config}
    facts["commands"] = list(map(printable, _commands(corpora, members, added, calibration, options)))
    facts |= {"calibration": calibration, "added": added, "trained_with": read.get(members[0].run)}
    template = str(Path(__file__).with_name("card.md"))
    return f"{ModelCard.from_template(data, template, code=code, n='{:,}'.format, **facts)}\n"


def code(name: str) -> str:
    """A name as a code span, whatever is in it."""
    name = printable(name)
    fence = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    return f"{fence}{name}{fence}" if len(fence) == 1 and name == name.strip() else f"{fence} {name} {fence}"


def _read(path: Path, least: dict[str, Any], again: str) -> dict[str, Any]:
    """Read JSON, and check the entries that the card shows; InputError where one is not what it should be."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {again}") from None
    for name, each in least.items():
        if not fits(content.get(name, ...) if isinstance(content, dict) else ..., each):
            raise InputError(f"{path}: its entry {name} is missing, or not what melshard writes; {again}")
    return content


def _unless_gone(read: Callable, *what: Any) -> Any:
    """What a function reads; None where it cannot, and the card says so."""
    try:
        return read(*what)
    except InputError:
        return None


def _result(figures: dict[str, Any]) -> EvalResult:
    judge = next(name for name in ("soft_tta", "soft", "hard", "single") if figures[name])
    value, low, high = (round(float(figures[judge][name]), 4) for name in _SHARES)
    about = {"clips": figures["clips"], "low": low, "high": high}
    kinds, source, name = ("audio-classification", "audiofolder", "recordings"), figures["source"], f"accuracy, {judge}"
    return EvalResult(*kinds, "accuracy", value, dataset_split=source, metric_name=name, metric_args=about)


def _commands(
    corpora: list,
    members: list[Member],
    added: dict[str, Any],
    calibration: dict[str, Any] | None,
    options: ExportOptions,
) -> list[str]:
    """What was typed to make the model, but for places and for what changes no result."""
    commands, runs = [], ""
    for member, cache in corpora:
        config, name, split = member.config, Path(member.run).name, cache.index["split"] if cache else {}
        trained = Path(added[member.run]["run"]).name if member.run in added else name
        build = dataclasses.asdict(config) | {"width": config.n_frames}
        build |= {"kfold": split, "official": {"split": "official"}}.get(str(split.get("split")), {})
        usual: Any = BuildOptions(width=config.n_mels, fmax=config.sample_rate / 2, win_length=0)
        commands.append(command_line("pipeline.build_cache", build, usual))
        train = {key: member.options.get(key) for key in [*TrainOptions().resume_key(), "patience"]}
        train |= {"n_mels": config.n_mels, "width": config.n_frames, "name": trained}
        train["weights"] = "FILE" if train["weights"] else None
        train["teacher"] = tuple(f"runs/{Path(run).name}" for run in train["teacher"] or ())
        named = TrainOptions(model=train["model"], n_mels=config.n_mels, width=config.n_frames).run_name
        folds = ["all"] if options.folds == "all" else [each.fold for each in members if each.run == member.run]
        usual = TrainOptions(width=config.n_mels, name=named)
        commands += [f"{command_line('train.run', train, usual)} --fold {fold}" for fold in folds]
        if member.run in added:
            words = {"run": f"runs/{trained}", "audio": "FOLDER", "name": name}
            commands.append(command_line("train.add_words", words, AddWordsOptions()))
        runs += " --run " + shlex.quote(f"runs/{name}")
    export = {"folds": options.folds, "tta": options.tta, "format": options.format, "int8": options.int8}
    if calibration:
        chosen: dict[str, Any] = {"input": "FOLDER"} if added else {}
        if calibration.get("thresholds"):
            chosen |= {"negatives": "FOLDER", "false_alarms_per_hour": calibration.get("false_alarms_per_hour", "N")}
        commands.append(command_line("infer.calibrate", export | chosen, CalibrateOptions()) + runs)
    return list(dict.fromkeys([*commands, command_line("infer.export", export, ExportOptions()) + runs]))
