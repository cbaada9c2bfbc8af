"""Listening: the same detections as from a file, from a pipe and from a microphone that PulseAudio pretends to be."""

import contextlib
import csv
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import soundfile
import torch

from cache.cli import InputError, counted
from infer.judge import Judge
from infer.listen.__main__ import main
from infer.listen.sound import microphone
from infer.predict.__main__ import main as predict
from tests.conftest import RATE, ROOT, synthesise
from tests.words_run import RUN, WORDS

FLAGS = ("--run", RUN, "--device", "cpu", "--tta", "2")
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from infer.listen.__main__ import main; sys.exit(main())"


def talk(rate: int = RATE, seconds: float = 9.1) -> np.ndarray:
    """Words over noise at 0.7 s, 3.1 s and 6.3 s [shape=(n,), dtype=float32]."""
    samples = np.float32(0.01 * np.random.default_rng(1).standard_normal(round(seconds * rate)))
    for word, start in enumerate((0.7, 3.1, 6.3)):
        said = synthesise(word, 9, 9, rate=rate)
        samples[round(start * rate) :][: len(said)] += said
    return samples


@pytest.fixture
def heard(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """A function that lets infer.listen hear bytes on standard input; returns its status, detections and stderr."""

    def listen(sound: bytes, *flags: str, pieces: tuple[int, ...] = ()) -> tuple[int, list[dict], str]:
        reading, writing = os.pipe()

        def write() -> None:
            with open(writing, "wb", buffering=0) as pipe:
                for begin, end in zip((0, *pieces), (*pieces, len(sound)), strict=True):
                    pipe.write(sound[begin:end])

        writer = threading.Thread(target=write)
        writer.start()
        with open(reading, "rb") as pipe:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
            capsys.readouterr()
            status = main([*(() if "--onnx" in flags else FLAGS), "-", "--json", *flags])
            pipe.read()
        writer.join()
        captured = capsys.readouterr()
        return status, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return listen


def from_file(sound: bytes, *flags: str) -> list[dict]:
    """What predict --windows finds in a WAV file of these bytes, as infer.listen prints it."""
    Path("heard.wav").write_bytes(sound)
    assert predict([*FLAGS, "--input", "heard.wav", "--windows", "w.csv", "--output", "p.csv", *flags]) == 0
    with open("w.csv", newline="") as file:
        rows = [
            {key: value if key == "label" else float(value) for key, value in row.items() if key != "file"}
            for row in csv.DictReader(file)
        ]
    return rows


class Overflowing(Judge):
    """Whose networks give no number."""

    def __init__(self, members, *rest) -> None:
        for member in members:
            member.model.forward = lambda x: torch.full((len(x), 4), torch.inf)
        super().__init__(members, *rest)


def wav(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16", kind: str = "WAV") -> bytes:
    """A file's content."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype=subtype, format=kind)
    return file.getvalue()


@pytest.mark.parametrize(
    "sound",
    [
        wav(talk()),
        wav(talk(44100), 44100, "PCM_32"),
        wav(np.stack([talk(), 0.5 * talk()], axis=1), subtype="FLOAT", kind="WAVEX"),
        wav(talk(seconds=7.5)[: 7 * RATE + 1]),
        wav(synthesise(1, 9, 3)),
        wav(synthesise(1, 9, 3)[:9000]),
    ],
    ids=["16 bits", "44100 Hz, 32 bits", "stereo, float, extensible", "a sample over", "a clip", "less than a clip"],
)
def test_a_wav_file_on_standard_input_gives_the_detections_of_predict(heard, sound: bytes) -> None:
    """To the window and the printed digit, however the pipe cuts it, and with a header that cannot know the size."""
    expected = from_file(sound)
    assert expected
    status, found, error = heard(sound, pieces=(1, 3, 20, 45, 4001, 16000))
    assert (status, sorted(found, key=lambda row: row["start_s"])) == (0, expected), error
    assert counted(len(expected), "detection") in error
    at = sound.index(b"data") + 4
    endless = sound[:4] + b"\xff\xff\xff\xff" + sound[8:at] + b"\xff\xff\xff\xff" + sound[at + 4 :]
    assert sorted(heard(endless)[1], key=lambda row: row["start_s"]) == expected
    notes = b"LIST" + (70000).to_bytes(4, "little") + bytes(70000)
    unsized = b"RF64" + sound[4:12] + notes + sound[12:at] + bytes(4) + sound[at + 4 :]
    assert sorted(heard(unsized)[1], key=lambda row: row["start_s"]) == expected


def test_recorded_speech_gives_the_detections_of_predict(heard, mini: Path) -> None:
    """One recording of many speakers and words after each other."""
    spoken = [soundfile.read(path, dtype="float32")[0] for path in sorted(mini.rglob("*_nohash_*"))[::8][:20]]
    sound = wav(np.concatenate(spoken))
    expected = from_file(sound, "--window-confidence", "0.3")
    assert len(expected) > 5
    status, found, error = heard(sound, "--window-confidence", "0.3")
    assert (status, sorted(found, key=lambda row: row["start_s"])) == (0, expected), error


@pytest.mark.parametrize(
    ("flags", "encode"),
    [
        ((), lambda samples: samples.astype("<i2")),
        (("--rate", "16000", "--encoding", "s32"), lambda samples: samples.astype("<i4") << 16),
        (("--encoding", "f32", "--channels", "2"), lambda samples: np.repeat(np.float32(samples / 32768), 2)),
    ],
)
def test_raw_sound_gives_the_same_as_a_file(heard, flags: tuple[str, ...], encode) -> None:
    """Raw samples of each encoding, as arecord, sox and ffmpeg write them to a pipe."""
    sound = wav(talk())
    samples = np.frombuffer(sound[44:], "<i2")
    assert sorted(heard(encode(samples).tobytes(), *flags)[1], key=lambda row: row["start_s"]) == from_file(sound)


def test_flags_of_windows_mean_the_same(heard) -> None:
    """--hop-seconds and --window-confidence."""
    flags = ("--hop-seconds", "0.1", "--window-confidence", "0.9")
    found = sorted(heard(wav(talk()), *flags)[1], key=lambda row: row["start_s"])
    assert found == from_file(wav(talk()), *flags)
    assert all(row["confidence"] >= 0.9 for row in found)


@pytest.mark.parametrize(
    ("sound", "flags", "said"),
    [
        (b"RIFFxxxxWAVEgarbage and more garbage", (), "a WAV header that is damaged"),
        (wav(talk(), kind="FLAC"), (), "neither WAV nor raw; decode it"),
        (b"RIFFxxxxAVI LIST", (), "a WAV header that is damaged"),
        (wav(talk(), kind="W64"), (), "neither WAV nor raw; decode it"),
        (wav(talk(), kind="MP3", subtype="MPEG_LAYER_III"), (), "neither WAV nor raw; decode it"),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81webm", (), "neither WAV nor raw; decode it"),
        (b"\0\0\0\x20ftypM4A \0\0\0\0", (), "neither WAV nor raw; decode it"),
        (b"", ("--onnx", "model.onnx", "--run", RUN), "leave out --run"),
        (b"", ("--onnx", "model.onnx", "--tta", "1"), "has its own members and views"),
        (b"", ("--microphone", "x"), "leave one out"),
        (wav(talk(), subtype="PCM_24"), (), "24 bits, 1 channels, 16000 Hz; expected integers of 16 or 32 bits"),
        (np.full(40000, np.nan, "<f4").tobytes(), ("--encoding", "f32"), "not finite"),
        (b"", ("--hop-seconds", "2"), "--hop-seconds 2; expected more than 0 and at most 1"),
        (b"", ("--rate", "10"), "--rate 10; expected 1000 to 768000"),
    ],
)
def test_what_cannot_be_heard_ends_in_one_line(heard, sound: bytes, flags: tuple[str, ...], said: str) -> None:
    """With the reason, and status 2."""
    status, found, error = heard(sound, *flags)
    assert (status, found) == (2, [])
    assert said in error
    assert "Traceback" not in error


def test_a_window_without_finite_logits_is_no_detection(heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither from a file nor while listening, however low the threshold."""
    monkeypatch.setattr("infer.listen.members.Judge", Overflowing)
    assert heard(wav(talk()), "--window-confidence", "0")[:2] == (0, [])


def test_a_pipe_without_sound_says_that_nothing_was_heard(heard) -> None:
    """No sound is no error."""
    status, found, error = heard(b"")
    assert (status, found) == (0, [])
    assert "0.0 s heard, 0 detections" in error


@pytest.fixture
def model(here: Path, runtime) -> str:
    """The run as an ONNX file."""
    from infer.export.__main__ import main as export

    if not Path("listen.onnx").exists():
        flags = ("--output", "listen.onnx", "--check-clips", "4")
        assert export(["--run", RUN, "--tta", "2", *flags]) == 0
    return "listen.onnx"


def test_an_exported_file_hears_the_same_without_torch(here: Path, heard, model: str) -> None:
    """In a process where torch cannot be imported; probabilities differ by 1e-3 at most."""
    sound = wav(talk())
    command = [sys.executable, "-c", WITHOUT_TORCH, "-", "--json", "--onnx", model]
    done = subprocess.run(
        command, input=sound, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    expected = heard(sound, "--amp", "off")[1]
    assert [(row["start_s"], row["label"]) for row in found] == [(row["start_s"], row["label"]) for row in expected]
    assert all(abs(a["confidence"] - b["confidence"]) < 1e-3 for a, b in zip(found, expected, strict=True))


def test_what_is_no_exported_file_is_refused(here: Path, heard, model: str, tmp_path: Path) -> None:
    """Missing, damaged, or of another program."""
    import onnx

    (tmp_path / "x.onnx").write_bytes(b"no model")
    other = onnx.load(model)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    for name in ("missing.onnx", "x.onnx", "other.onnx"):
        status, _, error = heard(b"", "--onnx", str(tmp_path / name))
        assert status == 2
        assert error.startswith(f"error: {tmp_path / name}: no")
        assert error.count("\n") == 1


def started(here: Path, model: str, *flags: str, **streams) -> subprocess.Popen:
    """infer.listen as a process."""
    command = [sys.executable, "-u", "-m", "infer.listen", "--onnx", model, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=here, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **streams
    )


def test_detections_come_while_the_sound_goes_on_and_ctrl_c_ends(here: Path, model: str) -> None:
    """A word is printed although the pipe stays open; Ctrl-C prints the sum and is no error."""
    process = started(here, model, "-", "--window-confidence", "0", stdin=subprocess.PIPE)
    process.stdin.write(wav(talk()))
    process.stdin.flush()
    line = process.stdout.readline().split()
    assert len(line) == 4
    assert float(line[1]) - float(line[0]) == 1
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 0
    assert b"s heard" in error


def test_a_reader_that_closes_the_pipe_ends_it_quietly(here: Path, model: str) -> None:
    """As with head -1: status 141 and no complaint."""
    for flags in (("--onnx", model), FLAGS):
        command = [sys.executable, "-u", "-m", "infer.listen", *flags, "-", "--window-confidence", "0"]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT)}, **streams)
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(wav(talk()))
            process.stdin.close()
        assert process.wait() == 141
        said = process.stderr.read().splitlines()
        assert all(line.startswith(b"confidence: too modest") for line in said)


def test_standard_input_that_is_closed(here: Path, model: str) -> None:
    """As with <&-: one line."""
    command = f"{sys.executable} -m infer.listen - --onnx {model} <&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard input is closed;")


def test_what_follows_the_sound_of_a_long_file_is_no_sound(heard) -> None:
    """An RF64 says the length of its sound in a part of its own; behind it may be anything."""
    sound = wav(talk(), kind="RF64")
    assert sound[:4] == b"RF64"
    more = sound + b"LIST" + (64000).to_bytes(4, "little") + 32000 * b"ab"
    status, found, error = heard(more)
    assert (status, found) == heard(sound)[:2]
    assert "9.1 s heard" in error


def test_without_any_microphone_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sound library finds no device at all, one line names the way around it."""

    def query_devices(*chosen: object) -> list:
        if chosen:
            raise RuntimeError("Error querying device -1")
        return []

    library = types.SimpleNamespace(query_devices=query_devices, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    said = r"\(the default\): Error querying device -1; there: none; connect one, or pipe sound in: arecord .* -$"
    with pytest.raises(InputError, match=said), microphone(None, RATE):
        pass


def test_an_error_of_judging_is_not_called_the_microphones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while a microphone is open is shown as what it is."""
    monkeypatch.setitem(sys.modules, "sounddevice", MagicMock(PortAudioError=RuntimeError))
    with pytest.raises(ValueError, match="of judging"), microphone(None, RATE):
        raise ValueError("of judging")


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen]:
    """A PulseAudio server of our own, whose only microphone hears what paplay plays."""
    for program in ("pulseaudio", "paplay"):
        if not shutil.which(program):
            pytest.skip(f"no {program}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = ("-L", "module-native-protocol-unix auth-anonymous=1", "-L", "module-null-sink rate=48000")
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *loaded]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if subprocess.run(["pactl", "info"], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)
        listed = subprocess.run([sys.executable, "-m", "sounddevice"], capture_output=True, text=True)
        if "pulse" not in listed.stdout:
            pytest.skip(f"sounddevice sees no PulseAudio: {listed.stdout} {listed.stderr[-200:]}")
        yield server
    finally:
        server.kill()
        server.wait()


def line_of(process: subprocess.Popen, text: bytes) -> bytes:
    """The first line on stderr that holds `text`; a minute without ends the process."""
    limit = threading.Timer(60, process.kill)
    limit.start()
    try:
        for line in process.stderr:
            if text in line:
                return line
    finally:
        limit.cancel()
    raise AssertionError(f"ended without {text}")


def test_a_microphone_hears_words_and_ends_in_a_line_when_it_disappears(
    here: Path, model: str, pulse: subprocess.Popen, tmp_path: Path
) -> None:
    """A recording played into a real sound server is recognised; when the server dies, one line and status 2."""
    process = started(here, model, "--microphone", "pulse", "--json")
    assert b"listening to pulse since" in line_of(process, b"listening")
    soundfile.write(tmp_path / "talk.wav", talk(), RATE)
    subprocess.run(["paplay", str(tmp_path / "talk.wav")], check=True)
    time.sleep(1.5)
    pulse.kill()
    output, error = process.communicate(timeout=60)
    found = [json.loads(line)["label"] for line in output.splitlines()]
    said = [label for label in found if label != "noise"]  # without anything to play it hears digital silence
    assert " ".join(WORDS) in " ".join(said)
    assert process.returncode == 2
    assert b"microphone pulse: no more sound from it" in error
    assert b"Traceback" not in error


def test_lost_sound_is_counted(here: Path, model: str, pulse: subprocess.Popen) -> None:
    """A process that was stopped for a while says that sound was lost."""
    process = started(here, model, "--microphone", "pulse")
    line_of(process, b"listening")
    for _ in range(5):  # on a busy machine it may not have heard anything yet
        time.sleep(1)
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)
        if select.select([process.stderr], [], [], 5)[0]:
            break
    assert b"sound was lost" in line_of(process, b"lost")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_unknown_microphone_is_refused_with_the_list(here: Path, model: str, pulse: subprocess.Popen) -> None:
    """The line names those that are there."""
    process = started(here, model, "--microphone", "nowhere")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"microphone nowhere: " in error
    assert b"there: pulse" in error
    assert error.count(b"\n") == 1
