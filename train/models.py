"""timm models by name, for one-channel spectrograms."""

import difflib
import os

import torch

from cache.cli import InputError


def create_model(
    name: str,
    classes: int,
    size: tuple[int, int],
    *,
    weights: str | None = None,
    pretrained: bool = False,
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

    Raises
    ------
    InputError : unknown model, weights that do not fit, or no network
    """
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=5) or ["resnet18", "dla60_res2next"]
        raise InputError(f"unknown model {name!r}; similar: {', '.join(close)}; all: timm.list_models()")
    settings: dict = {"in_chans": 1, "num_classes": classes}
    known = timm.get_pretrained_cfg(name)
    if known is not None and known.fixed_input_size:
        settings["img_size"] = size
    if weights and not os.path.isfile(weights):
        raise InputError(f"--weights {weights}: no such file")
    if weights:
        settings["pretrained_cfg_overlay"] = {"file": weights}
    try:
        return timm.create_model(name, pretrained=bool(weights or pretrained), **settings)
    except Exception as error:
        if not (weights or pretrained):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if weights:
            raise InputError(f"--weights {weights}: not weights of {name} ({reason})") from error
        raise InputError(
            f"--pretrained: no weights of {name} ({reason}); is there a network? "
            "Download them elsewhere and pass --weights FILE"
        ) from error


def fits_input(model: torch.nn.Module, name: str, size: tuple[int, int]) -> None:
    """Run one silent clip through the model.

    Raises
    ------
    InputError : the model does not take this input size
    """
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 1, *size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} does not take {size[0]} mels x {size[1]} frames: {reason}") from error
    model.train(was_training)


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
