"""From an audio file to a clip: decode, mono, resample, pad or crop. Used alike for the cache and for prediction."""

import dataclasses
import io

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig

EXTENSIONS = (".wav", ".flac", ".ogg")
MAX_SECONDS = 600  # a longer recording is refused rather than loaded whole
MAX_CHANNELS = 64
RATES = (1000, 768_000)  # Hz; a header that claims another rate is garbage


@dataclasses.dataclass(frozen=True)
class Clip:
    """A decoded clip and what was done to it."""

    samples: np.ndarray
    """[shape=(samples,), dtype=float32]"""
    padded: bool = False
    cropped: bool = False
    resampled: bool = False
    silent: bool = False


def read_clip(source: str | bytes, config: FeatureConfig) -> Clip:
    """Decode a WAV, FLAC or OGG file into one clip.

    Parameters
    ----------
    source : path of the file, or its content
    config : sample_rate and clip_seconds are used

    Returns
    -------
    Clip : mono, `config.sample_rate` Hz, exactly `config.samples` samples; shorter recordings are zero-padded at the
        end, longer ones cropped to the loudest window

    Raises
    ------
    InputError : empty, non-finite, undecodable or absurd content; the message does not repeat the file's name
    OSError : the file cannot be read
    """
    samples, rate = read_recording(source)
    samples = resample(samples, rate, config)
    found, wanted = len(samples), config.samples
    if found > wanted:
        first = loudest_window(samples, wanted)
        samples = samples[first : first + wanted]
    elif found < wanted:
        samples = np.pad(samples, (0, wanted - found))
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return Clip(samples, found < wanted, found > wanted, rate != config.sample_rate, not samples.any())


def read_recording(source: str | bytes) -> tuple[np.ndarray, int]:
    """Decode a whole file to mono.

    Returns
    -------
    (np.ndarray [shape=(n,), dtype=float32], sample rate in Hz)

    Raises
    ------
    InputError, OSError : as :func:`read_clip`
    """
    import soundfile

    if isinstance(source, str):
        open(source, "rb").close()  # an unreadable file is the system's error, with its reason
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate, frames, channels = file.samplerate, file.frames, file.channels
            if not RATES[0] <= rate <= RATES[1] or channels > MAX_CHANNELS or frames > MAX_SECONDS * rate:
                raise InputError(
                    f"{frames} frames of {channels} channels at {rate} Hz; "
                    f"expected at most {MAX_SECONDS} s, {MAX_CHANNELS} channels, {RATES[0]} to {RATES[1]} Hz"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"not decodable: {error.error_string.strip()}") from None
    if not len(samples):
        raise InputError("no samples")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise InputError("samples that are not finite (NaN or infinite)")
    return mono, rate


def resample(samples: np.ndarray, rate: int, config: FeatureConfig) -> np.ndarray:
    """Bring mono samples from `rate` Hz to the configuration's rate (soxr, high quality)."""
    if rate == config.sample_rate:
        return samples
    import librosa

    return librosa.resample(samples, orig_sr=rate, target_sr=config.sample_rate, res_type="soxr_hq")


def loudest_window(samples: np.ndarray, length: int) -> int:
    """First index of the window of `length` samples with the most energy; the earliest of equals.

    Parameters
    ----------
    samples : np.ndarray [shape=(n,)], n >= length
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    return int(np.argmax(energy[length:] - energy[:-length]))


def read_noise(path: str, config: FeatureConfig) -> np.ndarray:
    """Decode a background recording at the configuration's rate; a short one is repeated until it fills a clip.

    Returns
    -------
    np.ndarray [shape=(n,), dtype=float32], n >= config.samples
    """
    try:
        samples, rate = read_recording(path)
    except InputError as error:
        raise InputError(f"{path}: {error}; repair or remove it") from None
    samples = resample(samples, rate, config)
    return np.tile(samples, -(-config.samples // len(samples)))
