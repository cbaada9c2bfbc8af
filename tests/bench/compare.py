"""Compare two tables of infer.predict on the same labelled clips, pair by pair.

python -m tests.bench.compare student.csv ensemble.csv
"""

import csv
import dataclasses

import numpy as np

from cache.cli import InputError, command, flag

DRAWS = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.compare``."""

    first: str = flag(None, "a table whose files are <label>/<speaker>_nohash_<n>", positional=True, metavar="CSV")
    second: str = flag(None, "another one", positional=True, metavar="CSV")


@command(Options)
def main(options: Options) -> int:
    """Print both accuracies, their difference with its interval, and McNemar's exact test."""
    return run(options)


def run(options: Options) -> int:
    """Print the comparison."""
    from scipy.stats import binomtest

    first, second = read_right(options.first), read_right(options.second)
    if first.keys() != second.keys():
        raise InputError(f"{options.second}: other files than {options.first}")
    names = sorted(first)
    a, b = (np.array([right[name] for name in names]) for right in (first, second))
    gain, low, high = difference([name.rsplit("/", 1)[-1].partition("_")[0] for name in names], a, b)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    print(f"{len(names):,} clips: {a.mean():.4f} and {b.mean():.4f}")
    print(f"difference {gain:+.2f} points, 95% interval {low:+.2f} to {high:+.2f} (bootstrap over speakers)")
    print(f"only the first is right: {only_a}, only the second: {only_b}; McNemar's exact test p = {p:.3f}")
    return 0


def read_right(path: str) -> dict[str, bool]:
    """Whether each file of a table was given the label of its folder."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file"]: row["label"] == row["file"].split("/")[-2] for row in csv.DictReader(file)}


def difference(groups: list, first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of first − second in points, with the 95% interval of a bootstrap over groups (speakers).

    Parameters
    ----------
    groups : of each clip
    first, second : np.ndarray [shape=(n,)], 1 for right and 0 for wrong, or means over seeds
    """
    gain = first.astype(float) - second
    _, group = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(group, gain), np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return 100 * gain.mean(), 100 * float(low), 100 * float(high)


if __name__ == "__main__":
    raise SystemExit(main())
