"""Long recordings in constant memory: mono blocks, overlapping windows of a clip's length, and the loudest of all.

A window holds the samples that `pipeline.decode.read_clip` would give for the same stretch cut out into a file, and
:class:`LoudestClip` the samples that it gives for the whole recording.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cache.cli import InputError
from cache.config import FeatureConfig
from pipeline.decode import MAX_CHANNELS, RATES, UNKNOWN_FRAMES, check_level, decoding
from pipeline.sound_files import open_recording
from pipeline.truncated import check_whole

_BLOCK = 1 << 16  # frames


def read_header(path: str) -> tuple[int, int] | None:
    """Frames and rate (Hz) of a recording by its header; None where it has none that can be read."""
    import soundfile

    try:
        with decoding(), soundfile.SoundFile(open_recording(path)) as file:
            return (file.frames, file.samplerate) if file.frames < UNKNOWN_FRAMES else None
    except (InputError, OSError):
        return None


def duration_seconds(path: str) -> float:
    """Length of a recording by its header; 0 where it has none that can be read."""
    frames, rate = read_header(path) or (0, 1)
    return frames / rate


def read_blocks(path: str, config: FeatureConfig) -> Iterator[np.ndarray]:
    """Decode a recording of any length block by block, mono and at the configuration's rate.

    Yields
    ------
    np.ndarray [shape=(n,), dtype=float32]

    Raises
    ------
    InputError : non-finite, undecodable, cut or absurd content; the message does not repeat the file's name
    OSError : the file cannot be read
    """
    import soundfile

    handle = open_recording(path)
    with decoding(), soundfile.SoundFile(handle) as file:  # which closes the handle, also where it cannot read it
        check_whole(lambda at, count: os.pread(handle, count, at), os.fstat(handle).st_size)
        rate = file.samplerate
        if not RATES[0] <= rate <= RATES[1] or file.channels > MAX_CHANNELS:
            raise InputError(f"{file.channels} channels at {rate} Hz; expected at most {MAX_CHANNELS}, {RATES} Hz")
        yield from as_mono(_blocks(file), rate, config.sample_rate)


def _blocks(file: Any) -> Iterator[np.ndarray]:
    """Blocks of an open SoundFile (frames, channels), which some encodings cannot tell the length of."""
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield block


def as_mono(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Successive blocks of a recording, mono and at another rate; the same samples however it is cut into blocks.

    Parameters
    ----------
    blocks : each [shape=(n, channels), dtype=float32]
    rate, wanted : Hz, before and after

    Yields
    ------
    np.ndarray [shape=(m,), dtype=float32]

    Raises
    ------
    InputError : a sample that is not finite, or beyond all levels
    """
    import soxr

    resampler = None if rate == wanted else soxr.ResampleStream(rate, wanted, 1, "float32", "HQ")
    for block in blocks:
        check_level(block)
        mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
        yield resampler.resample_chunk(mono) if resampler else mono
    if resampler:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def windows(blocks: Iterable[np.ndarray], length: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Overlapping windows of a recording; none where it is shorter than a window.

    Parameters
    ----------
    blocks : of :func:`read_blocks`
    length, hop : samples; hop <= length

    Yields
    ------
    (first sample, np.ndarray [shape=(length,), dtype=float32]) : at every `hop`, and one that ends with the recording
    """
    held, offset, start = np.zeros(0, np.float32), 0, 0  # held[0] is sample `offset` of the recording
    for block in blocks:
        held = np.concatenate([held, block])
        while offset + len(held) >= start + length:
            yield start, held[start - offset : start - offset + length]
            start += hop
        drop = max(0, len(held) - length)
        held, offset = held[drop:], offset + drop
    last = offset + len(held) - length
    if last > max(start - hop, -1):
        yield last, held


class LoudestClip:
    """The window with the most energy, found block by block as `pipeline.decode.loudest_window` finds it.

    Parameters
    ----------
    length : samples of the window
    """

    def __init__(self, length: int) -> None:
        self.samples = np.zeros(0, np.float32)
        """The loudest window of the blocks so far [shape=(length,)]; empty before there is a whole one."""
        self._length, self._most = length, -1.0
        self._held, self._energy = np.zeros(0, np.float32), np.zeros(1)  # running sums at held's edges

    def watch(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass the blocks on while looking at them."""
        for block in blocks:
            squares = np.square(block, dtype=np.float64)
            sums = np.cumsum(np.concatenate([self._energy[-1:], squares]))
            self._held = np.concatenate([self._held, block])
            self._energy = np.concatenate([self._energy, sums[1:]])
            energies = self._energy[self._length :] - self._energy[: -self._length]
            if len(energies) and energies.max() > self._most:
                first = int(np.argmax(energies))
                self._most, self.samples = energies[first], self._held[first : first + self._length].copy()
            keep = max(0, len(self._held) - self._length + 1)
            self._held, self._energy = self._held[keep:], self._energy[keep:]
            yield block
