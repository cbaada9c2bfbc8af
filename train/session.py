"""The course of a fold from any step to its end: epochs, metrics, checkpoints, and the ways to stop."""

import signal
import time
from typing import Any

import numpy as np
import torch

from cache.cli import InputError, say
from train.display import Display
from train.engine import MAX_SKIPPED, Trainer
from train.events import open_events, write_epoch
from train.record import Record
from train.stopping import ABORT, CONTINUE, SAVE, STOP, Agreement, StopSignal


class Session:
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
