"""Compare every file of every cache with its checksum.

python -m cache.verify
"""

import contextlib
import dataclasses

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, command, flag, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Flags of ``python -m cache.verify``."""

    cache_dir: str = flag("data/cache", "where cache folders are")
    repair: bool = flag(False, "remove damaged shards; the next build makes them again, and only them")


@command(VerifyOptions)
def main(options: VerifyOptions) -> int:
    """Name each damaged file on stderr, and with --repair remove it; exit status 1 if there is any."""
    from cache.check import cache_folders, check_cache, remove_damaged
    from cache.files import LOCK, file_lock

    damaged = 0
    for folder in cache_folders(options.cache_dir):
        busy = f"{folder}: a build is at work here; wait for it"
        with file_lock(folder / LOCK, busy=busy) if options.repair else contextlib.nullcontext():
            damages = check_cache(folder)
            for damage in damages:
                say(f"{damage.path}: {damage.why}", error=True)
            if options.repair:
                remove_damaged(folder, damages)
                if any(damage.number is None for damage in damages):
                    say(f"{folder}: its folds will be made anew: train again what was trained on others", error=True)
        say(f"{folder}: {f'{len(damages)} damaged' if damages else 'whole'}")
        damaged += len(damages)
    if damaged:
        done = "removed; build them again with" if options.repair else "remove them with --repair, then build with"
        say(f"{done} python -m pipeline.build_cache and the flags it was built with (cache.info)", error=True)
    return EXIT_INCOMPLETE if damaged else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
