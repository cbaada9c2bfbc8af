"""What a build shows: live progress, then a summary."""

import shlex
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cache.cli import printable
from pipeline.build import Summary, build_cache
from pipeline.finish import REJECTED
from pipeline.options import BuildOptions


def build_with_progress(options: BuildOptions) -> Summary:
    """Build a cache while showing clips per second and time left; print the summary."""
    console = Console()
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("building", total=None, rate="")

        def update(done: int, rejected: int, total: int) -> None:
            speed = progress.tasks[task].finished_speed or progress.tasks[task].speed
            rate = f"{speed:,.0f} clips/s" if speed else ""
            progress.update(
                task, completed=done, total=total, rate=rate + (f", {rejected} rejected" if rejected else "")
            )

        summary = build_cache(options, update)
    print_summary(console, options, summary)
    return summary


def print_summary(console: Console, options: BuildOptions, summary: Summary) -> None:
    """Say what is in the cache, what happened to odd clips, and what to type next."""
    cache = summary.cache
    shards, counts, folds = cache.index["shards"], cache.index["counts"], cache.index["split"]["folds"]
    speed = f", {summary.built / summary.seconds:,.0f} clips/s" if summary.built else ""
    tested, views = cache.test_clips, cache.config.num_views
    speakers = f" of {cache.speakers:,} speakers" if cache.speakers else ""
    clips = f"{len(cache.clips):,} clips{speakers}" + (f" ({tested:,} in the test split)" if tested else "")
    lines = [
        f"{cache.folder}",
        f"  {clips}, {len(cache.classes)} labels, {views} views each",
        f"  {folds} folds; {len(shards)} shard{'s' * (len(shards) != 1)}, {cache.bytes / 1e6:,.0f} MB; "
        f"built {summary.built:,} clips in {summary.seconds:.1f} s{speed}",
        "  " + ", ".join(f"{count:,} {name}" for name, count in counts.items()),
    ]
    lines += [f"  {listed}" for listed in summary.lists]
    if summary.ignored:
        names = ", ".join(f"{count} {suffix}" for suffix, count in sorted(summary.ignored.items()))
        lines.append(f"  ignored files that are no .wav, .flac or .ogg: {names}")
    if summary.new_split:
        lines.append("  the split is another than before: runs that were trained on it are to be trained again")
    more = f" --cache-dir {shlex.quote(options.cache_dir)}" if options.cache_dir != "data/cache" else ""
    more += f" --n-mels {options.n_mels}" if options.n_mels != 224 else ""
    more += f" --width {options.width}" if options.width and options.width != options.n_mels else ""
    lines.append(f"next: torchrun --nproc_per_node 1 -m train.run --fold 0{more}")
    console.print("\n".join(map(printable, lines)), highlight=False, markup=False, soft_wrap=True)
    for listed in summary.lists:
        if listed.missing:
            such = printable(str(listed.missing[0]))
            print(f"{listed.name}: {len(listed.missing):,} lines name no clip: {such}, ...", file=sys.stderr)
    if counts["rejected"]:
        print(f"{counts['rejected']:,} files were rejected; why: {cache.folder / REJECTED}", file=sys.stderr)
