"""How ranks stop together: a signal is remembered until the end of the step, and all ranks act on it alike."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from train.world import World

CONTINUE, SAVE, STOP, ABORT = range(4)  # what a rank may want after a step; the ranks follow the highest


class StopSignal:
    """Remembers SIGTERM or SIGINT until the end of the step; a second one takes its usual effect."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        self.number = number
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Have SIGTERM and Ctrl-C end this process within the block: as exceptions, so that what has begun is ended too."""
    handlers: dict[int, Any] = {signal.SIGTERM: lambda number, frame: sys.exit(128 + number)}
    handlers[signal.SIGINT] = signal.default_int_handler
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Agreement:
    """An all-reduce (maximum) of one small number per step. Its result comes one step late, so no step waits for it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._value: torch.Tensor
        self._work: dist.Work | None = None

    def exchange(self, value: int) -> int:
        """Give this step's value; return the maximum over all ranks of the step before."""
        if self._world.world_size == 1:
            return value
        agreed = self.finish()
        self._value = torch.tensor([value])
        self._work = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, async_op=True)
        return agreed

    def finish(self) -> int:
        """Wait for the exchange that is under way; returns its maximum."""
        work, self._work = self._work, None
        if work is None:
            return CONTINUE
        work.wait()
        return int(self._value)
