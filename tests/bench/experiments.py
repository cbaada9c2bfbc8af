"""Measure one setting at a time against a fixed baseline, and write docs/experiments.md.

python -m tests.bench.experiments --audio-dir data/audio --only spec-augment-0.15

What is done is skipped: an interrupted run continues, and a row that another machine measured stays.
"""

import concurrent.futures
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from cache.cli import InputError, command, flag
from tests.bench.compare import difference
from tests.bench.derive import derive
from train.recipes import RECIPES

ROOT = Path(__file__).parents[2]
RARE, FEW = ("dog", "bed", "three"), 12
BASELINES = {
    **{"small": "baseline", "rare": "rare-balance-0", "fast": "fast"},
    **{"frontier": "resnet10t-32", "front-end": "32x64-fft-2048", "views": "more-20", "steps": "resnet18-64x32"},
    **{f"length-{epochs}": f"epochs-{epochs}-defaults" for epochs in (10, 20, 60)},
}
PAIRS = (("bed", "bird"), ("go", "no"), ("three", "two"))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One row: what is changed against the baseline of its group."""

    name: str
    train: str = ""
    """Flags of train.run."""
    build: str = ""
    """Flags of pipeline.build_cache."""
    group: str = "small"
    seeds: int = 3
    derive: str = ""
    """A change to the cache, by its name in `tests.bench.derive`."""


_SMALL = (
    Experiment("baseline"),
    Experiment("views-1", build="--num-views 1"),
    Experiment("views-2", build="--num-views 2"),
    Experiment("views-8", build="--num-views 8"),
    Experiment("augment-light", build="--augment light"),
    Experiment("spec-augment-0.15", "--spec-augment 0.15"),
    Experiment("mixup-0.2", "--mixup 0.2"),
    Experiment("time-roll-off", "--time-roll 0"),
    Experiment("ema-off", "--ema 0"),
    Experiment("label-smoothing-0.1", "--label-smoothing 0.1"),
    Experiment("ohem-0.9", "--ohem 0.9"),
    Experiment("ohem-0.7", "--ohem 0.7"),
    Experiment("epochs-20", "--epochs 20"),
    Experiment("epochs-20-ohem-0.9", "--epochs 20 --ohem 0.9"),
    Experiment("epochs-20-mixup-0.2", "--epochs 20 --mixup 0.2"),
    Experiment("epochs-20-mixup-binary", "--epochs 20 --mixup 0.2 --loss binary"),
    Experiment("epochs-20-spec-augment-0.15", "--epochs 20 --spec-augment 0.15"),
    Experiment("epochs-20-mixup-spec-augment", "--epochs 20 --mixup 0.2 --spec-augment 0.15"),
    Experiment("batch-32", "--batch-size 32 --lr 0.0028"),
    Experiment("batch-128", "--batch-size 128 --lr 0.0057"),
    Experiment("lr-0.002", "--lr 0.002"),
    Experiment("lr-0.008", "--lr 0.008"),
    Experiment("binary-loss", "--loss binary"),
    Experiment("drop-path-0.1", "--drop-path 0.1"),
    Experiment("hold-back-0", "--hold-back 0"),
    Experiment("n-fft-1024", build="--n-fft 1024"),
    Experiment("width-64", "--width 64", build="--width 64"),
    Experiment("storage-uint8", derive="uint8"),
    Experiment("normalised-per-band-of-clip", derive="band-of-clip"),
    Experiment("normalised-per-band-of-corpus", derive="band-of-corpus"),
    Experiment("noise-recordings-off"),
    Experiment("mels-64", "--n-mels 64 --width 32", build="--n-mels 64 --width 32"),
)
_RARE = tuple(
    Experiment(f"rare-balance-{power}", f"--balance {power}" if power else "", group="rare") for power in (0, 0.5, 1)
)
_FAST = (
    Experiment("fast", group="fast"),
    Experiment("fast-binary", "--loss binary", group="fast"),
    Experiment("fast-binary-bf16", "--loss binary --amp bf16", group="fast"),
)


def _size(size: str) -> str:
    """Flags of a size such as 64 (mels and frames) or 32x64 (mels x frames)."""
    mels, _, frames = size.partition("x")
    return f"--n-mels {mels} --width {frames}" if frames else f"--n-mels {mels}"


_FRONTIER = tuple(
    Experiment(f"{model}-{size}", f"--model {model} {_size(size)}", _size(size), "frontier")
    for model, size in (
        ("resnet10t", "32"),
        ("resnet10t", "32x64"),
        ("resnet10t", "32x128"),
        ("resnet10t", "64"),
        ("resnet18", "32"),
        ("resnet18d", "32"),
        ("resnet18d", "64"),
        ("resnet26t", "32"),
        ("convnext_atto", "32"),
        ("convnext_atto", "64"),
        ("mobilenetv4_conv_small", "64"),
        ("efficientnet_b0", "32"),
        ("repvgg_a0", "32"),
        ("res2next50", "32"),
        ("dla60_res2next", "32"),
    )
)
_STEPS = tuple(
    Experiment(name, f"--model {model} --n-mels 64 {train}".strip(), f"--n-mels 64 {build}".strip(), "steps")
    for name, model, train, build in (
        ("resnet18-64x32", "resnet18", "--width 32", "--width 32"),
        ("resnet18d-64x32", "resnet18d", "--width 32", "--width 32"),
        ("resnet18d-64-clean", "resnet18d", "", "--augment none --num-views 1"),
        ("resnet18d-64-more", "resnet18d", "", ""),
        ("resnet18d-64-smooth-ohem", "resnet18d", "--label-smoothing 0.1 --ohem 0.9", ""),
    )
)
_LADDER = tuple(
    Experiment(
        name,
        f"--recipe {name}",
        " ".join(
            f"--{key.replace('_', '-')} {RECIPES[name][key]}" for key in ("n_mels", "width") if key in RECIPES[name]
        ),
        "ladder",
        1,
    )
    for name in (
        *("res2next50-224", "dla60_res2next-224", "res2next50-64", "resnest50d-128", "resnet50-64x32"),
        *("resnet50d-64x32", "res2next50-64x32", "res2next50-128", "res2next50-224-smooth-ohem"),
    )
)
_LENGTHS = tuple(
    Experiment(f"epochs-{epochs}-{name}", f"--epochs {epochs} {flags}".strip(), group=f"length-{epochs}", seeds=1)
    for epochs in (10, 20, 60)
    for name, flags in (
        ("defaults", ""),
        ("neither", "--mixup 0 --spec-augment 0"),
        ("masks", "--mixup 0 --spec-augment 0.15"),
        ("mixup-and-masks", "--mixup 0.2 --spec-augment 0.15"),
        ("lr-0.002", "--lr 0.002"),
    )
)
_FRONT_END = tuple(
    Experiment(f"{size}-fft-{n_fft}", _size(size), f"{_size(size)} --n-fft {n_fft}", "front-end")
    for size, n_fft in (("32x64", 2048), ("32x64", 1024), ("32x64", 512), ("40x101", 1024), ("40x101", 512))
)
_VIEWS = tuple(
    Experiment(name, f"{_size('32x64')} --epochs {epochs}", f"{_size('32x64')} {build}", "views", seeds)
    for name, epochs, build, seeds in (
        ("more-20", 20, "--augment more", 3),
        ("speed-20", 20, "--augment speed", 2),
        ("speed-20-views-8", 20, "--augment speed --num-views 8", 1),
        ("more-60", 60, "--augment more", 1),
        ("speed-60", 60, "--augment speed", 1),
    )
)
EXPERIMENTS = (*_SMALL, *_RARE, *_FAST, *_FRONTIER, *_FRONT_END, *_VIEWS, *_STEPS, *_LENGTHS, *_LADDER)
GROUPS = {  # title, and flags that all rows share, for the build and for training
    "small": (
        "One setting at a time: resnet18, 32 x 32, ten epochs, half of the speakers held out",
        "--n-mels 32 --folds 2",
        "--recipe smoke --model resnet18 --loss cross_entropy --balance 0 --amp off",
    ),
    "rare": (
        "Rare words: dog, bed and three with 12 training clips each, the other words with ten times as many",
        "--n-mels 32 --folds 2",
        "--recipe smoke --model resnet18 --loss cross_entropy --balance 0 --amp off",
    ),
    "fast": (
        "Binary loss and bf16 with a better model: resnet10t, 32 x 32, 20 epochs, mixup",
        "--n-mels 32 --folds 2",
        "--recipe smoke --epochs 20 --mixup 0.2 --loss cross_entropy --balance 0 --amp off",
    ),
    "frontier": (
        "Models and resolutions at the same 20 epochs",
        "--folds 2",
        "--recipe smoke --model resnet18 --epochs 20 --mixup 0.2 --loss cross_entropy --balance 0 --amp off",
    ),
    "front-end": (
        "The length of a frame: resnet10t, 20 epochs, mixup, binary loss",
        "--folds 2",
        "--recipe smoke --epochs 20 --mixup 0.2",
    ),
    "views": (
        "Stored views at other speeds, 20 and 60 epochs: resnet10t, 32 x 64, mixup, binary loss",
        "--folds 2",
        "--recipe smoke --mixup 0.2",
    ),
    "steps": (
        "The steps of the ladder at a size for a CPU",
        "--folds 2",
        "--recipe smoke --model resnet18 --epochs 20 --mixup 0.2 --loss cross_entropy --balance 0 --amp off",
    ),
    **{
        f"length-{epochs}": (
            f"Mixup, masks and learning rate, {epochs} epochs: resnet18, 32 x 32, 600 clips each of bird cat five "
            "happy left no stop zero, half of the speakers held out",
            "--n-mels 32 --folds 2",
            "--model resnet18 --n-mels 32 --batch-size 64",
        )
        for epochs in (10, 20, 60)
    },
    "ladder": ("The ladder of train.recipes, fold 0 of 5: for a GPU", "--folds 5", ""),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.experiments``."""

    audio_dir: str = flag("data/audio", "the corpus")
    work: str = flag("data/experiments", "caches and runs")
    results: str = flag("docs/experiments.json", "figures of all machines")
    page: str = flag("docs/experiments.md", "the table made of them")
    group: tuple[str, ...] = flag((), "a group to run; repeat for several", action="append", choices=tuple(GROUPS))
    only: tuple[str, ...] = flag((), "an experiment to run; repeat for several", type=str, action="append")
    seeds: int = flag(3, "at most so many seeds")
    jobs: int = flag(1, "runs at a time; more than one only on a CPU, with a thread each")


@command(Options)
def main(options: Options) -> int:
    """Run what is asked for and not yet done, then write the page."""
    return run(options)


def run(options: Options) -> int:
    """Run experiments, note each result when it is there."""
    unknown = set(options.only) - {experiment.name for experiment in EXPERIMENTS}
    if unknown:
        raise InputError(f"--only {unknown.pop()}; known: {', '.join(experiment.name for experiment in EXPERIMENTS)}")
    chosen = [e for e in EXPERIMENTS if e.name in options.only or e.group in options.group]
    path = Path(options.results)
    results = json.loads(path.read_text()) if path.exists() else {}
    todo = [
        (experiment, seed)
        for seed in range(options.seeds)
        for experiment in chosen
        if seed < experiment.seeds and f"{experiment.name}/{seed}" not in results
    ]
    caches = {e: _build(options, e) for e in dict.fromkeys(experiment for experiment, _ in todo)}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(_train, options, e, seed, caches[e]) for e, seed in todo]
        for (experiment, seed), future in zip(todo, futures, strict=True):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            results[f"{experiment.name}/{seed}"] = future.result()
            path.write_text(json.dumps(results, indent=1) + "\n")
            accuracy = future.result()["accuracy"]
            print(f"{experiment.name} seed {seed}: {accuracy:.4f}", flush=True)
    for experiment in chosen:
        baseline = BASELINES.get(experiment.group, experiment.name)
        if experiment.name != baseline:
            names = (experiment.name, baseline)  # runs that are unfinished have folders too, but no results
            seeds = [seed for seed in range(9) if all(f"{name}/{seed}" in results for name in names)]
            difference = paired_difference(Path(options.work) / "runs", *names, seeds)
            if difference:  # else the runs are not here: what is known stays
                results[f"{experiment.name}/difference"] = difference
    path.write_text(json.dumps(results, indent=1) + "\n")
    Path(options.page).write_text(_page(results))
    return 0


def _command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", module, *(word for part in flags for word in shlex.split(part))]


def _build(options: Options, experiment: Experiment) -> str:
    """Build the cache of an experiment; returns its folder."""
    audio, caches = Path(options.audio_dir), Path(options.work) / "cache"
    if experiment.group == "rare":
        audio, caches = Path(options.work) / "rare", Path(options.work) / "cache-rare"
        if not (Path(options.work) / "rare.done").exists():
            shutil.copytree(options.audio_dir, audio, dirs_exist_ok=True)
            _build_cache(audio, caches, experiment)  # to know the folds, which speakers keep
            _thin(audio, caches)
            (Path(options.work) / "rare.done").touch()
    if experiment.name == "noise-recordings-off":
        audio, caches = Path(options.work) / "quiet", Path(options.work) / "cache-quiet"
        if not audio.exists():
            shutil.copytree(options.audio_dir, audio, ignore=shutil.ignore_patterns("_background_noise_"))
    folder = _build_cache(audio, caches, experiment)
    return str(derive(Path(folder), experiment.derive)) if experiment.derive else folder


def _build_cache(audio: Path, caches: Path, experiment: Experiment) -> str:
    folders = f"--audio-dir {shlex.quote(str(audio))} --cache-dir {shlex.quote(str(caches))}"
    command = _command("pipeline.build_cache", folders, GROUPS[experiment.group][1], experiment.build)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: some recordings could not be used
        raise InputError(f"{shlex.join(command)} failed")
    return next(line for line in done.stdout.splitlines() if line.startswith(str(caches))).split()[0]


def _thin(audio: Path, caches: Path) -> None:
    """Remove training clips of the words in `RARE` until `FEW` of each are left; fold 0 is validated in full."""
    from cache.index import Cache

    (folder,) = (ROOT / caches).glob("*/")
    cache = Cache(folder)
    for word in RARE:
        mine = (cache.clips["target"] == cache.classes.index(word)) & (cache.clips["fold"] > 0)
        for name in cache.clips["clip_id"][mine][FEW:].tolist():
            (ROOT / audio / name.decode()).unlink()


def _train(options: Options, experiment: Experiment, seed: int, cache: str) -> dict:
    """Train fold 0 with one seed; returns what goes into the results."""
    name = f"{experiment.name}-seed{seed}"
    where = f"--cache {shlex.quote(cache)} --runs-dir {shlex.quote(options.work)}/runs --name {name} --seed {seed}"
    command = _command("train.run", GROUPS[experiment.group][2], experiment.train, where)
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{shlex.join(command)}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    fold = ROOT / options.work / "runs" / name / "fold0"
    metrics = [json.loads(line) for line in (fold / "metrics.jsonl").read_text().splitlines()]
    best = max(metrics, key=lambda entry: (entry["val_accuracy"], -entry["val_loss"]))
    return {
        "accuracy": best["val_accuracy"],
        "clips": best["val_clips"],
        "device": json.loads((fold / "config.json").read_text())["device"],
        "seconds": round(sum(entry["seconds"] for entry in metrics)),
        **_details(fold),
    }


def _details(fold: Path) -> dict:
    """How often the words of `PAIRS` were taken for each other."""
    import numpy as np

    with np.load(fold / "oof.npz") as arrays:
        classes, target, judged = arrays["classes"].tolist(), arrays["target"], arrays["logits"].argmax(axis=1)
    confused = {}
    for first, second in PAIRS:
        if first in classes and second in classes:
            a, b = classes.index(first), classes.index(second)
            confused[f"{first}/{second}"] = int(
                (((target == a) & (judged == b)) | ((target == b) & (judged == a))).sum()
            )
    rare = [(judged[target == classes.index(word)] == classes.index(word)).mean() for word in RARE if word in classes]
    return {"confused": confused, "rare_recall": float(np.mean(rare)) if rare else None}


def _page(results: dict) -> str:
    lines = [
        "# Experiments",
        "",
        "Made by `python -m tests.bench.experiments`; a row is one command, `--only NAME`, a table `--group GROUP`.",
        "Accuracy is that of the held-out speakers of fold 0 at the best epoch, the mean over seeds. The difference is",
        "paired with the baseline, clip by clip, with a 95% interval from a bootstrap over speakers (10,000 draws).",
        "Minutes are wall time, where several runs and other programs may have shared the cores.",
    ]
    for group, (title, build, train) in GROUPS.items():
        lines += ["", f"## {title} (`--group {group}`)", "", f"build_cache `{build}`, train.run `{train}`", ""]
        titles = (
            "name|flags|accuracy|difference, points|recall of dog, bed, three|pairs confused|seeds|device|minutes a run"
        )
        lines += [f"| {titles.replace('|', ' | ')} |", "| --- " * (titles.count("|") + 1) + "|"]
        for experiment in (e for e in EXPERIMENTS if e.group == group):
            lines.append("| " + " | ".join(_row(experiment, results)) + " |")
    return "\n".join(lines) + "\n"


def _row(experiment: Experiment, results: dict) -> list[str]:
    found = [results[key] for seed in range(experiment.seeds) if (key := f"{experiment.name}/{seed}") in results]
    flags = [f"build_cache `{experiment.build}`"] if experiment.build else []
    flags += [f"cache changed: {experiment.derive}"] if experiment.derive else []
    flags += ["no `_background_noise_/`"] if experiment.name == "noise-recordings-off" else []
    flags += [f"train.run `{experiment.train}`"] if experiment.train else []
    row = [experiment.name, ", ".join(flags)]
    if not found:
        return [*row, "not run", *[""] * 6]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    difference = results.get(f"{experiment.name}/difference")
    pairs = [f"{pair} {mean([entry['confused'][pair] for entry in found]):.1f}" for pair in found[0]["confused"]]
    return [
        *row,
        f"{mean([entry['accuracy'] for entry in found]):.4f}",
        "{:+.1f} ({:+.1f} to {:+.1f})".format(*difference) if difference else "",
        f"{mean([entry['rare_recall'] for entry in found]):.3f}" if found[0]["rare_recall"] else "",
        ", ".join(pairs),
        str(len(found)),
        ", ".join(sorted({entry["device"] for entry in found})),
        f"{mean([entry['seconds'] for entry in found]) / 60:.1f}",
    ]


def paired_difference(runs: Path, name: str, baseline: str, seeds: list[int]) -> list[float] | None:
    """Mean difference of accuracy in points over some seeds, with a bootstrap's 95% interval."""
    import numpy as np

    def right(run: str, seed: int) -> tuple[list[bytes], np.ndarray]:
        with np.load(ROOT / runs / f"{run}-seed{seed}" / "fold0" / "oof.npz") as arrays:
            order = np.argsort(arrays["clip_id"])
            good = (arrays["logits"].argmax(axis=1) == arrays["target"])[order]
            return arrays["clip_id"][order].tolist(), good.astype(float)

    both = [ROOT / runs / f"{run}-seed{seed}" / "fold0/oof.npz" for seed in seeds for run in (name, baseline)]
    if not both or not all(path.exists() for path in both):
        return None
    ours, theirs = ([right(run, seed) for seed in seeds] for run in (name, baseline))
    names = ours[0][0]
    if any(other != names for other, _ in (*ours, *theirs)):
        raise InputError(f"{name}: other clips were held out than in {baseline}")
    a, b = (np.mean([good for _, good in runs_], axis=0) for runs_ in (ours, theirs))
    speakers = [name.split(b"/")[-1].split(b"_")[0] for name in names]
    return [round(value, 2) for value in difference(speakers, a, b)]


if __name__ == "__main__":
    raise SystemExit(main())
