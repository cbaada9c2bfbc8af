"""From flags to trained folds, on one rank of any number."""

import dataclasses
import shlex

from cache.cli import InputError
from cache.index import Cache
from train.options import TrainOptions
from train.session import train_fold
from train.stopping import StopSignal
from train.world import World


def train(options: TrainOptions, world: World) -> int:
    """Train the folds that the options name, in turn; returns the exit status."""
    world.local_batch_size(options.batch_size)
    folder = options.cache_folder
    cache = Cache(folder)
    if len(set(world.gather(cache.index["clips"]["checksum"]))) > 1:
        raise InputError(f"{folder}: ranks see different clip tables; was it rebuilt meanwhile? Start again")
    options = dataclasses.replace(options, n_mels=cache.config.n_mels, width=cache.config.n_frames)  # of --cache
    folds = range(cache.index["split"]["folds"]) if options.fold == "all" else [options.fold]
    stop = StopSignal()
    for fold in folds:
        if status := train_fold(options, world, cache, str(fold), stop):
            return status
    if world.is_main:
        run = f"{options.runs_dir}/{options.run_name}"
        which = f" --run {shlex.quote(run)}" if run != f"runs/{TrainOptions().run_name}" else ""
        where = f" --cache-dir {shlex.quote(options.cache_dir)}" if options.cache_dir != "data/cache" else ""
        print(f"next: python -m infer.predict --folds {options.fold}{which}{where} --tta 4")
    return 0
