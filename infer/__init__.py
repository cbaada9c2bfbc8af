"""From trained folds to predictions, evaluations and reports."""
