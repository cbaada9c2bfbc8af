"""Measure the accuracy of trained folds, out of fold or on labelled recordings.

python -m infer.evaluate --split test
"""

from cache.cli import parse_flags, run_main
from infer.options import EvaluateOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, judge, and print the figures."""
    flags = parse_flags(EvaluateOptions, argv, prog="python -m infer.evaluate", description=__doc__)

    def body() -> int:
        options = EvaluateOptions(**flags)
        from infer.console import evaluate_and_print
        from train.world import run_in_world

        return run_in_world(options.device, lambda world: evaluate_and_print(options, world))

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
