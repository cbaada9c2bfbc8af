"""The ranks of a run: who I am, on which device, what ranks tell each other, and how an error of one is shown."""

import contextlib
import ctypes
import dataclasses
import datetime
import json
import os
import re
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from cache.cli import EXIT_ERROR, InputError, describe_error, is_reader_gone, say
from cache.memory import keep_freed_memory

LONG_WAIT = datetime.timedelta(days=20)  # for a rank with long recordings; more overflows gloo's milliseconds
# what torch raises as a plain RuntimeError where memory runs out
_NO_MEMORY = re.compile(
    "CU(DNN|BLAS)_STATUS_ALLOC_FAILED|CUDA error: out of memory|DefaultCPUAllocator: can't allocate"
)
# what gloo, whose errors are plain RuntimeErrors, and NCCL say where a peer is gone
_PEER_GONE = re.compile("(?is)gloo.*(connection|peer|pipe|timed? ?out)|ncclRemoteError|remote process exited")


@dataclasses.dataclass
class World:
    """One rank's view of all ranks; built once in main and passed around."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    memory_advice: str = "use a smaller --batch-size"
    """What helps where the device's memory does not suffice."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def local_batch_size(self, batch_size: int) -> int:
        """Clips of a global batch per rank; InputError where it does not divide."""
        if batch_size % self.world_size:
            below = batch_size - batch_size % self.world_size
            nearest = f"{below} or {below + self.world_size}" if below else str(self.world_size)
            raise InputError(
                f"--batch-size {batch_size} does not divide by {self.world_size} ranks; use --batch-size {nearest}"
            )
        return batch_size // self.world_size

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Give every rank rank 0's values, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, 0)

    def gather(self, value: object) -> list:
        """Every rank's `value` (plain types and CPU tensors), in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def decide(self, choose: Callable[[], Any]) -> Any:
        """What rank 0 chooses, or the expected error that it meets, on every rank (plain types and dataclasses)."""
        chosen = None
        if self.is_main:
            try:
                chosen = choose()
            except (InputError, OSError) as error:
                chosen = error
        chosen = self.gather(chosen)[0]
        if isinstance(chosen, Exception):
            raise chosen
        return chosen

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    def first_to_fail(self) -> bool:
        """Whether this rank's error is the first of the run, and so the one to show."""
        if self.store is None:
            return True
        try:
            return self.store.add("errors", 1) == 1
        except RuntimeError:
            return False  # the store is gone, and with it the rank that failed first


def run_in_world(
    device: str, body: Callable[[World], int], *, timeout: datetime.timedelta = datetime.timedelta(minutes=30)
) -> int:
    """Run `body` on this rank. Of all ranks the first error is shown, once, with its rank.

    Parameters
    ----------
    timeout : how long a rank waits for the others before it takes them for lost

    Returns
    -------
    int : the exit status
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_parent()
    keep_freed_memory()
    world = World(int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0)), 1, torch.device("cpu"))
    try:
        with _process_group(world, device, timeout):
            return body(world)
    except (InputError, OSError) as error:
        if is_reader_gone(error):
            raise  # cache.cli.run_main knows what to do
        return _show(world, describe_error(error))
    except Exception as error:
        if is_out_of_memory(error):
            return _show(world, f"out of memory on {world.device} ({_reason(error)}); {world.memory_advice}")
        if world.world_size > 1 and _is_peer_gone(error):
            return _show(world, f"lost another rank ({_reason(error)})", status=1, cause=False)
        return _show(world, "".join(traceback.format_exception(error)), status=1)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the device or on the host."""
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError | dist.DistError):
        return bool(_NO_MEMORY.search(str(error)))
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def _is_peer_gone(error: Exception) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error)))


def _reason(error: Exception) -> str:
    """An error's type and words in one line, without torch's C++ frames."""
    words = re.split(r"\n\s*(?:Exception raised from|frame #)", str(error))[0]
    return ": ".join(filter(None, [type(error).__name__, " ".join(words.split())]))


def _show(world: World, message: str, *, status: int = EXIT_ERROR, cause: bool = True) -> int:
    """Print an error if it is the first of all ranks, and hand it to torchrun for its summary; returns `status`.

    Torchrun's summary takes the earliest failure, in whole seconds, for the cause; a killed rank counts from its end.
    So the first error is dated a second back, and what follows from another failure a minute ahead. (Torch's own
    `record` dates them all alike.)
    """
    first = world.first_to_fail()
    if first:
        where = f"rank {world.rank}: " if world.rank else ""
        print(f"error: {where}{message}", file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        when = int(time.time()) + (-1 if first and cause else 60)
        content = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(when)}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": content}, file)
    return status


@contextlib.contextmanager
def _process_group(world: World, device: str, timeout: datetime.timedelta) -> Iterator[None]:
    """Fill in `world`, and join the process group when torchrun started us."""
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    if launched:
        store, world.rank, world.world_size = next(dist.rendezvous("env://"))
        world.store = _fresh_store(store, world.rank, world.world_size, timeout)
    world.device = _choose_device(world, device)
    if not launched:
        yield
        return
    cuda = world.device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=world.store,
        rank=world.rank,
        world_size=world.world_size,
        timeout=timeout,
        device_id=world.device if cuda else None,
    )
    yield
    dist.destroy_process_group()


def _fresh_store(store: dist.Store, rank: int, world_size: int, timeout: datetime.timedelta) -> dist.Store:
    """The store under a prefix that no earlier attempt has used.

    Workers that torchrun restarts find what the attempt before left in its store (torch 2.15). A worker that is ahead
    of rank 0 would read rank 0's old address there. So rank 0 publishes a new prefix and answers each of the others
    under it; the others take a prefix only when rank 0 has answered.
    """
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("melshard", me)
        for other in range(1, world_size):
            store.set(f"{me}/{store.get(f'{me}/{other}').decode()}", "")
        return dist.PrefixStore(me, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        prefix = store.get("melshard").decode()
        store.set(f"{prefix}/{rank}", me)
        for _ in range(20):
            if store.check([f"{prefix}/{me}"]):
                return dist.PrefixStore(prefix, store)
            time.sleep(0.05)
    raise InputError(
        f"rank 0 gave no sign within {timeout.total_seconds():.0f} s; is it running? Start all ranks again"
    )


def _choose_device(world: World, device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if device == "cuda":
            raise InputError("--device cuda, but this machine has no usable CUDA device; use --device cpu")
        if world.is_main:
            over = " over gloo" if world.world_size > 1 else ""
            say(f"no CUDA device: using the CPU{over}", error=True)
        return torch.device("cpu")
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if ranks > gpus:
        raise InputError(f"{ranks} ranks on this host, but {gpus} GPUs; use --nproc_per_node {gpus}, or --device cpu")
    chosen = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(chosen)
    return chosen


def _die_with_parent() -> None:
    """Have the kernel kill this process when torchrun's agent dies (Linux; prctl(2), PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
