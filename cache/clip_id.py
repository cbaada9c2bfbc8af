"""What a clip_id says: a file of the corpus and, where it is one, the part of it.

A part is written as a W3C media fragment, in seconds: ``dog/5.flac#t=2,3.5``, or ``#t=2`` to the end of the file.
Background that becomes a clip also has its level: ``_background_noise_/tap.wav#t=7.25,8.25&gain_db=-12.5``.
"""

import dataclasses
import re

_NUMBER = r"-?\d+(?:\.\d+)?"
_PART = re.compile(rf"#t=(\d+(?:\.\d+)?)(?:,(\d+(?:\.\d+)?))?(?:&gain_db=({_NUMBER}))?$")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a recording."""

    start_s: float
    end_s: float | None = None
    """None: to its end."""
    gain_db: float = 0.0

    def __str__(self) -> str:
        end = "" if self.end_s is None else f",{_seconds(self.end_s)}"
        gain = f"&gain_db={self.gain_db:.1f}" if self.gain_db else ""
        return f"#t={_seconds(self.start_s)}{end}{gain}"


def split_clip_id(clip_id: str) -> tuple[str, Part | None]:
    """The file that a clip_id, or a path that ends as one, names, and the part of it; None: the whole file."""
    found = _PART.search(clip_id)
    if not found:
        return clip_id, None
    start, end, gain = found.groups()
    return clip_id[: found.start()], Part(float(start), float(end) if end else None, float(gain or 0))


def file_of(clip_id: str) -> str:
    """The file that a clip_id, or a path that ends as one, names."""
    return split_clip_id(clip_id)[0]


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
