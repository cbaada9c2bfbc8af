"""Measure the accuracy of trained folds, out of fold or on labelled recordings.

python -m infer.evaluate --split test
"""

from cache.cli import command
from infer.options import EvaluateOptions


@command(EvaluateOptions)
def main(options: EvaluateOptions) -> int:
    """Judge, and print the figures."""
    from infer.evaluate.console import evaluate_and_print
    from train.world import LONG_WAIT, run_in_world

    return run_in_world(options.device, lambda world: evaluate_and_print(options, world), timeout=LONG_WAIT)


if __name__ == "__main__":
    raise SystemExit(main())
