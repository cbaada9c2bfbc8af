"""From the cache to batches on the device: which clips a step sees, and a thread that fetches them ahead."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from cache.cli import InputError
from cache.index import Cache
from train.world import World

_AHEAD = 3  # batches that lie ready
_RESIDENT_SHARE = 0.5  # of the free device memory that a fold may take to live there


def clips_of_step(training: np.ndarray, num_views: int, batch_size: int, seed: int, step: int):
    """Clips and views of a global batch: a pure function of (seed, step).

    An epoch is a fresh permutation cut into whole batches, so that a clip is seen at most once in it; what does not
    fill a batch is shuffled into the next epoch.

    Returns
    -------
    clips, views : np.ndarray [shape=(batch_size,)]
    """
    epoch, position = divmod(step, len(training) // batch_size)
    order = _order(len(training), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    views = np.random.default_rng([seed, epoch, position, 1]).integers(0, num_views, batch_size)  # [s, e, 0] is [s, e]
    return training[order], views


@functools.lru_cache(maxsize=2)  # this epoch's and the next's: a permutation of a million takes 20 ms
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


class Batches:
    """Batches of a rank, in order, gathered ahead by one thread.

    On CUDA a batch travels through pinned memory on a stream of its own; a fold whose rows take at most half of the
    free device memory lives there, and only indices travel. Of a cache larger than this machine's memory the kernel is
    told some steps ahead which rows will be wanted.

    Parameters
    ----------
    world, cache : as built in main
    training : clip indices
    batch_size : global
    seed : of order and views
    resident : "auto", or "off" for a fold that never lives on the device
    """

    def __init__(
        self, world: World, cache: Cache, training: np.ndarray, batch_size: int, seed: int, resident: str = "auto"
    ) -> None:
        if len(training) < batch_size:
            ranks = world.world_size
            better = max(2, len(training) // 8 // ranks) * ranks
            raise InputError(
                f"--batch-size {batch_size} is larger than the {len(training)} training clips; use --batch-size "
                f"{better}"
            )
        self._cache, self._training, self._seed = cache, training, seed
        self._batch_size, self._local = batch_size, world.local_batch_size(batch_size)
        self._first, self._device = world.rank * self._local, world.device
        self._resident = self._load_resident() if world.device.type == "cuda" and resident == "auto" else None
        if self.resident:
            world.memory_advice = "use --resident off, or a smaller --batch-size"
        self._reads_ahead = self._resident is None and cache.bytes > _physical_memory()

    @property
    def resident(self) -> bool:
        """Whether the fold lives on the device."""
        return self._resident is not None

    def _load_resident(self) -> torch.Tensor | None:
        shape = (len(self._training), *self._cache.config.row_shape)
        torch.cuda.empty_cache()  # what the fold before this one took counts as free
        free, _ = torch.cuda.mem_get_info(self._device)
        if 2 * int(np.prod(shape)) > free * _RESIDENT_SHARE:
            return None
        rows = torch.empty(shape, dtype=torch.float16, device=self._device)
        table = self._cache.clips[self._training]
        for shard in np.unique(table["shard"]).tolist():
            here = np.flatnonzero(table["shard"] == shard)
            block = self._cache.features(shard)[table["row"][here]]
            rows[torch.from_numpy(here).to(self._device)] = torch.from_numpy(block).to(self._device)
        return rows

    def steps(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (features (batch, 1, n_mels, n_frames) float16, clips (batch,) int64) of steps first … last − 1.

        A batch's memory is used again once the next batch is asked for.
        """
        thread = ThreadPoolExecutor(1, "batches")
        try:
            fetch = thread.submit(self._fetcher).result()  # in the thread: CUDA's current device is a thread's own
            ready: deque[Future] = deque()
            for step in range(first, last):
                while step + len(ready) < min(step + _AHEAD + 1, last):
                    ready.append(thread.submit(fetch, step + len(ready)))
                features, clips, copied = ready.popleft().result()
                if copied is not None:
                    torch.cuda.current_stream().wait_event(copied)
                    features.record_stream(torch.cuda.current_stream())
                    clips.record_stream(torch.cuda.current_stream())
                yield features[:, None], clips
        finally:
            thread.shutdown(cancel_futures=True)

    def _select(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        clips, views = clips_of_step(self._training, self._cache.config.num_views, self._batch_size, self._seed, step)
        mine = slice(self._first, self._first + self._local)
        return clips[mine], views[mine]

    def _fetcher(self):
        """A function of the step: its features and clips, and the event after which they are on the device."""
        shape = (self._local, self._cache.config.n_mels, self._cache.config.n_frames)
        cuda = self._device.type == "cuda"
        new = functools.partial(torch.empty, pin_memory=cuda)
        buffers = [(new(shape, dtype=torch.float16), new(self._local, dtype=torch.int64)) for _ in range(_AHEAD + 1)]
        copied: list[torch.cuda.Event | None] = [None] * len(buffers)
        if cuda:
            torch.cuda.set_device(self._device)
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream())  # which may still be filling the resident fold
            place = np.empty(len(self._cache.clips), np.int64)  # clip index → row of the resident fold
            place[self._training] = np.arange(len(self._training))

        def fetch(step: int):
            """Features (local batch, n_mels, n_frames) float16 and clips of a step, and the event to wait for."""
            slot = step % len(buffers)
            host, chosen = buffers[slot]
            if before := copied[slot]:
                before.synchronize()  # in this thread only: the buffer's last copy has left it
            if self._reads_ahead:
                self._cache.prefetch(*self._select(step + _AHEAD))
            clips, views = self._select(step)
            chosen.numpy()[:] = clips
            if self._resident is None:
                self._cache.gather(clips, views, host.numpy())
            if not cuda:
                return host, chosen, None
            with torch.cuda.stream(stream):
                if self._resident is None:
                    features = host.to(self._device, non_blocking=True)
                else:
                    index = np.stack([place[clips], views])
                    rows, view = torch.from_numpy(index).pin_memory().to(self._device, non_blocking=True)
                    features = self._resident[rows, view]
                moved = chosen.to(self._device, non_blocking=True)
                copied[slot] = stream.record_event()
            return features, moved, copied[slot]

        return fetch


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def batches_of(
    cache: Cache, clips: np.ndarray, batch_size: int, device: torch.device, view: int = 0
) -> Iterator[torch.Tensor]:
    """One view of some clips in order: features (b, 1, n_mels, n_frames) float32 on the device, b <= batch_size."""
    for first in range(0, len(clips), batch_size):
        rows = cache.gather(clips[first : first + batch_size], view)
        yield torch.from_numpy(rows).to(device)[:, None].float()


def judge_clips(
    model: Callable, classes: int, cache: Cache, clips: np.ndarray, batch_size: int, world: World
) -> np.ndarray:
    """Logits of view 0 of some clips [shape=(n, classes), dtype=float32]; the ranks divide the clips, and all get all.

    Raises
    ------
    InputError : a shard of the cache was cut short
    """
    batches = batches_of(cache, clips[world.rank :: world.world_size], batch_size, world.device)
    with torch.inference_mode():
        mine = torch.cat([torch.empty(0, classes), *[model(x).float().cpu() for x in batches]]).numpy()
    cache.check_mapped()  # before any rank keeps what was said
    logits = np.empty((len(clips), classes), np.float32)
    for rank, part in enumerate(world.gather(mine)):
        logits[rank :: world.world_size] = part
    return logits
