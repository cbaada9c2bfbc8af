"""What becomes of a recording that is odd: every encoding, and data cut short, alike wherever recordings are read."""

import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, only_cache, synthesise

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.index import Cache
from pipeline.decode import read_clip, read_noise
from pipeline.stream import duration_seconds, read_blocks

CONFIG = FeatureConfig(n_mels=16, n_frames=16, n_fft=512)
EXTENSIONS = {"FLAC": ".flac", "OGG": ".ogg"}
TELEPHONE = ("GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")  # cannot seek


def encoded(container: str, subtype: str, seconds: float = 1.0, rate: int = RATE) -> bytes:
    """The content of a file in one of libsndfile's encodings."""
    file = io.BytesIO()
    soundfile.write(file, synthesise(3, 1, 0, seconds, rate), rate, format=container, subtype=subtype)
    return file.getvalue()


def refusals(path: Path) -> list[str]:
    """Why a clip, a noise recording and a stream of blocks cannot be read; empty texts where they can."""
    reasons = []
    for read in (read_clip, read_noise, lambda name, config: list(read_blocks(name, config))):
        try:
            read(str(path), CONFIG)
            reasons.append("")
        except InputError as error:
            reasons.append(str(error).removeprefix(f"{path}: ").removesuffix("; repair or remove it"))
    return reasons


@pytest.mark.parametrize("subtype", sorted(soundfile.available_subtypes("WAV").keys() - {"MPEG_LAYER_III"}))
def test_every_encoding_of_a_wav_is_read(subtype: str, tmp_path: Path) -> None:
    """Those that cannot seek too: as a clip, as noise, and block by block with the same samples."""
    path = tmp_path / "x.wav"
    path.write_bytes(encoded("WAV", subtype))
    clip = read_clip(str(path), CONFIG).samples
    blocks = np.concatenate(list(read_blocks(str(path), CONFIG)))
    assert duration_seconds(str(path)) == len(blocks) / RATE
    assert np.array_equal(read_noise(str(path), CONFIG), blocks)
    assert len(blocks) > RATE or np.array_equal(clip, blocks)
    tolerance = 0.2 if subtype in TELEPHONE or "ADPCM" in subtype else 0.02
    assert np.abs(blocks[:RATE] - synthesise(3, 1, 0)).max() < tolerance


def test_telephone_encodings_are_clips(corpus: Path, build, tmp_path: Path) -> None:
    """A build takes recordings that cannot seek, as clips and as background noise."""
    (corpus / "_background_noise_").mkdir()
    for subtype in TELEPHONE:
        (corpus / "yes" / f"{subtype}.wav").write_bytes(encoded("WAV", subtype))
        (corpus / "_background_noise_" / f"{subtype}.wav").write_bytes(encoded("WAV", subtype, 2))
    status, output = build()
    assert status == 0, output
    assert len(Cache(only_cache(tmp_path / "cache")).clips) == 24 + len(TELEPHONE)


@pytest.mark.parametrize("error", [ValueError("odd\nheader"), RuntimeError(), AssertionError("x"), TypeError("y")])
def test_whatever_a_decoder_raises_costs_one_row(error: Exception, tmp_path: Path, monkeypatch) -> None:
    """It is a refusal in one line, not a traceback, in each of the ways that recordings are read."""
    path = tmp_path / "x.flac"
    path.write_bytes(encoded("FLAC", "PCM_16"))

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", broken)
    reasons = refusals(path)
    assert len(set(reasons)) == 1
    assert reasons[0].startswith("not decodable: ")
    assert len(reasons[0].splitlines()) == 1


def test_want_of_memory_is_no_verdict_on_a_recording(corpus: Path, build, monkeypatch) -> None:
    """What could not be decoded for want of memory is rejected now and tried again by the next build."""
    (corpus / "yes" / "x.flac").write_bytes(encoded("FLAC", "PCM_16"))

    def broken(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "read", broken)
        assert build()[0] == 1
    status, output = build()
    assert status == 0
    assert "built 1 clip in" in output


CUT = [("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610")]
CUT += [("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")]


@pytest.mark.parametrize(("container", "subtype"), CUT)
@pytest.mark.parametrize("seconds", [0.7, 3])
def test_cut_recordings_are_refused_alike(container: str, subtype: str, seconds: float, tmp_path: Path) -> None:
    """A file that ends before its headers say is refused as a clip, as noise and as a stream."""
    path = tmp_path / f"x{EXTENSIONS.get(container, '.wav')}"
    whole = encoded(container, subtype, seconds)
    for length in (len(whole) // 2, len(whole) * 9 // 10, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert all(reason.startswith(("cut short: ", "not decodable: ")) for reason in refusals(path))
    path.write_bytes(whole)
    assert refusals(path) == [""] * 3


def test_an_ogg_file_that_lacks_whole_pages_is_cut(tmp_path: Path) -> None:
    """Only the last page ends the stream: one that ends with another page is refused, wherever that is."""
    path, whole = tmp_path / "x.ogg", encoded("OGG", "VORBIS", 3)
    pages = [match.start() for match in re.finditer(b"OggS", whole)]
    assert len(pages) > 4
    for length in pages[3:]:
        path.write_bytes(whole[:length])
        assert refusals(path) == ["cut short: it ends within a page of Ogg, or before the last one"] * 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_that_are_missing_are_counted_behind_other_chunks(order: str, tmp_path: Path) -> None:
    """The samples' chunk is found behind chunks of odd length, in either byte order."""
    samples = bytes(range(200)) * 10
    chunks = b"LIST" + struct.pack(order + "I", 3) + b"abc\0"
    chunks += b"fmt " + struct.pack(order + "IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    chunks += b"data" + struct.pack(order + "I", len(samples)) + samples
    whole = (b"RIFF" if order == "<" else b"RIFX") + struct.pack(order + "I", 4 + len(chunks)) + b"WAVE" + chunks
    path = tmp_path / "x.wav"
    path.write_bytes(whole)
    assert refusals(path) == [""] * 3
    path.write_bytes(whole[:-500])
    assert refusals(path) == ["cut short: 1,500 of 2,000 bytes of samples are there"] * 3


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x80000000, 0x7FFFF000])
def test_streams_that_do_not_know_their_length_are_taken(claimed: int, tmp_path: Path) -> None:
    """Headers as ffmpeg, arecord and sox write them into a pipe: all that is there is the recording."""
    whole = bytearray(encoded("WAV", "PCM_16"))
    whole[4:8] = whole[40:44] = claimed.to_bytes(4, "little")
    path = tmp_path / "x.wav"
    path.write_bytes(whole)
    assert refusals(path) == [""] * 3
    assert len(np.concatenate(list(read_blocks(str(path), CONFIG)))) == RATE


def test_cut_recordings_are_rejected_by_a_build(corpus: Path, build, tmp_path: Path) -> None:
    """They stand in rejected.csv with the bytes that are there."""
    whole = encoded("WAV", "PCM_16")
    (corpus / "yes" / "cut.wav").write_bytes(whole[:-1000])
    assert build()[0] == 1
    listed = (only_cache(tmp_path / "cache") / "rejected.csv").read_text()
    assert listed == 'file,reason\nyes/cut.wav,"cut short: 31,000 of 32,000 bytes of samples are there"\n'


def test_refused_files_are_closed(tmp_path: Path) -> None:
    """No descriptor is left open by a recording that is cut or no recording."""
    (tmp_path / "cut.wav").write_bytes(encoded("WAV", "PCM_16")[:-1000])
    (tmp_path / "text.wav").write_text("this is not a recording" * 100)
    there = len(os.listdir("/proc/self/fd"))
    for name in ("cut.wav", "text.wav") * 5:
        assert all(refusals(tmp_path / name))
        duration_seconds(str(tmp_path / name))
    assert len(os.listdir("/proc/self/fd")) == there
