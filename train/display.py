"""What training shows: a header, a live line for the epoch under way, and one line for each finished epoch."""

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cache.cli import counted, printable


class Display:
    """Prints on rank 0 and is silent elsewhere. It never waits for the device."""

    def __init__(self, is_main: bool) -> None:
        self._console = Console(quiet=not is_main, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not is_main or not self._console.is_terminal,
        )
        self._task = self.progress.add_task("", numbers="")

    def line(self, text: str) -> None:
        """Print a line above the live one."""
        self._console.print(printable(text))

    def begin(self, trainer, record) -> None:
        """Say what is about to be trained, where."""
        if self._console.quiet:
            return
        parameters = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        fold, labels = trainer.fold, len(record.cache.classes)
        held = record.held_back if record.fold_name != "none" else 0
        kept = f", {held:,} in no fold, for infer.calibrate" if held else ""
        precision = str(trainer.dtype or torch.float32).removeprefix("torch.")
        place = "on the device" if trainer.batches.resident else "from the mapped cache"
        self.line(
            f"fold {record.fold_name}: {record.options.model}, {parameters:.1f} M parameters, {labels} labels, "
            f"{trainer.world.world_size} x {trainer.world.device.type}, {precision}, "
            f"mixup {trainer.options.mixup:.2g} -> {record.folder}"
        )
        self.line(f"  {len(fold.training):,} training and {len(fold.validation):,} validation clips {place}{kept}")
        self.progress.update(self._task, total=trainer.total_steps, completed=trainer.step)

    def step(self, trainer) -> None:
        """Advance the live line."""
        if self.progress.disable:
            return
        losses, correct, clips, *_ = trainer.peek()
        rate = (self.progress.tasks[0].speed or 0) * trainer.options.batch_size
        numbers = f"lr {trainer.learning_rate(trainer.step):.1e}  {rate:,.0f} clips/s"
        if clips:
            numbers = f"loss {losses / clips:.4f}  accuracy {correct / clips:.4f}  " + numbers
        self.progress.update(
            self._task,
            completed=trainer.step,
            description=f"epoch {trainer.epoch + 1}/{trainer.options.epochs}",
            numbers=numbers,
        )

    def validating(self) -> None:
        """Say that the epoch's steps are done and its validation runs."""
        self.progress.update(self._task, numbers="validating")

    def epoch(self, entry: dict, better: bool) -> None:
        """Print the line of a finished epoch."""
        judged = (
            f"validation loss {entry['val_loss']:.4f} accuracy {entry['val_accuracy']:.4f}"
            if entry["val_clips"]
            else "nothing held out"
        )
        skipped = f"  {counted(entry['skipped_steps'], 'step')} skipped" if entry["skipped_steps"] else ""
        self.line(
            f"epoch {entry['epoch']:3d}  loss {entry['train_loss']:.4f} accuracy {entry['train_accuracy']:.4f}  "
            f"{judged}{' *' if better else '  '}  {entry['clips_per_second']:,.0f} clips/s{skipped}"
        )
