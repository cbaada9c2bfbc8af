"""Calibrate an ensemble, so that of what it is 90% sure of 90% is right.

python -m infer.calibrate --folds all --tta 4
"""

from cache.cli import command
from infer.options import CalibrateOptions


@command(CalibrateOptions)
def main(options: CalibrateOptions) -> int:
    """Judge the clips that nobody was trained on, and keep the temperature."""
    from infer.calibrate.fit import calibrate
    from train.world import LONG_WAIT, run_in_world

    return run_in_world(options.device, lambda world: calibrate(options, world), timeout=LONG_WAIT)


if __name__ == "__main__":
    raise SystemExit(main())
