"""TensorBoard event files beside a fold's metrics; needs the extra ``[tensorboard]``."""

from pathlib import Path
from typing import Any

from cache.cli import require

_TAGS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "val_accuracy": "accuracy/validation",
    "lr": "lr",
    "clips_per_second": "clips_per_second",
}


def open_events(folder: Path, step: int) -> Any:
    """A ``SummaryWriter`` that goes on after `step`: what an interrupted run wrote beyond it is not shown.

    Raises
    ------
    InputError : TensorBoard is not installed
    """
    require("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def write_epoch(writer: Any, entry: dict[str, Any]) -> None:
    """Write a line of metrics.jsonl as scalars at its step."""
    for key, tag in _TAGS.items():
        if entry[key] is not None:
            writer.add_scalar(tag, entry[key], entry["step"])
    writer.flush()
