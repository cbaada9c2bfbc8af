"""Write one HTML file that shows how good the trained folds are, and lets you hear where they are wrong.

python -m infer.report --output report.html
"""

from cache.cli import parse_flags, run_main
from infer.options import ReportOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, judge, and write the page."""
    flags = parse_flags(ReportOptions, argv, prog="python -m infer.report", description=__doc__)

    def body() -> int:
        options = ReportOptions(**flags)
        from infer.report_page import write_report
        from train.world import run_in_world

        return run_in_world(options.device, lambda world: write_report(options, world))

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
