"""Time the models of the experiments' group "frontier" and draw accuracy against forward passes per second.

python -m tests.bench.frontier     (after python -m tests.bench.experiments --group frontier)
"""

import dataclasses
import json
import math
import statistics
import time
from html import escape
from pathlib import Path

from cache.cli import InputError, command, flag
from tests.bench.experiments import EXPERIMENTS

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 420, 60, 50, 30, 150
BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of ``python -m tests.bench.frontier``."""

    results: str = flag("docs/experiments.json", "figures of the experiments; the speeds are added")
    picture: str = flag("docs/frontier.svg", "where the picture goes")
    rounds: int = flag(5, "rounds, of which medians are taken")


@command(Options)
def main(options: Options) -> int:
    """Time every model that has an accuracy, in turns, and draw."""
    return run(options)


def run(options: Options) -> int:
    """Measure, keep the speeds beside the accuracies, and write the picture."""
    path = Path(options.results)
    results = json.loads(path.read_text())
    rows = [e for e in EXPERIMENTS if e.group == "frontier" and f"{e.name}/0" in results]
    found = {e.name: [results[key] for seed in range(e.seeds) if (key := f"{e.name}/{seed}") in results] for e in rows}
    if not found:
        raise InputError("no accuracies yet: python -m tests.bench.experiments --group frontier")
    speeds = forward_speeds(list(found), options.rounds)
    for name, speed in speeds.items():
        results[f"{name}/0"]["clips_per_second"] = round(speed, 1)
    path.write_text(json.dumps(results, indent=1) + "\n")
    points = [(name, speeds[name], statistics.mean(entry["accuracy"] for entry in found[name])) for name in found]
    Path(options.picture).write_text(draw(points))
    for name, speed, accuracy in sorted(points, key=lambda point: -point[1]):
        print(f"{name:28} {speed:8.1f} clips/s  {accuracy:.4f}")
    return 0


def forward_speeds(names: list[str], rounds: int) -> dict[str, float]:
    """Clips per second of each model's forward pass: one thread, or the GPU where there is one."""
    import torch

    from train.models import create_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    models = {}
    for name in names:
        model, size = name.rsplit("-", 1)
        mels, _, frames = size.partition("x")
        shape = int(mels), int(frames or mels)
        models[name] = create_model(model, 30, shape).eval().to(device), torch.randn(BATCH, 1, *shape, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, (network, x) in models.items():
                started = time.perf_counter()
                network(x).cpu()
                seconds[name].append(time.perf_counter() - started)
    return {name: BATCH / statistics.median(values[1:]) for name, values in seconds.items()}


def draw(points: list[tuple[str, float, float]]) -> str:
    """An SVG of accuracy over speed (logarithmic), with the models that no other beats in both joined by a line."""
    speeds, accuracies = [point[1] for point in points], [point[2] for point in points]
    slow, fast = math.log10(min(speeds)) - 0.1, math.log10(max(speeds)) + 0.1
    grid = 0.1 if max(accuracies) - min(accuracies) > 0.2 else 0.02
    low, high = math.floor(min(accuracies) / grid) * grid, math.ceil(max(accuracies) / grid) * grid

    def place(speed: float, accuracy: float) -> tuple[float, float]:
        x = LEFT + (math.log10(speed) - slow) / (fast - slow) * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - (accuracy - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    best = [p for p in points if not any(q[1] >= p[1] and q[2] > p[2] for q in points)]
    line = " ".join("{},{}".format(*place(speed, accuracy)) for _, speed, accuracy in sorted(best, key=lambda p: p[1]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<polyline points="{line}" fill="none" stroke="#2a7de1" stroke-width="2"/>',
    ]
    for step in range(round((high - low) / grid) + 1):
        x, y = place(10**slow, low + grid * step)
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end" fill="#555">{low + grid * step:.2f}</text>')
        parts.append(f'<line x1="{x}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e4e4e4"/>')
    for value in (mantissa * 10**power for power in range(5) for mantissa in (1, 2, 5)):
        if slow <= math.log10(value) <= fast:
            x, y = place(value, low)
            parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle" fill="#555">{value}</text>')
    labels: list[tuple[float, float]] = []
    for name, speed, accuracy in points:
        x, y = place(speed, accuracy)
        heights = (y + 4 + sign * shift for shift in range(0, HEIGHT, 13) for sign in (-1, 1))
        near = [other for left, other in labels if abs(x - left) < 130]
        label = next(height for height in heights if all(abs(height - other) > 12 for other in near))
        labels.append((x, label))
        colour = "#2a7de1" if (name, speed, accuracy) in best else "#999"
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 7}" y="{round(label, 1)}" fill="#222">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">forward passes per second</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 12}">accuracy on held-out speakers</text></svg>')
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
