"""Precompute normalised log-mel spectrograms of a corpus into an HDF5 cache.

python -m pipeline.build_cache --n-mels 224
"""

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, command
from pipeline.options import TASKS, BuildOptions


@command(BuildOptions, lambda flags: BuildOptions(**{**TASKS.get(flags.get("task", ""), {}), **flags}))
def main(options: BuildOptions) -> int:
    """Build, and say what was built."""
    from pipeline.console import build_with_progress

    cache = build_with_progress(options)
    return EXIT_INCOMPLETE if cache.index["counts"]["rejected"] and not options.skip_bad else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
