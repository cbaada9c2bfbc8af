"""Recordings that no cache holds yet, as a cache with a run's features."""

import csv
import re
import subprocess
import sys
from pathlib import Path

from cache.cli import InputError, printable
from cache.config import FeatureConfig
from cache.find import list_caches
from cache.index import Cache
from train.stopping import ending_at_once

_FEATURES = "sample_rate clip_seconds n_fft n_mels fmin fmax top_db normalize num_views augment".split()


def build_features(audio: str, config: FeatureConfig, cache_dir: Path, *flags: str) -> Cache:
    """Build a cache of a folder of recordings, by a process of its own: training itself needs no audio library.

    Parameters
    ----------
    audio : the folder
    config : of the features
    cache_dir : where its cache folders are; those of other recordings lie elsewhere
    flags : further ones of pipeline.build_cache

    Raises
    ------
    InputError : a recording cannot be used, or whatever else the build says
    """
    values = {name: getattr(config, name) for name in _FEATURES}
    values |= {"width": config.n_frames, "win_length": config.win_length or config.n_fft}
    values |= {"audio_dir": audio, "cache_dir": cache_dir, "folds": 2, "group_by": "none"}
    command = [sys.executable, "-m", "pipeline.build_cache", "--one-label", *flags]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    with ending_at_once():
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise InputError(_describe_failure(audio, cache_dir, done.stderr))
    said = done.stdout.splitlines()  # which names the cache, beside that with other background
    cache = Cache(next(folder for folder in list_caches(cache_dir) if printable(str(folder)) in said))
    if cache.config.view_config != config.view_config:
        raise InputError(f"{audio}: this version makes other features than the run's; train the run again")
    return cache


def _describe_failure(audio: str, folder: Path, said: str) -> str:
    """Why a build failed, in one line."""
    rejected = next(folder.glob("*/rejected.csv"), None)
    if rejected and re.search("rejected; why|cannot be used", said):  # else an earlier build left it
        with open(rejected, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        such = f"{rows[0]['file']} ({rows[0]['reason']})"
        return f"{audio}: recordings that cannot be used: {len(rows)}, such as {such}; repair or remove them"
    lines = said.strip().splitlines() or ["no reason given"]
    known = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return known[-1] if known else f"{audio}: its features could not be computed ({lines[-1]})"
