"""FeatureConfig: the contract between the clips on disk, the cache, the models and their predictions."""

import dataclasses
import hashlib
import json
import math
from typing import Any

from cache.cli import InputError

FOLDER_DIGITS = 12  # of the digest, in the cache folder's name


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
    """Samples in a frame, and win_length."""
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

    def __post_init__(self) -> None:
        limits = {
            "sample_rate": (1000, 384_000),
            "clip_seconds": (0.05, 60),
            "n_fft": (32, 65536),
            "n_mels": (2, 1024),
            "n_frames": (2, 4096),
            "num_views": (1, 1000),
            "top_db": (1, 200),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} {value} is out of range; expected {low} to {high}")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise InputError(
                f"fmin {self.fmin:g} and fmax {self.fmax:g} Hz; expected 0 <= fmin < fmax <= {self.sample_rate / 2:g}"
            )
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
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
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
        if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != fields:
            raise InputError(f"{source}: its feature configuration has other fields than this version's; rebuild it")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
