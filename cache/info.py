"""List the caches that exist: configuration, clips, labels, folds, sizes, completeness.

python -m cache.info
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, InputError, command, counted, flag, say

if TYPE_CHECKING:
    from cache.index import Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Flags of ``python -m cache.info``."""

    cache_dir: str = flag("data/cache", "where cache folders are")


@command(InfoOptions)
def main(options: InfoOptions) -> int:
    """Print one block of lines per cache; exit status 1 if one is damaged."""
    from cache.check import cache_folders

    status = EXIT_OK
    for folder in cache_folders(options.cache_dir):
        lines, readable = describe(folder)
        for line in lines:
            say(line)
        status = status if readable else EXIT_INCOMPLETE
    return status


def describe(folder: Path) -> tuple[list[str], bool]:
    """Lines about one cache, finished or not, and whether it is undamaged as far as opening it tells."""
    from cache.index import INDEX, Cache

    files = [path.stat().st_size for path in folder.glob("shard-*.h5")]
    size = f"  size       {counted(len(files), 'shard')}, {sum(files) / 1e6:,.0f} MB"
    if not (folder / INDEX).exists():
        return [f"{folder}: incomplete; finish it with python -m pipeline.build_cache", size], True
    try:
        cache = Cache(folder)
    except InputError as error:
        return [f"{folder}: damaged", f"  {error}", size], False
    return [f"{folder}: complete", *_describe_content(cache), size], True


def _describe_content(cache: "Cache") -> list[str]:
    import numpy as np

    config, clips, split, built = cache.config, cache.clips, cache.index["split"], cache.index.get("command")
    folds = np.bincount(clips["fold"][clips["fold"] >= 0])
    counts = ", ".join(f"{count:,} {name}" for name, count in cache.index["counts"].items())
    grouping = f", grouped by {split['group_by']}" if split["split"] == "kfold" else ""
    return [
        f"  features   {config.n_mels} mels x {config.n_frames} frames, n_fft {config.n_fft}, "
        f"{config.clip_seconds:g} s at {config.sample_rate} Hz, {counted(config.num_views, 'view')} ({config.augment})",
        f"  clips      {len(clips):,} of {counted(cache.speakers, 'speaker')}; {counts}",
        f"  labels     {len(cache.classes)}: {' '.join(cache.classes)}",
        f"  split      {split['split']}{grouping}; folds of {', '.join(f'{n:,}' for n in folds)} clips; "
        f"{cache.test_clips:,} test",
        f"  corpus     {cache.index['audio_dir']}",
    ] + ([f"  built by   {built}"] if built else [])


if __name__ == "__main__":
    raise SystemExit(main())
