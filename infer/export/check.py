"""Exporting: write the file, run it, and keep it only if it says what predict says."""

import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cache.cli import EXIT_OK, InputError, printable, require
from cache.files import atomic_path, write_atomic
from infer.corpus import cached_test_split, unheard
from infer.ensemble import Ensemble
from infer.export.formats import Runner, quantise_onnx, run_onnx, run_torch, write_onnx, write_torch
from infer.export.graph import WaveformEnsemble
from infer.judge import Judge
from infer.members import Member, load_members, say_unfinished, shared_clip
from infer.options import ExportOptions
from infer.outputs import output_path
from infer.recordings import Recordings, list_recordings, warn_of_unread
from infer.views import first_views
from pipeline.decode import MAX_LEVEL, read_clip, reason_of

TOLERANCE = 1e-3
"""Largest difference of a probability between the exported file and predict."""
_FORMATS = {"onnx": (write_onnx, run_onnx, "model.onnx"), "torch": (write_torch, run_torch, "model.pt2")}


@dataclasses.dataclass(frozen=True)
class _Check:
    """What the file is verified on, with what predict says of it, and the table of what was measured."""

    names: list[str]
    clips: np.ndarray  # (n, samples)
    probs: np.ndarray  # (n, classes)
    targets: np.ndarray | None
    table: Table


def export(options: ExportOptions) -> int:
    """Write the exported file, print what was verified and measured, and return the exit status.

    Raises
    ------
    InputError : the extra is missing, nothing can be read, or the file differs from predict: then it is not kept
    """
    write, load, name = _FORMATS[options.format]
    for module in ("onnx", "onnxscript", "onnxruntime") if options.format == "onnx" else ():
        require(module, "export")
    output = output_path(options.output or name, options)
    small = output.with_name(f"{output.stem}.int8{output.suffix}")
    smaller = output_path(small, options) if options.int8 else None
    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    say_unfinished(members)
    ensemble = Ensemble(members, options.tta)
    module = WaveformEnsemble(members, first_views(options.tta), ensemble.temperature).eval()
    check, calibration = _check(options, members, ensemble)
    with atomic_path(output) as temporary:
        write(module, check.clips.shape[1], _metadata(members, options), temporary)
        probs = _measure(load, temporary, output.name, check, options)
        _verify(output, probs, check)
        if smaller:
            with atomic_path(smaller) as quantised:
                quantise_onnx(temporary, quantised, calibration)
                _measure(load, quantised, smaller.name, check, options)
    Console(highlight=False, markup=False, emoji=False).print(check.table)
    print(f"{output}: {len(members)} members, {options.tta} views; verified")
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
        "not_a_recording": f"NaN for every class: of a clip with a sample that is not finite or beyond {MAX_LEVEL:g}",
    }


def _check(options: ExportOptions, members: list[Member], ensemble: Ensemble) -> tuple[_Check, np.ndarray]:
    """What to verify on, and other clips [shape=(n, samples)] that int8 takes its ranges from."""
    config = shared_clip(members)
    with tempfile.TemporaryDirectory() as folder:
        source, there = _recordings(options, members, folder)
        wanted = min(len(there.paths), options.check_clips * (2 if options.int8 else 1))
        kept, unread = [], {}
        for index in np.linspace(0, len(there.paths) - 1, wanted).round().astype(int).tolist():
            try:
                kept.append((index, read_clip(there.paths[index], config).samples))
            except (InputError, OSError) as error:
                unread[there.names[index]] = reason_of(error)
    warn_of_unread(unread)
    if not kept:
        raise InputError(f"{source}: none of {wanted} recordings could be read; choose others with --check")
    read, others = (kept[::2], kept[1::2] or kept) if options.int8 else (kept, kept)
    names, clips = [there.names[index] for index, _ in read], np.stack([clip for _, clip in read])
    judge = Judge(members, first_views(options.tta), torch.device("cpu"))
    started = time.perf_counter()
    judged = list(judge.judge(clips, options.batch_size))
    probs = np.concatenate([ensemble(batch.probs) for batch in judged])
    speed = len(clips) / (time.perf_counter() - started)
    judge.close()
    for name, error in zip(names, [error for batch in judged for error in batch.errors], strict=True):
        if error:
            raise InputError(f"{name}: {error}; nothing was exported: train again, with a lower --lr or --amp off")
    targets = _targets(Recordings([there.paths[index] for index, _ in read], names), members, source)
    titles = ("", "MB", "clips/s", "largest difference", "same label", "accuracy")
    ranges = f"; int8 took its ranges from {len(others)} others" if options.int8 else ""
    table = Table(*titles, title=printable(f"CPU, {len(clips)} clips of {source}{ranges}"))
    check = _Check(names, clips, probs, targets, table)
    _add_row(check, "predict", None, speed, probs)
    return check, np.stack([clip for _, clip in others])


def _targets(recordings: Recordings, members: list[Member], source: str) -> np.ndarray | None:
    """The targets of recordings that have labels and that no member was trained on, else None."""
    classes = members[0].classes
    try:
        labels = recordings.labels(classes)
    except InputError:  # not a folder of <label>/ folders
        return None
    try:
        unheard(recordings, members, source)
    except InputError as error:
        print(printable(f"no accuracy is shown: {error}"), file=sys.stderr)
        return None
    return np.array([classes.index(label) for label in labels])


def _recordings(options: ExportOptions, members: list[Member], folder: str) -> tuple[str, Recordings]:
    """Real recordings where there are any, else signals generated into `folder`."""
    if options.check or Path("data/test").is_dir():
        source = options.check or "data/test"
        return source, list_recordings(source)
    try:
        return "the cache's test split", cached_test_split(members, options)
    except InputError as error:
        print(printable(f"no recordings to verify on: {error}"), file=sys.stderr)
    import soundfile

    config, rng = shared_clip(members), np.random.default_rng(0)
    time_s = np.arange(config.samples) / config.sample_rate
    for number in range(options.check_clips):
        tone = np.sin(2 * np.pi * time_s * (rng.uniform(80, 2000) + rng.uniform(0, 2000) * time_s))
        signal = 0.3 * tone * np.hanning(config.samples) + 0.01 * rng.standard_normal(config.samples)
        wav = io.BytesIO()
        soundfile.write(wav, signal, config.sample_rate, format="WAV")
        write_atomic(Path(folder) / f"{number:04d}.wav", wav.getvalue())
    return "generated signals", list_recordings(folder)


def _measure(
    load: Callable[[Path], Runner], path: Path, name: str, check: _Check, options: ExportOptions
) -> np.ndarray:
    """Run the exported file on the clips; returns its probabilities."""
    run = load(path)
    run(check.clips[:1])  # the first call of a runtime takes longer
    started = time.perf_counter()
    batches = np.split(check.clips, range(options.batch_size, len(check.clips), options.batch_size))
    probs = np.concatenate([run(batch) for batch in batches])
    if not np.isfinite(probs).all():
        worst = check.names[int(np.isnan(probs).any(axis=1).argmax())]
        raise InputError(f"{name}: not written: of {worst} it gives probabilities that are not finite")
    _add_row(check, name, path.stat().st_size, len(probs) / (time.perf_counter() - started), probs)
    return probs


def _add_row(check: _Check, name: str, size: int | None, speed: float, probs: np.ndarray) -> None:
    best = probs.argmax(axis=1)
    accuracy = "" if check.targets is None else f"{(best == check.targets).mean():.4f}"
    difference, same = np.abs(probs - check.probs).max(), (best == check.probs.argmax(axis=1)).mean()
    megabytes = f"{size / 1e6:.1f}" if size else ""
    check.table.add_row(name, megabytes, f"{speed:.1f}", f"{difference:.1e}", f"{same:.1%}", accuracy)


def _verify(output: Path, probs: np.ndarray, check: _Check) -> None:
    differences = np.abs(probs - check.probs).max(axis=1)
    other = (differences > TOLERANCE) | (probs.argmax(axis=1) != check.probs.argmax(axis=1))
    if other.any():
        worst = int(differences.argmax())
        raise InputError(
            f"{output}: not written: it judges {int(other.sum())} of {len(probs)} recordings otherwise than predict; "
            f"{check.names[worst]}: a probability differs by {differences[worst]:.2g}, expected at most "
            f"{TOLERANCE}; try the other --format, or report it with the versions of torch and onnxruntime"
        )
