"""Whether a recording ends before its headers say, which libsndfile takes for the end of what was said."""

from collections.abc import Callable
from typing import Literal

from cache.cli import InputError

_MAX_CHUNKS = 10_000
_STREAM = 2**31 - 4096  # bytes: programs that cannot know the length write 0, or numbers from here on
_MAX_PAGE = 27 + 255 + 255 * 255  # bytes of an Ogg page
_UNKNOWN = 0xFFFFFFFF
_END_OF_STREAM = 4  # a bit of the flags of an Ogg page (RFC 3533)

ReadAt = Callable[[int, int], bytes]
"""(first byte, count) -> the bytes, fewer at the end of the file."""


def check_whole(read_at: ReadAt, size: int) -> None:
    """InputError where WAV, W64, AIFF or AU has fewer bytes than its header says, or an Ogg file lacks its end.

    A WAV written as a stream, whose header does not know the length, is taken as it is. libsndfile notices by itself
    where a FLAC is cut; an MP3 does not say how long it is.

    Parameters
    ----------
    read_at : gives parts of the file
    size : bytes of the file
    """
    head = read_at(0, 24)
    said = 0
    if head[:4] == b"FORM":
        said = 8 + int.from_bytes(head[4:8], "big")
    elif head[:4] == b".snd":
        said = int.from_bytes(head[4:8], "big") + int.from_bytes(head[8:12], "big")
    elif head[:4] == b"riff":  # of W64
        said = int.from_bytes(head[16:24], "little")
    if size < said < _STREAM:
        raise InputError(f"cut short: {size:,} of {said:,} bytes are there")
    if head[:4] == b"OggS":
        _check_last_page(read_at, size)
    elif head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        _check_data_chunk(read_at, size, "big" if head[:4] == b"RIFX" else "little")


def _check_data_chunk(read_at: ReadAt, size: int, order: Literal["big", "little"]) -> None:
    at, long_length = 12, 0
    for _ in range(_MAX_CHUNKS):
        head = read_at(at, 8)
        if len(head) < 8:
            return
        name, length, at = head[:4], int.from_bytes(head[4:], order), at + 8
        if name == b"ds64":  # of RF64, for lengths that need 64 bits: of the file, of the samples, …
            long_length = int.from_bytes(read_at(at + 8, 8), order)
        if name == b"data":
            known = long_length if length == _UNKNOWN and long_length else length % _UNKNOWN
            if size - at < known and (known < _STREAM or known == long_length):
                raise InputError(f"cut short: {size - at:,} of {known:,} bytes of samples are there")
            return
        at += length + length % 2


def _check_last_page(read_at: ReadAt, size: int) -> None:
    tail = read_at(max(0, size - _MAX_PAGE), _MAX_PAGE)
    start = tail.rfind(b"OggS")
    page = tail[start:]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""  # their lengths
    if start >= 0 and (len(page) < 27 or len(page) < 27 + page[26] + sum(segments) or not page[5] & _END_OF_STREAM):
        raise InputError("cut short: it ends within a page of Ogg, or before the last one")
