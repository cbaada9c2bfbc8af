"""The training loop of one fold: step, validate, checkpoint, resume.

Everything that a step draws (order, views, augmentation, dropout) is a pure function of (seed, step, rank), so a run
continues from any step as if it had never stopped.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cache.cli import InputError
from cache.index import Cache
from train.augment import batch_augment, default_mixup
from train.data import Batches, judge_clips
from train.folds import Fold
from train.losses import LOSSES, class_weights, keep_hardest, soft_targets
from train.models import flatten_buffers, untrained_model
from train.options import TrainOptions
from train.precision import FORMATS, autocast, choose_memory_format, device_name, training_dtype
from train.teacher import Lessons
from train.world import World

# DDP's flag for not broadcasting BatchNorm's statistics in every step, and its name before torch 2.13
_SYNC = "forward_sync_buffers"
_SYNC = _SYNC if _SYNC in inspect.signature(DistributedDataParallel).parameters else "broadcast_buffers"
MAX_SKIPPED = 20  # steps in a row without a finite gradient, after which a run stops; fp16's scale settles in fewer


def lr_at(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Learning rate of a step: linear warm-up to `peak`, then a cosine to zero (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Trainer:
    """Model, optimiser and moving average of one fold on one rank, and the step that advances them.

    Parameters
    ----------
    options : the command's flags
    world : this rank
    cache : the opened cache
    fold : its clips
    lessons : what a teacher says of them, where there is one
    """

    def __init__(
        self, options: TrainOptions, world: World, cache: Cache, fold: Fold, lessons: Lessons | None = None
    ) -> None:
        if lessons:
            training = np.concatenate([fold.training, lessons.unlabelled])
            cache, fold = lessons.cache, dataclasses.replace(fold, training=training)
        self.world, self.cache, self.fold = world, cache, fold
        self.batches = Batches(world, cache, fold.training, options.batch_size, options.seed, options.resident)
        self.steps_per_epoch = len(fold.training) // options.batch_size
        self.total_steps = options.epochs * self.steps_per_epoch
        if options.mixup is None:
            heard = self.total_steps * options.batch_size / len(cache.classes)
            options = dataclasses.replace(options, mixup=default_mixup(heard))
        self.options = options
        self.step = 0
        if options.loss not in LOSSES:
            raise InputError(f"unknown loss {options.loss!r}; known: {', '.join(LOSSES)}")
        self._loss = LOSSES[options.loss]
        device = world.device
        targets, classes = cache.clips["target"].astype(np.int64), len(cache.classes)
        self._targets = torch.from_numpy(targets).to(device)
        self._weights = self._taught = None
        if options.balance:
            clips = np.bincount(targets[fold.training], minlength=classes)
            self._weights = torch.from_numpy(class_weights(clips, options.balance)).to(device)
        if lessons:
            self._taught, self._teacher_share = (torch.from_numpy(x).to(device) for x in (lessons.probs, lessons.share))
        self.taught = lessons and lessons.digest
        torch.manual_seed(options.seed)
        size = (cache.config.n_mels, cache.config.n_frames)
        model = untrained_model(options, cache, world)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self.dtype = training_dtype(options, model, world, size)
        self.memory_format = choose_memory_format(options, model, world, size, self.dtype)
        self.model = model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]  # torch takes both
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True) if options.ema else None
        self._buffers = flatten_buffers(self.model, device)
        self._buffers_before = self._buffers.clone()
        self._eval_buffers = flatten_buffers(self.ema.module, device) if self.ema else self._buffers
        groups = param_groups_weight_decay(self.model, options.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
        scale = 2.0**16 if self.dtype == torch.float16 else 1.0
        self.scaler = torch.amp.GradScaler(device.type, init_scale=scale)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        if world.world_size > 1:
            world.broadcast(self._buffers)  # once here and in validate(), not in every step
            settings: dict[str, Any] = {"device_ids": [device.index] if device.type == "cuda" else None, _SYNC: False}
            distributed = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **settings)
            if options.compress_gradients:
                distributed.register_comm_hook(None, fp16_compress_hook)
            self._forward = distributed
        if options.compile:
            self._forward = torch.compile(self._forward)
        self._generator = torch.Generator(device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # losses, correct, clips of the epoch
        self.skipped = torch.zeros(2, dtype=torch.float64, device=device)  # steps in all, in a row
        self._seen = torch.zeros(5, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, counted from 0: how many are done."""
        return self.step // self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        warmup = min(round(self.options.warmup_epochs * self.steps_per_epoch), self.total_steps // 2)
        return lr_at(step, total=self.total_steps, warmup=warmup, peak=self.options.lr)

    def train_step(self, features: torch.Tensor, clips: torch.Tensor) -> None:
        """One optimiser step; nothing in it waits for the device.

        Where a gradient is not finite on any rank, weights and BatchNorm statistics stay as they were on all of them.

        Parameters
        ----------
        features : torch.Tensor [shape=(batch, 1, n_mels, n_frames), dtype=float16]
        clips : torch.Tensor [shape=(batch,), dtype=int64], indices into the clip table
        """
        self._seed_step()
        targets = self._targets[clips]
        x, y = features.float(), soft_targets(targets, len(self.cache.classes), self.options.label_smoothing)
        if self._taught is not None:
            y = torch.lerp(y, self._taught[clips], self._teacher_share[clips])
        x, y = batch_augment(x, y, self._generator, self.options)
        x = x.contiguous(memory_format=self.memory_format)
        learning_rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._buffers_before.copy_(self._buffers)
        with autocast(self.world.device, self.dtype):
            logits = self._forward(x)  # (batch, classes)
        losses = self._loss(logits.float(), y)
        if self._weights is not None:
            losses = losses * (y @ self._weights)
        loss = keep_hardest(losses, self.options.ohem)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        taken = next(iter(self.optimizer.state.values()))["step"]  # the fused optimiser counts only the steps it took
        skipped = self.step + 1 - taken > self.skipped[0]
        self.scaler.update(None if self.dtype == torch.float16 else 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        torch.where(skipped, self._buffers_before, self._buffers, out=self._buffers)
        correct = (logits.detach().argmax(dim=1) == targets).double().sum()
        seen = torch.stack([losses.detach().double().sum(), correct, torch.full_like(correct, len(losses))])
        self.sums += torch.where(skipped, 0.0, seen)
        self.skipped[0] += skipped
        self.skipped[1] = (self.skipped[1] + 1) * skipped
        if self.ema:
            self.ema.update(self.model, self.step + 1)
        self.step += 1

    def peek(self) -> list[float]:
        """Sums and skipped steps as of a few steps ago, without waiting for the device.

        Returns
        -------
        list : losses, correct, clips of this rank's epoch; skipped steps in all, in a row
        """
        if self._copied is None or self._copied.query():
            seen = self._seen.tolist()
            self._seen.copy_(torch.cat([self.sums, self.skipped]), non_blocking=True)
            if self.world.device.type == "cuda":
                self._copied = torch.cuda.current_stream().record_event()
            self._peeked = seen if self.world.device.type == "cuda" else self._seen.tolist()
        return self._peeked

    def _seed_step(self) -> None:
        """Seed what the model draws (dropout, drop path) and, differently, what the augmentation draws."""
        entropy = np.random.SeedSequence([self.options.seed, self.step, self.world.rank])
        model, augmentation = (entropy.generate_state(2, np.uint64) >> 1).tolist()
        torch.manual_seed(model)
        self._generator.manual_seed(augmentation)

    def validate(self) -> dict[str, np.ndarray] | None:
        """Judge every held-out clip once, by the moving average of the weights, over all ranks.

        Returns
        -------
        dict on rank 0, else None : ``clip`` (n,) indices into the clip table, ``logits`` (n, classes) float32,
            ``target`` (n,) int64, sorted by clip

        Raises
        ------
        InputError : on all ranks, where a logit is not finite (names the clip); a shard of the cache was cut short
        """
        model = self.eval_model().eval()
        self.world.broadcast(self._eval_buffers)  # BatchNorm's statistics: each rank has seen other clips
        clips, local = self.fold.validation, self.world.local_batch_size(self.options.batch_size)

        def judge(x: torch.Tensor) -> torch.Tensor:
            return model(x.contiguous(memory_format=self.memory_format))

        with autocast(self.world.device, self.dtype):
            logits = judge_clips(judge, len(self.cache.classes), self.cache, clips, local, self.world)
        self.model.train()
        self._refuse(clips[~np.isfinite(logits).all(axis=1)])
        if not self.world.is_main:
            return None
        return {"clip": clips, "logits": logits, "target": self.cache.clips["target"][clips].astype(np.int64)}

    def _refuse(self, clips: np.ndarray) -> None:
        """End the run where held-out clips have logits that are not finite: no figure of theirs would be right."""
        if not len(clips):
            return
        damaged = clips[~np.isfinite(self.cache.gather(clips, 0)).all(axis=(1, 2))]
        name = self.cache.clips["clip_id"][[*damaged, *clips][0]].decode()
        if len(damaged):
            raise InputError(
                f"{self.cache.folder}: the features of {name} are not finite; look for damage with "
                f"python -m cache.verify --cache-dir {self.cache.folder}, and build the cache again"
            )
        precision = str(self.dtype or torch.float32).removeprefix("torch.")
        raise InputError(
            f"{name}: the logits of this and {len(clips) - 1} other held-out clips are not finite in {precision} after "
            f"step {self.step}; train under another --name with a lower --lr, or --amp off"
        )

    def eval_model(self) -> torch.nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def placement(self) -> dict[str, str]:
        """The device's name, and the memory format that was chosen for the model on it."""
        (memory_format,) = (name for name, chosen in FORMATS.items() if chosen == self.memory_format)
        return {"device": device_name(self.world.device), "memory_format": memory_format}

    def state(self) -> dict[str, Any]:
        """Everything that continues the run, as tensors and plain types; call on all ranks."""
        return {
            "step": self.step,
            "world_size": self.world.world_size,
            "threads": torch.get_num_threads(),
            "taught": self.taught,
            "memory_format": self.placement["memory_format"],
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "amp": str(self.dtype),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped.cpu(),
            "sums": self.world.gather(self.sums.cpu()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("amp") == str(self.dtype):  # else it is another device's, and so is its scale
            self.scaler.load_state_dict(state["scaler"])
        self.skipped.copy_(state["skipped"])
        sums = state["sums"]
        if len(sums) == self.world.world_size:
            self.sums.copy_(sums[self.world.rank])
        else:  # another number of ranks: rank 0 carries the epoch's sums on
            self.sums.copy_(torch.stack(sums).sum(dim=0) if self.world.is_main else torch.zeros_like(self.sums))
