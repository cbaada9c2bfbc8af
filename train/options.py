"""The flags of train.run; torch-free, so that --help answers at once."""

import dataclasses
from pathlib import Path
from typing import Any

from cache.cli import Flags, InputError, flag
from train.recipes import RECIPES

# flags that a resumed run may change; the cache's digests stand for its own
_FREE = "cache_dir cache n_mels width fold runs_dir name recipe device resident".split()
_FREE += "checkpoint_minutes patience tensorboard".split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(Flags):
    """Flags of ``python -m train.run``."""

    cache_dir: str = flag("data/cache", "where cache folders are")
    cache: str | None = flag(None, "the cache folder, when several have this resolution", metavar="FOLDER")
    n_mels: int = flag(224, "mel bands of the cache")
    width: int | None = flag(None, "frames of the cache (default: n-mels)")
    fold: str = flag("0", "the fold to hold out; all: every fold in turn; none: train on everything", metavar="K")
    model: str = flag("dla60_res2next", "any timm model, or speech_embedding")
    recipe: str | None = flag(None, "named settings; see python -m train.recipes", metavar="NAME")
    epochs: int = flag(40, "passes over the training clips", (1, 10_000))
    batch_size: int = flag(320, "global batch, over all ranks", (1, 1_000_000))
    lr: float = flag(4e-3, "peak learning rate", (1e-9, 100))
    warmup_epochs: float = flag(2.0, "epochs of linear warm-up before the cosine decay", (0, 10_000))
    weight_decay: float = flag(0.05, "AdamW weight decay (not on norms and biases)", (0, 10))
    loss: str = flag("cross_entropy", "a name in train.losses.LOSSES", metavar="NAME")
    label_smoothing: float = flag(0.0, "share of the target spread over all classes", (0, 0.99))
    ohem: float = flag(1.0, "share of the batch, the hardest clips, that the loss keeps", (0.01, 1))
    balance: float = flag(0.0, "weigh classes by their number of clips to minus this (1: all classes alike)", (0, 2))
    teacher: tuple[str, ...] = flag(
        (),
        "also learn from what this run's folds said out of fold; repeat for the mean of several",
        action="append",
        metavar="RUN",
    )
    unlabelled: str | None = flag(
        None, "recordings without labels, to learn from what all of the teacher's folds say of them", metavar="FOLDER"
    )
    teacher_share: float = flag(0.5, "share of a label's target that is the teacher's probabilities", (0, 1))
    mixup: float | None = flag(
        None, "alpha of mixup (0: off; default: 0.2, less where a label is heard under 2,000 times)", (0, 100)
    )
    spec_augment: float = flag(0.0, "largest share of mels, and of frames, that a mask hides (0: off)", (0, 0.9))
    time_roll: float = flag(0.1, "largest share of the frames to roll by, to either side (0: off)", (0, 0.5))
    ema: float = flag(0.999, "decay of the weights' average, which is validated and saved (0: off)", (0, 0.999999))
    hold_back: float = flag(0.02, "share of clips no fold hears, for infer.calibrate; 0 for official splits", (0, 0.5))
    drop_path: float = flag(0.0, "rate of stochastic depth, for models that have it", (0, 0.9))
    weights: str | None = flag(None, "start from a local weights file", metavar="FILE")
    pretrained: bool = flag(False, "start from timm's pretrained weights (downloads)")
    amp: str = flag("auto", "mixed precision", choices=("auto", "bf16", "fp16", "off"))
    memory_format: str = flag("auto", "memory format", choices=("auto", "contiguous", "channels_last"))
    device: str = flag("auto", "device", choices=("auto", "cpu", "cuda"))
    resident: str = flag("auto", "keep a fold on the GPU if half of the free memory suffices", choices=("auto", "off"))
    compress_gradients: bool = flag(False, "ranks exchange gradients in fp16: half the bytes per step")
    compile: bool = flag(False, "compile the model with torch.compile")
    patience: int = flag(0, "stop after this many epochs without a better validation (0: never)", (0, 10_000))
    checkpoint_minutes: float = flag(10.0, "minutes between checkpoints within an epoch", (0, 100_000))
    tensorboard: bool = flag(False, "also write TensorBoard event files into the fold's folder (extra [tensorboard])")
    runs_dir: str = flag("runs", "where run folders are")
    name: str | None = flag(None, "name of the run (default: model-n_mels x width)")
    seed: int = flag(0, "seed of weights, order and augmentation", (0, 2**32 - 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and any(not part or part.startswith(".") for part in self.name.split("/")):
            raise InputError(f"--name {self.name}: expected a name, which the run's folder gets")
        if self.unlabelled and not self.teacher:
            raise InputError("--unlabelled needs --teacher RUN, which says what is in these recordings")
        if self.fold not in ("all", "none") and not self.fold.isdecimal():
            raise InputError(f"--fold {self.fold}; expected a number, all or none")
        if self.fold.isdecimal():
            object.__setattr__(self, "fold", str(int(self.fold)))  # 07 is 7

    @property
    def n_frames(self) -> int:
        """Frames of the cache."""
        return self.width or self.n_mels

    @property
    def run_name(self) -> str:
        """Name of the run folder."""
        return self.name or f"{self.model}-{self.n_mels}x{self.n_frames}".replace("/", "_")

    @property
    def cache_folder(self) -> Path:
        """The cache that the flags name; InputError where there is none, or several."""
        from cache.find import find_cache

        return find_cache(self.cache_dir, self.n_mels, self.n_frames, self.cache)

    def resume_key(self) -> dict[str, Any]:
        """The settings that a resumed run must share with its checkpoint."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _FREE}


def options_from(flags: dict[str, Any]) -> TrainOptions:
    """Lay explicit flags over a recipe over the defaults.

    Raises
    ------
    InputError : unknown recipe, flags that contradict each other, or a value out of range
    """
    name = flags.get("recipe")
    if name is not None and name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}")
    if flags.get("pretrained") and flags.get("weights"):
        raise InputError("--pretrained and --weights are two starts; use one")
    if flags.get("hold_back") and flags.get("fold") == "none":
        raise InputError("--fold none trains on everything, so it holds nothing back; leave out --hold-back")
    return TrainOptions(**{**({} if name is None else RECIPES[name]), **flags})


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddWordsOptions(Flags):
    """Flags of ``python -m train.add_words``."""

    run: str = flag("", "the trained run; it stays as it is", metavar="FOLDER", required=True)
    audio: str = flag("", "a folder per new word, with 5 recordings or more each", metavar="FOLDER", required=True)
    name: str | None = flag(None, "name of the new run, which lies beside the other (default: its name + the words)")
    cache_dir: str = flag("data/cache", "where cache folders are")
    device: str = flag("auto", "device", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and ("/" in self.name or self.name.startswith(".")):
            raise InputError(f"--name {self.name}: expected a name, for the new run lies beside the other")
