"""Sound as it comes, in small blocks: from standard input or a microphone."""

import contextlib
import dataclasses
import math
import queue
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from cache.cli import InputError, require
from infer.options import ListenOptions
from pipeline.decode import MAX_CHANNELS, RATES

ENCODINGS = {"s16": "<i2", "s32": "<i4", "f32": "<f4"}
_WAV_CODES = {(1, 16): "s16", (1, 32): "s32", (3, 32): "f32"}  # format tag and bits
_UNKNOWN_SIZE = 0x7FFF0000  # bytes; programs that write to a pipe state so many or more, or none
_OTHERS = re.compile(
    rb"fLaC|OggS|FORM|RIFX|caff|\.snd|ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xeb]|riff|\x1aE\xdf\xa3|....ftyp",
    re.DOTALL,
)
"""How files begin that are neither: FLAC, Ogg, AIFF, CAF, AU, MP3, W64, WebM, MP4."""
_READ = 1 << 16  # bytes at most
_MOST_HEADER = 1 << 24  # bytes of one part of a WAV header
_SILENT_SECONDS = 3.0  # without a single block; after twice as many a microphone counts as gone
_MOST_BLOCKS = 1000  # that wait to be judged, some ten seconds


@dataclasses.dataclass
class Sound:
    """An open source of sound."""

    name: str
    rate: int
    """Hz"""
    blocks: Iterable[np.ndarray]
    """Each [shape=(n, channels), dtype=float32]."""
    lost: int = 0
    """How often some was lost because it came faster than it was taken."""


def standard_input(stream: BinaryIO, options: ListenOptions) -> Sound:
    """Sound that another program writes: WAV, or raw samples as the flags say.

    Raises
    ------
    InputError : a WAV header that is damaged, or of an encoding that is not listed
    """
    begin = stream.read(12)
    if _OTHERS.match(begin):
        raise InputError("standard input: neither WAV nor raw; decode it, such as with ffmpeg -i FILE -f wav -")
    if begin[:4] in (b"RIFF", b"RF64"):
        encoding, channels, rate, size = _read_wav_header(stream, begin[8:])
        begin = b""
    else:
        encoding, channels, rate, size = options.encoding, options.channels, options.rate, math.inf
    blocks = _decoded(begin, stream, np.dtype(ENCODINGS[encoding]), channels, size)
    return Sound("standard input", rate, blocks)  # a pipe waits, nothing is lost in it


def _read_wav_header(stream: BinaryIO, form: bytes) -> tuple[str, int, int, float]:
    """Encoding, channels, rate and bytes of sound (infinity: unknown) of a WAV file after its first twelve bytes."""
    code, bits, channels, rate, long_size = 0, 0, 0, 0, 0
    while form == b"WAVE" and len(chunk := stream.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            if (code, bits) in _WAV_CODES and 0 < channels <= MAX_CHANNELS and RATES[0] <= rate <= RATES[1]:
                whole = size if size < _UNKNOWN_SIZE else long_size
                return _WAV_CODES[code, bits], channels, rate, whole or math.inf
            raise InputError(
                f"standard input: WAV of format {code}, {bits} bits, {channels} channels, {rate} Hz; expected integers "
                "of 16 or 32 bits, or 32-bit float"
            )
        if size > _MOST_HEADER:
            break
        content = stream.read(size + size % 2)
        if name == b"fmt " and len(content) >= 16:
            code, channels, rate, bits = struct.unpack("<HHI6xH", content[:16])
            if code == 0xFFFE and len(content) >= 26:
                code = struct.unpack_from("<H", content, 24)[0]
        if name == b"ds64" and len(content) >= 16:
            (long_size,) = struct.unpack_from("<Q", content, 8)
    raise InputError("standard input: a WAV header that is damaged")


def _decoded(begin: bytes, stream: BinaryIO, dtype: np.dtype, channels: int, left: float) -> Iterator[np.ndarray]:
    """Blocks (n, channels) of `begin` and of at most `left` bytes that follow it."""
    held, frame = begin, dtype.itemsize * channels
    scale = np.float32(1 if dtype.kind == "f" else 2.0 ** (1 - 8 * dtype.itemsize))
    while data := stream.read1(min(_READ, left)):  # type: ignore[attr-defined]
        left -= len(data)
        held += data
        whole = len(held) // frame * frame
        yield np.frombuffer(held[:whole], dtype).astype(np.float32).reshape(-1, channels) * scale
        held = held[whole:]


@contextlib.contextmanager
def microphone(name: str | None, rate: int) -> Iterator[Sound]:
    """Sound of a microphone, at `rate` Hz or, where it cannot, at its own.

    Raises
    ------
    InputError : the extra [live] is missing, there is no such microphone, or it disappears
    """
    try:
        devices: Any = require("sounddevice", "live")
    except OSError as error:
        raise InputError(f"{error}; sounddevice needs it: apt-get install libportaudio2") from None
    # Ctrl-C may leave the lock of a queue.Queue held, and sounddevice waits for the callback when it stops
    blocks: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()

    def put(block: np.ndarray | None) -> None:
        if blocks.qsize() < _MOST_BLOCKS:
            blocks.put(block)
        else:
            sound.lost += 1

    def take(data: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """Called by sounddevice, in a thread of its own."""
        sound.lost += bool(status.input_overflow)
        put(data.copy())

    chosen = int(name) if name and name.isdecimal() else name
    settings = {"device": chosen, "channels": 1, "dtype": "float32"}
    try:
        about = devices.query_devices(chosen, "input")
        try:
            devices.check_input_settings(samplerate=rate, **settings)
        except devices.PortAudioError:
            rate = round(about["default_samplerate"])
        sound = Sound(about["name"], rate, _taken(blocks, about["name"]))
        stream = devices.InputStream(
            samplerate=rate, latency="low", callback=take, finished_callback=lambda: put(None), **settings
        )
        stream.start()
    except (devices.PortAudioError, ValueError) as error:
        there = ", ".join(each["name"] for each in devices.query_devices() if each["max_input_channels"])
        there = there or "none; connect one, or pipe sound in: arecord -f S16_LE -r 16000 | python -m infer.listen -"
        reason = str(error).partition("\n")[0]
        raise InputError(f"microphone {name or '(the default)'}: {reason}; there: {there}") from None
    with stream:
        yield sound


def _taken(blocks: queue.SimpleQueue, name: str) -> Iterator[np.ndarray]:
    while True:
        block = None
        for _ in range(2):  # the first wait may have run out while this process, or the machine, was asleep
            with contextlib.suppress(queue.Empty):
                block = blocks.get(timeout=_SILENT_SECONDS)
                break
        if block is None:
            raise InputError(f"microphone {name}: no more sound from it; was it unplugged?")
        yield block
