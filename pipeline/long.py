"""Recordings that are longer than a clip, cut into several."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cache.cli import InputError
from cache.clip_id import Part, split_clip_id
from cache.cores import usable_cores
from pipeline.clips import as_clips
from pipeline.options import BuildOptions
from pipeline.stream import duration_seconds

LONGER = 0.01  # of a clip's length: what is longer by less is not cut in two


def cut_long(clips: np.ndarray, options: BuildOptions) -> np.ndarray:
    """Cut what is longer than a clip into consecutive clips, the last of which ends with it.

    Clips of one recording share its speaker and so its fold; where none is known, the file's name stands for it.

    Parameters
    ----------
    clips : as in `pipeline.clips`

    Raises
    ------
    InputError : with ``--long error``, there are such recordings
    """
    length = options.clip_seconds
    spans = _spans(clips, options.audio_dir)
    long = [at for at, (_, start, end) in enumerate(spans) if end - start > (1 + LONGER) * length]
    if options.long == "error" and long:
        file, start, end = spans[long[0]]
        raise InputError(
            f"{options.audio_dir}: recordings longer than {length:g} s: {len(long):,}, such as {file} "
            f"({end - start:g} s); use --clip-seconds, --long split or --long loudest"
        )
    rows = []
    for at in long:
        file, start, end = spans[at]
        _, stamp, label, speaker, *rest = clips[at].item()
        count = math.ceil((end - start) / length - LONGER)
        for first in (*(start + number * length for number in range(count - 1)), end - length):
            name = f"{file}{Part(first, first + length)}".encode()
            rows.append((name, stamp, label, speaker or file.encode(), *rest))
    return np.concatenate([np.delete(clips, long), as_clips(rows)])


def _spans(clips: np.ndarray, audio_dir: str) -> list[tuple[str, float, float]]:
    """Of each clip its file, and where it begins and ends in it, in seconds; 0 to 0 where that cannot be read."""
    named = [split_clip_id(name.decode()) for name in clips["clip_id"].tolist()]
    files = sorted({file for file, part in named if part is None or part.end_s is None})
    with ThreadPoolExecutor(usable_cores()) as pool:
        lengths = pool.map(lambda file: duration_seconds(os.path.join(audio_dir, file)), files)
        seconds = dict(zip(files, lengths, strict=True))
    spans = []
    for file, part in named:
        start, end = (part.start_s, part.end_s) if part else (0.0, None)
        spans.append((file, start, seconds[file] if end is None else end))
    return spans
