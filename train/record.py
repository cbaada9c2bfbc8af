"""The run folder of one fold: last.pt, best.pt, oof.npz, metrics.jsonl and config.json."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError
from cache.files import file_lock, remove_leftovers, write_atomic
from cache.index import Cache
from train.calibration import FEW_ERRORS, fit_temperature
from train.checkpoint import AGAIN, load_checkpoint, save_arrays, save_checkpoint
from train.engine import Trainer
from train.folds import calibration_clips
from train.options import TrainOptions
from train.precision import device_name
from train.world import World


@contextlib.contextmanager
def opened_for_writing(folder: Path) -> Iterator[None]:
    """Hold a run folder; an error of the system that names no file names the folder.

    Raises
    ------
    InputError : another run is at work in it
    OSError : the disk is full, or no permission
    """
    busy = f"{folder}: another run is at work here; wait for it, or choose another --name"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / ".lock", busy=busy):
            remove_leftovers(folder)
            yield
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise


class Record:
    """What a fold leaves behind. Every rank may read; rank 0 alone writes.

    Parameters
    ----------
    options : the command's flags
    cache : the opened cache
    fold_name : "0", "1", … or "none"
    """

    def __init__(self, options: TrainOptions, cache: Cache, fold_name: str) -> None:
        self.options, self.cache, self.fold_name = options, cache, fold_name
        self.folder = Path(options.runs_dir) / options.run_name / f"fold{fold_name}"
        self.held_back = int(calibration_clips(cache, options.hold_back).sum())
        self.best: dict[str, Any] = {"epoch": 0, "accuracy": -1.0, "loss": 0.0}
        self.trained_on: torch.Tensor | None = None  # see the module of that name

    def load(self) -> dict[str, Any] | None:
        """Read last.pt, if there is one.

        Raises
        ------
        InputError : unreadable, or of another cache or other arguments
        """
        path, best = self.folder / "last.pt", self.folder / "best.pt"
        if not path.exists():
            added = best.exists() and load_checkpoint(best)["classes"] != list(self.cache.classes)  # by train.add_words
            if best.exists() and (added or len(self._logged()) > 1):  # else the first epoch was interrupted
                raise InputError(f"{path} is gone, but not {best}; move {self.folder} away, or choose another --name")
            return None
        try:
            saved = load_checkpoint(path)
        except InputError as error:
            kept = f"; the best epoch's weights are in {best}" if best.exists() else ""
            raise InputError(f"{error}; move {self.folder} away to start this fold again{kept}") from None
        expected = self._identity()
        for what, key in (("feature configuration", "feature_digest"), ("split", "split_digest")):
            if saved[key] != expected[key]:
                raise InputError(
                    f"{path}: was trained on another {what} ({saved[key][:12]}, the cache's is {expected[key][:12]}); "
                    "choose another --name, or the cache with --cache"
                )
        if saved["fold"] != self.fold_name:
            raise InputError(f"{path}: is of fold {saved['fold']}; move {self.folder} away")
        trained = {**dataclasses.asdict(TrainOptions()), **saved["options"]}  # later flags have their defaults
        differ = [
            f"--{key.replace('_', '-')} {_shown(trained.get(key))} (now {_shown(value)})"
            for key, value in self.options.resume_key().items()
            if trained.get(key) != value
        ]
        if differ:
            raise InputError(f"{path}: was trained with {', '.join(differ)}; use the same, or choose another --name")
        self.best = saved["best"]
        return saved

    def finished(self, epochs: int) -> bool:
        """Whether a fold with so many epochs behind it is done: it has all, or patience has run out."""
        patience = self.options.patience
        return epochs >= self.options.epochs or 0 < patience <= epochs - self.best["epoch"]

    def check_results(self) -> None:
        """InputError where training has ended, but one of its results is gone."""
        for path in (self.folder / "best.pt", self.folder / "oof.npz"):
            if not path.exists():
                raise InputError(f"{path}: is gone, but training has ended; {AGAIN}")

    def describe_best(self) -> str:
        """The best epoch in words."""
        if self.best["accuracy"] is None:
            return f"epoch {self.best['epoch']}, nothing held out"
        return f"best validation accuracy {self.best['accuracy']:.4f} (epoch {self.best['epoch']})"

    def describe_doubt(self, held_out: int) -> str:
        """Why the temperature of the best epoch is uncertain, in words; empty where it is not, or where there is none.

        Parameters
        ----------
        held_out : clips that it was fitted on
        """
        errors = held_out - round((self.best["accuracy"] or 0.0) * held_out)
        if not held_out or errors >= FEW_ERRORS:
            return ""
        return (
            f"{self.folder}: its temperature rests on {errors} errors among {held_out} held-out clips, so that its "
            "confidence is uncertain; infer.calibrate sets that of the ensemble"
        )

    def _identity(self) -> dict[str, Any]:
        split = self.cache.index["split"]
        return {
            "options": dataclasses.asdict(self.options),
            "fold": self.fold_name,
            "features": dataclasses.asdict(self.cache.config),
            "feature_digest": self.cache.config.digest,
            "split_digest": split["digest"],
            "folds": split["folds"],
            "held_back": self.held_back,
            "classes": list(self.cache.classes),
        }

    def save_last(self, state: dict[str, Any], epochs: int) -> None:
        """Write last.pt: the trainer's state, and how many lines of metrics.jsonl belong to it."""
        content = {
            **self._identity(),
            "heard": self.trained_on,
            "best": self.best,
            "state": state,
            "epochs_logged": epochs,
        }
        save_checkpoint(self.folder / "last.pt", content)

    def keep_if_better(self, entry: dict[str, Any], judged: dict[str, np.ndarray], trainer: Trainer) -> bool:
        """Write oof.npz and best.pt where an epoch is the best so far, by accuracy, then loss."""
        accuracy, loss, best = entry["val_accuracy"], entry["val_loss"], self.best
        if accuracy is not None and (accuracy, -loss) <= (best["accuracy"], -best["loss"]):
            return False
        self.best = {"epoch": entry["epoch"], "accuracy": accuracy, "loss": loss}
        identity = self._identity()
        save_arrays(
            self.folder / "oof.npz",
            clip_id=self.cache.clips["clip_id"][judged["clip"]],
            logits=judged["logits"],
            target=judged["target"],
            split_digest=np.array(identity["split_digest"]),
            classes=np.array(identity["classes"]),
            epoch=np.array(entry["epoch"]),
        )
        temperature = fit_temperature(judged["logits"], judged["target"])
        content = {**identity, "heard": self.trained_on, "best": self.best, "temperature": temperature}
        content |= {**trainer.placement, "model": trainer.eval_model().state_dict()}
        save_checkpoint(self.folder / "best.pt", content)
        return True

    def log(self, entry: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def drop_metrics_after(self, epochs: int) -> None:
        """Drop the lines of epochs that the checkpoint does not know."""
        lines = self._logged()
        if len(lines) != epochs:
            write_atomic(self.folder / "metrics.jsonl", b"".join(lines[:epochs]))

    def _logged(self) -> list[bytes]:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    def write_config(self, world: World) -> None:
        """Write config.json: arguments, versions, device and git commit."""
        write_config(self.folder, self._identity(), self.cache, world)


def _shown(value: Any) -> Any:
    """A flag's value as it is typed."""
    return (", ".join(value) or None) if isinstance(value, tuple) else value


def write_config(folder: Path, content: dict[str, Any], cache: Cache, world: World) -> None:
    """Write config.json: what a fold is, and from, on and by what it was trained (cache, device, versions, commit)."""
    import timm

    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    content = {
        **content,
        "cache": str(cache.folder.resolve()),
        "world_size": world.world_size,
        "device": device_name(world.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "git_commit": commit,
    }
    write_atomic(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())
