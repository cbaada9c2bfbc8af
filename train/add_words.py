"""Teach a trained run new words from a few recordings each: only the last layer of its folds is fitted anew.

python -m train.add_words --run runs/resnet10t-32x64 --audio data/words
"""

from cache.cli import command
from train.options import AddWordsOptions


@command(AddWordsOptions)
def main(options: AddWordsOptions) -> int:
    """Fit, and leave a run beside the other."""
    from train.new_words import add_words
    from train.world import run_in_world

    return run_in_world(options.device, lambda world: add_words(options, world))


if __name__ == "__main__":
    raise SystemExit(main())
