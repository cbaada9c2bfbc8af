"""Judging recordings: files divided over the ranks, and features in threads while the device runs the models.

A view's features are computed once for all members with the same features, and softmax is taken once per view and
member.
"""

import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from cache.cli import InputError, counted
from cache.cores import usable_cores
from infer.console import progress_bar
from infer.members import Member
from pipeline.decode import Clip, read_clip
from pipeline.features import LogMel
from pipeline.filterbank import mel_filterbank
from pipeline.sound_files import reason_of
from train.precision import autocast
from train.world import World

Item = TypeVar("Item")
Said = TypeVar("Said")
_AHEAD = 3  # batches whose features are under way


@dataclasses.dataclass
class Judged:
    """What all members said of some files."""

    probs: np.ndarray
    """[shape=(members, views, n, classes), dtype=float32]; zero where the file could not be judged."""
    errors: list[str]
    """Per file, why it could not be judged, or the empty string."""
    cropped: int = 0
    """How many files are longer than a clip, and were judged by their loudest one."""


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of successive items, as ``itertools.batched`` of Python 3.12 makes them."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def judge_in_shares(
    members: Sequence[Member],
    paths: Sequence[str],
    group: int,
    views: Sequence[Callable],
    world: World,
    judge_groups: Callable[["Judge", Iterable[list[str]]], Iterable[Said]],
) -> list[Said]:
    """What is said of groups of files, in order and on every rank: each rank judges its share.

    The groups go round the ranks. Each holds the same files whatever the number of ranks, and so gets the same answer.

    Parameters
    ----------
    paths : the same on every rank
    group : files in a group
    views : of each clip
    judge_groups : called with a judge and this rank's groups; gives one answer per group
    """
    groups, ranks, said = list(batched(paths, group)), world.world_size, []
    with contextlib.closing(Judge(members, views, world.device)) as judge, progress_bar(world) as show:
        for answer in judge_groups(judge, groups[world.rank :: ranks]):
            said.append(answer)
            show(min(len(said) * ranks * group, len(paths)), len(paths))
    shares = world.gather(said)
    return [shares[number % ranks][number // ranks] for number in range(len(groups))]


def describe_cropped(count: int, members: Sequence[Member]) -> str:
    """In words, how many files were judged by their loudest clip; empty where none was."""
    clip = f"{members[0].config.clip_seconds:g} s"
    return f"{counted(count, 'recording')} longer than {clip}: judged by the loudest {clip}" if count else ""


class Judge:
    """Members and views, ready to judge batches of files.

    Parameters
    ----------
    members : at least one
    views : functions of `infer.views`
    device : of the members
    """

    def __init__(self, members: Sequence[Member], views: Sequence[Callable], device: torch.device) -> None:
        self.members, self.views, self.device = list(members), list(views), device
        self.classes = self.members[0].classes
        configs = dict.fromkeys(member.config.view_config for member in self.members)
        self._filters = {config: mel_filterbank(config) for config in configs}
        threads = torch.get_num_threads()
        self._local = threading.local()
        count = usable_cores()
        self._pool = ThreadPoolExecutor(count, "features", initializer=self._start_thread)
        all_there = threading.Barrier(count)  # a thread that began later would set torch's threads for all again
        list(self._pool.map(lambda _: all_there.wait(), range(count)))
        torch.set_num_threads(threads)

    def judge(self, batches: Iterable[Iterable[str | np.ndarray]]) -> Iterator[Judged]:
        """Yield the judgement of batches, in order, in constant memory.

        Parameters
        ----------
        batches : of paths of files, or of clips [shape=(samples,), dtype=float32] at the members' one rate and length
        """
        waiting: collections.deque[list[Future]] = collections.deque()
        for batch in batches:
            waiting.append([self._pool.submit(self._features, item) for item in batch])
            if len(waiting) > _AHEAD:
                yield self._judge(waiting.popleft())
        while waiting:
            yield self._judge(waiting.popleft())

    def _judge(self, batch: list[Future]) -> Judged:
        featured, cropped = zip(*(future.result() for future in batch), strict=True)
        return dataclasses.replace(self._forward(featured), cropped=sum(cropped))

    def close(self) -> None:
        """End the feature threads."""
        self._pool.shutdown(cancel_futures=True)

    def _start_thread(self) -> None:
        torch.set_num_threads(1)
        self._local.log_mels = [LogMel(*pair) for pair in self._filters.items()]

    def _features(self, item: str | np.ndarray) -> tuple[tuple[list[torch.Tensor], str], bool]:
        """Per configuration the views' features (views, n_mels, n_frames) float16, the error or ""; whether cropped."""
        results, cropped = [], False
        for log_mel in self._local.log_mels:
            try:
                clip = read_clip(item, log_mel.config) if isinstance(item, str) else Clip(item)
            except (InputError, OSError) as error:
                return ([], reason_of(error)), False
            cropped = clip.cropped
            out = torch.empty(len(self.views), log_mel.config.n_mels, log_mel.config.n_frames, dtype=torch.float16)
            log_mel([view(clip.samples) for view in self.views], out.unbind())
            results.append(out)
        return (results, ""), cropped

    @torch.inference_mode()
    def _forward(self, featured: Sequence[tuple[list[torch.Tensor], str]]) -> Judged:
        errors = [error for _, error in featured]
        good = [index for index, error in enumerate(errors) if not error]
        probs = np.zeros((len(self.members), len(self.views), len(errors), len(self.classes)), np.float32)
        for number, config in enumerate(self._filters):
            if not good:
                break
            stacked = torch.stack([featured[index][0][number] for index in good], dim=1)  # (views, n, mels, frames)
            x = stacked.to(self.device, non_blocking=True).float().flatten(0, 1)[:, None]
            for index, member in enumerate(self.members):
                if member.config.view_config == config:
                    with autocast(self.device, member.dtype):
                        logits = member.model(x.contiguous(memory_format=member.memory_format))
                    judged = (logits.float() / member.temperature).softmax(dim=1)
                    judged = torch.where(logits.isfinite().all(dim=1, keepdim=True), judged, torch.nan)
                    probs[index][:, good] = judged.unflatten(0, stacked.shape[:2]).cpu().numpy()
        return self._without_nan(Judged(probs, errors))

    def _without_nan(self, judged: Judged) -> Judged:
        """Turn what is no number, such as the sum of an overflow, into errors."""
        unsound = np.isnan(judged.probs).any(axis=(1, 3))  # (members, n)
        for clip in np.flatnonzero(unsound.any(axis=0)).tolist():
            member = self.members[int(unsound[:, clip].argmax())]
            dtype = member.dtype and str(member.dtype).removeprefix("torch.")
            lower = f" in {dtype}; try --amp off" if dtype else ""
            judged.errors[clip] = f"{member.name}: logits that are not finite{lower}"
            judged.probs[:, :, clip] = 0
        return judged
