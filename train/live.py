"""The live view of a run: one line per fold, with the course of its validation accuracy."""

import itertools
import math
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cache.cli import printable
from train.progress import FoldLog, read_run

_BARS = "▁▂▃▄▅▆▇█"
_PLAIN = str.maketrans(_BARS, "_.-:=+*#")  # for consoles that have no such characters
_FIXED_WIDTH = 72  # of all columns but the sparkline


def watch(run: str, *, once: bool, seconds: float) -> int:
    """Show a run; live until Ctrl-C on a terminal, once elsewhere; returns the exit status."""
    console = Console(highlight=False, markup=False, emoji=False)
    if once or not console.is_terminal:
        console.print(_table(run, console))
        return 0
    with Live(_table(run, console), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(seconds)
                live.update(_table(run, console), refresh=True)
        except KeyboardInterrupt:
            return 0


def sparkline(values: list[float], width: int) -> str:
    """Finite values as bars from the lowest to the highest; the mean of neighbours where there are too many."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    count = min(len(values), width)
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)


def _table(run: str, console: Console) -> Table:
    table = Table(title=printable(Path(run).name), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in ("fold", "epoch", "loss", "acc", "val\nloss", "val\nacc", "best\n(epoch)", "lr", "clips/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("val\nacc", no_wrap=True)
    table.add_column("age", no_wrap=True)
    for log in read_run(Path(run)):
        cells = _cells(log, max(6, min(40, console.width - _FIXED_WIDTH)))
        table.add_row(*(cell.translate(_PLAIN) if console.options.ascii_only else cell for cell in cells))
    return table


def _cells(log: FoldLog, width: int) -> list[str]:
    if not log.entries:
        return [log.fold, f"0/{log.epochs or '?'}", *[""] * 8, _age(log)]
    last, best, judged = log.entries[-1], log.best, ["", "", ""]
    if best and last["val_accuracy"] is not None:
        best_epoch = f"{best['val_accuracy']:.4f} ({best['epoch']})"
        judged = [f"{last['val_loss']:.3f}", f"{last['val_accuracy']:.4f}", best_epoch]
    accuracies = [entry["val_accuracy"] for entry in log.entries if entry["val_accuracy"] is not None]
    return [
        log.fold,
        f"{last['epoch']}/{log.epochs or '?'}",
        f"{last['train_loss']:.3f}",
        f"{last['train_accuracy']:.4f}",
        *judged,
        f"{last['lr']:.0e}",
        f"{last['clips_per_second']:,.0f}",
        sparkline(accuracies, width),
        "done" if last["epoch"] == log.epochs else _age(log),
    ]


def _age(log: FoldLog) -> str:
    seconds = max(0, time.time() - log.written)
    size, unit = next((pair for pair in ((86400, "d"), (3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds / size:.0f} {unit}"
