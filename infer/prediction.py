"""Predicting: blocks of files, divided over the ranks, each finished on disk before the next."""

import csv
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.files import exclusive_lock, write_atomic
from infer.engine import Judge
from infer.ensemble import ENSEMBLES
from infer.inputs import Recordings, cached_test_split, list_recordings
from infer.members import Member, load_members
from infer.options import PredictOptions
from infer.views import first_views
from train.checkpoint import load_arrays, save_arrays
from train.world import World

_BLOCK = 512  # files


def predict(options: PredictOptions, world: World, progress) -> tuple[int, int]:
    """Judge all recordings and write the tables.

    Parameters
    ----------
    progress : called on rank 0 with (files done by this rank, files of this rank)

    Returns
    -------
    (files, files that could not be read)
    """
    members = load_members(options.run_folders, options.folds, world.device)
    recordings = _recordings(options, members, world)
    output = Path(options.output)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    parts = output.with_name(f".{output.name}.parts")
    busy = f"{output}: another prediction writes here; wait for it, or choose another --output"
    if world.speaks:
        _prepare(parts, _job_digest(options, members, recordings), keep=options.resume)
    world.barrier()
    blocks = range(0, len(recordings.paths), _BLOCK)
    mine = [number for number in range(len(blocks)) if number % world.world_size == world.rank]
    with exclusive_lock(parts / f"lock-{world.rank}", busy=busy):
        judge = Judge(members, first_views(options.tta), world.device)
        combine = ENSEMBLES[options.ensemble]
        for done, number in enumerate(mine):
            path = parts / f"{number:06d}.npz"
            if not path.exists():
                paths = recordings.paths[blocks[number] : blocks[number] + _BLOCK]
                judged = list(judge.judge(paths, options.batch_size))
                probs = np.concatenate([combine(batch.probs) for batch in judged])
                save_arrays(path, probs=probs, errors=np.array([error for batch in judged for error in batch.errors]))
            if world.speaks:
                progress(min((done + 1) * _BLOCK * world.world_size, len(recordings.paths)), len(recordings.paths))
        judge.close()
    world.barrier()
    if not world.speaks:
        return 0, 0
    bad = _write_tables(options, recordings, members[0].classes, parts, len(blocks))
    shutil.rmtree(parts)
    return len(recordings.paths), bad


def _recordings(options: PredictOptions, members: list[Member], world: World) -> Recordings:
    if options.input == "data/test" and not Path(options.input).exists():
        recordings = cached_test_split(members, options.cache_dir)
        if world.speaks:
            print(
                f"data/test does not exist: judging the cache's test split, {len(recordings.paths)} clips", flush=True
            )
        return recordings
    return list_recordings(options.input)


def _job_digest(options: PredictOptions, members: list[Member], recordings: Recordings) -> str:
    """Identifies what a part belongs to: files, members and settings."""
    digest = hashlib.sha256("\n".join(recordings.paths).encode("utf-8", "surrogateescape"))
    for member in members:
        status = member.path.stat()
        digest.update(f"{member.path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    digest.update(f"{options.tta} {options.ensemble}".encode())
    return digest.hexdigest()


def _prepare(parts: Path, job: str, *, keep: bool) -> None:
    """Make the folder of finished blocks; blocks of another job, or without --resume, are dropped."""
    note = parts / "job"
    if parts.exists() and not (keep and note.exists() and note.read_text() == job):
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    write_atomic(note, job.encode())


def _write_tables(options: PredictOptions, recordings: Recordings, classes: list[str], parts: Path, blocks: int) -> int:
    """Write predictions.csv and the probabilities in input order; returns the number of unreadable files."""
    table, matrix = io.StringIO(), io.StringIO()
    writer, matrix_writer = csv.writer(table, lineterminator="\n"), csv.writer(matrix, lineterminator="\n")
    writer.writerow(["file", "label", "confidence", "error"])
    matrix_writer.writerow(["file", *classes])
    bad = position = 0
    for number in range(blocks):
        arrays = load_arrays(parts / f"{number:06d}.npz")
        for probs, error in zip(arrays["probs"], arrays["errors"].tolist(), strict=True):
            name = recordings.names[position]
            position += 1
            if error:
                bad += 1
                writer.writerow([name, "", "", error])
                matrix_writer.writerow([name] + [""] * len(classes))
                continue
            best = int(probs.argmax())
            writer.writerow([name, classes[best], f"{probs[best]:.4f}", ""])
            matrix_writer.writerow([name, *(f"{value:.6f}" for value in probs.tolist())])
    write_atomic(Path(options.output), table.getvalue().encode("utf-8", "surrogateescape"))
    if options.probabilities:
        write_atomic(Path(options.probabilities), matrix.getvalue().encode("utf-8", "surrogateescape"))
    return bad
