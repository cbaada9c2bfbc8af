"""FeatureConfig: the contract between the clips on disk, the cache, the models and their predictions."""

import dataclasses
import hashlib
import json
import math
from typing import Any

from cache.cli import InputError

FOLDER_DIGITS = 12  # of the digest, in the cache folder's name
MAX_SECONDS = 60  # of a clip
MAX_N_FFT, MAX_FRAMES = 65536, 4096
NORMALIZE = ("clip", "none")
_LATER = {"win_length": 0, "normalize": "clip"}  # fields that caches of version 0.1.0 lack


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How a clip becomes a normalised log-mel spectrogram, and which views of it are stored.

    It travels from ``index.json`` into every checkpoint and from there to prediction; it is never retyped.

    Raises
    ------
    InputError : a value is out of range
    """

    sample_rate: int = 16000
    """Hz; clips of another rate are resampled."""
    clip_seconds: float = 1.0
    """Shorter clips are padded, longer ones cropped to the loudest window."""
    n_fft: int = 2048
    """Samples in a frame."""
    n_mels: int = 224
    """Mel bands, rows of the image."""
    n_frames: int = 224
    """Centred frames, columns of the image; hop_length follows from it."""
    fmin: float = 0.0
    """Hz, lower edge of the lowest mel band."""
    fmax: float = 8000.0
    """Hz, upper edge of the highest mel band."""
    top_db: float = 80.0
    """dB below the clip's maximum at which the spectrogram is cut off."""
    num_views: int = 4
    """Stored renderings of a clip: view 0 is clean, views 1… are augmented."""
    augment: str = "more"
    """Name of the waveform augmentation of views 1…"""
    noise: str = ""
    """Digest of the background recordings that the augmentation mixes in; empty where it mixes none."""
    seed: int = 0
    """Seed of the augmentation."""
    dtype: str = "float16"
    """Stored type."""
    win_length: int = 0
    """Samples of a frame that the window covers, in its middle; 0: all n_fft of them."""
    normalize: str = "clip"
    """``clip``: each clip to zero mean and unit variance; ``none``: (dB + 40) / 20, so that its level is kept."""

    def __post_init__(self) -> None:
        limits = {
            "sample_rate": (1000, 384_000),
            "clip_seconds": (0.05, MAX_SECONDS),
            "n_fft": (32, MAX_N_FFT),
            "n_mels": (2, 1024),
            "n_frames": (2, MAX_FRAMES),
            "num_views": (1, 1000),
            "top_db": (1, 200),
            "win_length": (0, self.n_fft),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} {value} is out of range; expected {low} to {high}")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise InputError(
                f"fmin {self.fmin:g} and fmax {self.fmax:g} Hz; expected 0 <= fmin < fmax <= {self.sample_rate / 2:g}"
            )
        if self.win_length == self.n_fft:
            object.__setattr__(self, "win_length", 0)
        if self.normalize not in NORMALIZE:
            raise InputError(f"normalize {self.normalize!r}; expected {' or '.join(NORMALIZE)}")
        if self.dtype != "float16":
            raise InputError(f"dtype {self.dtype!r} is not supported; expected 'float16'")

    @property
    def samples(self) -> int:
        """Samples in a clip."""
        return round(self.sample_rate * self.clip_seconds)

    @property
    def hop_length(self) -> int:
        """Samples between frames: the smallest hop with which `n_frames` centred frames cover the clip."""
        return math.ceil(self.samples / (self.n_frames - 1))

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of a clip's row in a shard: (num_views, n_mels, n_frames)."""
        return self.num_views, self.n_mels, self.n_frames

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits; as before where later fields have their defaults."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value != _LATER.get(name)}
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        """Name of the cache folder, such as ``mel224x224-0123456789ab``."""
        return f"mel{self.n_mels}x{self.n_frames}-{self.digest[:FOLDER_DIGITS]}"

    @property
    def view_config(self) -> "FeatureConfig":
        """The configuration without what concerns only augmented views: equal where a clean view is equal."""
        return dataclasses.replace(self, num_views=1, augment="none", noise="", seed=0)

    @classmethod
    def from_dict(cls, values: Any, source: str) -> "FeatureConfig":
        """Build from the plain values of an index or a checkpoint.

        Parameters
        ----------
        values : field name → value
        source : named in the error

        Raises
        ------
        InputError : unknown or missing fields, values of another type or out of range
        """
        fields = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values = {**_LATER, **values} if isinstance(values, dict) else {}
        if {name: type(value) for name, value in values.items()} != fields:
            raise InputError(f"{source}: its feature configuration has other fields than this version's; rebuild it")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
