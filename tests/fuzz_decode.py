"""Feed mutated recordings to the decoder; run by test_fuzz_decode.py in a process of its own.

python tests/fuzz_decode.py COUNT SEED
"""

import contextlib
import faulthandler
import io
import random
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from cache.cli import InputError
from cache.config import FeatureConfig
from pipeline.decode import read_clip
from pipeline.features import LogMel
from pipeline.stream import duration_seconds, read_blocks

CONFIG = FeatureConfig(n_mels=16, n_frames=8, n_fft=512)
EXTREMES = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
SECONDS_EACH = 20


def seeds() -> list[bytes]:
    """A small recording in every encoding that libsndfile writes, mono, and at another rate with two channels."""
    rng = np.random.default_rng(0)
    found = []
    for container in sorted(soundfile.available_formats().keys() - {"SD2"}):  # which is two files
        for subtype in soundfile.available_subtypes(container):
            for rate, channels in ((16000, 1), (44100, 2)):
                file = io.BytesIO()
                with contextlib.suppress(soundfile.LibsndfileError):  # not every encoding has every rate
                    samples = 0.2 * rng.standard_normal((rate // 4, channels))
                    soundfile.write(file, samples, rate, format=container, subtype=subtype)
                    found.append(file.getvalue())
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a file in one to four ways, most often near its header."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(out), rng.choice((64, 256, len(data)))) or 1) if out else 0
        kind = rng.randrange(7)
        if kind == 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            size = rng.choice((2, 4))
            out[at : at + size] = (rng.choice(EXTREMES) & (256**size - 1)).to_bytes(size, rng.choice(("little", "big")))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.randrange(1, 64))
        elif kind == 5:
            start = rng.randrange(len(out) or 1)
            out[at:at] = out[start : start + rng.randrange(1, 2000)]
        else:
            out[at : at + 512] = bytes([rng.choice((0, 0xFF))]) * 512
    return bytes(out)


def reason_of_stream(path: Path) -> str:
    """Why a recording cannot be read block by block, or the empty string."""
    assert duration_seconds(str(path)) >= 0
    try:
        assert all(block.ndim == 1 for block in read_blocks(str(path), CONFIG))
    except InputError as error:
        return str(error)
    return ""


def main() -> None:
    """Decode COUNT files; anything but a clip or an InputError ends the process with a traceback."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))  # what a lying header asks for is not to be had
    rng, originals = random.Random(seed), seeds()
    log_mel, out = LogMel(CONFIG), torch.empty(CONFIG.n_mels, CONFIG.n_frames, dtype=torch.float16)
    path = Path(tempfile.mkdtemp()) / "x.wav"
    clips = 0
    for turn in range(count):
        data = mutate(originals[turn % len(originals)], rng)
        faulthandler.dump_traceback_later(SECONDS_EACH, exit=True)
        path.write_bytes(data)
        reasons = [reason_of_stream(path)]
        try:
            clip = read_clip(data, CONFIG)
            assert clip.samples.shape == (CONFIG.samples,), f"file {turn}"
            log_mel(clip.samples[None], out[None])
            assert torch.isfinite(out).all(), f"file {turn}: features that are not finite"
            clips += 1
        except InputError as error:
            reasons.append(str(error))
        if any("\n" in reason for reason in reasons):
            raise RuntimeError(f"file {turn}: a reason is not one line: {reasons}")
    print(f"{count} files of {len(originals)} encodings: {clips} clips, {count - clips} refused")


if __name__ == "__main__":
    main()
