"""Number and memory formats: what a model computes in, on the device at hand."""

import copy
import time

import torch

from cache.cli import InputError
from train.options import TrainOptions
from train.world import World


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast type: bf16 from compute capability 8.0, fp16 below, none on a CPU unless asked for.

    ``torch.cuda.is_bf16_supported()`` is no guide: it is also true where bf16 is emulated.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        amp = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if amp == "fp16" and device.type != "cuda":
        raise InputError("--amp fp16 needs a CUDA device; use --amp bf16 or off")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def training_dtype(amp: str, model: torch.nn.Module, device: torch.device) -> torch.dtype | None:
    """The autocast type of training: :func:`amp_dtype`, but with "auto" bf16 also on a CPU with instructions for it.

    Steps then take two thirds of the time and less. Models with depthwise convolutions, whose steps would take twice as
    long, stay at float32.
    """
    if amp == "auto" and device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()  # not in early releases of torch
        convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        depthwise = any(conv.groups == conv.in_channels > 1 for conv in convolutions)
        if not depthwise and (able.get("avx512_bf16") or able.get("amx_bf16")):
            return torch.bfloat16
    return amp_dtype(amp, device)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Compute in `dtype` on `device` while the block runs; in float32 where it is None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def choose_memory_format(
    options: TrainOptions, model: torch.nn.Module, world: World, size: tuple[int, int], dtype: torch.dtype | None
) -> torch.memory_format:
    """The memory format asked for; "auto" is channels_last on the CPU and the faster one of a few steps on CUDA."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    if options.memory_format != "auto":
        return formats[options.memory_format]
    if world.device.type == "cpu":
        return torch.channels_last
    seconds = {name: _time_steps(model, world, size, dtype, options, chosen) for name, chosen in formats.items()}
    fastest = torch.tensor(int(seconds["channels_last"] < seconds["contiguous"]), device=world.device)
    world.broadcast(fastest)
    return formats["channels_last" if int(fastest) else "contiguous"]


def _time_steps(model, world, size, dtype, options, memory_format) -> float:
    """Seconds of the fastest of five forward and backward passes on the device."""
    trial = copy.deepcopy(model).to(world.device, memory_format=memory_format)
    x = torch.randn(world.split(options.batch_size), 1, *size, device=world.device)
    x = x.contiguous(memory_format=memory_format)
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with autocast(world.device, dtype):
            loss = trial(x).float().logsumexp(dim=1).mean()
        loss.backward()
        trial.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[3:])
