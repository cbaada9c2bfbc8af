"""Predicting: what all ranks say of all files, written as tables by rank 0."""

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, InputError, counted, say
from cache.files import csv_table
from infer.corpus import cached_test_split
from infer.detections import thresholds_of, window_thresholds
from infer.ensemble import Ensemble
from infer.judge import Judge, describe_cropped, judge_in_shares
from infer.members import Member, load_alike
from infer.options import PredictOptions
from infer.outputs import output_path
from infer.recordings import Recordings, list_recordings
from infer.views import first_views
from infer.windows import JudgedFiles, judge_in_windows
from pipeline.wake_words import UNKNOWN
from train.world import World


def predict(options: PredictOptions, world: World) -> int:
    """Judge all recordings, write the tables and say how it went; returns the exit status."""
    started = time.monotonic()
    members = load_alike(options, world)
    recordings, ensemble = world.decide(
        lambda: (_recordings(options, members), Ensemble(members, options.tta, options.ensemble))
    )
    classes = members[0].classes
    check_outputs(options, classes)

    def judge_clips(judge: Judge, groups: Iterable[list[str]]) -> Iterable[JudgedFiles]:
        return (JudgedFiles(ensemble(said.probs), said.errors, [], said.cropped) for said in judge.judge(groups))

    if options.windows:
        least = window_thresholds(classes, options.window_confidence, ensemble.thresholds)
        judged = judge_in_windows(members, ensemble, recordings.paths, options.hop_seconds, least, options, world)
    else:
        views = first_views(options.tta)
        judged = judge_in_shares(members, recordings.paths, options.batch_size, views, world, judge_clips)
    if not world.is_main:
        return EXIT_OK
    if doubt := ensemble.describe_doubt():
        say(doubt, error=True)
    believed = thresholds_of(classes, options.min_confidence, ensemble.thresholds, 0.0)
    bad, unknown = _write_tables(options, recordings, classes, believed, judged)
    files, seconds = len(recordings.paths), time.monotonic() - started
    say(f"{options.output}: {counted(files, 'file')} judged in {seconds:.1f} s, {files / seconds:,.1f} files/s")
    if cropped := describe_cropped(sum(files.cropped for files in judged), members):
        say(f"{cropped}; --windows FILE judges all of them", error=True)
    if options.windows:
        found = sum(len(each) for files in judged for each in files.detections)
        say(f"{options.windows}: {counted(found, 'detection')}, with their times")
    if believed.any():
        below = (
            f"{options.min_confidence:g}" if options.min_confidence else f"their labels' thresholds in {ensemble.path}"
        )
        say(f"{UNKNOWN}, for their confidence is below {below}: {counted(unknown, 'file')}")
    if bad:
        say(f"{bad:,} could not be read: see the column error", error=True)
    return EXIT_INCOMPLETE if bad else EXIT_OK


def check_outputs(options: PredictOptions, classes: list[str]) -> None:
    """InputError where a table would replace another or what is read, or be ambiguous."""
    if options.probabilities and "file" in classes:
        raise InputError("--probabilities: its first column is called file, and so is a label; leave it out")
    tables = [output_path(path, options) for path in (options.output, options.probabilities, options.windows) if path]
    if len({os.path.realpath(path) for path in tables}) < len(tables):
        raise InputError("--output, --probabilities and --windows name the same file; name several")


def _recordings(options: PredictOptions, members: list[Member]) -> Recordings:
    if options.input == "data/test" and not Path(options.input).exists():
        say("data/test does not exist: judging the cache's test split")
        return cached_test_split(members, options)
    recordings = list_recordings(options.input, options)
    if recordings.note:
        say(recordings.note)
    return recordings


def _write_tables(
    options: PredictOptions,
    recordings: Recordings,
    classes: list[str],
    believed: np.ndarray,
    judged: Iterable[JudgedFiles],
) -> tuple[int, int]:
    """Write the tables in input order; returns the numbers of unreadable files and of those judged as unknown.

    Parameters
    ----------
    believed : per class the least confidence [shape=(classes,)]; what has less is unknown
    """
    bad = unknown = first = 0
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(csv_table(options.output, ["file", "label", "confidence", "error"]))
        matrix = stack.enter_context(csv_table(options.probabilities, ["file", *classes]))
        windows = stack.enter_context(csv_table(options.windows, ["file", "start_s", "end_s", "label", "confidence"]))
        for files in judged:
            names = recordings.names[first : first + len(files.errors)]
            first += len(names)
            for name, detections in zip(names, files.detections or [[]] * len(names), strict=True):
                for start, end, label, confidence in detections:
                    windows.writerow([name, f"{start:.3f}", f"{end:.3f}", label, f"{confidence:.4f}"])
            for name, probs, error in zip(names, files.probs, files.errors, strict=True):
                if error:
                    bad += 1
                    table.writerow([name, "", "", error])
                    matrix.writerow([name] + [""] * len(classes))
                    continue
                best = int(probs.argmax())
                sure = probs[best] >= believed[best]
                unknown += not sure
                table.writerow([name, classes[best] if sure else UNKNOWN, f"{probs[best]:.4f}", ""])
                matrix.writerow([name, *(f"{value:.6f}" for value in probs.tolist())])
    return bad, unknown
