"""The members of an ensemble: trained folds of one run or several."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, say
from cache.config import FeatureConfig
from infer.options import EnsembleOptions, trained_runs
from train.checkpoint import load_checkpoint
from train.models import load_trained
from train.precision import FORMATS, amp_dtype, device_name, find_faster_format, prediction_dtype
from train.progress import best_checkpoints, read_metrics
from train.world import World

_TIMED_CLIPS = 64  # of the batch that the memory formats are timed with


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
    memory_format: torch.memory_format = torch.channels_last
    """The faster one for this model on this device."""
    dtype: torch.dtype | None = None
    """What it computes in, by autocast; None: float32."""
    calibrated: bool = True
    """Whether neither the member nor a teacher of it knew the clips that its temperature was fitted on."""
    held_back: bool = False
    """Whether training kept clips from every fold; not from fold none, and none of words that were added later."""
    digest: str = ""
    """SHA-256 of the checkpoint."""
    trained_on: np.ndarray | None = None
    """Contents of these clips, see `train.trained_on`; None where the checkpoint does not say."""
    epoch: int = 0
    """Whose weights these are: the best so far."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The flags of its training."""

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
    found = best_checkpoints(Path(run))
    if not found:
        there = ", ".join(trained_runs(Path(run).parent))
        choose = f", or choose with --run (there: {there})" if there else ""
        what = "no trained fold" if Path(run).is_dir() else "no such run"
        raise InputError(f"{run}: {what}; train one with python -m train.run{choose}")
    numbered = [fold for fold in found if fold != "none"]
    if folds == "all" and not numbered:
        return ["none"]  # there is nothing else that all could mean
    every = range(load_checkpoint(found[numbered[0]])["folds"]) if folds == "all" else folds.split(",")
    wanted = list(dict.fromkeys(map(str, every)))
    missing = [fold for fold in wanted if fold not in found]
    if missing:
        raise InputError(
            f"{run}: not trained: fold {', '.join(missing)} (there: {', '.join(found)}); "
            f"train it with --fold, or choose --folds {','.join(numbered) or 'none'}"
        )
    return wanted


def load_members(runs: list[str], folds: str, device: torch.device, amp: str = "off") -> list[Member]:
    """Load every wanted fold of every run, to compute in what `amp` says (see `train.precision`).

    Raises
    ------
    InputError : a fold is missing, folds of a run disagree on features or split, or runs disagree on classes
    """
    members = [_load(run, fold, device) for run in runs for fold in trained_folds(run, folds)]
    dtypes: dict[tuple[str, int, int], torch.dtype | None] = {}
    for member in members:
        first = next(other for other in members if other.run == member.run)
        if (member.config, member.split_digest) != (first.config, first.split_digest):
            raise InputError(
                f"{member.path}: trained on other features or another split than {first.path}; train it again"
            )
        network = (member.options["model"], member.config.n_mels, member.config.n_frames)
        if network not in dtypes:
            dtypes[network] = prediction_dtype(amp, member.model, network[1:], device)
        member.dtype = dtypes[network]
        if member.classes != members[0].classes:
            raise InputError(f"{member.path}: knows other labels than {members[0].path}; they cannot vote together")
    return members


def load_alike(options: EnsembleOptions, world: World) -> list[Member]:
    """The members that the flags name, the same on every rank; says which are still in training.

    Raises
    ------
    InputError : as :func:`load_members`, or a checkpoint was replaced between two ranks' reading
    """
    members = load_members(options.run_folders, options.folds, world.device, options.amp)
    read = world.gather([(str(member.path), member.digest) for member in members])
    for rank, theirs in enumerate(read):
        if theirs != read[0]:
            path = next((path for path, digest in theirs if (path, digest) not in read[0]), options.runs_dir)
            raise InputError(
                f"{path}: rank {rank} read another file than rank 0: it was replaced meanwhile; run this again, best "
                "when its training has ended"
            )
    if world.is_main:
        _say_unfinished(members)
    return members


def _say_unfinished(members: list[Member]) -> None:
    """Say on stderr which members have not been trained to the end, and whose epoch's weights they have."""
    for member in members:
        with contextlib.suppress(InputError, TypeError):  # damaged metrics or flags are no reason not to judge
            entries = read_metrics(member.path.parent)
            last = entries[-1]["epoch"] if entries else 0
            epochs, patience = (member.options.get(key, 0) for key in ("epochs", "patience"))
            if last and last < epochs and not 0 < patience <= last - member.epoch:
                course = f"training is at epoch {last} of {epochs}"
                say(f"{member.path}: the weights of epoch {member.epoch}; {course}", error=True)


def shared_clip(members: Sequence[Member]) -> FeatureConfig:
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
    data = path.read_bytes()  # once, or the digest could be of the next epoch's
    saved = load_checkpoint(path, data)
    if saved["fold"] != fold:
        raise InputError(f"{path}: is of fold {saved['fold']}; move {path.parent} away and train fold {fold}")
    options = saved["options"]
    config = FeatureConfig.from_dict(saved["features"], str(path))
    model = load_trained(path, saved)
    heard = saved.get("heard")  # None or a tensor, as load_checkpoint has seen to
    memory_format = memory_format_on(device, saved, model, config)
    return Member(
        run=run,
        fold=fold,
        path=path,
        config=config,
        classes=saved["classes"],
        split_digest=saved["split_digest"],
        temperature=saved["temperature"],
        model=model.to(device).to(memory_format=memory_format),
        memory_format=memory_format,
        calibrated=fold != "none" and not options.get("teacher"),
        held_back=saved["best"]["accuracy"] is not None and bool(saved.get("held_back", options.get("hold_back"))),
        digest=hashlib.sha256(data).hexdigest(),
        trained_on=None if heard is None else heard.numpy(),
        epoch=saved["best"]["epoch"],
        options=options,
    )


def memory_format_on(
    device: torch.device, saved: dict[str, Any], model: torch.nn.Module, config: FeatureConfig
) -> torch.memory_format:
    """The memory format that training chose, where the device is the same; on another GPU the faster one there.

    Parameters
    ----------
    saved : content of best.pt
    """
    if device.type != "cuda":
        return torch.channels_last
    if saved.get("device") == device_name(device) and saved.get("memory_format") in FORMATS:
        return FORMATS[saved["memory_format"]]
    shape = (_TIMED_CLIPS, 1, config.n_mels, config.n_frames)
    return find_faster_format(model, shape, device, amp_dtype("auto", device), training=False)
