"""Running shard tasks in a pool that survives the death of its workers."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from typing import Any

from cache.cli import InputError, require
from pipeline.shard_task import ShardTask, build_shard

MAX_REBUILDS = 5  # of the pool, in a row, without a shard finishing in between


def run_tasks(
    tasks: list[ShardTask], *, jobs: int, backend: str, scheduler: str | None
) -> Iterator[tuple[int, int, int]]:
    """Build shards in parallel; yields what `build_shard` returns, in order of completion.

    When a worker dies, loky abandons the whole call: the pool is then rebuilt for what is left.

    Parameters
    ----------
    tasks : one per shard
    jobs : number of workers, as joblib counts them (-1: all cores)
    backend : "loky" (processes on this machine) or "dask"
    scheduler : address of the Dask scheduler

    Raises
    ------
    InputError : workers keep dying
    """
    import joblib

    if backend == "loky" and joblib.effective_n_jobs(jobs) == 1:  # also where /dev/shm has no room for semaphores
        yield from map(build_shard, tasks)
        return
    left, deaths = {task.number: task for task in tasks}, 0
    client = _dask_client(scheduler) if backend == "dask" else None
    config = {"backend": backend, "n_jobs": jobs, **({} if client else {"inner_max_num_threads": 1})}
    try:
        while left:
            try:
                with _warm_workers(), joblib.parallel_config(**config):
                    parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, max_nbytes=None)
                    for done in parallel(joblib.delayed(build_shard)(task) for task in list(left.values())):
                        del left[done[0]]
                        deaths = 0
                        yield done
            except BrokenExecutor as error:
                deaths += 1
                if deaths > MAX_REBUILDS:
                    raise InputError(
                        f"workers died {deaths} times in a row ({str(error).splitlines()[0]}) on shards "
                        f"{', '.join(map(str, list(left)[:8]))}; look for a lack of memory (fewer --jobs) or for a "
                        "file that crashes the decoder"
                    ) from None
    finally:
        if client:
            client.close()


@contextlib.contextmanager
def _warm_workers() -> Iterator[None]:
    """Let loky fork its workers from a server process that has imported what is heavy and has no threads.

    Importing torch's CUDA build takes seconds and 290 MB, here once and shared instead of once per worker.
    """
    from joblib.externals.loky.backend.context import set_start_method

    multiprocessing.set_forkserver_preload(["torch", "h5py", "soundfile"])
    set_start_method("forkserver", force=True)
    try:
        yield
    finally:
        set_start_method(None, force=True)


def _dask_client(scheduler: str | None) -> Any:
    if not scheduler:
        raise InputError("--backend dask needs --scheduler ADDRESS, such as tcp://10.0.0.1:8786")
    distributed = require("distributed", "dask")
    try:
        return distributed.Client(scheduler, timeout=5)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"no Dask scheduler at {scheduler} ({error}); start one with: dask scheduler") from None
