"""One fold from start or checkpoint to its end: epochs, metrics, checkpoints, and the ways to stop."""

import contextlib
import dataclasses
import signal
import time
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, say
from cache.index import Cache
from train.checkpoint import taking_over
from train.display import Display
from train.engine import MAX_SKIPPED, Trainer
from train.events import open_events, write_epoch
from train.folds import select_fold
from train.options import TrainOptions
from train.record import Record, opened_for_writing
from train.stopping import ABORT, CONTINUE, SAVE, STOP, Agreement, StopSignal
from train.trained_on import contents_trained_on, own_checkpoint
from train.world import World


def train_fold(options: TrainOptions, world: World, cache: Cache, fold_name: str, stop: StopSignal) -> int:
    """Train one fold, or continue it, or say that it is finished.

    Returns
    -------
    int : exit status; 0, or 128 + signal number after SIGTERM or Ctrl-C

    Raises
    ------
    InputError : another run is at work in the folder, the checkpoint belongs to other arguments, or the gradient stays
        non-finite; the last good checkpoint stays
    """
    fold = select_fold(cache, fold_name, options.hold_back)
    record, display = Record(options, cache, fold_name), Display(world.is_main)
    with opened_for_writing(record.folder) if world.is_main else contextlib.nullcontext():
        world.barrier()
        saved = record.load()
        steps = world.gather(saved and saved["state"]["step"])
        if len(set(steps)) > 1:
            raise InputError(
                f"{record.folder}: ranks see different checkpoints, at steps {steps}; "
                "--runs-dir must be on a file system that all hosts share"
            )
        if saved and record.finished(saved["epochs_logged"]):
            display.line(f"fold {fold_name} is finished: {record.describe_best()} ({record.folder})")
            return 0
        if saved:  # its weights replace those that the run began with
            kept = {"memory_format": saved["state"]["memory_format"], "weights": None, "pretrained": False}
            if world.device.type == "cpu" and saved["state"].get("amp") == "None":
                kept["amp"] = "off"  # a run that has begun in float32 goes on in it
            options = dataclasses.replace(options, **kept)
        trainer = Trainer(options, world, cache, fold)
        if saved:
            with taking_over(record.folder / "last.pt"):
                trainer.restore(saved["state"])
            display.line(_describe_resume(fold_name, trainer, saved["state"]["world_size"]))
        if world.is_main:
            earlier = [saved] if saved else own_checkpoint(options.weights)
            record.trained_on = contents_trained_on(cache, fold.training, options.hold_back, earlier)
            record.drop_metrics_after(saved["epochs_logged"] if saved else 0)
            record.write_config(world)
        del saved
        return _Session(trainer, record, display).run(stop)


def _describe_resume(fold_name: str, trainer: Trainer, ranks: int) -> str:
    line = f"fold {fold_name}: resuming at epoch {trainer.epoch + 1}, step {trainer.step}"
    if ranks != trainer.world.world_size:
        line += f" with {trainer.world.world_size} ranks instead of {ranks}: the bits will differ"
    return line


class _Session:
    """The state of a fold's run beside the trainer's own."""

    def __init__(self, trainer: Trainer, record: Record, display: Display) -> None:
        self.trainer, self.record, self.display = trainer, record, display
        self.options, self.world = record.options, trainer.world
        self._saved_at = time.monotonic()
        wanted = self.options.tensorboard and self.world.is_main
        self._events = open_events(record.folder, trainer.step) if wanted else None

    def run(self, stop: StopSignal) -> int:
        """Train to the end; returns the exit status."""
        trainer, agreement = self.trainer, Agreement(self.world)
        self.display.begin(trainer, self.record)
        self._start_clock()
        with self.display.progress:
            for features, clips in trainer.batches.steps(trainer.step, trainer.total_steps):
                trainer.train_step(features, clips)
                self.display.step(trainer)
                agreed = agreement.exchange(self._wish(stop))
                epoch_ended = trainer.step % trainer.steps_per_epoch == 0
                if epoch_ended:
                    agreed = max(agreed, agreement.finish())
                if agreed == ABORT:
                    raise InputError(self._describe_abort())
                if epoch_ended:
                    self._end_epoch()
                elif agreed in (SAVE, STOP):
                    self._save()
                if epoch_ended and self.record.finished(trainer.epoch):
                    break
                if agreed == STOP:
                    self.display.line(f"stopped at step {trainer.step}; the same command continues from here")
                    return 128 + (stop.number or signal.SIGTERM)
        self.display.line(f"fold {self.record.fold_name} done: {self.record.describe_best()}")
        if self.world.is_main and (doubt := self.record.describe_doubt(len(trainer.fold.validation))):
            say(doubt, error=True)
        return 0

    def _wish(self, stop: StopSignal) -> int:
        """What this rank wants after this step."""
        if self.trainer.peek()[4] >= MAX_SKIPPED:
            return ABORT
        if stop.number:
            return STOP
        if self.world.is_main and time.monotonic() - self._saved_at >= self.options.checkpoint_minutes * 60:
            self._saved_at = time.monotonic()
            return SAVE
        return CONTINUE

    def _describe_abort(self) -> str:
        last = self.record.folder / "last.pt"
        kept = f"{last} holds the last good checkpoint" if last.exists() else "no checkpoint was written yet"
        return (
            f"{self.record.folder}: {MAX_SKIPPED} steps in a row without a finite gradient; stopped at step "
            f"{self.trainer.step}; {kept}; train under another --name with a lower --lr, or --amp bf16 or off"
        )

    def _start_clock(self) -> None:
        self._epoch_started, self._first_step = time.monotonic(), self.trainer.step

    def _end_epoch(self) -> None:
        """Validate, log, save."""
        trainer, world = self.trainer, self.world
        sums = torch.stack(world.gather(trainer.sums.cpu())).sum(dim=0).tolist()  # waits for the device's last step
        seconds = time.monotonic() - self._epoch_started
        trainer.sums.zero_()
        self.display.validating()
        judged = trainer.validate()
        if judged is not None:
            entry = self._entry(sums, judged, seconds)
            better = self.record.keep_if_better(entry, judged, trainer)
            self.record.log(entry)
            if self._events is not None:
                write_epoch(self._events, entry)
            self.display.epoch(entry, better)
        self.record.best = world.gather(self.record.best)[0]
        self._save()
        self._start_clock()

    def _entry(self, sums: list[float], judged: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        trainer, (losses, correct, clips) = self.trainer, sums
        loss = accuracy = None
        if len(judged["clip"]):
            logits, target = torch.from_numpy(judged["logits"]), torch.from_numpy(judged["target"])
            loss = float(torch.nn.functional.cross_entropy(logits, target))
            accuracy = float((logits.argmax(dim=1) == target).double().mean())
        return {
            "epoch": trainer.epoch,
            "step": trainer.step,
            "lr": trainer.learning_rate(trainer.step - 1),
            "train_loss": losses / max(1, clips),
            "train_accuracy": correct / max(1, clips),
            "val_loss": loss,
            "val_accuracy": accuracy,
            "val_clips": len(judged["clip"]),
            "skipped_steps": int(trainer.skipped[0]),
            "clips_per_second": round((trainer.step - self._first_step) * self.options.batch_size / seconds, 1),
            "seconds": round(seconds, 3),
        }

    def _save(self) -> None:
        """Write last.pt; call on all ranks."""
        state = self.trainer.state()
        if self.world.is_main:
            self.record.save_last(state, self.trainer.epoch)
        self.world.barrier()  # torchrun would stop rank 0 while it writes if another rank ended first
        self._saved_at = time.monotonic()
