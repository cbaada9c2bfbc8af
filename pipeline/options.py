"""The flags of pipeline.build_cache."""

import dataclasses

from cache.cli import AT_LEAST_1, Flags, InputError, flag

AUGMENT_NAMES = ("more", "light", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(Flags):
    """Flags of ``python -m pipeline.build_cache``."""

    audio_dir: str = flag("data/audio", "the corpus: <label>/*.wav, .flac or .ogg")
    cache_dir: str = flag("data/cache", "where cache folders are")
    n_mels: int = flag(224, "mel bands, the height of the image")
    width: int | None = flag(None, "frames, the width of the image (default: n-mels)", type=int)
    n_fft: int = flag(2048, "samples in a frame")
    num_views: int = flag(4, "stored renderings of a clip: a clean one and num-views - 1 augmented ones", AT_LEAST_1)
    augment: str = flag("more", "waveform augmentation of the augmented views", choices=AUGMENT_NAMES)
    folds: int = flag(5, "number of folds")
    group_by: str = flag("auto", "what a fold keeps together", choices=("auto", "speaker", "none"))
    split: str = flag("kfold", "folds, or the corpus's official validation list", choices=("kfold", "official"))
    clips_per_shard: int = flag(512, "clips in a shard file", AT_LEAST_1)
    jobs: int = flag(-1, "worker processes (-1: all cores)")
    backend: str = flag("loky", "where workers run", choices=("loky", "dask"))
    scheduler: str | None = flag(None, "address of the Dask scheduler, with --backend dask")
    ignore_missing: bool = flag(False, "go on although lines of the corpus's lists name no clip")
    skip_bad: bool = flag(False, "exit with status 0 although some files were rejected")
    seed: int = flag(0, "seed of augmentation and folds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise InputError(
                f"--folds {self.folds}; expected 2 or more (to train on everything: train.run --fold none)"
            )
        if self.jobs == 0:
            raise InputError("--jobs 0; expected a number of processes, or -1 for all cores")
        if self.scheduler and self.backend != "dask":
            raise InputError("--scheduler needs --backend dask")
