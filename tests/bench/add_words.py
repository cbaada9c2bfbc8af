"""What new words cost and reach, by how many recordings of them there are.

python -m tests.bench.add_words --run runs/resnet10t-32x64 --corpus data/all --words bed,house,three

In a folder with the run, which knows none of these words, and its cache. The corpus has all labels, and names test
clips in its testing_list.txt, as the run's own does; no speaker has clips on both sides.
"""

import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cache.cli import command, flag

COUNTS, DRAWS = (5, 20, 100), 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.add_words``."""

    run: str = flag("", "the trained run, of which fold 0 is measured", required=True)
    corpus: str = flag("", "recordings of all words", required=True)
    words: str = flag("", "those that the run does not know", required=True, metavar="WORD,WORD")


@command(Options)
def main(options: Options) -> int:
    """Print the table: medians over some draws."""
    print("| recordings of each new word | new words | earlier words | all | ECE | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=Path(options.run).parent) as folder:
        judges = copy_test_clips(Path(options.corpus), Path(folder) / "judges", options.words.split(","))
        before = judge(options.run, judges / "known")
        print(f"| 0 | | {before['soft']['accuracy']:.4f} | | {before['ece']:.4f} | |", flush=True)
        for count in COUNTS:
            draws = [measure(options, count, seed, Path(folder), judges) for seed in range(DRAWS)]
            new, old, both, ece, seconds = (statistics.median(column) for column in zip(*draws, strict=True))
            print(f"| {count} | {new:.4f} | {old:.4f} | {both:.4f} | {ece:.4f} | {seconds:.0f} |", flush=True)
    return 0


def copy_test_clips(corpus: Path, to: Path, words: list[str]) -> Path:
    """The test clips as ``all/<label>/``, and those of the earlier words as ``known/<label>/``; returns `to`."""
    for name in (corpus / "testing_list.txt").read_text().split():
        for side in ("all",) if name.split("/")[0] in words else ("all", "known"):
            (to / side / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(corpus / name, to / side / name)
    return to


def measure(
    options: Options, count: int, seed: int, folder: Path, judges: Path
) -> tuple[float, float, float, float, float]:
    """Accuracy on the new words, on the earlier ones and on all, calibration error, and seconds, of one draw."""
    words = options.words.split(",")
    tested = set((Path(options.corpus) / "testing_list.txt").read_text().split())
    drawn, name = folder / f"{count}-{seed}", f"{folder.name}/run-{count}-{seed}"
    for word in words:
        free = sorted(p for p in Path(options.corpus, word).iterdir() if f"{word}/{p.name}" not in tested)
        (drawn / word).mkdir(parents=True)
        for path in random.Random(seed).sample(free, count):
            shutil.copy(path, drawn / word)
    started = time.perf_counter()
    execute("train.add_words", "--run", options.run, "--audio", str(drawn), "--name", name)
    seconds = time.perf_counter() - started
    figures = judge(str(Path(options.run).parent / name), judges / "all")
    new, old = (accuracy(figures["recall"], words, among) for among in (True, False))
    return new, old, figures["soft"]["accuracy"], figures["ece"], seconds


def accuracy(recalls: list[dict], words: list[str], among: bool) -> float:
    """Over the clips of the labels that are, or are not, among some words."""
    rows = [(row["clips"], row["recall"]) for row in recalls if (row["label"] in words) is among]
    return sum(clips * recall for clips, recall in rows) / sum(clips for clips, _ in rows)


def judge(run: str, clips: Path) -> dict:
    """The figures of infer.evaluate for fold 0 and one view."""
    output = clips.parent / "figures.json"
    execute("infer.evaluate", "--run", run, "--folds", "0", "--tta", "1", "--input", str(clips), "--json", str(output))
    return json.loads(output.read_text())


def execute(module: str, *flags: str) -> None:
    """Run a command of ours on one thread; an error ends the benchmark."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", module, *flags], env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    raise SystemExit(main())
