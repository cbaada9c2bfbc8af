"""What predicting shows."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache.cli import EXIT_INCOMPLETE, EXIT_OK
from infer.options import PredictOptions
from infer.predict.blocks import predict
from train.world import World


def predict_with_progress(options: PredictOptions, world: World) -> int:
    """Predict while showing progress; returns the exit status."""
    console = Console(quiet=not world.is_main, highlight=False, markup=False, soft_wrap=True)
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.monotonic()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=None)
            files, bad, unknown = predict(
                options, world, lambda done, total: progress.update(task, completed=done, total=total)
            )
    except KeyboardInterrupt:
        console.print("the same command with --resume goes on from what is judged")
        raise
    seconds = time.monotonic() - started
    console.print(f"{options.output}: {files:,} files judged in {seconds:.1f} s, {files / seconds:,.0f} files/s")
    if options.windows:
        console.print(f"{options.windows}: what was heard, and when")
    if options.min_confidence:
        console.print(f"{unknown:,} are unknown: judged with a confidence below {options.min_confidence:g}")
    if bad:
        print(f"{bad:,} could not be read: see the column error", file=sys.stderr)
    return EXIT_INCOMPLETE if bad else EXIT_OK
