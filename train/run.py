"""Train one fold, or all, on every device that torchrun gives us.

torchrun --nproc_per_node 5 -m train.run --fold 0
"""

import os

from cache.cli import command
from train.options import TrainOptions, options_from


@command(TrainOptions, options_from)
def main(options: TrainOptions) -> int:
    """Look whether there is a cache, which takes no torch; then join the other ranks, and train."""
    from cache.index import read_index

    if os.environ.get("RANK", "0") == "0":  # which ends the others
        read_index(options.cache_folder)
    from train.launch import train
    from train.world import LONG_WAIT, run_in_world

    waiting = {"timeout": LONG_WAIT} if options.unlabelled else {}  # while rank 0 computes features
    return run_in_world(options.device, lambda world: train(options, world), **waiting)


if __name__ == "__main__":
    raise SystemExit(main())
