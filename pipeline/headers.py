"""What a build would lose of the recordings, by a look at their headers."""

import collections
import functools
import os

import numpy as np

from cache.clip_id import Part, split_clip_id
from cache.config import MAX_FRAMES, MAX_N_FFT, MAX_SECONDS, FeatureConfig
from pipeline.long import LONGER
from pipeline.options import BuildOptions
from pipeline.stream import read_header

_LOOKS = 2000  # at most, evenly spread
_USUAL = 0.5  # of the recordings that were looked at
_MUCH_LONGER = 4  # times a clip: then several clips of a recording may serve better than one long clip


def describe_loss(clip_ids: np.ndarray, options: BuildOptions, config: FeatureConfig) -> list[str]:
    """Where most recordings hold more than the features keep: what is lost, and the flags that would keep it.

    Parameters
    ----------
    clip_ids : of the clips to build [shape=(n,), dtype=bytes]
    """
    some = clip_ids[np.linspace(0, len(clip_ids) - 1, min(len(clip_ids), _LOOKS)).round().astype(int)].tolist()
    header_of = functools.cache(lambda file: read_header(os.path.join(options.audio_dir, file)))
    named = [split_clip_id(name.decode()) for name in some]
    found = [(header, part) for file, part in named if (header := header_of(file))]
    if not found:
        return []
    seconds = np.array([_seconds(*each) for each in found])
    rates = np.array([rate for (_, rate), _ in found])
    rate = collections.Counter(rates.tolist()).most_common(1)[0][0]
    longer = seconds > (1 + LONGER) * config.clip_seconds
    alike, what, keep, kept = np.ones(len(found), bool), "are", [], ""
    if longer.mean() > _USUAL and options.long == "loudest":
        usual = float(np.median(seconds[longer]))
        alike = np.abs(seconds - usual) <= 0.01 * usual
        kept = f"the loudest {config.clip_seconds:g} s at "
        if alike.mean() > _USUAL and usual <= MAX_SECONDS:
            several = " (or --long split)" if usual > _MUCH_LONGER * config.clip_seconds else ""
            what, keep = f"last {usual:.3g} s", [f"--clip-seconds {usual:.3g}{several}"]
        else:
            alike, what, keep = longer, f"last up to {seconds.max():.3g} s", ["--long split"]
    if (rates == rate).mean() > _USUAL and rate != config.sample_rate:
        alike = alike & (rates == rate)
        what, keep = f"{what} at {rate:,} Hz", [*keep, f"--sample-rate {rate}"]
    if not keep:
        return []
    purpose = "all" if kept or rate > config.sample_rate else "their rate"
    sample = " (a sample)" if len(some) < len(clip_ids) else ""
    return [
        f"{alike.sum():,} of {len(found):,} recordings{sample} {what}; kept: {kept}{config.sample_rate:,} Hz; "
        f"to keep {purpose}: {' '.join(keep)}"
    ]


def _seconds(header: tuple[int, int], part: Part | None) -> float:
    """How long a recording is, or a part of it."""
    whole = header[0] / header[1]
    return whole if part is None else (part.end_s or whole) - part.start_s


def describe_gaps(config: FeatureConfig) -> list[str]:
    """How much of a clip lies between its frames, if anything, and the flags that would leave no gap."""
    seen = config.win_length or config.n_fft
    if config.hop_length <= seen:
        return []
    wider, longer = -(-config.samples // seen) + 1, 1 << (config.hop_length - 1).bit_length()
    ways = [f"--width {wider}"] * (wider <= MAX_FRAMES) + [f"--n-fft {longer}"] * (longer <= MAX_N_FFT)
    return [
        f"{1 - seen / config.hop_length:.0%} of each clip lies between the frames, of {seen:,} samples every "
        f"{config.hop_length:,}; to see all: {', or '.join(ways) or 'shorter clips'}"
    ]
