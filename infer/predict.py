"""Judge recordings with an ensemble of trained folds.

python -m infer.predict --folds all --tta 4
torchrun --nproc_per_node 5 -m infer.predict -- --folds all --tta 4   (the -- keeps --run from torchrun)
"""

import datetime

from cache.cli import parse_flags, run_main
from infer.options import PredictOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, judge, and say where the table is."""
    flags = parse_flags(PredictOptions, argv, prog="python -m infer.predict", description=__doc__)

    def body() -> int:
        options = PredictOptions(**flags)
        from infer.console import predict_with_progress
        from train.world import run_in_world

        patience = datetime.timedelta(days=20)  # for a rank with long recordings; more overflows gloo's milliseconds
        return run_in_world(options.device, lambda world: predict_with_progress(options, world), patience=patience)

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
