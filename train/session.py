"""One fold from start or checkpoint to its end: epochs, metrics, checkpoints, and the ways to stop."""

import contextlib
import dataclasses
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError
from cache.files import exclusive_lock, remove_leftovers, write_atomic
from cache.index import Cache
from train.calibration import fit_temperature
from train.checkpoint import load_checkpoint, save_arrays, save_checkpoint
from train.data import select_fold
from train.display import Display
from train.engine import MAX_NONFINITE, Trainer, run_folder
from train.events import open_events, write_epoch
from train.options import TrainOptions
from train.world import ABORT, CONTINUE, SAVE, STOP, Agreement, StopSignal, World

_POLL_STEPS = 10  # between looks at the device's counters


def train_fold(options: TrainOptions, world: World, cache: Cache, fold_name: str, stop: StopSignal) -> int:
    """Train one fold, or continue it, or say that it is finished.

    Returns
    -------
    int : exit status; 0, or 128 + signal number after SIGTERM or Ctrl-C

    Raises
    ------
    InputError : another run is at work in the folder, the checkpoint belongs to other arguments, or the loss stays
        non-finite; the last good checkpoint stays
    """
    folder = run_folder(options, fold_name)
    fold = select_fold(cache, fold_name)
    with contextlib.ExitStack() as stack:
        if world.speaks:
            folder.mkdir(parents=True, exist_ok=True)
            busy = f"{folder}: another run is at work here; wait for it, or choose another --name"
            stack.enter_context(exclusive_lock(folder / ".lock", busy=busy))
            remove_leftovers(folder)
        world.barrier()
        session = _Session(options, world, cache, fold_name, fold, folder)
        if session.finished:
            session.display.line(f"fold {fold_name} is finished: {session.describe_best()} ({folder})")
            return 0
        return session.run(stop)


class _Session:
    """The state of a fold's run beside the trainer's own."""

    def __init__(self, options, world, cache, fold_name, fold, folder) -> None:
        self.options, self.world, self.cache, self.folder = options, world, cache, Path(folder)
        self.fold_name = fold_name
        self.display = Display(world.speaks)
        self.best: dict[str, Any] = {"epoch": -1, "accuracy": -1.0, "loss": 0.0}
        saved = self._load()
        self.finished = bool(saved and saved["finished"])
        if self.finished:
            self.best = saved["best"]
            return
        if saved:
            options = dataclasses.replace(options, memory_format=saved["state"]["memory_format"])
        self.trainer = Trainer(options, world, cache, fold)
        self.seconds = 0.0  # of the current epoch's steps
        if saved:
            self.trainer.restore(saved["state"])
            self.best = saved["best"]
            self._announce_resume(saved["state"])
        self.events = open_events(self.folder, self.trainer.step) if options.tensorboard and world.speaks else None
        if world.speaks:
            self._truncate_metrics(saved["epochs_logged"] if saved else 0)
            self._write_config()

    def _load(self) -> dict[str, Any] | None:
        path = self.folder / "last.pt"
        if not path.exists():
            return None
        try:
            saved = load_checkpoint(path)
        except InputError as error:
            best = self.folder / "best.pt"
            kept = f"; the best epoch's weights are in {best}" if best.exists() else ""
            raise InputError(f"{error}; remove {path} to start this fold again{kept}") from None
        for what, found, expected in (
            ("feature configuration", saved["feature_digest"], self.cache.config.digest),
            ("split", saved["split_digest"], self.cache.index["split"]["digest"]),
        ):
            if found != expected:
                raise InputError(
                    f"{path}: was trained on another {what} ({found[:12]}, the cache's is {expected[:12]}); "
                    "choose another --name, or the cache with --cache"
                )
        wanted = self.options.what_matters()
        differ = [
            f"--{key.replace('_', '-')} {saved['options'].get(key)} (now {value})"
            for key, value in wanted.items()
            if saved["options"].get(key) != value
        ]
        if differ:
            raise InputError(f"{path}: was trained with {', '.join(differ)}; use the same, or choose another --name")
        return saved

    def _announce_resume(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        line = f"fold {self.fold_name}: resuming at epoch {trainer.epoch + 1}, step {trainer.step}"
        if state["world_size"] != self.world.world_size:
            line += f" with {self.world.world_size} ranks instead of {state['world_size']}: the bits will differ"
        self.display.line(line)

    def run(self, stop: StopSignal) -> int:
        """Train to the end; returns the exit status."""
        trainer, options = self.trainer, self.options
        agreement, reason = Agreement(self.world), CONTINUE
        saved_at = epoch_started = time.monotonic()
        self.display.begin(options, self.cache, trainer, self.fold_name, self.folder)
        with self.display:
            for features, targets in trainer.batches.steps(trainer.step, trainer.total_steps):
                trainer.train_step(features, targets)
                self.display.step(trainer)
                agreed = agreement.exchange(self._wish(stop, saved_at))
                if trainer.step % trainer.steps_per_epoch == 0:
                    agreement.finish()
                    reason = self._end_epoch(time.monotonic() - epoch_started)
                    saved_at = epoch_started = time.monotonic()
                    agreement = Agreement(self.world)
                    if reason == STOP:
                        break
                if agreed == ABORT:
                    raise InputError(
                        f"{self.folder}: {MAX_NONFINITE} steps in a row without a finite loss; stopped at step "
                        f"{trainer.step}, last.pt holds the last good checkpoint; lower --lr, or use --amp bf16 or off"
                    )
                if agreed in (SAVE, STOP):
                    self._save(finished=False)
                    saved_at = time.monotonic()
                if agreed == STOP or (stop.number and self.world.world_size == 1):
                    agreement.finish()
                    self.display.line(f"stopped at step {trainer.step}; the same command continues from here")
                    return 128 + stop.number if stop.number else 143
        agreement.finish()
        self.display.line(f"fold {self.fold_name} done: {self.describe_best()}")
        return 0

    def _wish(self, stop: StopSignal, saved_at: float) -> int:
        """What this rank wants after this step."""
        trainer = self.trainer
        if trainer.step % _POLL_STEPS == 0 and int(trainer.nonfinite[1]) >= MAX_NONFINITE:
            return ABORT
        if stop.number:
            return STOP
        due = time.monotonic() - saved_at > self.options.checkpoint_minutes * 60
        return SAVE if due and self.world.speaks else CONTINUE

    def _end_epoch(self, seconds: float) -> int:
        """Validate, log, save; returns STOP where patience has run out."""
        trainer, world = self.trainer, self.world
        sums = torch.stack(world.gather(trainer.sums.cpu())).sum(dim=0).tolist()
        trainer.sums.zero_()
        self.display.validating()
        judged = trainer.validate()
        patience_over = False
        if world.speaks:
            entry = self._entry(sums, judged, seconds)
            better = entry["val_accuracy"] is None or (entry["val_accuracy"], -entry["val_loss"]) > (
                self.best["accuracy"],
                -self.best["loss"],
            )
            if better:
                self.best = {"epoch": entry["epoch"], "accuracy": entry["val_accuracy"], "loss": entry["val_loss"]}
                self._save_best(judged)
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            if self.events:
                write_epoch(self.events, entry)
            self.display.epoch(entry, better)
            patience_over = 0 < self.options.patience <= entry["epoch"] - self.best["epoch"]
        patience_over = world.gather(patience_over)[0]
        self._save(finished=patience_over or trainer.step == trainer.total_steps)
        return STOP if patience_over else CONTINUE

    def _entry(self, sums: list[float], judged: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        trainer, (losses, correct, clips) = self.trainer, sums
        loss = accuracy = None
        if len(judged["clip"]):
            logits, target = torch.from_numpy(judged["logits"]), torch.from_numpy(judged["target"])
            loss = float(torch.nn.functional.cross_entropy(logits, target))
            accuracy = float((logits.argmax(dim=1) == target).double().mean())
        return {
            "epoch": trainer.step // trainer.steps_per_epoch,
            "step": trainer.step,
            "lr": trainer.learning_rate(),
            "train_loss": losses / max(1, clips),
            "train_accuracy": correct / max(1, clips),
            "val_loss": loss,
            "val_accuracy": accuracy,
            "val_clips": len(judged["clip"]),
            "nonfinite_steps": int(trainer.nonfinite[0]),
            "clips_per_second": round(trainer.steps_per_epoch * self.options.batch_size / seconds, 1),
            "seconds": round(seconds, 3),
        }

    def describe_best(self) -> str:
        """The best epoch in words."""
        best = self.best
        if best["accuracy"] is None or best["accuracy"] < 0:
            return f"epoch {best['epoch']}, nothing held out"
        return f"best validation accuracy {best['accuracy']:.4f} (epoch {best['epoch']})"

    def _identity(self) -> dict[str, Any]:
        config = self.cache.config
        return {
            "options": dataclasses.asdict(self.options),
            "fold": self.fold_name,
            "features": dataclasses.asdict(config),
            "feature_digest": config.digest,
            "split_digest": self.cache.index["split"]["digest"],
            "folds": self.cache.index["split"]["folds"],
            "classes": list(self.cache.classes),
            "best": self.best,
        }

    def _save(self, *, finished: bool) -> None:
        """Write last.pt; call on all ranks."""
        state = self.trainer.state()
        if self.world.speaks:
            logged = self.trainer.step // self.trainer.steps_per_epoch
            content = {**self._identity(), "state": state, "finished": finished, "epochs_logged": logged}
            save_checkpoint(self.folder / "last.pt", content)

    def _save_best(self, judged: dict[str, np.ndarray]) -> None:
        identity = self._identity()
        save_arrays(
            self.folder / "oof.npz",
            clip_id=self.cache.clips["clip_id"][judged["clip"]],
            logits=judged["logits"],
            target=judged["target"],
            split_digest=np.array(identity["split_digest"]),
            classes=np.array(identity["classes"]),
        )
        temperature = fit_temperature(judged["logits"], judged["target"])
        content = {**identity, "temperature": temperature, "model": self.trainer.evaluated().state_dict()}
        save_checkpoint(self.folder / "best.pt", content)

    def _truncate_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs that the checkpoint does not know."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if len(lines) != epochs:
            write_atomic(path, "".join(lines[:epochs]).encode())

    def _write_config(self) -> None:
        import timm

        try:
            commit = subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            commit = None
        identity = {key: value for key, value in self._identity().items() if key != "best"}
        versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
        device = torch.cuda.get_device_name() if self.world.device.type == "cuda" else platform.processor() or "cpu"
        content = {
            **identity,
            "cache": str(self.cache.folder.resolve()),
            "world_size": self.world.world_size,
            "device": device,
            "versions": versions,
            "git_commit": commit,
        }
        write_atomic(self.folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())
