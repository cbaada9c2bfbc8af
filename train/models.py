"""timm models by name, for one-channel spectrograms."""

import difflib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from cache.cli import InputError, first_line
from cache.index import Cache
from train.checkpoint import taking_over
from train.options import TrainOptions
from train.world import World


def create_model(
    name: str,
    classes: int,
    size: tuple[int, int],
    weights: str | None = None,
    pretrained: bool = False,
    drop_path: float = 0.0,
) -> torch.nn.Module:
    """Build a timm model that takes (batch, 1, n_mels, n_frames).

    Parameters
    ----------
    name : a timm model name, such as ``resnet18`` or ``resnet18.a1_in1k``
    classes : number of logits
    size : (n_mels, n_frames), for models of fixed input size
    weights : a local file of pretrained weights for this model (.pth, .pt or .safetensors; read with weights_only);
        the classifier is replaced and the first convolution summed to one channel
    pretrained : the same with timm's own weights, downloaded
    drop_path : rate of stochastic depth (Huang et al. 2016), for models that have it

    Raises
    ------
    InputError : unknown model, one without stochastic depth, weights that do not fit, or no network
    """
    import timm

    import train.speech_embedding  # noqa: F401  # among timm's models from here on

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5) or ["resnet18", "dla60_res2next"]
        raise InputError(f"unknown model {name!r}; similar: {', '.join(close)}; all: timm.list_models()")
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        model = name.partition(".")[0]
        tags = timm.list_pretrained(f"{model}.*") or [model]
        raise InputError(f"unknown model {name!r}; known: {', '.join(tags)}") from None
    settings: dict = {"in_chans": 1, "num_classes": classes}
    if known is not None and known.fixed_input_size:
        settings["img_size"] = size
    if drop_path:
        settings["drop_path_rate"] = drop_path
    return _create_with_weights(name, settings, weights) if weights else _create(name, settings, pretrained)


def untrained_model(options: TrainOptions, cache: Cache, world: World) -> torch.nn.Module:
    """The model that a run begins with, as its flags say, on the CPU.

    Raises
    ------
    InputError : as :func:`create_model`, a model that does not take the cache's features, or one clip per rank where
        there is batch normalisation
    """
    from train.speech_embedding import check_features

    size = (cache.config.n_mels, cache.config.n_frames)
    if options.pretrained:
        check_features(options.model, cache.config)
    weights, pretrained = options.weights, options.pretrained
    model = create_model(options.model, len(cache.classes), size, weights, pretrained, options.drop_path)
    start_classifier(model, at_zero=options.loss == "cross_entropy")
    fits_input(model, options.model, size)
    normalised = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normalised and world.local_batch_size(options.batch_size) == 1:
        raise InputError(
            f"--batch-size {options.batch_size}: {options.model} has batch normalisation; one clip per rank has "
            f"no statistics; use {2 * world.world_size} or more"
        )
    return model


def load_trained(path: Path, saved: dict[str, Any]) -> torch.nn.Module:
    """The model of a checkpoint's content, for evaluation, on the CPU; InputError where the two do not fit."""
    with taking_over(path):
        return recreate(saved, saved["model"], len(saved["classes"]))


def recreate(saved: dict[str, Any], weights: dict[str, torch.Tensor], classes: int) -> torch.nn.Module:
    """The kind of model that a checkpoint holds, with these weights and number of classes, for evaluation."""
    size = saved["features"]["n_mels"], saved["features"]["n_frames"]
    model = create_model(saved["options"]["model"], classes, size)
    model.load_state_dict(weights)
    return model.eval()


def start_classifier(model: torch.nn.Module, *, at_zero: bool) -> None:
    """Start a timm model's classifier as torch starts a linear layer, or at zero.

    timm's own start of a small classifier can be so large (dla60_res2next: a loss of 12 for 30 classes instead of
    ln 30 = 3.4) that unlearning it takes more than half of a short training. Zero is right for cross-entropy only: all
    classes are alike then, and binary loss would first push them all down together.
    """
    layers = dict(model.named_modules())
    for layer in (layers.get(name) for name in classifiers(model)):
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.reset_parameters()
            for parameter in layer.parameters() if at_zero else ():
                torch.nn.init.zeros_(parameter)


def classifiers(model: Any) -> tuple[str, ...]:
    """Names of a timm model's last layers: one, or two where it was made for distillation."""
    names = model.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _create(name: str, settings: dict, pretrained: bool = False) -> torch.nn.Module:
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # or it reports each of its retries
    try:
        return timm.create_model(name, pretrained=pretrained, **settings)
    except InputError:
        raise
    except Exception as error:
        if "drop_path_rate" in str(error):
            rate = settings["drop_path_rate"]
            raise InputError(f"--drop-path {rate:g}: {name} has no stochastic depth; use 0") from error
        if pretrained:
            raise InputError(
                f"--pretrained: no weights of {name} ({first_line(error)}); is there a network? "
                "Download them elsewhere and pass --weights FILE"
            ) from error
        if "img_size" in settings:
            raise InputError(_describe_misfit(name, settings["img_size"], error)) from error
        raise


def _create_with_weights(name: str, settings: dict, path: str) -> torch.nn.Module:
    """Let timm adapt a file's weights; unlike timm alone, refuse a file that has none for some layer."""
    import timm

    if not os.path.isfile(path):
        raise InputError(f"--weights {path}: no such file")
    try:
        state = timm.models.load_state_dict(path, weights_only=True)
    except Exception as error:
        raise InputError(f"--weights {path}: not a readable weights file ({first_line(error)})") from error
    model: Any = _create(name, settings)
    replaced = classifiers(model)
    tensors = [key for key in model.state_dict() if not key.startswith(replaced)]
    needed = [key for key in tensors if not key.endswith("num_batches_tracked")]
    missing = [key for key in needed if key not in state]
    if missing:
        raise InputError(
            f"--weights {path}: not weights of {name}: {len(missing)} of {len(needed)} tensors are missing, "
            f"such as {missing[0]}; expected timm's names"
        )
    kept = {key: value for key, value in state.items() if not key.startswith(replaced)}
    buffers = {f"{place}.{key}".lstrip(".") for place, part in model.named_modules() for key in part._buffers}
    if beyond := sorted(kept.keys() - {*tensors, *buffers}):  # buffers that are not kept stand in some files
        raise InputError(
            f"--weights {path}: not weights of {name}, which has no {beyond[0]} ({len(beyond)} such tensors)"
        )
    if odd := [key for key, value in kept.items() if not (isinstance(value, torch.Tensor) and value.isfinite().all())]:
        raise InputError(f"--weights {path}: {odd[0]} holds no finite numbers")
    overlay: dict[str, Any] = {"state_dict": kept, "num_classes": -1}  # -1: the classifier stays this model's own
    first = state.get(f"{model.pretrained_cfg.get('first_conv')}.weight")
    if first is not None and first.ndim == 4:
        overlay["input_size"] = (first.shape[1], *settings.get("img_size", (224, 224)))
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except Exception as error:
        raise InputError(f"--weights {path}: not weights of {name} ({first_line(error)})") from error


def _describe_misfit(name: str, size: tuple[int, int], error: Exception) -> str:
    return f"{name} does not take {size[0]} mels x {size[1]} frames: {first_line(error)}"


def fits_input(model: torch.nn.Module, name: str, size: tuple[int, int]) -> None:
    """Run one silent clip through the model.

    Raises
    ------
    InputError : the model does not take this input size
    """
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 1, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(_describe_misfit(name, size, error)) from error
    model.train()


def flatten_buffers(model: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """Move all floating-point buffers (BatchNorm's statistics) into one tensor that they are views of.

    One tensor is saved and restored with two kernels where a step turns out not to be finite.

    Returns
    -------
    torch.Tensor [shape=(n,), dtype=float32]
    """
    owned = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.dtype == torch.float32
    ]
    flat = torch.cat([buffer.reshape(-1) for _, _, buffer in owned] + [torch.zeros(1, device=device)])
    offset = 0
    for module, name, buffer in owned:
        module._buffers[name] = flat[offset : offset + buffer.numel()].view(buffer.shape)
        offset += buffer.numel()
    return flat
