"""From an audio file to a clip: decode, mono, resample, pad or crop. Used alike for the cache and for prediction."""

import contextlib
import errno
import io
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cache.cli import InputError
from cache.clip_id import Part, split_clip_id
from cache.config import FeatureConfig
from pipeline.sound_files import read_file, reason_of
from pipeline.truncated import check_whole

MAX_SECONDS = 600  # a longer recording is refused rather than loaded whole
MAX_CHANNELS = 64
MAX_VALUES = 1 << 27  # samples of all channels together, 512 MB when decoded
MAX_LEVEL = 2.0**31  # full scale of 32-bit samples that nobody scaled; far beyond, squares overflow
RATES = (1000, 768_000)  # Hz; a header that claims another rate is garbage
PART_SLACK_S = 0.01  # that a part may end behind its recording
UNKNOWN_FRAMES = 1 << 62  # or more: what libsndfile says of a FLAC that was written to a pipe
_LEAD_IN = 20 * 1152  # frames that an MP3 decoder wants before a part: its bits may lie in the packets before it
_CANCELLED = 1e-4  # of the channels' power, -40 dB, is left where they cancel
_HEADER = struct.Struct("<4sI8sIHHIIHH4sI")  # RIFF, fmt and data of a plain WAV


class Clip(NamedTuple):
    """A decoded clip and what was done to it, in the order of the bits that sidecars keep."""

    samples: np.ndarray
    """[shape=(samples,), dtype=float32]"""
    padded: bool = False
    cropped: bool = False
    resampled: bool = False
    silent: bool = False
    cancelled: bool = False
    """Whether its channels, which are not silent, add up to silence."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder or a resampler raises is an InputError that gives the reason in one line.

    Raises
    ------
    OSError : there is no memory for the recording; another try may succeed
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except MemoryError:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None
    except Exception as error:
        reason = getattr(error, "error_string", "") or str(error) or type(error).__name__
        raise InputError(f"not decodable: {' '.join(reason.split())}") from None


def read_clip(source: str | bytes, config: FeatureConfig, part: Part | None = None) -> Clip:
    """Decode a recording, or a part of one, into one clip.

    Parameters
    ----------
    source : path of the file, which may end as in `cache.clip_id`, or its content
    config : sample_rate and clip_seconds are used
    part : of the content; None: all of it

    Returns
    -------
    Clip : mono, `config.sample_rate` Hz, exactly `config.samples` samples; shorter recordings are zero-padded at the
        end, longer ones cropped to the loudest window

    Raises
    ------
    InputError : empty, non-finite, undecodable or absurd content; the message does not repeat the file's name
    OSError : the file cannot be read
    """
    if isinstance(source, str):
        source, part = split_clip_id(source)
    samples, rate, cancelled = _read(source, part)
    samples = resample(samples, rate, config)
    found, wanted = len(samples), config.samples
    if found > wanted:
        first = loudest_window(samples, wanted)
        samples = samples[first : first + wanted]
    elif found < wanted:
        samples = np.pad(samples, (0, wanted - found))
    return Clip(samples, found < wanted, found > wanted, rate != config.sample_rate, not samples.any(), cancelled)


def read_recording(source: str | bytes) -> tuple[np.ndarray, int]:
    """Decode a whole file to mono.

    Returns
    -------
    (np.ndarray [shape=(n,), dtype=float32], sample rate in Hz)

    Raises
    ------
    InputError, OSError : as :func:`read_clip`
    """
    return _read(source, None)[:2]


@decoding()
def _read(source: str | bytes, part: Part | None) -> tuple[np.ndarray, int, bool]:
    """As :func:`read_recording`, of a part; and whether the channels cancel."""
    data = source if isinstance(source, bytes) else read_file(source)
    if not data:
        raise InputError("an empty file")
    mono, rate, cancelled = (None if part else _plain_wav(data)) or _decode(data, part)
    if not len(mono):
        raise InputError("no samples")
    if part and part.gain_db:
        mono = mono * np.float32(10 ** (part.gain_db / 20))
    return mono, rate, cancelled


def check_level(samples: np.ndarray) -> None:
    """InputError where samples of any shape are not finite, or so large that sums and squares would not be."""
    if not np.abs(samples).max(initial=0) <= MAX_LEVEL:
        raise InputError(f"samples that are not finite (NaN or infinite) or beyond {MAX_LEVEL:g}")


def _plain_wav(data: bytes) -> tuple[np.ndarray, int, bool] | None:
    """The samples of 16-bit mono PCM behind the canonical 44-byte header, as libsndfile gives them; else None.

    It takes a fifth of the time that libsndfile takes to open the file.
    """
    size, rate = max(0, len(data) - _HEADER.size), int.from_bytes(data[24:28], "little")
    plain = _HEADER.pack(b"RIFF", size + 36, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate % 2**32, 2, 16, b"data", size)
    if data[: _HEADER.size] != plain or size % 2:
        return None
    _check_size(size // 2, 1, rate)
    samples = np.frombuffer(data, "<i2", offset=_HEADER.size).astype(np.float32)
    samples *= np.float32(1 / 32768)
    return samples, rate, False


def _decode(data: bytes, part: Part | None) -> tuple[np.ndarray, int, bool]:
    import soundfile

    check_whole(lambda at, count: data[at : at + count], len(data))
    with soundfile.SoundFile(_Content(data)) as file:
        rate, first, last = file.samplerate, 0, file.frames
        if part:
            first = round(part.start_s * rate)
            last = last if part.end_s is None else min(last, round(part.end_s * rate))
            if first >= last or (part.end_s or 0) > file.frames / rate + PART_SLACK_S:
                raise InputError(f"the part {part} is not within the recording, of {file.frames / rate:g} s")
        _check_size(last - first, file.channels, rate)
        lead = min(first, _LEAD_IN) if file.format == "MP3" else 0
        try:
            file.seek(first - lead) if first else None
            # Some encodings cannot seek, and of those soundfile reads no "rest": it wants a number.
            samples = file.read(last - first + lead, dtype="float32", always_2d=True)[lead:]
        except soundfile.LibsndfileError:
            if not first:
                raise
            samples = _skip(data, first, last)
    check_level(samples)
    if samples.shape[1] == 1:
        return samples[:, 0], rate, False
    mono = samples.mean(axis=1)
    return mono, rate, bool(np.vdot(mono, mono) <= _CANCELLED * np.vdot(samples, samples) / samples.shape[1] > 0)


def _skip(data: bytes, first: int, last: int) -> np.ndarray:
    """Frames of an encoding that cannot seek (frames, channels)."""
    import soundfile

    with soundfile.SoundFile(_Content(data)) as file:
        _check_size(last, file.channels, file.samplerate)
        return file.read(last, dtype="float32", always_2d=True)[first:]


class _Content(io.BytesIO):
    """A file in memory; a seek to before its start, as damaged headers ask for, fails without a word on stderr."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return -1


def _check_size(frames: int, channels: int, rate: int) -> None:
    if frames >= UNKNOWN_FRAMES // 2:
        raise InputError("its header does not say how long it is; write it anew, such as with: ffmpeg -i x.flac y.flac")
    short = frames <= MAX_SECONDS * rate and frames * channels <= MAX_VALUES
    if short and RATES[0] <= rate <= RATES[1] and channels <= MAX_CHANNELS:
        return
    raise InputError(
        f"{frames} frames of {channels} channels at {rate} Hz; expected at most {MAX_SECONDS} s (any length with "
        f"build_cache --long split and predict --windows), {MAX_CHANNELS} channels, {MAX_VALUES} samples in all, "
        f"{RATES[0]} to {RATES[1]} Hz"
    )


@decoding()
def resample(samples: np.ndarray, rate: int, config: FeatureConfig) -> np.ndarray:
    """Bring mono samples from `rate` Hz to the configuration's rate: librosa's soxr_hq, without importing librosa."""
    if rate == config.sample_rate:
        return samples
    import soxr

    return soxr.resample(samples, rate, config.sample_rate, quality="HQ")


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
        samples = resample(*read_recording(path), config)
    except (InputError, OSError) as error:
        raise InputError(f"{path}: {reason_of(error)}; repair or remove it") from None
    if not len(samples):
        raise InputError(f"{path}: too short; remove it")
    return np.tile(samples, -(-config.samples // len(samples)))
