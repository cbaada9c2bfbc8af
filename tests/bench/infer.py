"""Prediction: against its own bare forward passes, and against the loop that a user would write.

    python -m tests.bench.infer --model resnet18 --n-mels 64 --members 3

Weights are random: speed does not depend on them. On CUDA the model runs in bf16 or fp16, on the CPU in float32.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from cache.cli import AT_LEAST_1, Flags, command, flag
from cache.config import FeatureConfig
from cache.memory import keep_freed_memory
from infer.ensemble import soft_vote
from infer.judge import Judge, batched
from infer.members import Member
from infer.views import first_views
from tests.bench.common import RATE, Result, interleaved, median_ratio, print_table, write_json, write_recordings
from train.models import create_model
from train.precision import autocast, prediction_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Flags):
    """Flags of ``python -m tests.bench.infer``."""

    model: str = flag("resnet18", "a timm model")
    n_mels: int = flag(64, "mel bands", AT_LEAST_1)
    width: int | None = flag(None, "frames (default: n-mels)", type=int)
    n_fft: int = flag(2048, "samples in a frame", AT_LEAST_1)
    amp: str = flag("auto", "mixed precision of ours; the plain way is in float32", choices=("auto", "off"))
    members: int = flag(3, "members of the ensemble", AT_LEAST_1)
    tta: int = flag(4, "test-time views", AT_LEAST_1)
    clips: int = flag(256, "files to judge", AT_LEAST_1)
    batch_size: int = flag(64, "clips in a forward pass", AT_LEAST_1)
    rounds: int = flag(5, "rounds, of which medians are taken", AT_LEAST_1)


def make_members(model: str, config: FeatureConfig, count: int, device: torch.device, amp: str) -> list[Member]:
    """Untrained members of one run."""
    classes = [f"word{n}" for n in range(30)]
    members = []
    for fold in range(count):
        torch.manual_seed(fold)
        network = create_model(model, len(classes), (config.n_mels, config.n_frames))
        network = network.to(device, memory_format=torch.channels_last).eval()
        dtype = prediction_dtype(amp, network, (config.n_mels, config.n_frames), device)
        members.append(Member("run", str(fold), Path("none"), config, classes, "", 1.0, network, dtype=dtype))
    return members


def plain_loop(paths: list[str], members: list[Member], views, batch_size: int, device: torch.device) -> np.ndarray:
    """What a user would write: one model after the other, librosa per clip and view in each."""
    import librosa
    import soundfile

    config, total = members[0].config, 0
    for member in members:
        for view in views:
            probs = []
            for first in range(0, len(paths), batch_size):
                batch = []
                for path in paths[first : first + batch_size]:
                    samples, _ = soundfile.read(path, dtype="float32")
                    samples = librosa.util.fix_length(view(samples), size=config.hop_length * (config.n_frames - 1))
                    power = librosa.feature.melspectrogram(
                        y=samples, sr=RATE, n_fft=config.n_fft, hop_length=config.hop_length, n_mels=config.n_mels
                    )
                    mel = librosa.power_to_db(power, top_db=80)
                    batch.append((mel - mel.mean()) / mel.std())
                with torch.inference_mode():
                    x = torch.from_numpy(np.stack(batch)).to(device)[:, None]
                    probs.append(member.model(x).softmax(dim=1).cpu().numpy())
            total = total + np.concatenate(probs)
    return total / (len(members) * len(views))


def measure(options: Options, work: Path) -> list[Result]:
    """Interleave the three ways of judging the same files."""
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = FeatureConfig(n_mels=options.n_mels, n_frames=options.width or options.n_mels, n_fft=options.n_fft)
    members = make_members(options.model, config, options.members, device, options.amp)
    views = first_views(options.tta)
    paths = sorted(map(str, write_recordings(work / "audio", options.clips).glob("*/*.wav")))
    judge = Judge(members, views, device)
    x = torch.randn(len(views) * options.batch_size, 1, config.n_mels, config.n_frames, device=device)
    x = x.contiguous(memory_format=torch.channels_last)

    def ours() -> None:
        for judged in judge.judge(batched(paths, options.batch_size)):
            soft_vote(judged.probs)

    def forward_only() -> None:
        for _ in range(0, len(paths), options.batch_size):
            for member in members:
                with torch.inference_mode(), autocast(device, member.dtype):
                    member.model(x)
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = interleaved(
        {
            "ours": ours,
            "forward": forward_only,
            "plain": lambda: plain_loop(paths, members, views, options.batch_size, device),
        },
        options.rounds,
        on_gpu=device.type == "cuda",
    )
    judge.close()
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    setting = (
        f"{options.model} {config.n_mels}x{config.n_frames}, {options.members} members, {options.tta} views, {where}"
    )
    rate = len(paths) / sorted(seconds["ours"])[len(seconds["ours"]) // 2]
    return [
        Result(f"files judged per second: {setting}", rate, "files/s"),
        Result.at_least("share of the bare forward passes", median_ratio(seconds["forward"], seconds["ours"]), 0.97),
        Result(
            "against librosa per clip, one model after the other", median_ratio(seconds["plain"], seconds["ours"]), "x"
        ),
    ]


@command(Options)
def main(options: Options) -> int:
    """Measure, print a table, write ``build/bench-infer.json``."""
    with tempfile.TemporaryDirectory() as work:
        results = measure(options, Path(work))
    print_table(results)
    write_json(Path("build/bench-infer.json"), results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
