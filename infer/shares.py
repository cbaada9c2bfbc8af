"""Dividing files over the ranks: each judges its share, and every rank gets all that was said."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from infer.console import progress_bar
from infer.judge import Judge, batched
from infer.members import Member
from train.world import World

Said = TypeVar("Said")


def judge_in_shares(
    members: Sequence[Member],
    paths: Sequence[str],
    group: int,
    views: Sequence[Callable],
    world: World,
    judge_groups: Callable[[Judge, Iterable[list[str]]], Iterable[Said]],
) -> list[Said]:
    """What is said of groups of files, in order and on every rank.

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
