"""From flags to trained folds, on one rank of any number."""

import contextlib
import dataclasses
import functools
import shlex
from collections.abc import Callable
from typing import Any

import torch

from cache.cli import InputError
from cache.index import Cache
from train.checkpoint import taking_over
from train.display import Display
from train.engine import Trainer
from train.folds import select_fold
from train.options import TrainOptions
from train.record import Record, opened_for_writing
from train.session import Session
from train.stopping import StopSignal
from train.teacher import Lessons, read_lessons
from train.trained_on import check_unheard, contents_trained_on, heard_by
from train.world import World


def train(options: TrainOptions, world: World) -> int:
    """Train the folds that the options name, in turn; returns the exit status."""
    world.local_batch_size(options.batch_size)
    folder = options.cache_folder
    cache = Cache(folder)
    if len(set(world.gather(cache.index["clips"]["checksum"]))) > 1:
        raise InputError(f"{folder}: ranks see different clip tables; was it rebuilt meanwhile? Start again")
    options = dataclasses.replace(options, n_mels=cache.config.n_mels, width=cache.config.n_frames)  # of --cache
    if len(cache.classes) < 2:
        raise InputError(f"{folder}: one label only ({cache.classes[0]}); a classifier needs two or more")
    folds = [options.fold] if options.fold != "all" else list(map(str, range(cache.index["split"]["folds"])))
    if options.weights:
        world.decide(lambda: _check_weights(options, cache, folds))
    learn = functools.cache(lambda: read_lessons(options, cache, world) if options.teacher else None)
    stop = StopSignal()
    for fold in folds:
        if status := _train_fold(options, world, cache, fold, learn, stop):
            return status
    if world.is_main:
        run = f"{options.runs_dir}/{options.run_name}"
        which = f" --run {shlex.quote(run)}" if run != f"runs/{TrainOptions().run_name}" else ""
        where = f" --cache-dir {shlex.quote(options.cache_dir)}" if options.cache_dir != "data/cache" else ""
        print(f"next: python -m infer.predict --folds {options.fold}{which}{where} --tta 4")
    return 0


def _check_weights(options: TrainOptions, cache: Cache, folds: list[str]) -> None:
    """InputError where ``--weights`` were trained on what a fold holds out that has not begun yet."""
    new = [fold for fold in folds if not (Record(options, cache, fold).folder / "last.pt").exists()]
    if new:
        check_unheard(str(options.weights), cache, [select_fold(cache, fold, options.hold_back) for fold in new])


def _train_fold(
    options: TrainOptions,
    world: World,
    cache: Cache,
    fold_name: str,
    learn: Callable[[], Lessons | None],
    stop: StopSignal,
) -> int:
    """Train one fold, or continue it, or say that it is finished.

    Parameters
    ----------
    learn : asked for what a teacher says when a fold begins

    Returns
    -------
    int : exit status; 0, or 128 + signal number after SIGTERM or Ctrl-C

    Raises
    ------
    InputError : another run is at work in the folder, the checkpoint belongs to other arguments, or the gradient stays
        non-finite; the last good checkpoint stays
    """
    fold = select_fold(cache, fold_name, options.hold_back)
    record, display = Record(options, cache, fold_name), Display(world.is_main)
    with opened_for_writing(record.folder) if world.is_main else contextlib.nullcontext():
        world.barrier()
        saved = record.load()
        steps = world.gather(saved and saved["state"]["step"])
        if len(set(steps)) > 1:
            raise InputError(
                f"{record.folder}: ranks see different checkpoints, at steps {steps}; "
                "--runs-dir must be on a file system that all hosts share"
            )
        if saved and record.finished(saved["epochs_logged"]):
            record.check_results()
            display.line(f"fold {fold_name} is finished: {record.describe_best()} ({record.folder})")
            return 0
        if saved:  # its weights replace those that the run began with
            kept = {"memory_format": saved["state"]["memory_format"], "weights": None, "pretrained": False}
            if world.device.type == "cpu" and saved["state"].get("amp") == "None":
                kept["amp"] = "off"  # a run that has begun in float32 goes on in it
            options = dataclasses.replace(options, **kept)
        lessons = learn()
        trainer = Trainer(options, world, cache, fold, lessons)
        if saved:
            if saved["state"].get("taught", trainer.taught) != trainer.taught:
                raise InputError(f"{record.folder}: --teacher says another thing than before; choose another --name")
            with taking_over(record.folder / "last.pt"):
                trainer.restore(saved["state"])
            display.line(_describe_resume(fold_name, trainer, saved["state"]))
        if world.is_main:
            heard = [saved.get("heard")] if saved else heard_by(options.weights)
            heard += [lessons.contents] if lessons else []
            record.trained_on = contents_trained_on(cache, fold.training, options.hold_back, heard)
            record.drop_metrics_after(saved["epochs_logged"] if saved else 0)
            record.write_config(world)
        del saved
        return Session(trainer, record, display).run(stop)


def _describe_resume(fold_name: str, trainer: Trainer, state: dict[str, Any]) -> str:
    line = f"fold {fold_name}: resuming at epoch {trainer.epoch + 1}, step {trainer.step}"
    ranks, threads = state["world_size"], state.get("threads", torch.get_num_threads())
    if ranks != trainer.world.world_size:
        line += f" with {trainer.world.world_size} ranks instead of {ranks}: the bits will differ"
    elif threads != torch.get_num_threads() and trainer.world.device.type == "cpu":
        line += f" with {torch.get_num_threads()} threads instead of {threads}: the bits will differ"
    return line
