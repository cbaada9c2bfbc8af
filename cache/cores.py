"""How many cores this process may use."""

import contextlib
import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Cores for the threads of this process: its affinity and its control groups' quota, shared by a host's ranks."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *quotas())) // ranks)


def quotas(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Cores' worth of time that this process's control groups grant, versions 2 and 1; infinite where unlimited."""
    found = [float("inf")]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            folder = groups / ("cpu" if controllers else "") / name.lstrip("/")
            for group in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):
                    quota, period = " ".join((group / file).read_text() for file in files).split()
                    if float(quota) > 0:  # "max", and -1 in version 1, are no limit
                        found.append(float(quota) / float(period))
    return found
