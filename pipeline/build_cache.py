"""Precompute normalised log-mel spectrograms of a corpus into an HDF5 cache.

python -m pipeline.build_cache --n-mels 224
"""

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, parse_flags, run_main
from pipeline.options import BuildOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, build, and say what was built."""
    flags = parse_flags(BuildOptions, argv, prog="python -m pipeline.build_cache", description=__doc__)

    def body() -> int:
        options = BuildOptions(**flags)
        from pipeline.report import build_with_progress

        summary = build_with_progress(options)
        return EXIT_INCOMPLETE if summary.cache.index["counts"]["rejected"] and not options.skip_bad else EXIT_OK

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
