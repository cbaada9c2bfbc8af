"""Exporting: write the file, run it, and keep it only if it says what predict says."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch

from cache.cli import EXIT_OK, InputError, require, say
from cache.config import FeatureConfig
from cache.files import atomic_path
from infer.console import print_table
from infer.corpus import cached_test_split, unheard
from infer.ensemble import Ensemble
from infer.export.graph import WaveformEnsemble
from infer.export.onnx_file import quantise_onnx, run_onnx, write_onnx
from infer.judge import Judge, batched
from infer.members import Member, load_members, say_unfinished, shared_clip
from infer.options import ExportOptions
from infer.outputs import output_path
from infer.recordings import Recordings, list_recordings, warn_of_unread
from infer.views import first_views
from pipeline.decode import MAX_LEVEL, read_clip, reason_of

TOLERANCE = 1e-3
"""Largest difference of a probability between the exported file and predict."""


@dataclasses.dataclass(frozen=True)
class _Check:
    """The clips that a file is verified on, and what predict says of them."""

    names: list[str]
    clips: np.ndarray  # (n, samples)
    probs: np.ndarray  # (n, classes)
    targets: np.ndarray | None

    def compare(self, name: str, megabytes: str, seconds: float, probs: np.ndarray) -> tuple[str, ...]:
        """A row of the table that export prints."""
        best = probs.argmax(axis=1)
        return (
            name,
            megabytes,
            f"{len(probs) / seconds:.1f}",
            f"{np.abs(probs - self.probs).max():.1e}",
            f"{(best == self.probs.argmax(axis=1)).mean():.1%}",
            "" if self.targets is None else f"{(best == self.targets).mean():.4f}",
        )


def export(options: ExportOptions) -> int:
    """Write the exported file, print what was verified and measured, and return the exit status.

    Raises
    ------
    InputError : the extra is missing, nothing can be read, or the file differs from predict: then it is not kept
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "export")
    output = output_path(options.output, options)
    smaller = output_path(output.with_name(f"{output.stem}.int8{output.suffix}"), options) if options.int8 else None
    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    say_unfinished(members)
    ensemble = Ensemble(members, options.tta)
    network = WaveformEnsemble(members, first_views(options.tta), ensemble.temperature).eval()

    source, recordings = _recordings(options, members)
    read = _read_clips(recordings, source, options, shared_clip(members))
    verified = list(read)[:: 2 if options.int8 else 1]
    others = list(read)[1::2] or verified  # which int8 takes its ranges from
    recordings, clips = recordings.select(verified), np.stack([read[index] for index in verified])
    probs, seconds = _predict(members, ensemble, recordings.names, clips, options)
    check = _Check(recordings.names, clips, probs, _targets(recordings, members, source))
    rows = [check.compare("predict", "", seconds, probs)]

    with atomic_path(output) as temporary:
        write_onnx(network, clips.shape[1], _metadata(members, options), temporary)
        probs, row = _measure(temporary, output, check, options)
        _verify(output, probs, check)
        rows.append(row)
        if smaller:
            with atomic_path(smaller) as quantised:
                quantise_onnx(temporary, quantised, np.stack([read[index] for index in others]))
                rows.append(_measure(quantised, smaller, check, options)[1])
    header = ("", "MB", "clips/s", "largest difference", "same label", "accuracy")
    ranges = f"; int8 took its ranges from {len(others)} others" if smaller else ""
    print_table(f"CPU, {len(clips)} clips of {source}{ranges}", rows, header)
    say(f"{output}: {len(members)} members, {options.tta} views; verified")
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


def _recordings(options: ExportOptions, members: list[Member]) -> tuple[str, Recordings]:
    if options.check or Path("data/test").is_dir():
        source = options.check or "data/test"
        return source, list_recordings(source)
    try:
        return "the cache's test split", cached_test_split(members, options)
    except InputError as error:
        raise InputError(f"no recordings to verify on; name some with --check FOLDER ({error})") from None


def _read_clips(
    recordings: Recordings, source: str, options: ExportOptions, config: FeatureConfig
) -> dict[int, np.ndarray]:
    """The clips [shape=(samples,)] of --check-clips recordings, with int8 twice as many, by their index."""
    wanted = min(len(recordings.paths), options.check_clips * (2 if options.int8 else 1))
    clips, unread = {}, {}
    for index in np.linspace(0, len(recordings.paths) - 1, wanted).round().astype(int).tolist():
        try:
            clips[index] = read_clip(recordings.paths[index], config).samples
        except (InputError, OSError) as error:
            unread[recordings.names[index]] = reason_of(error)
    warn_of_unread(unread)
    if not clips:
        raise InputError(f"{source}: none of {wanted} recordings could be read; choose others with --check")
    return clips


def _predict(
    members: list[Member], ensemble: Ensemble, names: list[str], clips: np.ndarray, options: ExportOptions
) -> tuple[np.ndarray, float]:
    """What predict says of clips [shape=(n, classes)], and the seconds that it took."""
    judge = Judge(members, first_views(options.tta), torch.device("cpu"))
    started = time.perf_counter()
    judged = list(judge.judge(batched(clips, options.batch_size)))
    probs = np.concatenate([ensemble(batch.probs) for batch in judged])
    seconds = time.perf_counter() - started
    judge.close()
    for name, error in zip(names, (error for batch in judged for error in batch.errors), strict=True):
        if error:
            raise InputError(f"{name}: {error}; nothing was exported: train again, with a lower --lr or --amp off")
    return probs, seconds


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
        say(f"no accuracy is shown: {error}", error=True)
        return None
    return np.array([classes.index(label) for label in labels])


def _measure(file: Path, output: Path, check: _Check, options: ExportOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    """Run the file that becomes `output` on the clips; returns its probabilities and its row of the table."""
    run = run_onnx(file)
    run(check.clips[:1])  # the first call of a runtime takes longer
    batches = batched(check.clips, options.batch_size)
    started = time.perf_counter()
    probs = np.concatenate([run(np.stack(batch)) for batch in batches])
    seconds = time.perf_counter() - started
    if not np.isfinite(probs).all():
        worst = check.names[int(np.isnan(probs).any(axis=1).argmax())]
        raise InputError(f"{output}: not written: of {worst} it gives probabilities that are not finite")
    return probs, check.compare(output.name, f"{file.stat().st_size / 1e6:.1f}", seconds, probs)


def _verify(output: Path, probs: np.ndarray, check: _Check) -> None:
    differences = np.abs(probs - check.probs).max(axis=1)
    other = (differences > TOLERANCE) | (probs.argmax(axis=1) != check.probs.argmax(axis=1))
    if other.any():
        worst = int(differences.argmax())
        raise InputError(
            f"{output}: not written: it judges {int(other.sum())} of {len(probs)} recordings otherwise than predict; "
            f"{check.names[worst]}: a probability differs by {differences[worst]:.2g}, expected at most "
            f"{TOLERANCE}; report it with the versions of torch and onnxruntime"
        )
