"""The parts of training, each against a reference or its defining property."""

import math
import multiprocessing
import os
import signal
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from cache.cli import InputError, parse_flags
from cache.find import find_cache
from cache.index import Cache
from cache.memory import poisoned_memory
from tests.forked import GUARD_SECONDS, Forked, server
from tests.train_helpers import build_tiny_cache, free_port
from train import recipes
from train.augment import default_mixup, mixup, spec_augment, time_roll
from train.data import Batches, clips_of_step
from train.engine import Trainer, lr_at
from train.folds import select_fold
from train.losses import LOSSES, binary, class_weights, cross_entropy, keep_hardest, soft_targets
from train.models import create_model, fits_input, flatten_buffers, start_classifier
from train.options import TrainOptions, options_from
from train.precision import amp_dtype, find_wrong_layer, training_dtype
from train.stopping import StopSignal
from train.world import World, run_in_world

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 500), st.integers(0, 250), st.floats(1e-5, 1))
def test_learning_rate(total: int, warmup: int, peak: float) -> None:
    """It rises in equal steps to the peak, then falls along a cosine, and is positive at every step."""
    warmup = min(warmup, total // 2)
    rates = [lr_at(step, total=total, warmup=warmup, peak=peak) for step in range(total)]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[warmup] == peak
    np.testing.assert_allclose(np.diff(rates[:warmup]), peak / max(1, warmup), rtol=1e-6)
    expected = [peak / 2 * (1 + math.cos(math.pi * i / (total - warmup))) for i in range(total - warmup)]
    np.testing.assert_allclose(rates[warmup:], expected)


def test_learning_rate_is_torchs_cosine() -> None:
    """After the warm-up it is torch's CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert lr_at(step, total=50, warmup=0, peak=0.3) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 100), st.integers(1, 4), st.integers(0, 3))
def test_order_of_an_epoch(batch_size: int, extra: int, views: int, epoch: int) -> None:
    """In an epoch a clip is seen at most once, and all are but a remainder smaller than a batch."""
    training = np.arange(1000, 1000 + batch_size + extra)
    steps = len(training) // batch_size
    drawn = [clips_of_step(training, views, batch_size, 7, epoch * steps + step) for step in range(steps)]
    clips = np.concatenate([clips for clips, _ in drawn])
    assert len(np.unique(clips)) == len(clips) == steps * batch_size > len(training) - batch_size
    assert np.isin(clips, training).all()
    assert all((view >= 0).all() and (view < views).all() for _, view in drawn)


def test_remainder_is_reshuffled() -> None:
    """What one epoch leaves out comes in others, and epochs and seeds have orders of their own."""
    training = np.arange(25)
    left_out = []
    for epoch in range(20):
        seen = [clips_of_step(training, 1, 10, 0, 2 * epoch + step)[0] for step in range(2)]
        left_out.append(frozenset(training.tolist()) - frozenset(np.concatenate(seen).tolist()))
    assert frozenset.union(*left_out) == frozenset(range(25))
    assert len(set(left_out)) > 10
    assert not np.array_equal(clips_of_step(training, 1, 10, 0, 0)[0], clips_of_step(training, 1, 10, 1, 0)[0])


def test_every_view_is_drawn() -> None:
    """The view of a clip changes from epoch to epoch, over all views alike."""
    views = np.concatenate([clips_of_step(np.arange(64), 4, 64, 0, step)[1] for step in range(50)])
    counts = np.bincount(views, minlength=4)
    assert counts.min() > 0.8 * counts.mean()


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_share_a_global_batch(tiny: Path, ranks: int) -> None:
    """Batches of several ranks, one after the other, are the batches of one rank."""
    cache = Cache(find_cache(tiny, 32, 32))
    training = select_fold(cache, "0").training
    whole = Batches(World(0, 0, 1, CPU), cache, training, 10, 3).steps(0, 4)
    parts = [Batches(World(rank, rank, ranks, CPU), cache, training, 10, 3).steps(0, 4) for rank in range(ranks)]
    for (features, clips), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share for share, _ in shares]), features)
        assert torch.equal(torch.cat([share for _, share in shares]), clips)


def test_batch_that_does_not_divide() -> None:
    """The error names both numbers and the nearest batch sizes that work."""
    with pytest.raises(InputError, match=r"--batch-size 320 does not divide by 3 ranks; use --batch-size 318 or 321"):
        World(0, 0, 3, CPU).local_batch_size(320)
    with pytest.raises(InputError, match=r"use --batch-size 4$"):
        World(0, 0, 4, CPU).local_batch_size(2)


@given(st.integers(0, 2**31), st.floats(0, 0.5))
@settings(max_examples=30, deadline=None)
def test_time_roll(seed: int, share: float) -> None:
    """Each clip is rolled by a whole number of frames within the limit, and keeps its target."""
    x, y = torch.randn(6, 1, 3, 20, generator=seeded(seed)), torch.eye(6)
    rolled, same = time_roll(x, y, seeded(seed), share=share)
    assert torch.equal(same, y)
    limit = int(share * 20)
    for before, after in zip(x, rolled, strict=True):
        shifts = [shift for shift in range(-limit, limit + 1) if torch.equal(before.roll(shift, 2), after)]
        assert shifts, f"not a roll by at most {limit} frames"


@given(st.integers(0, 2**31), st.floats(0.05, 0.9))
@settings(max_examples=30, deadline=None)
def test_spec_augment(seed: int, share: float) -> None:
    """At most one band of mels and one of frames is hidden, none wider than the share; the rest is untouched."""
    x, y = torch.ones(8, 1, 30, 40), torch.eye(8)
    masked, same = spec_augment(x, y, seeded(seed), share=share)
    assert torch.equal(same, y)
    for clip in masked[:, 0]:
        for size, hidden in ((30, (clip == 0).all(dim=1)), (40, (clip == 0).all(dim=0))):
            assert hidden.sum() <= math.ceil(share * size)
            assert (hidden.int().diff() == 1).sum() <= 1, "more than one band"
        rows, columns = (clip == 0).all(dim=1), (clip == 0).all(dim=0)
        assert ((clip == 0) == (rows[:, None] | columns[None, :])).all()


def test_mixup() -> None:
    """x and y are mixed by one weight, the first clip has the larger share, and weights are Beta's upper half."""
    x = torch.arange(1000.0)[:, None, None, None].expand(1000, 1, 2, 2)
    mixed, y = mixup(x, torch.eye(1000), seeded(), alpha=0.2)
    weight = y.diagonal()
    assert (weight >= 0.5 - 1e-3).all()
    torch.testing.assert_close(y.sum(dim=1), torch.ones(1000))
    expected = weight * x[:, 0, 0, 0] + (1 - weight) * x.flip(0)[:, 0, 0, 0]
    torch.testing.assert_close(mixed[:, 0, 1, 1], expected)
    assert weight.mean() == pytest.approx(1 - betainc(1.2, 0.2, 0.5), abs=0.02)  # E max(b, 1 - b) of Beta(0.2, 0.2)


def test_mixup_follows_from_the_length_of_a_training() -> None:
    """Short trainings have none of it, long ones 0.2, and it never falls as a training gets longer."""
    assert default_mixup(1080) < 0.02, "at 0.2 it cost 1.2 points there"
    assert [default_mixup(heard) for heard in (0, 500, 2160, 5400, 53_000)] == [0, 0, 0.2, 0.2, 0.2]
    assert (np.diff([default_mixup(heard) for heard in range(0, 3000, 50)]) >= 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_torchs(smoothing: float) -> None:
    """On soft targets with smoothing they are torch's own losses, mixed targets included."""
    logits, targets = torch.randn(16, 5, generator=seeded()) * 3, torch.arange(16) % 5
    soft = soft_targets(targets, 5, smoothing)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, soft), expected)
    mixed = torch.lerp(soft, soft.flip(0), 0.3)
    torch.testing.assert_close(cross_entropy(logits, mixed), F.cross_entropy(logits, mixed, reduction="none"))
    expected = torch.stack([F.binary_cross_entropy_with_logits(a, b) * 5 for a, b in zip(logits, mixed, strict=True)])
    torch.testing.assert_close(binary(logits, mixed), expected)
    assert set(LOSSES) == {"cross_entropy", "binary"}


@given(st.integers(1, 64), st.floats(0.01, 1))
def test_ohem_keeps_a_constant_count_of_the_hardest(batch: int, keep: float) -> None:
    """The mean of the round(keep · batch) largest losses, at least one."""
    losses = torch.rand(batch, generator=seeded(batch))
    count = max(1, round(keep * batch))
    assert float(keep_hardest(losses, keep)) == pytest.approx(float(losses.sort(descending=True).values[:count].mean()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_byobnet", "resnet18", "dla60_res2next"])
def test_model_is_the_named_one(name: str) -> None:
    """The model built is timm's model of that name, for one channel and so many labels."""
    model = create_model(name, 7, (64, 64))
    extra = {"img_size": (64, 64)} if name == "test_vit" else {}
    reference = timm.create_model(name, in_chans=1, num_classes=7, **extra)
    assert model.pretrained_cfg["architecture"] == name
    assert str(model) == str(reference)
    assert model.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    "name", ["test_resnet", "dla60_res2next", "efficientnet_b0", "convnext_atto", "deit_tiny_distilled_patch16_224"]
)
def test_first_loss(name: str) -> None:
    """Training starts near a loss of ln(classes), whatever timm's own first classifier is."""
    torch.manual_seed(0)
    model, x, y = create_model(name, 30, (64, 64)).train(), torch.randn(30, 1, 64, 64), torch.arange(30)
    for at_zero, tolerance in ((False, 0.3), (True, 1e-6)):
        start_classifier(model, at_zero=at_zero)
        assert torch.nn.functional.cross_entropy(model(x), y).item() == pytest.approx(math.log(30), abs=tolerance)


def test_unknown_names_list_the_known() -> None:
    """Unknown models, tags and recipes are refused with what there is."""
    with pytest.raises(InputError, match=r"unknown model 'resnet8'; similar: .*resnet18"):
        create_model("resnet8", 2, (32, 32))
    with pytest.raises(InputError, match=r"unknown model 'test_vit.nope'; known: test_vit.r160_in1k"):
        create_model("test_vit.nope", 2, (32, 32))
    with pytest.raises(InputError, match=r"unknown recipe 'x'; known: smoke, .*dla60_res2next-224"):
        options_from({"recipe": "x"})


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": False}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_precision_on_a_cpu(able: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training takes bf16 where the CPU has instructions for it, but for depthwise convolutions; prediction never."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    expected = torch.bfloat16 if any(able.values()) else None
    for name in ("resnet10t", "dla60_res2next", "test_vit"):
        assert precision_of(name) == expected
    assert precision_of("resnet10t", amp="off") is None
    for name in ("efficientnet_b0", "convnext_atto", "mobilenetv4_conv_small"):
        assert precision_of(name) is None
    assert amp_dtype("auto", CPU) is None


def precision_of(name: str, size: int = 32, amp: str = "auto", world: World | None = None) -> torch.dtype | None:
    model = create_model(name, 2, (size, size))
    return training_dtype(TrainOptions(amp=amp), model, world or World(0, 0, 1, CPU), (size, size))


def bf16_gradient_is_wrong() -> bool:
    """Whether this CPU gets a 3x3 convolution of stride 2 over a 1x1 map wrong (see docs/design.md)."""
    conv, gradients = torch.nn.Conv2d(64, 64, 3, 2, 1), []
    with poisoned_memory():
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y = conv(torch.ones(2, 64, 1, 1))
            gradients += torch.autograd.grad(y.float().sum(), conv.weight)
    return not torch.allclose(*gradients, rtol=0.1, atol=0.1)


def test_bf16_is_only_chosen_where_it_is_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with a layer that the CPU gets wrong trains in float32 and says so; asked for, bf16 is refused."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    wrong = bf16_gradient_is_wrong()
    for name in ("test_resnet", "resnet10t", "regnety_002"):  # each ends with such a layer at 16 mels x 16 frames
        assert precision_of(name, 16) == (None if wrong else torch.bfloat16)
        assert ("float32, not bf16" in capsys.readouterr().err) == wrong
    if wrong:
        with pytest.raises(InputError, match=r"--amp bf16: .*of layer4.0.conv1 .Conv2d over 192 x 1 x 1. wrong"):
            precision_of("test_resnet", 16, "bf16")


class Unwritten(torch.nn.Linear):
    """A layer whose output in bf16 depends on memory that nobody wrote."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + torch.empty_like(y) if y.dtype == torch.bfloat16 else y


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reading_unwritten_memory_is_found(memory_format: torch.memory_format) -> None:
    """A layer that would be right whenever its memory happens to be zero is found, and named."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Flatten(), Unwritten(8 * 36, 4))
    assert find_wrong_layer(model, (8, 8), memory_format) == "2 (Unwritten over 288)"
    model[2] = torch.nn.Linear(8 * 36, 4)
    assert find_wrong_layer(model, (8, 8), memory_format) is None


@pytest.mark.parametrize("other", [(False, None), (True, "conv1")])
def test_ranks_train_in_one_precision(other: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another rank's CPU has no bf16, or gets a layer wrong, all ranks take float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    world = World(0, 0, 2, CPU)
    monkeypatch.setattr(world, "gather", lambda mine: [mine, other])
    assert precision_of("test_resnet", world=world) is None
    assert precision_of("test_resnet") is torch.bfloat16


@pytest.mark.parametrize("name", ["test_vit", "twins_svt_small"])  # refused when called, and when built
def test_input_size_that_does_not_fit(name: str) -> None:
    """A model that cannot take the cache's size is refused before any work."""
    with pytest.raises(InputError, match=f"{name} does not take 30 mels x 30 frames: .*divi"):
        fits_input(create_model(name, 2, (30, 30)), name, (30, 30))


def test_flags_win_over_recipe_over_default() -> None:
    """Precedence: explicit flag, then recipe, then default."""

    def options(*argv: str) -> TrainOptions:
        return options_from(parse_flags(TrainOptions, list(argv), prog="x", description="x"))

    assert (options().model, options().epochs) == ("dla60_res2next", 40)
    smoke = options("--recipe", "smoke")
    assert all(getattr(smoke, key) == value for key, value in recipes.RECIPES["smoke"].items())
    assert (smoke.model, smoke.weight_decay) == ("resnet10t", TrainOptions().weight_decay)
    assert options("--recipe", "smoke", "--epochs", "41").epochs == 41
    assert options("--fold", "07").fold == "7"


@pytest.mark.parametrize("flags", [{"lr": math.nan}, {"lr": -1.0}, {"seed": -1}, {"epochs": 0}, {"fold": "x"}])
def test_values_out_of_range(flags: dict) -> None:
    """A value that cannot work is refused with the flag, the value and the range."""
    with pytest.raises(InputError, match=f"--{next(iter(flags))} .*expected"):
        TrainOptions(**flags)


def test_class_weights() -> None:
    """Power 0 weighs clips alike, power 1 gives every class the same sum; the mean over clips is always one."""
    counts = np.array([195, 2100, 1000, 0])
    assert (class_weights(counts, 0.0) == 1).all()
    for power in (0.5, 1.0):
        assert class_weights(counts, power) @ counts == pytest.approx(counts.sum())
    assert np.ptp((class_weights(counts, 1.0) * counts)[:3]) < 1e-3


def test_recipes_are_options() -> None:
    """Every recipe sets flags that exist to values that are in range, and names a timm model."""
    for values in recipes.RECIPES.values():
        assert timm.is_model(TrainOptions(**values).model)


def test_flat_buffers_are_the_models() -> None:
    """A write to the flat tensor is a write to every BatchNorm statistic, and the model still computes the same."""
    torch.manual_seed(0)
    model = create_model("test_resnet", 3, (32, 32))
    x = torch.randn(4, 1, 32, 32)
    model(x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    expected = model.eval()(x)
    flat = flatten_buffers(model, CPU)
    assert torch.equal(model(x), expected)
    saved = flat.clone()
    model.train()(x)
    flat.copy_(saved)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers() if b.dtype == torch.float32)


def _waits_for_a_signal() -> None:
    stop = StopSignal()
    print("ready", flush=True)
    while not stop.number:
        time.sleep(0.01)
    print("remembered", int(stop.number), flush=True)
    time.sleep(2 * GUARD_SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_takes_its_usual_effect(number: int) -> None:
    """The first signal is remembered until the end of the step; the second one ends the process at once."""
    process = Forked(_waits_for_a_signal)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"remembered {number:d}\n"
    process.send_signal(number)
    assert process.wait() == -number


@pytest.mark.parametrize("memory", [1, 1 << 60])
def test_batches_are_the_rows_of_the_cache(tiny: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    """Batches hold the drawn view of the drawn clips, whether or not the kernel is told ahead (tiny memory)."""
    import train.data

    cache = Cache(find_cache(tiny, 32, 32))
    monkeypatch.setattr(train.data, "_physical_memory", lambda: memory)
    training = select_fold(cache, "0").training
    batches = Batches(World(0, 0, 1, CPU), cache, training, 6, 3)
    for step, (features, chosen) in enumerate(batches.steps(0, 9)):
        clips, views = clips_of_step(training, cache.config.num_views, 6, 3, step)
        rows = [
            cache.features(cache.clips["shard"][c])[cache.clips["row"][c], v] for c, v in zip(clips, views, strict=True)
        ]
        assert torch.equal(features[:, 0], torch.from_numpy(np.stack(rows)))
        assert chosen.tolist() == clips.tolist()


def _count_broadcasts(rank: int, port: int, cache_dir: str, counts: multiprocessing.SimpleQueue) -> None:
    """Body of one of two ranks: names of the collectives of three steps, and then of a validation."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in world.items()})

    def body(world: World) -> int:
        cache = Cache(find_cache(cache_dir, 32, 32))
        options = TrainOptions(model="test_resnet", batch_size=12, amp="off")
        trainer = Trainer(options, world, cache, select_fold(cache, "0"))
        batches = trainer.batches.steps(0, 6)
        for _ in range(3):  # the second one arranges the gradients' buckets anew, and broadcasts how
            trainer.train_step(*next(batches))
        for work in (lambda: [trainer.train_step(*batch) for batch in batches], trainer.validate):
            with torch.profiler.profile() as profile:
                work()
            names = [event.key for event in profile.key_averages() if event.key.startswith("gloo:")]
            counts.put((rank, names))
        return 0

    run_in_world("cpu", body)


def test_no_step_broadcasts(tmp_path: Path) -> None:
    """Steps of two ranks reduce their gradients and broadcast nothing; a validation broadcasts BatchNorm's buffers."""
    build_tiny_cache(tmp_path)
    fork = server()
    counts, port = fork.SimpleQueue(), free_port()
    ranks = [fork.Process(target=_count_broadcasts, args=(r, port, str(tmp_path / "cache"), counts)) for r in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(GUARD_SECONDS)
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [counts.get() for _ in range(4)]
    for rank in (0, 1):
        steps, validation = (names for who, names in found if who == rank)
        assert steps == ["gloo:all_reduce"]
        assert "gloo:broadcast" in validation


def test_streams_of_a_step_differ() -> None:
    """What a step draws for dropout, augmentation, the epoch's order and the views never comes from one stream."""
    trainer = types.SimpleNamespace(options=TrainOptions(), step=0, world=World(0, 0, 1, CPU), _generator=seeded())
    for trainer.step in range(3):
        Trainer._seed_step(trainer)
        assert not torch.equal(torch.rand(8), torch.rand(8, generator=trainer._generator))
        order = np.random.default_rng([0, trainer.step]).integers(0, 4, 64)
        assert not np.array_equal(clips_of_step(np.arange(64), 4, 64, 0, trainer.step)[1], order)


def test_what_a_resumed_run_changes_is_said() -> None:
    """Other ranks, or on a CPU other threads, are other bits."""
    from train.launch import _describe_resume

    trainer: Any = types.SimpleNamespace(epoch=1, step=9, world=World(0, 0, 1, torch.device("cpu")))
    threads = torch.get_num_threads()
    for state, expected in (
        ({"world_size": 1, "threads": threads}, "step 9"),
        ({"world_size": 1}, "step 9"),
        ({"world_size": 2, "threads": threads}, "with 1 ranks instead of 2: the bits will differ"),
        ({"world_size": 1, "threads": 99}, f"with {threads} threads instead of 99: the bits will differ"),
    ):
        assert _describe_resume("0", trainer, state).endswith(expected)
