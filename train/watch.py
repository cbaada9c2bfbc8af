"""Watch a run in the terminal, while it trains or afterwards.

python -m train.watch runs/dla60_res2next-224x224
"""

import dataclasses

from cache.cli import Flags, flag, parse_flags, run_main


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchOptions(Flags):
    """Flags of ``python -m train.watch``."""

    run: str = flag("", "a run folder, such as runs/dla60_res2next-224x224", positional=True)
    once: bool = flag(False, "print the present state and leave")
    seconds: float = flag(2.0, "between two looks at the run", (0.1, 3600))


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and show the run until Ctrl-C."""
    flags = parse_flags(WatchOptions, argv, prog="python -m train.watch", description=__doc__)

    def body() -> int:
        options = WatchOptions(**flags)
        from train.live import watch

        return watch(options.run, once=options.once, seconds=options.seconds)

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
