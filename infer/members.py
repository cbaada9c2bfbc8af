"""The members of an ensemble: trained folds of one run or several."""

import dataclasses
from pathlib import Path

import torch

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import file_checksum
from infer.options import trained_runs
from train.checkpoint import load_checkpoint
from train.models import create_model


@dataclasses.dataclass
class Member:
    """One trained fold, ready to judge."""

    run: str
    fold: str
    path: Path
    config: FeatureConfig
    classes: list[str]
    split_digest: str
    temperature: float
    """Divides the logits; fitted by training on the member's held-out clips."""
    model: torch.nn.Module
    calibrated: bool = True
    """Whether neither the member nor a teacher of it knew the clips that its temperature was fitted on."""
    hold_back: float = 0.0
    """Share of the clips that no fold of the run was trained on."""
    digest: str = ""
    """SHA-256 of the checkpoint."""

    @property
    def name(self) -> str:
        """Run and fold, such as ``resnet18-32x32/fold0``."""
        return f"{Path(self.run).name}/fold{self.fold}"


def trained_folds(run: str, folds: str) -> list[str]:
    """Names of the folds that ``--folds`` means for a run.

    Raises
    ------
    InputError : no such run, or a fold that is not trained
    """
    folder = Path(run)
    found = {path.parent.name.removeprefix("fold"): path for path in sorted(folder.glob("fold*/best.pt"))}
    if not found:
        there = ", ".join(trained_runs(folder.parent))
        raise InputError(
            f"{folder}: no trained fold; train one with python -m train.run"
            + (f", or choose with --run (there: {there})" if there else "")
        )
    if folds == "all":
        numbered = [path for fold, path in found.items() if fold != "none"]
        if not numbered:
            raise InputError(f"{folder}: only fold none is trained; use --folds none")
        wanted = [str(fold) for fold in range(load_checkpoint(numbered[0])["folds"])]
    else:
        wanted = list(dict.fromkeys(folds.split(",")))
    missing = [fold for fold in wanted if fold not in found]
    if missing:
        raise InputError(
            f"{folder}: not trained: fold {', '.join(missing)} (there: {', '.join(found)}); "
            f"train it with --fold, or choose --folds {','.join(f for f in found if f != 'none') or 'none'}"
        )
    return wanted


def load_members(runs: list[str], folds: str, device: torch.device) -> list[Member]:
    """Load every wanted fold of every run.

    Raises
    ------
    InputError : a fold is missing, folds of a run disagree on features or split, or runs disagree on classes
    """
    members = [_load(run, fold, device) for run in runs for fold in trained_folds(run, folds)]
    for member in members:
        first = next(other for other in members if other.run == member.run)
        for what in ("config", "split_digest"):
            if getattr(member, what) != getattr(first, what):
                raise InputError(
                    f"{member.path}: trained on other features or another split than {first.path}; train it again"
                )
        if member.classes != members[0].classes:
            raise InputError(f"{member.path}: knows other labels than {members[0].path}; they cannot vote together")
    return members


def shared_clip(members: list[Member]) -> FeatureConfig:
    """The configuration of the first member, whose sample rate and clip length all others must share.

    Raises
    ------
    InputError : they do not
    """
    first = members[0].config
    for member in members:
        if (member.config.sample_rate, member.config.samples) != (first.sample_rate, first.samples):
            raise InputError(
                f"{member.path}: clips of {member.config.clip_seconds:g} s at {member.config.sample_rate} Hz, "
                f"{members[0].path}: {first.clip_seconds:g} s at {first.sample_rate} Hz; here all must agree"
            )
    return first


def _load(run: str, fold: str, device: torch.device) -> Member:
    path = Path(run) / f"fold{fold}" / "best.pt"
    saved = load_checkpoint(path)
    options = saved["options"]
    config = FeatureConfig.from_dict(saved["features"], str(path))
    model = create_model(options["model"], len(saved["classes"]), (config.n_mels, config.n_frames))
    model.load_state_dict(saved["model"])
    model = model.to(device, memory_format=torch.channels_last).eval()
    return Member(
        run=run,
        fold=fold,
        path=path,
        config=config,
        classes=saved["classes"],
        split_digest=saved["split_digest"],
        temperature=saved["temperature"],
        model=model,
        calibrated=fold != "none" and not options.get("teacher"),
        hold_back=0.0 if fold == "none" else options.get("hold_back", 0.0),
        digest=file_checksum(path),
    )
