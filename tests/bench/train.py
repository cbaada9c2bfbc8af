"""Benchmark training: the loop against its ceiling and against what it replaces, start-up, scaling.

python -m tests.bench.train
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

from cache.cli import command, flag

SECTIONS = ("loop", "rivals", "compile", "bf16", "start", "scaling", "volume")
ON_CUDA = (("dla60_res2next", 224, 320), ("res2next50", 224, 320), ("resnet18", 64, 320))  # model, size, batch
ON_CPU = (("dla60_res2next", 32, 8), ("res2next50", 32, 8), ("resnet18", 64, 16))
BF16_ON_CPU = (("dla60_res2next", 32, 64), ("resnet18", 64, 64), ("resnet10t", 32, 64))
RIVALS_ON_CPU = ("test_resnet", 64, 64)  # small, as a step is on a GPU: beside a large one no loader is ever slow


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Flags of ``python -m tests.bench.train``."""

    work: str = flag("/dev/shm", "where to work; in memory, so that the loop is measured and not the disk")
    json: str = flag("data/bench-train.json", "where the figures go")
    rounds: int = flag(15, "rounds, of which medians are taken")
    steps: int = flag(0, "steps in a turn (default: 30 on CUDA, 3 on the CPU)")
    device: str = flag("auto", "device", choices=("auto", "cpu", "cuda"))
    only: tuple[str, ...] = flag((), "section to run", type=str, action="append", choices=SECTIONS)


@command(BenchOptions)
def main(options: BenchOptions) -> int:
    """Run the sections, print the table, write the JSON; exit status 1 if a target was missed."""
    return bench(options)


def bench(options: BenchOptions) -> int:
    """Run each section in a folder of its own."""
    import torch

    from tests.bench.common import print_table, write_json

    cuda = torch.cuda.is_available() and options.device != "cpu"
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    options = dataclasses.replace(options, steps=options.steps or (30 if cuda else 3))
    if not cuda:
        torch.set_num_threads(
            1
        )  # a machine that is also used for something else stalls threads that wait for each other
    print(f"device: {torch.cuda.get_device_name() if cuda else 'CPU, one thread'}", flush=True)
    results = []
    for section in options.only or SECTIONS:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="melshard-bench-") as folder:
            results += run_section(section, Path(folder), options, device)
    print_table(results)
    write_json(Path(options.json), results)
    return int(any(result.met is False for result in results))


def run_section(section: str, work: Path, options: BenchOptions, device) -> list:
    """The figures of one section."""
    from tests.bench import train_launch, train_speed

    models = ON_CUDA if device.type == "cuda" else ON_CPU
    if section == "loop":
        return [r for model in models for r in train_speed.loop_against_ceiling(work, model, options, device)]
    if section == "rivals":
        model = models[-1] if device.type == "cuda" else RIVALS_ON_CPU
        return train_speed.against_rivals(work, model, options, device)
    if section == "compile":
        flags = ({}, {"compile": True})
        return train_speed.gain_of("--compile / plain", flags, models[-1], work, options, device)
    if section == "bf16":
        chosen, flags = ON_CUDA if device.type == "cuda" else BF16_ON_CPU, ({"amp": "off"}, {"amp": "bf16"})
        gain = functools.partial(train_speed.gain_of, "bf16 / float32", flags)
        return [result for model in chosen for result in gain(model, work, options, device)]
    if section == "start":
        return train_launch.start_up(work, options, device)
    launch = train_launch.scaling if section == "scaling" else train_launch.volume
    return launch(work, options, device)


if __name__ == "__main__":
    raise SystemExit(main())
