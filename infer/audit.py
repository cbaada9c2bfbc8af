"""List clips whose label looks wrong, from what the folds said of speakers that they never heard.

python -m infer.audit --output suspects.csv
"""

from cache.cli import parse_flags, run_main
from infer.options import AuditOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, compare labels with out-of-fold probabilities, and write the list."""
    flags = parse_flags(AuditOptions, argv, prog="python -m infer.audit", description=__doc__)

    def body() -> int:
        options = AuditOptions(**flags)
        from infer.auditing import audit

        return audit(options)

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
