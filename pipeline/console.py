"""What a build shows: live progress, then a summary."""

import shlex
import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache.cli import InputError, counted, printable, say
from cache.find import find_cache
from cache.index import Cache
from pipeline.build import build_cache
from pipeline.finish import REJECTED
from pipeline.options import BuildOptions

_LABELS = 12  # are named
_HEARD = 20_000  # clips in a training that is long enough: see docs/training.md
_EPOCHS = (10, 100)  # more than recipes have, and at most
_RECIPES = {  # of train.run, for caches of their mels, frames and normalisation
    (32, 32, "clip"): " --recipe smoke",
    (32, 64, "clip"): " --recipe fast",
    (32, 101, "none"): " --recipe pretrained",
}


def build_with_progress(options: BuildOptions) -> Cache:
    """Build a cache while showing clips per second and time left; print the summary."""
    started = time.monotonic()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    console = Console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("building", total=None, rate="")

        def update(done: int, rejected: int, total: int) -> None:
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed
            rate = f"{speed:,.0f} clips/s" if speed else ""
            progress.update(
                task, completed=done, total=total, rate=rate + (f", {rejected} rejected" if rejected else "")
            )

        def note(line: str) -> None:
            console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)

        cache, built, notes, warnings = build_cache(options, update, note)
    _print_summary(options, cache, built, time.monotonic() - started, notes)
    for warning in warnings:
        say(warning, error=True)
    if rejected := cache.index["counts"]["rejected"]:
        say(f"{counted(rejected, 'file')} rejected; why: {cache.folder / REJECTED}", error=True)
    return cache


def _print_summary(options: BuildOptions, cache: Cache, built: int, seconds: float, notes: list[str]) -> None:
    """Say what is in the cache, what happened to odd clips, and what to type next."""
    shards, counts, folds = cache.index["shards"], cache.index["counts"], cache.index["split"]["folds"]
    speed = f", {built / seconds:,.1f} clips/s" if built else ""
    tested, views = cache.test_clips, cache.config.num_views
    group = "speaker" if options.long != "split" and not options.manifest else "group"
    speakers = f" of {counted(cache.speakers, group)}" if cache.speakers else ""
    clips = f"{counted(len(cache.clips), 'clip')}{speakers}" + (f" ({tested:,} in the test split)" if tested else "")
    lines = [
        f"{cache.folder}",
        f"  {clips}, {counted(len(cache.classes), 'label')}, {counted(views, 'view')} each",
        f"  {counted(folds, 'fold')}; {counted(len(shards), 'shard')}, {cache.bytes / 1e6:,.1f} MB; "
        f"built {counted(built, 'clip')} in {seconds:.1f} s{speed}",
        "  " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if name != "cancelled"),
    ]
    lines += [f"  {note}" for note in (_describe_labels(cache), *notes)]
    more = f" --cache-dir {shlex.quote(options.cache_dir)}" if options.cache_dir != "data/cache" else ""
    size = (cache.config.n_mels, cache.config.n_frames)
    flags = f" --n-mels {options.n_mels}" if options.n_mels != 224 else ""
    flags += f" --width {options.width}" if options.width and options.width != options.n_mels else ""
    recipe = _RECIPES.get((*size, cache.config.normalize))
    more += flags if recipe is None else recipe
    epochs = min(_HEARD // max(1, len(cache.clips) - tested), _EPOCHS[1])
    more += f" --epochs {epochs}" if recipe and epochs > _EPOCHS[0] else ""
    try:
        find_cache(options.cache_dir, *size)
    except InputError:  # there are several of this size
        more += f" --cache {cache.folder.name}"
    training = f"python -m train.run --fold 0{more}"
    words = f"python -m train.add_words --run RUN --audio {shlex.quote(options.audio_dir)}"
    lines.append(f"next: {words if options.one_label else training}")
    for line in lines:
        say(line)


def _describe_labels(cache: Cache) -> str:
    """The labels with their clips, the largest first."""
    counts = np.bincount(cache.clips["target"], minlength=len(cache.classes))
    order = np.argsort(-counts, kind="stable")[:_LABELS].tolist()
    more = f", and {len(cache.classes) - _LABELS} more" if len(cache.classes) > _LABELS else ""
    fewest = (
        f" (the fewest: {cache.classes[int(counts.argmin())]} {counts.min():,})"
        if more and counts.min() < counts.max()
        else ""
    )
    return ", ".join(f"{cache.classes[at]} {counts[at]:,}" for at in order) + more + fewest
