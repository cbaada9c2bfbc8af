"""What infer's commands show in a terminal: tables and progress."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cache.cli import printable
from train.world import World


def print_table(title: str, rows: Iterable[Iterable[object]], header: tuple[str, ...] = ()) -> None:
    """Print rows of cells, escaped as by `cache.cli.printable`."""
    table = Table(*header, title=printable(title), show_header=bool(header))
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    Console(highlight=False, markup=False, emoji=False).print(table)


@contextlib.contextmanager
def progress_bar(world: World) -> Iterator[Callable[[int, int], None]]:
    """Show on rank 0, where there is a terminal, how far the judging is; yields a function of files done and all."""
    console = Console(quiet=not world.is_main)
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
