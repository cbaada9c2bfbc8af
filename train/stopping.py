"""Asked to stop: ranks finish what they do, unless a peer is dead."""

import atexit
import os
import select
import signal
import threading
import time

from train.world import World

_GRACE_SECONDS = 20  # of silence, after which a rank is taken for dead; torchrun kills 30 s after asking to stop
_BEAT_SECONDS = 2  # between the signs of life that a rank gives


class StopSignal:
    """Remembers SIGTERM and SIGINT until the end of the step; a second one takes its usual effect.

    With several ranks a rank may be stuck in a collective when the signal comes, because a peer is dead. So each rank
    gives signs of life, and ends itself where it was asked to stop and a peer has been silent for a grace period. A
    validation or a save may take as long as it likes.
    """

    def __init__(self, world: World) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)
        if world.world_size > 1:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            watch = threading.Thread(target=_watch, args=(world, reader), daemon=True)
            watch.start()
            atexit.register(_end_watch, watch, writer)

    def _remember(self, number: int, frame: object) -> None:
        self.number = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _watch(world: World, reader: int) -> None:
    """Body of the thread that gives signs of life, and ends this process after a signal where a peer gives none."""
    asked: int | None = None
    heard: dict[int, tuple[int | None, float]] = {}  # by rank: its last count of beats, and when it came
    while True:
        if select.select([reader], [], [], _BEAT_SECONDS)[0]:
            received = os.read(reader, 1)
            if not received:
                return
            asked = received[0] if received[0] in (signal.SIGTERM, signal.SIGINT) else asked
        _beat(world, world.rank, 1)
        for peer in range(world.world_size if asked else 0):
            count, now = _beat(world, peer, 0), time.monotonic()
            before, since = heard.setdefault(peer, (count, now))
            if count != before:
                heard[peer] = (count, now)
            elif now - since > _GRACE_SECONDS:
                os._exit(128 + asked)


def _end_watch(watch: threading.Thread, writer: int) -> None:
    """End the thread before the interpreter does: within a call of the store that would be a crash."""
    signal.set_wakeup_fd(-1)
    os.close(writer)
    watch.join(_BEAT_SECONDS)


def _beat(world: World, rank: int, more: int) -> int | None:
    """Add to a rank's count of beats and read it; None where the store is gone, and with it whoever held it."""
    try:
        return world.store.add(f"alive/{rank}", more)
    except RuntimeError:
        return None
