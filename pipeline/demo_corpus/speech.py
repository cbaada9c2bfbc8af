"""Spoken words for the demo corpus: eSpeak NG through ctypes, one folder of clips per voice.

eSpeak NG keeps hidden state between words (the phase of its flutter, for one) that no call of its interface resets.
A voice therefore loads the library afresh and speaks its clips in a fixed order: the same seed gives the same bytes,
however many processes share the work (on one set of library versions).
"""

import contextlib
import ctypes
import hashlib
import wave
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.cli import InputError, require

SAMPLE_RATE = 16000  # Hz; clips are one second long
WORDS = (
    "bed bird cat dog down eight five four go happy house left marvin nine no off on one right seven sheila six stop "
    "three tree two up wow yes zero"
).split()
ACCENTS = "en en-us en-gb-x-rp en-gb-scotland en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc".split()

# Constants of eSpeak NG's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4  # words per minute (80 to 450), 0 to 99, 0 to 99
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

Speak = Callable[[str, float, float, float, int], np.ndarray]


class Voice(NamedTuple):
    """One synthetic speaker: an accent of eSpeak NG spoken by one of its voice variants."""

    accent: str
    variant: str

    @property
    def speaker(self) -> str:
        """The speaker id in the clip's file name, 8 hexadecimal digits as in the public corpus."""
        return hashlib.sha256("+".join(self).encode()).hexdigest()[:8]


def voice_variants() -> list[str]:
    """The voice variants that the installed eSpeak NG brings, about a hundred, sorted.

    Raises
    ------
    InputError : espeakng-loader is not installed
    """
    folder = Path(require("espeakng_loader", "demo").get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def open_voice(voice: Voice) -> Iterator[Speak]:
    """Load eSpeak NG afresh, set a voice, and unload it when the block ends.

    Yields
    ------
    speak : ``speak(word, rate, pitch, pitch_range, seed)`` with the rate in words per minute (80 to 450), pitch and
        pitch_range 0 to 99, and the seed of the breath noise; returns float32 samples at 16 kHz, [shape=(n,)]

    Raises
    ------
    InputError : espeakng-loader is not installed, or its data or the voice cannot be read
    """
    import soxr

    loader = require("espeakng_loader", "demo")
    libc, library = ctypes.CDLL(None), ctypes.CDLL(loader.get_library_path())
    home = str(Path(loader.get_data_path()).parent)
    source_rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, home.encode(), _DONT_EXIT)
    if source_rate <= 0:
        hint = " (eSpeak NG takes paths of up to about 140 characters)" if len(home) > 120 else ""
        raise InputError(f"{home}: eSpeak NG cannot read its data{hint}; reinstall with pip install -e '.[demo]'")
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, events) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(word: str, rate: float, pitch: float, pitch_range: float, seed: int) -> np.ndarray:
        """A word as eSpeak NG says it [shape=(n,), dtype=float32]; units as its constants above have them."""
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, round(value), 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        libc.srand(seed)  # some of the Klatt variants draw from here instead
        text = word.encode()
        chunks.clear()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        samples = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768
        return soxr.resample(samples, source_rate, SAMPLE_RATE)

    try:
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName("+".join(voice).encode()):
            raise InputError(f"eSpeak NG has no voice {'+'.join(voice)}; reinstall with pip install -e '.[demo]'")
        yield speak
    finally:
        library.espeak_Terminate()
        libc.dlclose(ctypes.c_void_p(library._handle))


def speak_clips(voice: Voice, folder: Path, *, words: list[str], clips_per_word: int, seed: int) -> int:
    """Write ``<folder>/<word>/<speaker>_nohash_<n>.wav`` for every word: 16-bit mono WAV, 16 kHz, one second.

    The label folders must exist. Clips that the voice leaves silent are not written.

    Returns
    -------
    int : the number of clips written
    """
    identity = int(voice.speaker, 16)
    habits = np.random.default_rng([seed, identity]).uniform((120, 30, 30), (190, 70, 80))  # rate, pitch, range
    written = 0
    with open_voice(voice) as speak:
        for word in words:
            for n in range(clips_per_word):
                rng = np.random.default_rng([seed, identity, zlib.crc32(word.encode()), n])
                clip = render_clip(speak, word, habits, rng)
                if clip is not None:
                    write_wav(folder / word / f"{voice.speaker}_nohash_{n}.wav", clip)
                    written += 1
    return written


def render_clip(speak: Speak, word: str, habits: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """One clip: the word at a random rate, pitch, place and level, over white noise 15 to 45 dB below it.

    Parameters
    ----------
    speak : from :func:`open_voice`
    word : what to say
    habits : [shape=(3,)] the speaker's usual rate (words per minute), pitch and pitch range (0 to 99)
    rng : draws everything that varies

    Returns
    -------
    np.ndarray [shape=(16000,), dtype=int16], or None if the voice said nothing
    """
    rate, pitch, pitch_range = habits + rng.uniform((-25, -15, -20), (25, 15, 20))
    noise_seed = int(rng.integers(1, 2**31))
    word_samples = trim_silence(speak(word, rate, pitch, pitch_range, noise_seed))
    longest = int(0.95 * SAMPLE_RATE)
    if len(word_samples) > longest:  # speak faster, and crop what is left over
        faster = min(450, 1.05 * rate * len(word_samples) / longest)
        word_samples = trim_silence(speak(word, faster, pitch, pitch_range, noise_seed))[:longest]
    if not len(word_samples):
        return None
    word_samples *= 10 ** (rng.uniform(-20, -1) / 20) / np.abs(word_samples).max()
    start = rng.integers(0, SAMPLE_RATE - len(word_samples) + 1)
    noise_level = np.sqrt(np.mean(word_samples**2)) * 10 ** (-rng.uniform(15, 45) / 20)
    clip = noise_level * rng.standard_normal(SAMPLE_RATE, dtype=np.float32)
    clip[start : start + len(word_samples)] += word_samples
    return _to_int16(clip)


def trim_silence(samples: np.ndarray) -> np.ndarray:
    """The part of `samples` [shape=(n,)] between the first and the last that reach 2% of the peak.

    Empty when the peak stays below 0.001 of full scale.
    """
    level = np.abs(samples)
    peak = level.max(initial=0)
    if peak < 1e-3:
        return samples[:0]
    loud = np.flatnonzero(level >= 0.02 * peak)
    return samples[loud[0] : loud[-1] + 1]


def background_noises(rng: np.random.Generator, *, seconds: int = 20) -> dict[str, np.ndarray]:
    """Noise recordings for ``_background_noise_/``: white, pink and brown noise and a mains hum.

    Returns
    -------
    dict : file stem → np.ndarray [shape=(16000 * seconds,), dtype=int16], peak at half of full scale
    """
    n = SAMPLE_RATE * seconds
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 20)  # Hz
    noises = {}
    for name, slope in {"white_noise": 0.0, "pink_noise": 0.5, "brown_noise": 1.0}.items():  # f^-slope
        noises[name] = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) / frequency**slope, n)
    time = np.arange(n) / SAMPLE_RATE  # seconds
    hum = sum(np.sin(2 * np.pi * 50 * k * time + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 9))
    noises["mains_hum"] = hum + 0.1 * rng.standard_normal(n)
    return {name: _to_int16(0.5 * noise / np.abs(noise).max()) for name, noise in noises.items()}


def write_wav(path: Path, samples: np.ndarray) -> None:
    """Write mono `samples` [shape=(n,), dtype=int16] at 16 kHz; a full disk is an ``OSError`` that names the file."""
    try:
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _to_int16(samples: np.ndarray) -> np.ndarray:
    return np.round(samples.clip(-1, 1) * 32767).astype(np.int16)
