"""What evaluating shows."""

import json
from typing import Any

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, say
from cache.files import write_atomic
from infer.console import print_table
from infer.measure.figures import evaluate, together
from infer.options import EvaluateOptions
from infer.outputs import output_path
from train.world import World


def evaluate_and_print(options: EvaluateOptions, world: World) -> int:
    """Evaluate, print tables, write ``--json``; returns the exit status."""
    output = output_path(options.json, options) if options.json else None
    figures = evaluate(options, world)
    if not world.is_main:
        return EXIT_OK
    _print_accuracies(figures)
    recalls = [(row["label"], row["clips"], f"{row['recall']:.4f}") for row in figures["recall"][:10]]
    confusions = [(row["label"], f"judged {row['judged']}", row["clips"]) for row in figures["confusions"]]
    for title, rows in (("lowest recalls", recalls), ("most frequent confusions", confusions)):
        if rows:
            print_table(title, rows)
    if measured := figures.get("robustness"):
        _print_robustness(measured)
    if measured := figures.get("false_alarms"):
        _print_false_alarms(measured)
    if output:
        write_atomic(output, (json.dumps(figures, indent=1) + "\n").encode())
        say(str(output))
    return EXIT_INCOMPLETE if figures.get("unreadable") else EXIT_OK


def _print_false_alarms(measured: dict[str, Any]) -> None:
    everything = measured["all"]
    curve = zip(measured["thresholds"], everything["false_alarms_per_hour"], everything["misses"], strict=True)
    shown = [(f"{threshold:g}", f"{rate:.2f}", f"{misses:.2%}") for threshold, rate, misses in curve]
    title = f"false alarms in {measured['hours']:.2f} hours of {measured['source']}"
    chosen = shown[:1] + shown[7::10]  # 0.5, 0.9, 0.99 …
    print_table(f"{title}, all labels", chosen, ("threshold", "per hour", "misses"))
    labels = sorted(measured["labels"], key=lambda row: -row["at"]["false_alarms_per_hour"])[:10]
    cells = [(row["label"] or "all labels", *row["at"].values()) for row in (*labels, everything)]
    rows = [
        (label, "" if at is None else f"{at:g}", f"{rate:.2f}", "no clips" if misses is None else f"{misses:.2%}")
        for label, at, rate, misses in cells
    ]
    print_table(f"{title}, at each label's threshold", rows, ("label", "threshold", "per hour", "misses"))


def _print_robustness(measured: dict[str, Any]) -> None:
    changed: dict[str, list[str]] = {}
    for row in measured["conditions"]:
        changed.setdefault(row["changed"], []).append(f"{row['value']:g}:{row['accuracy']:.3f}")
    title = f"robustness {measured['score']:.4f}, the mean of these (as recorded {measured['clean']['accuracy']:.4f})"
    print_table(title, [(name, "  ".join(cells)) for name, cells in changed.items()])


def _print_accuracies(figures: dict[str, Any]) -> None:
    rows = [(row["member"], row) for row in figures["members"]]
    rows += [("single (mean)", figures["single"]), *together(figures)]
    judge = rows[-1][0]
    if whole := figures["recordings"]:
        rows.append((f"of {whole['recordings']:,} recordings, the mean of their clips", whole))
    cells = [(name, f"{row['accuracy']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}") for name, row in rows]
    print_table(f"{figures['source']}: {figures['clips']:,} clips", cells, ("", "accuracy", "95% interval"))
    if figures.get("ece") is not None:
        say(f"expected calibration error of {judge}: {figures['ece']:.4f}")
        if figures["doubt"]:
            say(figures["doubt"])
