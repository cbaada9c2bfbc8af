"""Write one HTML file that shows how good the trained folds are, and lets you hear where they are wrong.

python -m infer.report --output report.html
"""

from cache.cli import command
from infer.options import ReportOptions


@command(ReportOptions)
def main(options: ReportOptions) -> int:
    """Judge, and write the page."""
    from infer.report.page import write_report
    from train.world import LONG_WAIT, run_in_world

    return run_in_world(options.device, lambda world: write_report(options, world), timeout=LONG_WAIT)


if __name__ == "__main__":
    raise SystemExit(main())
