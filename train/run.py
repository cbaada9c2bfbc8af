"""Train one fold, or all, on every device that torchrun gives us.

torchrun --nproc_per_node 5 -m train.run --fold 0
"""

from cache.cli import parse_flags, run_main
from train.options import TrainOptions, options_from


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, join the other ranks, train."""
    flags = parse_flags(TrainOptions, argv, prog="python -m train.run", description=__doc__)

    def body() -> int:
        options = options_from(flags)
        from train.launch import train

        return train(options)

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
