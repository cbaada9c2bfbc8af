"""What the clips have in common that an ensemble's folds get wrong: cut off, silent, noisy, or probably mislabelled.

python -m tests.bench.errors --run runs/NAME --output errors.csv
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np

from cache.cli import command, flag
from cache.config import FeatureConfig
from infer.options import EnsembleOptions

FRAME_SECONDS = 0.02
SILENT, SUSPECTED = "silent (below -50 dB)", "label suspected"  # what no model can name, or is told to misname


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(EnsembleOptions):
    """Flags of ``python -m tests.bench.errors``."""

    output: str = flag("errors.csv", "every wrongly judged clip, with what is the matter with it")


@command(Options)
def main(options: Options) -> int:
    """Parse the flags and describe the errors."""
    return run(options)


def run(options: Options) -> int:
    """Write the table of errors and print how common each blemish is among errors and among all clips."""
    import torch

    from infer.corpus import find_member_cache
    from infer.labelled import out_of_fold
    from infer.measure.scoring import suspects
    from infer.members import load_members

    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    cache = find_member_cache(members[0], options.cache_dir)
    clips, probs = out_of_fold(members, options.cache_dir)
    names, paths, targets = clips.names, clips.paths, clips.targets
    wrong, classes = probs.argmax(axis=1) != targets, members[0].classes
    found = np.zeros(len(names), bool)
    found[suspects(probs, targets)[0]] = True
    blemishes = [{**blemishes_of(path, cache.config), SUSPECTED: bool(found[n])} for n, path in enumerate(paths)]
    with open(options.output, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "label", "judged", "confidence", *(key.partition(" (")[0] for key in blemishes[0])])
        for n in np.flatnonzero(wrong).tolist():
            best = int(probs[n].argmax())
            marks = ["yes" if there else "" for there in blemishes[n].values()]
            table.writerow([names[n], classes[targets[n]], classes[best], f"{probs[n, best]:.4f}", *marks])
    print(f"{Path(options.output)}: {wrong.sum():,} errors of {len(names):,} clips")
    print("| | of the errors | of the clips judged rightly |\n| --- | --- | --- |")
    for key in blemishes[0]:
        there = np.array([entry[key] for entry in blemishes])
        print(f"| {key} | {there[wrong].mean():.1%} | {there[~wrong].mean():.1%} |")
    for title, keys in (("any of these", list(blemishes[0])), ("silent, or label suspected", (SILENT, SUSPECTED))):
        marked = np.array([any(entry[key] for key in keys) for entry in blemishes])
        print(f"| {title} | {marked[wrong].mean():.1%} | {marked[~wrong].mean():.1%} |")
    return 0


def blemishes_of(path: str, config: FeatureConfig) -> dict[str, bool]:
    """What can be measured of a recording: speech at its edge, next to nothing in it, hardly louder than its noise."""
    from pipeline.decode import read_clip

    samples = read_clip(path, config).samples
    frame = round(FRAME_SECONDS * config.sample_rate)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    level_db = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    loudest = level_db.max()
    edges = max(level_db[:2].max(), level_db[-2:].max())
    return {
        "speech cut off at an edge (within 12 dB of the loudest)": bool(edges > loudest - 12),
        SILENT: bool(loudest < -50),
        "noisy (15 dB above its quietest tenth or less)": bool(loudest - np.percentile(level_db, 10) < 15),
    }


if __name__ == "__main__":
    raise SystemExit(main())
