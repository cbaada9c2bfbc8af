"""Named settings for train.run; an explicit flag wins over its recipe's.

python -m train.recipes
"""

from typing import Any

from cache.cli import Flags, command

_BASE = {"model": "res2next50", "epochs": 40}
_AT_224 = {**_BASE, "n_mels": 224}
_CHOSEN_LAST = {**_AT_224, "model": "dla60_res2next"}
_NARROW = {"n_mels": 64, "width": 32, "epochs": 40}

_ON_CPU = {"n_mels": 32, "batch_size": 64, "warmup_epochs": 1.0, "loss": "binary", "balance": 0.5}
_SMALL = {**_ON_CPU, "model": "resnet10t", "width": 64}
_PRETRAINED = {
    **{"model": "speech_embedding", "pretrained": True, "n_mels": 32, "width": 101, "batch_size": 64, "epochs": 3},
    **{"lr": 1e-3, "warmup_epochs": 0.3, "balance": 0.5, "mixup": 0.0},
}

RECIPES: dict[str, dict[str, Any]] = {
    "smoke": {**_ON_CPU, "model": "resnet10t", "epochs": 10, "mixup": 0.0},
    "fast": {**_SMALL, "epochs": 5, "mixup": 0.0},
    "balanced": {**_SMALL, "epochs": 16, "mixup": 0.2},
    "pretrained": _PRETRAINED,
    "best": _CHOSEN_LAST,
    "resnet50-64x32": {**_NARROW, "model": "resnet50"},
    "resnet50d-64x32": {**_NARROW, "model": "resnet50d"},
    "res2next50-64x32": {**_NARROW, "model": "res2next50"},
    "res2next50-64": {**_BASE, "n_mels": 64},
    "res2next50-128": {**_BASE, "n_mels": 128},
    "resnest50d-128": {**_BASE, "model": "resnest50d", "n_mels": 128},
    "res2next50-224": _AT_224,
    "res2next50-224-smooth-ohem": {**_AT_224, "label_smoothing": 0.1, "ohem": 0.9},
    "dla60_res2next-224": _CHOSEN_LAST,
}
_USES = {
    "smoke": "where one starts",
    "fast": "on a CPU",
    "balanced": "on a CPU, three times the work of fast",
    "pretrained": "from a network that knows speech; see docs/training.md",
    "best": "on GPUs, with --fold all",
}


@command(Flags)
def main(_: Flags) -> int:
    """Print each recipe with its use and its flags."""
    for name, settings in RECIPES.items():
        print(f"{name}: {_USES.get(name, 'a step of the ladder in docs/accuracy.md')}")
        flags = ((f"--{key.replace('_', '-')}", value) for key, value in settings.items())
        print("   ", *(name if value is True else f"{name} {value}" for name, value in flags))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
