"""The flags of pipeline.build_cache."""

import dataclasses
from typing import Any

from cache.cli import AT_LEAST_0, AT_LEAST_1, Flags, InputError, Once, command_line, flag
from cache.config import NORMALIZE

TASKS: dict[str, dict[str, Any]] = {
    "v1-12": {"keep": "yes,no,up,down,left,right,on,off,stop,go", "silence": 2300, "split": "official"}
}
"""Flags of published tasks; Warden 2018 has as much unknown and as much silence as of a mean word."""
AUGMENT_NAMES = ("more", "speed", "light", "none")
LONG = ("loudest", "split", "error")
_FREE = ("cache_dir", "jobs", "backend", "scheduler", "skip_bad", "task")  # change nothing that others do not say


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions(Flags):
    """Flags of ``python -m pipeline.build_cache``."""

    audio_dir: str = flag("data/audio", "the corpus: <label>/*.wav, .flac, .ogg, .mp3, … ")
    manifest: str | None = flag(
        None, "a CSV or TSV table of the clips, whose files lie below audio-dir", metavar="FILE", action=Once
    )
    columns: str | None = flag(
        None, "what columns of the table mean, where their names do not say it", metavar="file=NAME,label=NAME,…"
    )
    pattern: str | None = flag(
        None,
        "what the paths below audio-dir say, with the named groups label, speaker, fold, split "
        "(default: <label>/, and <8 hex>_nohash_ for the speaker)",
        metavar="REGEX",
    )
    keep: str | None = flag(None, "labels to keep; all others become unknown", metavar="LABEL,LABEL,…")
    unknown_share: float | None = flag(
        None, "clips of unknown, as a share of those kept (default: as many as of a kept label)", (0, 100)
    )
    negatives: str | None = flag(
        None,
        "add parts of the recordings in _negatives_/ as unknown: a table as infer.predict --windows writes it",
        metavar="FILE",
        action=Once,
    )
    silence: int = flag(0, "add so many clips of label silence, cut from _background_noise_/", AT_LEAST_0)
    task: str | None = flag(None, "a published task's --keep, --silence and --split", choices=tuple(TASKS))
    cache_dir: str = flag("data/cache", "where cache folders are")
    n_mels: int = flag(224, "mel bands, the height of the image")
    width: int | None = flag(None, "frames, the width of the image (default: n-mels)", AT_LEAST_1)
    n_fft: int | None = flag(None, "samples in a frame (default: a power of two that suits rate, mels and width)")
    win_length: int | None = flag(None, "samples that the window covers in a frame (default: n-fft)")
    sample_rate: int = flag(16000, "Hz; recordings of another rate are resampled")
    clip_seconds: float = flag(1.0, "length of a clip; shorter recordings are padded")
    long: str = flag("loudest", "of a longer recording: its loudest clip, consecutive clips, or an error", choices=LONG)
    fmin: float = flag(0.0, "Hz, lower edge of the lowest mel band")
    fmax: float | None = flag(None, "Hz, upper edge of the highest mel band (default: half of sample-rate)")
    top_db: float = flag(80.0, "dB below a clip's loudest value at which its spectrogram is cut off")
    normalize: str = flag(
        "clip", "each clip to zero mean and unit variance, or none: keep its level", choices=NORMALIZE
    )
    num_views: int = flag(4, "stored renderings of a clip: a clean one and num-views - 1 augmented ones", AT_LEAST_1)
    augment: str = flag("more", "waveform augmentation of the augmented views", choices=AUGMENT_NAMES)
    folds: int = flag(5, "number of folds")
    group_by: str = flag("auto", "what a fold keeps together", choices=("auto", "speaker", "none"))
    split: str = flag("kfold", "folds, or the corpus's official validation list", choices=("kfold", "official"))
    clips_per_shard: int = flag(512, "clips in a shard file", AT_LEAST_1)
    jobs: int = flag(-1, "worker processes (-1: all cores)")
    backend: str = flag("loky", "where workers run", choices=("loky", "dask"))
    scheduler: str | None = flag(None, "address of the Dask scheduler, with --backend dask")
    one_label: bool = flag(False, "take a corpus of one label, such as a word for train.add_words")
    ignore_missing: bool = flag(False, "go on although lines of the corpus's lists name no clip")
    skip_bad: bool = flag(False, "exit with status 0 although some files were rejected")
    seed: int = flag(0, "seed of augmentation and folds", AT_LEAST_0)

    @property
    def command(self) -> str:
        """What to type for the same clips, features and folds."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}
        return command_line("pipeline.build_cache", chosen, BuildOptions)  # whose attributes are the defaults

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds < 2:
            raise InputError(
                f"--folds {self.folds}; expected 2 or more (to train on everything: train.run --fold none)"
            )
        if self.jobs == 0:
            raise InputError("--jobs 0; expected a number of processes, or -1 for all cores")
        for name in ("keep", "manifest", "pattern", "columns", "negatives"):
            if getattr(self, name) == "":
                raise InputError(f"--{name} is empty; leave it out, or say what is meant")
        if self.columns and not self.manifest:
            raise InputError("--columns needs --manifest FILE")
        if self.negatives and (self.manifest or self.pattern):
            raise InputError(
                "--negatives is for a folder per label; in a table, name the parts as rows of label unknown"
            )
        if self.unknown_share is not None and not self.keep:
            raise InputError("--unknown-share needs --keep LABEL,…")
        if self.scheduler and self.backend != "dask":
            raise InputError("--scheduler needs --backend dask")
