"""What evaluating shows."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, printable
from cache.files import write_atomic
from infer.evaluate.figures import evaluate
from infer.options import EvaluateOptions
from infer.outputs import output_path
from train.world import World


def evaluate_and_print(options: EvaluateOptions, world: World) -> int:
    """Evaluate, print tables, write ``--json``; returns the exit status."""
    output = output_path(options.json, options) if options.json else None
    figures = evaluate(options, world)
    if not world.is_main:
        return EXIT_OK
    console = Console(highlight=False, markup=False, emoji=False)
    _print_accuracies(console, figures)
    _print_rows(
        console, "lowest recalls", [(r["label"], r["clips"], f"{r['recall']:.4f}") for r in figures["recall"][:10]]
    )
    _print_rows(
        console,
        "most frequent confusions",
        [(c["label"], "judged " + c["judged"], c["clips"]) for c in figures["confusions"]],
    )
    if output:
        write_atomic(output, (json.dumps(figures, indent=1) + "\n").encode())
    return EXIT_INCOMPLETE if figures.get("unreadable") else EXIT_OK


def _print_accuracies(console: Console, figures: dict[str, Any]) -> None:
    table = Table("", "accuracy", "95% interval", title=printable(f"{figures['source']}: {figures['clips']:,} clips"))
    names = {"single": "single (mean)", "hard": "hard", "soft": "soft", "soft_tta": f"soft + {figures.get('tta')} TTA"}
    rows = [(row["member"], row) for row in figures["members"]]
    rows += [(names[key], figures[key]) for key in names if figures[key]]
    for name, row in rows:
        table.add_row(printable(name), f"{row['accuracy']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}")
    console.print(table)
    if figures.get("ece") is not None:
        remedy = "" if figures["calibrated"] else " (not calibrated yet: python -m infer.calibrate)"
        console.print(f"expected calibration error of the last row: {figures['ece']:.4f}{remedy}", soft_wrap=True)


def _print_rows(console: Console, title: str, rows: list[tuple]) -> None:
    if rows:
        table = Table(title=title, show_header=False)
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        console.print(table)
