"""Calibrate an ensemble, so that of what it is 90% sure of 90% is right.

python -m infer.calibrate --folds all --tta 4
"""

from cache.cli import parse_flags, run_main
from infer.options import CalibrateOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, judge the clips that nobody was trained on, and keep the temperature."""
    flags = parse_flags(CalibrateOptions, argv, prog="python -m infer.calibrate", description=__doc__)

    def body() -> int:
        options = CalibrateOptions(**flags)
        from infer.calibrating import calibrate_and_print
        from train.world import run_in_world

        return run_in_world(options.device, lambda world: calibrate_and_print(options, world))

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
