"""Judge recordings with an ensemble of trained folds.

python -m infer.predict --folds all --tta 4
torchrun --nproc_per_node 5 -m infer.predict -- --folds all --tta 4   (the -- keeps --run from torchrun)
"""

from cache.cli import command
from infer.options import PredictOptions


@command(PredictOptions)
def main(options: PredictOptions) -> int:
    """Judge, and say where the table is."""
    from infer.predict.tables import predict
    from train.world import LONG_WAIT, run_in_world

    return run_in_world(options.device, lambda world: predict(options, world), timeout=LONG_WAIT)


if __name__ == "__main__":
    raise SystemExit(main())
