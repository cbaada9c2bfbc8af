"""Number and memory formats: what a model computes in, on the device at hand."""

import copy
import platform
import time

import torch
from torch.nn.modules.conv import _ConvNd

from cache.cli import InputError, say
from cache.memory import poisoned_memory
from train.options import TrainOptions
from train.world import World

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_TOLERANCE = 0.05  # of a layer's output and gradients in bf16, relative to their norm; rounding alone makes 0.003


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


def training_dtype(
    options: TrainOptions, model: torch.nn.Module, world: World, size: tuple[int, int]
) -> torch.dtype | None:
    """The autocast type of training: :func:`amp_dtype`, but with "auto" bf16 also on a CPU with instructions for it.

    Steps then take two thirds of the time and less. Models with depthwise convolutions, whose steps would take twice as
    long, stay at float32; so do those with a layer that this CPU gets wrong (docs/design.md). All ranks decide alike.

    Raises
    ------
    InputError : bf16 was asked for, and a CPU gets a layer wrong
    """
    if world.device.type == "cuda":
        return amp_dtype(options.amp, world.device)
    dtype = _cpu_dtype(model) if options.amp == "auto" else amp_dtype(options.amp, world.device)
    memory_format = choose_memory_format(options, model, world, size, dtype)
    decisions = world.gather((dtype is not None, dtype and find_wrong_layer(model, size, memory_format)))
    wrong = next((layer for _, layer in decisions if layer), None)
    if wrong and options.amp == "bf16":
        raise InputError(f"--amp bf16: torch gets the gradients of {wrong} wrong on this CPU; use --amp auto or off")
    if wrong and world.is_main:
        say(f"float32, not bf16: torch gets the gradients of {wrong} wrong on this CPU", error=True)
    return None if wrong or not all(able for able, _ in decisions) else dtype


def prediction_dtype(
    amp: str, model: torch.nn.Module, size: tuple[int, int], device: torch.device
) -> torch.dtype | None:
    """The autocast type of prediction, chosen as that of training; on a CPU with bf16 it takes half of the time."""
    if amp != "auto" or device.type == "cuda":
        return amp_dtype(amp, device)
    dtype = _cpu_dtype(model)
    return None if dtype is None or find_wrong_layer(model, size, torch.channels_last) else dtype


def _cpu_dtype(model: torch.nn.Module) -> torch.dtype | None:
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # not in early releases of torch
    convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    depthwise = any(conv.groups == conv.in_channels > 1 for conv in convolutions)
    return torch.bfloat16 if not depthwise and (able.get("avx512_bf16") or able.get("amx_bf16")) else None


def find_wrong_layer(model: torch.nn.Module, size: tuple[int, int], memory_format: torch.memory_format) -> str | None:
    """The first convolution or linear layer whose output or gradients in bf16 on the CPU are not those of float32.

    Each layer is tried alone, once per shape, on random numbers: at the start of a training many of the true gradients
    are zero, and rounding adds up over a deep model. Memory is poisoned: a layer that reads what nobody wrote would
    often pass by luck.

    Parameters
    ----------
    size : (n_mels, n_frames)

    Returns
    -------
    str : its name, type and the shape of its input; None where all are right
    """
    trial = copy.deepcopy(model).eval().to(memory_format=memory_format)
    layers = {name: layer for name, layer in trial.named_modules() if isinstance(layer, _ConvNd | torch.nn.Linear)}
    inputs: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    with torch.no_grad(), autocast(torch.device("cpu"), torch.bfloat16):
        trial(torch.zeros(2, 1, *size).contiguous(memory_format=memory_format))
    tried = set()
    with poisoned_memory():
        for name, x in inputs.items():
            kind = (str(layers[name]), x.shape)
            if kind not in tried and not _is_right(layers[name], x):
                return f"{name} ({type(layers[name]).__name__} over {' x '.join(map(str, x.shape[1:]))})"
            tried.add(kind)
    return None


def _is_right(layer: _ConvNd | torch.nn.Linear, like: torch.Tensor) -> bool:
    exact, rounded = (_output_and_gradients(layer, like, dtype) for dtype in (None, torch.bfloat16))
    return all((a - b).norm() <= _TOLERANCE * a.norm() for a, b in zip(exact, rounded, strict=True))


def _output_and_gradients(
    layer: _ConvNd | torch.nn.Linear, like: torch.Tensor, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.empty_like(like, dtype=torch.float32).normal_(generator=generator).requires_grad_()
    with autocast(x.device, dtype):
        y = layer(x if dtype is None else x.to(like.dtype)).float()
    return [y.detach(), *torch.autograd.grad(y, (layer.weight, x), torch.randn(y.shape, generator=generator))]


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Compute in `dtype` on `device` while the block runs; in float32 where it is None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def choose_memory_format(
    options: TrainOptions, model: torch.nn.Module, world: World, size: tuple[int, int], dtype: torch.dtype | None
) -> torch.memory_format:
    """The memory format asked for; "auto" is channels_last on the CPU and the faster one of a few steps on CUDA."""
    if options.memory_format != "auto":
        return FORMATS[options.memory_format]
    if world.device.type == "cpu":
        return torch.channels_last
    shape = (world.local_batch_size(options.batch_size), 1, *size)
    return world.gather(find_faster_format(model, shape, world.device, dtype, training=True))[0]


def find_faster_format(
    model: torch.nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None, *, training: bool
) -> torch.memory_format:
    """The memory format in which passes of the model take less time on a CUDA device.

    Parameters
    ----------
    shape : of a batch, (clips, 1, n_mels, n_frames)
    training : whether a pass goes backward, too
    """
    return min(FORMATS.values(), key=lambda chosen: _time_passes(model, shape, device, dtype, chosen, training))


def _time_passes(model, shape, device, dtype, memory_format, training) -> float:
    """Seconds of the fastest of five passes on the device."""
    trial = copy.deepcopy(model).to(device, memory_format=memory_format)
    x = torch.randn(shape, device=device).contiguous(memory_format=memory_format)
    seconds = []
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.set_grad_enabled(training), autocast(device, dtype):
            loss = trial(x).float().logsumexp(dim=1).mean()
        if training:
            loss.backward()
            trial.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[3:])


def device_name(device: torch.device) -> str:
    """What a device calls itself, such as ``NVIDIA GeForce RTX 3090``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
