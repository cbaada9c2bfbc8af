"""Predicting: blocks of files, divided over the ranks, each finished on disk before the next."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np

from cache.cli import InputError, printable
from cache.files import exclusive_lock, write_atomic
from cache.tables import csv_table
from infer.corpus import cached_test_split
from infer.ensemble import Ensemble
from infer.judge import Judge
from infer.members import Member, load_alike
from infer.options import PredictOptions
from infer.outputs import output_path
from infer.predict.windows import HEADER, detection_rows, hop_samples, judge_windows
from infer.recordings import Recordings, list_recordings
from infer.views import first_views
from train.checkpoint import load_arrays, save_arrays
from train.world import World

UNKNOWN = "unknown"  # label of what is judged with less than --min-confidence


def predict(options: PredictOptions, world: World, progress) -> tuple[int, int, int]:
    """Judge all recordings and write the tables.

    Parameters
    ----------
    progress : called with (files done, files)

    Returns
    -------
    (files, files that could not be read, files judged as unknown) : the last two on rank 0
    """
    members = load_alike(options, world)
    recordings, ensemble = world.decide(
        lambda: (_recordings(options, members), Ensemble(members, options.tta, options.ensemble))
    )
    if not ensemble.calibrated and world.is_main:
        print("confidence: too modest until you run infer.calibrate with the same --run, --folds and --tta", flush=True)
    views = first_views(options.tta)
    if options.windows:
        hop_samples(members, options)
    output = _outputs(options, members[0].classes)
    parts = output.with_name(f".{output.name}.parts")
    busy = f"{output}: another prediction writes here; wait for it, or choose another --output"
    with contextlib.ExitStack() as stack:
        if world.is_main:
            parts.mkdir(exist_ok=True)
            stack.enter_context(exclusive_lock(parts / "lock", busy=busy))
            job = _job_digest(options, members, recordings, ensemble.temperature)
            kept = _keep_finished(parts, job, keep=options.resume)
            if options.resume:
                files = min(kept * options.block_files, len(recordings.paths))
                print(f"{files:,} of {len(recordings.paths):,} files are judged already by this command", flush=True)
        world.barrier()
        _judge_blocks(options, world, Judge(members, views, world.device), ensemble, recordings, parts, progress)
        world.barrier()
        bad = unknown = 0
        if world.is_main:
            bad, unknown = _write_tables(options, recordings, members[0].classes, parts)
            shutil.rmtree(parts)
    return len(recordings.paths), bad, unknown


def _judge_blocks(
    options: PredictOptions,
    world: World,
    judge: Judge,
    ensemble: Ensemble,
    recordings: Recordings,
    parts: Path,
    progress,
) -> None:
    """Judge this rank's unfinished blocks; each is finished on disk before the next."""
    total, block = len(recordings.paths), options.block_files
    for first in range(world.rank * block, total, world.world_size * block):
        path, paths = _part(parts, first), recordings.paths[first : first + block]
        if options.windows and not path.exists():
            save_arrays(path, **judge_windows(judge, ensemble, paths, options))
        elif not path.exists():
            judged = list(judge.judge(paths, options.batch_size))
            probs = np.concatenate([ensemble(batch.probs) for batch in judged])
            save_arrays(path, probs=probs, errors=np.array([error for batch in judged for error in batch.errors]))
        progress(min(first + world.world_size * block, total), total)
    judge.close()


def _outputs(options: PredictOptions, classes: list[str]) -> Path:
    """The path of the predictions; InputError where a table would replace another or what is read, or be ambiguous."""
    if options.probabilities and "file" in classes:
        raise InputError("--probabilities: its first column is called file, and so is a label; leave it out")
    if options.min_confidence and UNKNOWN in classes:
        raise InputError(f"--min-confidence writes the label {UNKNOWN}, which is a class here already; leave it out")
    tables = [output_path(path, options) for path in (options.output, options.probabilities, options.windows) if path]
    if len({os.path.realpath(path) for path in tables}) < len(tables):
        raise InputError("--output, --probabilities and --windows name the same file; name several")
    return tables[0]


def _part(parts: Path, first: int) -> Path:
    return parts / f"{first:09d}.npz"


def _recordings(options: PredictOptions, members: list[Member]) -> Recordings:
    if options.input == "data/test" and not Path(options.input).exists():
        print("data/test does not exist: judging the cache's test split", flush=True)
        return cached_test_split(members, options)
    recordings = list_recordings(options.input)
    if recordings.note:
        print(printable(recordings.note), flush=True)
    return recordings


def _job_digest(options: PredictOptions, members: list[Member], recordings: Recordings, temperature: float) -> str:
    """Identifies what a part belongs to: files, members and settings."""
    digest = hashlib.sha256()
    for path in recordings.paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            digest.update(b"%d %d " % (status.st_size, status.st_mtime_ns))
        digest.update(os.fsencode(path) + b"\n")
    for member in members:
        digest.update(member.digest.encode())
    windows = (bool(options.windows), options.hop_seconds, options.window_confidence)
    digest.update(repr((options.tta, options.ensemble, temperature, windows)).encode())
    return digest.hexdigest()


def _keep_finished(parts: Path, job: str, *, keep: bool) -> int:
    """Drop finished blocks, or keep them with --resume, but for damaged ones; returns how many there are.

    Raises
    ------
    InputError : they are to be kept, but are another job's
    """
    note, finished = parts / "job", list(parts.glob("*.npz"))
    if keep and finished and not (note.exists() and note.read_bytes() == job.encode()):
        raise InputError(
            f"{parts}: begun with other files, members or flags; use the same, or start again without --resume"
        )
    for path in finished:
        if not keep or not _is_whole(path):
            path.unlink()
    write_atomic(note, job.encode())
    return len(list(parts.glob("*.npz")))


def _is_whole(part: Path) -> bool:
    try:
        arrays = load_arrays(part)
        return arrays["probs"].ndim == 2 and arrays["errors"].shape == arrays["probs"].shape[:1]
    except (InputError, KeyError):
        return False


def _write_tables(options: PredictOptions, recordings: Recordings, classes: list[str], parts: Path) -> tuple[int, int]:
    """Write the tables in input order; returns the numbers of unreadable files and of those judged as unknown."""
    bad = unknown = 0
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(csv_table(options.output, ["file", "label", "confidence", "error"]))
        matrix = stack.enter_context(csv_table(options.probabilities, ["file", *classes]))
        windows = stack.enter_context(csv_table(options.windows, HEADER))
        for first in range(0, len(recordings.paths), options.block_files):
            arrays = load_arrays(_part(parts, first), "judge it again with --resume")
            names = recordings.names[first : first + options.block_files]
            for name, probs, error in zip(names, arrays["probs"], arrays["errors"].tolist(), strict=True):
                if error:
                    bad += 1
                    table.writerow([name, "", "", error])
                    matrix.writerow([name] + [""] * len(classes))
                    continue
                best = int(probs.argmax())
                sure = probs[best] >= options.min_confidence
                unknown += not sure
                table.writerow([name, classes[best] if sure else UNKNOWN, f"{probs[best]:.4f}", ""])
                matrix.writerow([name, *(f"{value:.6f}" for value in probs.tolist())])
            if options.windows:
                windows.writerows(detection_rows(arrays["windows"], names, classes))
    return bad, unknown
