"""Judge recordings with an ensemble of trained folds.

python -m infer.predict --folds all --tta 4
torchrun --nproc_per_node 5 -m infer.predict -- --folds all --tta 4   (the -- keeps --run from torchrun)
"""

import datetime

from cache.cli import command
from infer.options import PredictOptions


@command(PredictOptions)
def main(options: PredictOptions) -> int:
    """Judge, and say where the table is."""
    from infer.predict.tables import predict
    from train.world import run_in_world

    timeout = datetime.timedelta(days=20)  # for a rank with long recordings; more overflows gloo's milliseconds
    return run_in_world(options.device, lambda world: predict(options, world), timeout=timeout)


if __name__ == "__main__":
    raise SystemExit(main())
