"""List clips whose label looks wrong, from what each fold says of the clips that it held out.

python -m infer.audit --output suspects.csv
"""

from cache.cli import command
from infer.options import AuditOptions


@command(AuditOptions)
def main(options: AuditOptions) -> int:
    """Compare labels with out-of-fold probabilities, and write the list."""
    from infer.audit.table import audit

    return audit(options)


if __name__ == "__main__":
    raise SystemExit(main())
