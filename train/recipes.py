"""Named settings for train.run, with the accuracy that was reported for each.

python -m train.recipes

The reported figures are those of the competition system that this project succeeds (30 words of Speech Commands
v0.01). A recipe sets defaults only: an explicit flag wins.
"""

from typing import Any

from cache.cli import run_main

_BASE = {"model": "res2next50", "epochs": 40}
_AT_224 = {**_BASE, "n_mels": 224}
_CHOSEN_LAST = {**_AT_224, "model": "dla60_res2next"}
_NARROW = {"n_mels": 64, "width": 32, "epochs": 40}

_ON_CPU = {
    **{"n_mels": 32, "batch_size": 64, "lr": 4e-3, "warmup_epochs": 1.0},
    **{"loss": "binary", "balance": 0.5},
}
_FAST = {**_ON_CPU, "model": "resnet10t", "epochs": 20, "mixup": 0.2}

RECIPES: dict[str, dict[str, Any]] = {
    "smoke": {**_ON_CPU, "model": "resnet18", "epochs": 10, "mixup": 0.0},
    "fast": _FAST,
    "balanced": {**_FAST, "width": 64},
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

_LADDER = (  # recipe, how its folds are used, reported accuracy
    ("smoke", "where one starts", None),
    ("fast", "on a CPU", None),
    ("balanced", "on a CPU, twice the work", None),
    ("best", "5 folds, on GPUs", None),
    ("resnet50-64x32", "one fold", 0.95260),
    ("resnet50d-64x32", "one fold", 0.95611),
    ("res2next50-64x32", "one fold", 0.95918),
    ("res2next50-64", "one fold", 0.96576),
    ("res2next50-128", "one fold, more augmentation", 0.96971),
    ("resnest50d-128", "one fold, more augmentation", 0.96898),
    ("res2next50-224", "one fold, more augmentation", 0.97308),
    ("res2next50-224", "5 folds, predict --ensemble hard --tta 1", 0.97527),
    ("res2next50-224", "5 folds, predict --ensemble soft --tta 1", 0.97542),
    ("res2next50-224", "5 folds, predict --ensemble soft --tta 4", 0.97586),
    ("res2next50-224-smooth-ohem", "5 folds, predict --ensemble soft --tta 4", 0.97527),
    ("dla60_res2next-224", "the default: chosen last", None),
)


def main() -> int:
    """Print the ladder."""
    return run_main(_print_ladder)


def _print_ladder() -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="python -m train.run --recipe NAME")
    table.add_column("recipe", no_wrap=True)
    table.add_column("settings", no_wrap=True)
    table.add_column("use")
    table.add_column("reported accuracy")
    for name, use, accuracy in _LADDER:
        settings = "\n".join(f"{key}={value}" for key, value in RECIPES[name].items())
        table.add_row(name, settings, use, f"{accuracy:.5f}" if accuracy else "-")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
