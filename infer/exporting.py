"""Exporting: write the file, run it, and keep it only if it says what predict says."""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cache.cli import EXIT_OK, InputError, require
from cache.files import atomic_path
from infer.engine import Judge
from infer.ensemble import soft_vote
from infer.exported import Runner, quantise_onnx, run_onnx, run_torch, write_onnx, write_torch
from infer.inputs import Recordings, cached_test_split, list_recordings
from infer.members import Member, load_members, shared_clip
from infer.options import ExportOptions
from infer.views import first_views
from infer.waveform import WaveformEnsemble
from pipeline.decode import read_clip

TOLERANCE = 1e-3
"""Largest difference of a probability between the exported file and predict."""
_FORMATS = {"onnx": (write_onnx, run_onnx, "model.onnx"), "torch": (write_torch, run_torch, "model.pt2")}


@dataclasses.dataclass(frozen=True)
class _Check:
    """Clips, and what predict says of them."""

    source: str
    names: list[str]
    clips: np.ndarray  # (n, samples)
    probs: np.ndarray  # (n, classes)
    targets: np.ndarray | None
    clips_per_second: float

    def accuracy(self, probs: np.ndarray) -> str:
        return "" if self.targets is None else f"{(probs.argmax(axis=1) == self.targets).mean():.4f}"


def export(options: ExportOptions) -> int:
    """Write the exported file, print what was verified and measured, and return the exit status.

    Raises
    ------
    InputError : the extra is missing, nothing can be read, or the file differs from predict: then it is not kept
    """
    write, load, name = _FORMATS[options.format]
    if options.format == "onnx":
        require("onnxruntime", "export")
    output = Path(options.output or name)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    module = WaveformEnsemble(members, first_views(options.tta)).eval()
    check, calibration = _check(options, members)
    table = Table("", "clips/s", "largest difference", "same label", "accuracy", title=f"CPU, {check.source}")
    table.add_row("predict", f"{check.clips_per_second:.1f}", "", "", check.accuracy(check.probs))
    with atomic_path(output) as temporary:
        write(module, check.clips.shape[1], _metadata(members, options), temporary)
        probs = _measure(load(temporary), output.name, check, options, table)
        _verify(output, probs, check)
        if options.int8:
            smaller = output.with_name(f"{output.stem}.int8{output.suffix}")
            with atomic_path(smaller) as quantised:
                quantise_onnx(temporary, quantised, calibration)
                _measure(load(quantised), smaller.name, check, options, table)
    Console(highlight=False).print(table)
    print(f"{output}: {len(members)} members, {options.tta} views, {output.stat().st_size / 1e6:.1f} MB; verified")
    return EXIT_OK


def _metadata(members: list[Member], options: ExportOptions) -> dict[str, str]:
    config = shared_clip(members)
    return {
        "classes": json.dumps(members[0].classes, ensure_ascii=False),
        "sample_rate": str(config.sample_rate),
        "clip_seconds": str(config.clip_seconds),
        "feature_digest": ",".join(dict.fromkeys(member.config.digest for member in members)),
        "members": ",".join(member.name for member in members),
        "tta": str(options.tta),
    }


def _check(options: ExportOptions, members: list[Member]) -> tuple[_Check, np.ndarray]:
    """What the file is compared on, and other clips [shape=(n, samples)] that int8 takes its ranges from."""
    config, classes = shared_clip(members), members[0].classes
    with tempfile.TemporaryDirectory() as folder:
        source, recordings = _recordings(options, members, folder)
        wanted = min(len(recordings.paths), options.check_clips * (2 if options.int8 else 1))
        chosen = np.linspace(0, len(recordings.paths) - 1, wanted).round().astype(int).tolist()
        judge = Judge(members, first_views(options.tta), torch.device("cpu"))
        kept = chosen[::2] if options.int8 else chosen
        paths = [recordings.paths[index] for index in kept]
        started = time.perf_counter()
        judged = list(judge.judge(paths, options.batch_size))
        seconds = time.perf_counter() - started
        judge.close()
        errors = [error for batch in judged for error in batch.errors]
        good = [index for index, error in enumerate(errors) if not error]
        if not good:
            raise InputError(f"{source}: none of {len(paths)} recordings could be read; the first: {errors[0]}")
        clips = np.stack([read_clip(paths[index], config).samples for index in good])
        others = [recordings.paths[index] for index in chosen[1::2]]
        calibration = np.stack([read_clip(path, config).samples for path in others]) if others else clips
    names = [recordings.names[kept[index]] for index in good]
    try:
        targets = np.array([classes.index(label) for label in Recordings(names, names).labels(classes)])
    except InputError:  # not a folder of <label>/ folders
        targets = None
    probs = np.concatenate([soft_vote(batch.probs) for batch in judged])[good]
    return _Check(f"{len(good)} clips of {source}", names, clips, probs, targets, len(paths) / seconds), calibration


def _recordings(options: ExportOptions, members: list[Member], folder: str) -> tuple[str, Recordings]:
    """Real recordings where there are any, else signals generated into `folder`."""
    if options.check:
        return options.check, list_recordings(options.check)
    if Path("data/test").is_dir():
        return "data/test", list_recordings("data/test")
    try:
        recordings = cached_test_split(members, options.cache_dir)
        if all(Path(path).is_file() for path in recordings.paths):
            return "the cache's test split", recordings
    except InputError:
        pass
    import soundfile

    config, rng = shared_clip(members), np.random.default_rng(0)
    time_s = np.arange(config.samples) / config.sample_rate
    for number in range(options.check_clips):
        tone = np.sin(2 * np.pi * time_s * (rng.uniform(80, 2000) + rng.uniform(-500, 2000) * time_s))
        signal = tone * np.hanning(config.samples) ** rng.uniform(0, 4) + rng.uniform(0, 0.1) * rng.standard_normal(
            config.samples
        )
        soundfile.write(f"{folder}/{number:04d}.wav", 0.3 * signal, config.sample_rate)
    return "generated signals", list_recordings(folder)


def _measure(run: Runner, name: str, check: _Check, options: ExportOptions, table: Table) -> np.ndarray:
    """Run the exported file on the clips and add its row to the table; returns its probabilities."""
    run(check.clips[:1])  # the first call of a runtime takes longer
    started = time.perf_counter()
    probs = np.concatenate(
        [
            run(check.clips[first : first + options.batch_size])
            for first in range(0, len(check.clips), options.batch_size)
        ]
    )
    speed = len(probs) / (time.perf_counter() - started)
    same = (probs.argmax(axis=1) == check.probs.argmax(axis=1)).mean()
    difference = np.abs(probs - check.probs).max()
    table.add_row(name, f"{speed:.1f}", f"{difference:.1e}", f"{same:.1%}", check.accuracy(probs))
    return probs


def _verify(output: Path, probs: np.ndarray, check: _Check) -> None:
    differences = np.abs(probs - check.probs).max(axis=1)
    other = (differences > TOLERANCE) | (probs.argmax(axis=1) != check.probs.argmax(axis=1)) | np.isnan(differences)
    if other.any():
        worst = int(np.nan_to_num(differences, nan=np.inf).argmax())
        raise InputError(
            f"{output}: not written: it judges {int(other.sum())} of {len(probs)} recordings otherwise than predict; "
            f"{check.names[worst]}: a probability differs by {differences[worst]:.2g}, expected at most {TOLERANCE}; "
            "try the other --format, or report it with the versions of torch and onnxruntime"
        )
