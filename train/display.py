"""What training shows: a header, a live line for the epoch under way, and one line for each finished epoch."""

import time

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY_SECONDS = 0.5


class Display:
    """Speaks on rank 0 and is silent elsewhere. Reads the device's counters without waiting for it."""

    def __init__(self, speaks: bool) -> None:
        self._console = Console(quiet=not speaks, soft_wrap=True, highlight=False, markup=False)
        self._speaks = speaks
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not speaks or not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", numbers="")
        self._shown = self._started = time.monotonic()
        self._first_step = 0
        self._copy: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def line(self, text: str) -> None:
        """Print a line above the live one."""
        self._console.print(text)

    def begin(self, options, cache, trainer, fold_name: str, folder) -> None:
        """Say what is about to be trained, where."""
        parameters = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        fold = trainer.fold
        place = "on the device" if trainer.batches.resident else "from the mapped cache"
        self.line(
            f"fold {fold_name}: {options.model} ({parameters:.1f} M parameters), {len(cache.classes)} labels, "
            f"{len(fold.training):,} training and {len(fold.validation):,} validation clips {place}, "
            f"{trainer.world.world_size} x {trainer.world.device.type} -> {folder}"
        )
        self._progress.update(self._task, total=trainer.total_steps, completed=trainer.step)
        self._first_step, self._started = trainer.step, time.monotonic()

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def step(self, trainer) -> None:
        """Advance the live line, at most twice a second."""
        now = time.monotonic()
        if self._progress.disable or now - self._shown < _EVERY_SECONDS:
            return
        self._shown = now
        sums = self._read(trainer.sums)
        rate = (trainer.step - self._first_step) * trainer.options.batch_size / (now - self._started)
        numbers = f"lr {trainer.learning_rate():.1e}  {rate:,.0f} clips/s"
        if sums is not None and sums[2] > 0:
            numbers = f"loss {sums[0] / sums[2]:.4f}  accuracy {sums[1] / sums[2]:.4f}  " + numbers
        self._progress.update(
            self._task,
            completed=trainer.step,
            description=f"epoch {trainer.epoch + 1}/{trainer.options.epochs}",
            numbers=numbers,
        )

    def _read(self, sums: torch.Tensor) -> list[float] | None:
        """The counters as they were at the last call: the copy of this call is still under way."""
        if sums.device.type == "cpu":
            return sums.tolist()
        ready = self._copy.tolist() if self._copied is not None and self._copied.query() else None
        if self._copied is None or self._copied.query():
            self._copy = sums.to("cpu", non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event()
        return ready

    def validating(self) -> None:
        """Say that the epoch's steps are done and its validation runs."""
        if not self._progress.disable:
            self._progress.update(self._task, numbers="validating")

    def epoch(self, entry: dict, better: bool) -> None:
        """Print the line of a finished epoch."""
        judged = (
            f"validation loss {entry['val_loss']:.4f} accuracy {entry['val_accuracy']:.4f}"
            if entry["val_clips"]
            else "nothing held out"
        )
        skipped = f"  {entry['nonfinite_steps']} steps skipped" if entry["nonfinite_steps"] else ""
        self.line(
            f"epoch {entry['epoch']:3d}  loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}  "
            f"{judged}{' *' if better else '  '}  {entry['clips_per_second']:,.0f} clips/s{skipped}"
        )
