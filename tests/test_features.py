"""The fast log-mel against librosa in double precision, and decoding against libsndfile."""

import dataclasses
import hashlib
import json
import warnings
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE

from cache.cli import InputError, parse_flags
from cache.config import FeatureConfig
from pipeline.build import feature_config
from pipeline.decode import loudest_window, read_clip, read_recording, resample
from pipeline.features import LogMel
from pipeline.filterbank import mel_filterbank
from pipeline.options import BuildOptions

CONFIGS = [
    FeatureConfig(),
    FeatureConfig(n_mels=64, n_frames=64),
    FeatureConfig(n_mels=64, n_frames=32, n_fft=1024),
    FeatureConfig(n_mels=32, n_frames=32, n_fft=512, top_db=60.0),
    FeatureConfig(n_mels=40, n_frames=101, n_fft=400, fmin=50.0),
]
TIME = np.arange(RATE) / RATE


def sine(hertz: float, level: float) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * TIME)


SIGNALS = {
    "noise": np.random.default_rng(0).uniform(-1, 1, RATE),
    "faint noise": 1e-4 * np.random.default_rng(1).standard_normal(RATE),
    "click": np.eye(1, RATE, 8000)[0],
    "click at the start": np.eye(1, RATE, 0)[0],
    "click at the end": np.eye(1, RATE, RATE - 1)[0],
    "full-scale sine": sine(440, 1),
    "full-scale sine below the first filter": sine(5, 1),
    "full-scale sine at the top": sine(7990, 1),
    "faint sine": sine(1000, 2**-15),
    "square": np.sign(sine(100, 1)),
    "one bit": np.eye(1, RATE, 5000)[0] * 2**-15,
    "half silent": np.where(TIME < 0.5, np.random.default_rng(2).uniform(-1, 1, RATE), 0),
    "offset": np.full(RATE, 0.5),
}


def reference(samples: np.ndarray, config: FeatureConfig) -> np.ndarray:
    """librosa's calls in float64, as the design defines the features."""
    padded = np.zeros(config.hop_length * (config.n_frames - 1))
    padded[: len(samples)] = samples
    power = librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        win_length=config.win_length or None,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        center=True,
        pad_mode="constant",
        dtype=np.float64,
    )
    decibels = librosa.power_to_db(power, top_db=config.top_db)
    if config.normalize == "none":
        return (decibels + 40) / 20
    centred = decibels - decibels.mean()
    return centred / centred.std() if decibels.max() > decibels.min() else np.zeros_like(decibels)


def assert_equals_librosa(samples: np.ndarray, config: FeatureConfig) -> None:
    samples = samples.astype(np.float32)
    out = torch.empty(config.n_mels, config.n_frames, dtype=torch.float16)
    LogMel(config)(samples[None], out[None])
    expected = reference(samples, config)
    error = np.abs(out.numpy().astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    assert error.max() <= 2 * 2**-10


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.n_mels}x{config.n_frames}-{config.n_fft}")
@pytest.mark.parametrize("name", SIGNALS)
def test_equals_librosa(name, config):
    """Every kind of signal stays within two float16 steps of librosa in double precision."""
    assert_equals_librosa(SIGNALS[name], config)


@pytest.mark.parametrize("normalize", ["clip", "none"])
@pytest.mark.parametrize(
    ("rate", "seconds", "n_fft", "win_length", "n_frames"),
    [
        (8000, 0.5, 512, 200, 64),
        (8000, 10, 1024, 0, 300),
        (22050, 4, 2048, 551, 173),
        (32000, 5, 2048, 1023, 313),
        (44100, 5, 4096, 0, 224),
        (48000, 10, 2048, 2047, 1000),
        (48000, 0.5, 1200, 0, 32),
    ],
)
def test_equals_librosa_at_other_rates(rate, seconds, n_fft, win_length, n_frames, normalize):
    """So do other rates, lengths, windows within the frame, band edges, and clips that keep their level."""
    config = FeatureConfig(
        sample_rate=rate,
        clip_seconds=seconds,
        n_fft=n_fft,
        win_length=win_length,
        n_mels=40,
        n_frames=n_frames,
        fmin=50,
        fmax=0.4 * rate,
        top_db=70,
        normalize=normalize,
    )
    time, rng = np.arange(config.samples) / rate, np.random.default_rng(rate)
    chirp = 0.3 * np.sin(2 * np.pi * rate * 0.1 * time * (1 + time / seconds))
    for samples in (chirp, chirp + 0.05 * rng.standard_normal(len(time)), np.where(time < seconds / 2, chirp, 0)):
        assert_equals_librosa(samples, config)


def test_later_fields_leave_older_digests_alone():
    """A cache of a version without win_length and normalize is still found, and other values are other features."""
    config = FeatureConfig()
    older = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("win_length", "normalize")}
    canonical = json.dumps(older, sort_keys=True, separators=(",", ":"))
    assert config.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert FeatureConfig.from_dict(older, "index.json") == config == FeatureConfig(win_length=2048)
    others = [FeatureConfig(win_length=400), FeatureConfig(normalize="none"), config]
    assert len({other.digest for other in others}) == 3
    for changes, message in (
        ({"win_length": 4096}, "win_length 4096 is out of range"),
        ({"normalize": "x"}, "normalize"),
    ):
        with pytest.raises(InputError, match=message):
            FeatureConfig(**changes)


@pytest.mark.parametrize("seed", range(20))
def test_equals_librosa_on_random_clips(seed):
    """So do random mixtures of tones, noise and silence at random levels."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal(RATE) * 10 ** rng.uniform(-6, 0)
    for _ in range(rng.integers(1, 6)):
        samples += sine(rng.uniform(20, 8000), 10 ** rng.uniform(-4, 0))
    start, stop = sorted(rng.integers(0, RATE, 2))
    samples[start:stop] *= rng.choice([0, 1])
    assert_equals_librosa(samples / max(1, np.abs(samples).max()), CONFIGS[seed % len(CONFIGS)])


def test_equals_librosa_on_speech(mini):
    """So does recorded speech."""
    files = sorted(mini.glob("*/*.flac"))[::25]
    assert len(files) > 10
    for path in files:
        assert_equals_librosa(read_clip(str(path), CONFIGS[0]).samples, CONFIGS[0])


def test_silence_is_all_zeros():
    """A silent clip has features of zeros, not of NaN."""
    out = torch.ones(224, 224, dtype=torch.float16)
    LogMel(FeatureConfig())(np.zeros((1, RATE), np.float32), out[None])
    assert not out.any()


def test_hardly_more_than_silence_is_finite():
    """An impulse whose power is all but the floor has features without variation, and so of zeros, not of NaN."""
    log_mel, out = LogMel(FeatureConfig(n_mels=16, n_frames=16, n_fft=512)), torch.empty(16, 16)
    clip = np.zeros((1, RATE), np.float32)

    def varies(level: float) -> bool:
        clip[0, 8 * log_mel.config.hop_length] = level  # in the middle of a frame
        log_mel(clip, out[None])
        assert out.isfinite().all(), f"at {level:.9g}"
        return bool(out.any())

    low, high = np.float32(0), np.float32(1)
    assert varies(high)
    while np.nextafter(low, high) < high:  # to the smallest level that is told from silence
        middle = (low + high) / np.float32(2)
        low, high = (low, middle) if varies(middle) else (middle, high)


def test_one_object_keeps_no_memory_of_earlier_clips():
    """The result does not depend on what the buffers held before, so that any order gives the same bits."""
    config, (first, second) = CONFIGS[1], (SIGNALS["square"].astype("f4"), SIGNALS["noise"].astype("f4"))
    log_mel, alone, after = LogMel(config), torch.empty(64, 64), torch.empty(64, 64)
    LogMel(config)(second[None], alone[None])
    for clip in (first, np.zeros_like(first), second):
        log_mel(clip[None], after[None])
    assert torch.equal(alone, after)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.n_mels}x{config.n_frames}-{config.n_fft}")
def test_clips_computed_together_are_the_same_to_the_bit(config):
    """However many clips are given at once, each comes out as it does alone."""
    clips = np.stack([signal.astype("f4") for signal in SIGNALS.values()])
    log_mel, together = LogMel(config), torch.empty(len(clips), *config.row_shape[1:], dtype=torch.float16)
    log_mel(clips, together)
    for count in (1, 2, 3):
        for first in range(0, len(clips), count):
            part = torch.empty_like(together[first : first + count])
            log_mel(clips[first : first + count], part)
            assert torch.equal(part, together[first : first + count])


def test_empty_filter_is_refused_with_the_smallest_fft_that_works():
    """The remedy in the message really is the smallest power of two that librosa has no empty filter for."""
    with pytest.raises(InputError, match=r"leaves \d+ mel filters empty; --n-fft 1024 is the smallest"):
        LogMel(FeatureConfig(n_mels=224, n_fft=512))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = {n: (~librosa.filters.mel(sr=RATE, n_fft=n, n_mels=224).any(axis=1)).any() for n in (512, 1024)}
    assert empty == {512: True, 1024: False}


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resample_equals_librosa(rate):
    """Resampling gives librosa's soxr_hq samples."""
    samples = np.random.default_rng(rate).standard_normal(rate).astype(np.float32)
    expected = librosa.resample(samples, orig_sr=rate, target_sr=RATE, res_type="soxr_hq")
    assert np.array_equal(resample(samples, rate, FeatureConfig())[:RATE], expected)


@pytest.mark.parametrize("frames", [1, 2, 15999, 16000])
def test_plain_wav_equals_libsndfile(tmp_path: Path, frames):
    """The quick way through a plain WAV file gives libsndfile's samples to the bit, at every 16-bit value."""
    values = np.resize(np.arange(-(2**15), 2**15, dtype=np.int16)[:: max(1, 2**16 // frames)], frames)
    path = tmp_path / "clip.wav"
    soundfile.write(path, values, RATE, subtype="PCM_16")
    expected, _ = soundfile.read(path, dtype="float32")
    samples, rate = read_recording(str(path))
    assert np.array_equal(samples, expected)
    assert rate == RATE


def test_loudest_window():
    """The window is where a plain search over all windows finds most energy, the first of equals."""
    samples = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    energies = [float(np.square(samples[i : i + 100], dtype=np.float64).sum()) for i in range(201)]
    assert loudest_window(samples, 100) == int(np.argmax(energies))
    assert loudest_window(np.zeros(300, np.float32), 100) == 0


@pytest.mark.parametrize(
    ("flags", "n_fft"),
    [
        ("--n-mels 224", 2048),
        ("--n-mels 32", 2048),
        ("--n-mels 32 --width 64", 512),
        ("--n-mels 40 --width 101", 512),
        ("--n-mels 32 --width 64 --n-fft 2048", 2048),
        ("--n-mels 64 --width 200 --sample-rate 8000", 512),
        ("--n-mels 64 --width 500 --sample-rate 32000 --clip-seconds 5", 1024),
    ],
)
def test_frames_are_as_long_as_needed(flags: str, n_fft: int) -> None:
    """Half of a frame or more is shared with the next, 128 ms at most; no filter is narrower than three bins."""

    config = feature_config(BuildOptions(**parse_flags(BuildOptions, flags.split(), prog="", description="")))
    assert config.n_fft == n_fft
    assert ((mel_filterbank(config) > 0).sum(axis=1) >= 2).all()
