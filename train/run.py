"""Train one fold, or all, on every device that torchrun gives us.

torchrun --nproc_per_node 5 -m train.run --fold 0
"""

from cache.cli import command
from train.options import TrainOptions, options_from


@command(TrainOptions, options_from)
def main(options: TrainOptions) -> int:
    """Join the other ranks, and train."""
    from train.launch import train

    return train(options)


if __name__ == "__main__":
    raise SystemExit(main())
