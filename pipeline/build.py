"""Building a cache: scan, compare with what is there, build the difference, write the index last."""

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.files import LOCK, WORKERS_LOCK, file_lock, lies_in, remove_leftovers
from cache.index import INDEX, Cache, read_index
from pipeline import scan
from pipeline.augment import AUGMENTS, background
from pipeline.corpus import read_corpus
from pipeline.filterbank import default_n_fft, mel_filterbank
from pipeline.finish import finish, naming_rejected, plan_split
from pipeline.headers import describe_gaps, describe_loss
from pipeline.options import BuildOptions
from pipeline.provenance import Provenance, note_stamps, read_provenance
from pipeline.shard_task import ShardTask

_MARGIN = 64 << 20  # bytes that a build leaves free

Progress = Callable[[int, int, int], None]
"""Called with (clips done, rejected among them, clips to do), first with nothing done."""
Built = tuple[Cache, int, list[str], list[str]]
"""The cache, how many clips were built, and what the user should know: notes, and warnings."""


def build_cache(options: BuildOptions, progress: Progress, say: Callable[[str], None] = lambda _: None) -> Built:
    """Bring the cache of a configuration up to date with its corpus.

    Parameters
    ----------
    options : the command's flags
    progress : told how far the build is
    say : told what the user should know before it begins

    Raises
    ------
    InputError, OSError : nothing already built is lost; the next build continues
    """
    audio_dir = Path(options.audio_dir)
    config = feature_config(options)
    corpus = read_corpus(options)
    listing = corpus.clips
    folder = Path(options.cache_dir) / config.folder_name
    if lies_in(folder, [audio_dir]) or lies_in(audio_dir, [folder]):
        raise InputError(f"{folder} and the corpus {audio_dir} must lie apart; choose another --cache-dir")
    with _writing(folder):
        provenance = read_provenance(folder, config)
        if len(provenance.clips) and not np.isin(listing["clip_id"], provenance.clips["clip_id"]).any():
            raise InputError(
                f"{folder}: holds another corpus, or other clips of it, than {audio_dir} and these flags; use those it "
                "was built with, or another --cache-dir"
            )
        known = provenance.match(listing, audio_dir)
        note_stamps(folder, listing, known)
        new = known["sha256"] == b""  # or the system refused to read it, as for want of permission: worth another try
        usable = new | (known["reason"] == b"")
        earlier = None
        try:
            earlier = Cache(folder, check_shards=False)
        except InputError as error:  # there is none, or it cannot be read
            if (folder / INDEX).exists():
                say(f"{error}; so its folds are made anew: train again what was trained on others")
        with naming_rejected(int((~usable).sum()), folder):
            plan_split(options, listing[usable], known[usable], earlier, corpus.folds)
        todo = listing[new]
        for note in describe_loss(todo["clip_id"], options, config):
            say(note)
        _check_space(folder, config, len(todo))
        built = _build_shards(plan_shards(folder, config, todo, provenance, options), options, len(todo), progress)
        found = finish(options, config, folder, listing, earlier, corpus.folds)
        cache = Cache(folder)
    notes = [*corpus.notes, *describe_gaps(config), *found]
    if earlier and earlier.index["split"]["digest"] != cache.index["split"]["digest"]:
        notes.append("the split is another than before: train again what was trained on others")
    return cache, built, notes, corpus.warnings


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold a cache folder for writing."""
    busy = f"{folder}: another build is at work here; wait for it"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK, busy=busy):
        with file_lock(folder / WORKERS_LOCK):
            remove_leftovers(folder)  # workers of a killed build have ended: they noticed, or finished a shard
        try:
            yield
        finally:
            remove_leftovers(folder)


def _build_shards(tasks: list[ShardTask], options: BuildOptions, total: int, progress: Progress) -> int:
    """Run the tasks; returns the number of clips that have rows now."""
    from pipeline.pool import run_tasks

    built = rejected = 0
    progress(0, 0, total)
    for _, clips, refused in run_tasks(tasks, jobs=options.jobs, backend=options.backend, scheduler=options.scheduler):
        built, rejected = built + clips, rejected + refused
        progress(built, rejected, total)
    return built - rejected


def feature_config(options: BuildOptions) -> FeatureConfig:
    """The FeatureConfig that some flags mean for a corpus; checks the filterbank."""
    augmented = options.num_views > 1 and options.augment != "none"
    mixes = augmented and background in AUGMENTS[options.augment]
    config = FeatureConfig(
        **{key: getattr(options, key) for key in ("sample_rate", "clip_seconds", "fmin", "top_db", "normalize")},
        fmax=options.sample_rate / 2 if options.fmax is None else options.fmax,
        n_mels=options.n_mels,
        n_frames=options.width or options.n_mels,
        num_views=options.num_views if augmented else 1,
        augment=options.augment if augmented else "none",
        noise=scan.noise_digest(scan.noise_files(Path(options.audio_dir))) if mixes else "",
        seed=options.seed,
    )
    n_fft = default_n_fft(config) if options.n_fft is None else options.n_fft
    config = dataclasses.replace(config, n_fft=n_fft, win_length=options.win_length or 0)
    mel_filterbank(config)
    return config


def plan_shards(
    folder: Path, config: FeatureConfig, todo: np.ndarray, provenance: Provenance, options: BuildOptions
) -> list[ShardTask]:
    """Cut the clips to build into shards, which take the lowest free numbers.

    An interrupted plan is cut into the same shards again: finished ones hold whole pieces of it. Numbers that an
    older index lists are not free: were one reused and this build interrupted, that index would list other rows.
    """
    used, size = set(provenance.shards), options.clips_per_shard
    with contextlib.suppress(InputError):
        used.update(shard["number"] for shard in read_index(folder)["shards"])
    free = (number for number in itertools.count() if number not in used)
    folder, audio_dir, filters = folder.absolute(), Path(options.audio_dir).absolute(), mel_filterbank(config)
    return [
        ShardTask(folder, next(free), audio_dir, config, filters, todo[first : first + size])
        for first in range(0, len(todo), size)
    ]


def _check_space(folder: Path, config: FeatureConfig, clips: int) -> None:
    needed = clips * 2 * int(np.prod(config.row_shape)) + _MARGIN
    free = shutil.disk_usage(folder).free
    if clips and needed > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free; "
            "free some, use another --cache-dir, fewer --num-views or fewer --n-mels"
        )
