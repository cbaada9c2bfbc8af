"""Long recordings: windows that equal clips cut out, detections at the right times, and constant memory."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import infer.members
from cache.config import FeatureConfig
from infer.detections import Detection, Detector, window_thresholds
from infer.predict.__main__ import main
from pipeline.decode import read_clip
from pipeline.features import LogMel
from pipeline.stream import LoudestClip, read_blocks, windows
from tests.conftest import RATE, ROOT, synthesise
from tests.forked import ranks
from tests.words_run import RUN, WORDS, hiss

CONFIG = FeatureConfig(n_mels=32, n_frames=32)
SAID = {3.1: "yes", 5.0: "no", 9.33: "up", 12.0: "up", 17.9: "no"}  # start in seconds
FLAGS = ("--run", RUN, "--device", "cpu", "--tta", "2")


@pytest.fixture(scope="module")
def folder(words: Path) -> Path:
    """``talk.flac`` with the words of `SAID`, a word of exactly a clip, a short one, and a file that is no audio."""
    folder = words / "recordings"
    folder.mkdir()
    talk = hiss(20.4, 1)
    for start, word in SAID.items():
        first = round(start * RATE)
        talk[first : first + RATE] += synthesise(WORDS.index(word), 9, round(start)) * (2 if start == 5.0 else 1)
    soundfile.write(folder / "talk.flac", talk, RATE)
    soundfile.write(folder / "whole.wav", synthesise(2, 9, 9), RATE)
    soundfile.write(folder / "short.wav", synthesise(2, 9, 8)[:14000], RATE)
    (folder / "broken.wav").write_text("no audio")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def noise(path: Path, rate: int, channels: int, subtype: str) -> np.ndarray:
    """Write 13.37 s of noise whose level rises and falls; returns what read_clip makes of it."""
    time_s = np.arange(round(13.37 * rate)) / rate
    level = 0.2 * np.abs(np.sin(time_s))[:, None]
    samples = np.clip(level * np.random.default_rng(rate).standard_normal((len(time_s), channels)), -1, 1)
    soundfile.write(path, samples, rate, subtype=subtype)
    return read_clip(str(path), CONFIG).samples


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"),
    [(16000, 1, "PCM_16"), (16000, 2, "FLOAT"), (44100, 1, "PCM_24"), (8000, 3, "PCM_16")],
)
def test_the_loudest_clip_of_a_stream_is_read_clip_s(rate: int, channels: int, subtype: str, tmp_path: Path) -> None:
    """Found block by block, the loudest window has the same bits as through the clip path, resampled or not."""
    expected, loudest = noise(tmp_path / "x.wav", rate, channels, subtype), LoudestClip(RATE)
    assert sum(map(len, loudest.watch(read_blocks(str(tmp_path / "x.wav"), CONFIG)))) == round(13.37 * RATE)
    assert np.array_equal(loudest.samples, expected)


@given(total=st.integers(0, 300), length=st.integers(1, 60), hop=st.integers(1, 60), cuts=st.lists(st.integers(0, 300)))
def test_windows_cover_a_recording_however_it_is_cut_into_blocks(
    total: int, length: int, hop: int, cuts: list[int]
) -> None:
    """Windows start at every hop, one ends with the recording, and each holds its stretch of samples."""
    hop, samples = min(hop, length), np.arange(total, dtype=np.float32)
    starts = list(range(0, total - length + 1, hop))
    if total >= length and starts[-1] != total - length:
        starts.append(total - length)
    found = list(windows(np.split(samples, sorted(cut for cut in cuts if cut <= total)), length, hop))
    assert [start for start, _ in found] == starts
    assert all(np.array_equal(window, samples[start : start + length]) for start, window in found)


def test_features_of_a_window_are_those_of_the_clip_cut_out(tmp_path: Path) -> None:
    """A window cut into a file of its own and read as a clip gives the same features to the bit."""
    noise(tmp_path / "x.wav", RATE, 1, "PCM_16")
    log_mel = LogMel(CONFIG)
    streamed, cut = torch.empty(2, 32, 32, dtype=torch.float16)
    for start, window in windows(read_blocks(str(tmp_path / "x.wav"), CONFIG), RATE, 3777):
        stretch, _ = soundfile.read(tmp_path / "x.wav", start=start, frames=RATE, dtype="int16")
        soundfile.write(tmp_path / "cut.wav", stretch, RATE)
        log_mel(window[None], streamed[None])
        log_mel(read_clip(str(tmp_path / "cut.wav"), CONFIG).samples[None], cut[None])
        assert torch.equal(streamed, cut)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(3, 9)), max_size=30), st.integers(0, 9))
def test_detections_are_the_most_confident_of_overlapping_windows(said: list[tuple[int, int]], least: int) -> None:
    """Settled window by window, what is found equals a plain loop over windows from the most to the least confident."""
    detector, found = Detector(WORDS, np.full(3, least / 10)), []
    for start, (word, score) in enumerate(said):
        scores = np.full(3, 0.01)
        scores[word] = score / 10
        found += detector.add(scores, start / 4, start / 4 + 1)
        assert all(each.end_s <= start / 4 for each in found), "settled while a later window may overlap it"
    stays: list[int] = []
    for index in sorted(range(len(said)), key=lambda index: -said[index][1]):
        rivals = [other for other in stays if said[other][0] == said[index][0] and abs(other - index) < 4]
        if said[index][1] >= least and not rivals:
            stays.append(index)
    expected = [Detection(at / 4, at / 4 + 1, WORDS[said[at][0]], said[at][1] / 10) for at in sorted(stays)]
    assert sorted(found + detector.end()) == expected


@pytest.mark.parametrize("least", [0.0, 0.5, 0.6, 0.9])
def test_a_higher_threshold_only_leaves_out(least: float) -> None:
    """What is found at a threshold is what is found at none and is as sure, also with a last window between two."""
    said = [(0, "yes", 0.55), (0.25, "no", 0.6), (0.5, "no", 0.6), (0.75, "no", 0.6), (0.9, "yes", 0.99)]

    def found(threshold: float) -> list[tuple[str, float]]:
        detector, settled = Detector(["no", "yes"], np.full(2, threshold)), []
        for start, word, score in said:
            scores = np.full(2, 0.01)
            scores[["no", "yes"].index(word)] = score
            settled += detector.add(scores, start, start + 1)
        return [(each.label, each.confidence) for each in settled + detector.end()]

    assert sorted(found(least)) == sorted(each for each in found(0) if each[1] >= least)
    assert ("yes", 0.99) in found(0)


def test_an_eager_detection_is_given_at_once_and_suppresses_what_overlaps_it() -> None:
    """The first window that is sure enough, then none of its label for a clip's length."""
    detector = Detector(["yes", "no"], np.array([0.5, 0.5]), eager=True)
    given = [
        [(each.start_s, each.confidence) for each in detector.add(np.array([p, 0.4]), at / 4, at / 4 + 1)]
        for at, p in enumerate([0.3, 0.6, 0.9, 0.8, 0.7, 0.7])
    ]
    assert given == [[], [(0.25, 0.6)], [], [], [], [(1.25, 0.7)]]
    assert detector.end() == []


def test_unknown_and_silence_are_not_listed() -> None:
    """However sure a window of them is, and whatever threshold is given; a word beside them is."""
    words = ["unknown", "yes", "silence"]
    for chosen in (None, 0.0):
        detector = Detector(words, window_thresholds(words, chosen, {"unknown": 0.1, "yes": 0.4}))
        found = [each for at in range(3) for each in detector.add(np.roll([0.99, 0.0, 0.01], at), at, at + 1)]
        assert [each.label for each in found + detector.end()] == ["yes"]


def test_a_long_rise_in_confidence_takes_no_long_time_to_settle() -> None:
    """Of 3,000 windows, each surer than the one before, every fourth stays, counted from the last."""
    detector, found = Detector(["yes"], np.zeros(1)), []
    for at in range(3000):
        found += detector.add(np.array([0.1 + at / 4000]), at / 4, at / 4 + 1)
    assert not found
    assert [each.start_s for each in detector.end()] == [at / 4 for at in range(3, 3000, 4)]


class MatchedFilter(torch.nn.Module):
    """In a trained network's place: the word whose features a clip's resemble, or noise where they resemble none."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.words = torch.empty(len(WORDS), config.n_mels, config.n_frames)
        LogMel(config)(np.stack([synthesise(word, 9, 0) for word in range(len(WORDS))]), self.words)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        no, up, yes = (x * self.words).mean(dim=(2, 3)).unbind(dim=1)  # correlation: whole words 0.7 and more
        return 30 * torch.stack([no, torch.full_like(no, 0.5), up, yes], dim=1)


def test_words_are_found_when_they_were_said(here: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word of a long recording is found once, in a window that covers most of it; noise is found between them."""
    load = infer.members.load_members

    def matched(*arguments: Any) -> list[infer.members.Member]:
        return [dataclasses.replace(member, model=MatchedFilter(member.config)) for member in load(*arguments)]

    monkeypatch.setattr(infer.members, "load_members", matched)
    flags = ("--input", str(folder), "--windows", "windows.csv", "--output", "p.csv", "--hop-seconds", "0.2")
    assert main([*FLAGS, *flags]) == 1  # broken.wav
    rows = [row for row in table(here / "windows.csv") if row["file"] == "talk.flac"]
    words = [(row["label"], float(row["start_s"])) for row in rows if row["label"] != "noise"]
    assert [label for label, _ in words] == list(SAID.values()), rows
    assert all(abs(found - said) <= 0.5 for (_, found), said in zip(words, SAID, strict=True))
    assert any(row["label"] == "noise" for row in rows)
    assert all(float(row["end_s"]) - float(row["start_s"]) == pytest.approx(1) for row in rows)
    assert all(float(row["confidence"]) >= 0.5 for row in rows)


def test_the_file_s_own_row_and_files_of_a_clip_stay_as_they_are(here: Path, folder: Path) -> None:
    """predictions.csv is the same with and without --windows; a file of a clip or less is one window of its length."""
    assert main([*FLAGS, "--input", str(folder), "--output", "plain.csv"]) == 1
    flags = ("--windows", "w.csv", "--output", "windowed.csv", "--window-confidence", "0")
    assert main([*FLAGS, "--input", str(folder), *flags]) == 1
    assert (here / "windowed.csv").read_text() == (here / "plain.csv").read_text()
    own = {row["file"]: row for row in table(here / "plain.csv")}
    assert own["talk.flac"]["label"] == "no"  # the loudest
    assert own["broken.wav"]["error"]
    spans = [(row["file"], row["start_s"], row["end_s"]) for row in table(here / "w.csv") if row["file"] != "talk.flac"]
    assert spans == [("short.wav", "0.000", "0.875"), ("whole.wav", "0.000", "1.000")]
    assert [row["label"] for row in table(here / "w.csv")][-1] == own["whole.wav"]["label"]


def test_two_ranks_write_the_same_tables(here: Path, folder: Path, tmp_path: Path) -> None:
    """Under torchrun, with more files than a block, both tables are those of one process."""
    names = [str(folder / name) for name in ("whole.wav", "short.wav", "talk.flac")]
    (tmp_path / "list.txt").write_text("\n".join(names * 4))
    flags = [*FLAGS, "--input", tmp_path / "list.txt", "--windows", tmp_path / "w.csv", "--output", tmp_path / "p.csv"]
    assert main(list(map(str, flags))) == 0
    tables = [(tmp_path / name).read_bytes() for name in ("w.csv", "p.csv")]
    statuses, output = ranks(2, "infer.predict", here, *flags)
    assert statuses == [0, 0], output
    assert tables == [(tmp_path / name).read_bytes() for name in ("w.csv", "p.csv")]


def test_thirty_minutes_take_no_more_memory_than_one(here: Path, tmp_path: Path) -> None:
    """A recording that the clip path refuses for its length is judged, by its loudest window, in constant memory."""
    for minutes in (1, 30):
        with soundfile.SoundFile(tmp_path / f"{minutes}.wav", "w", RATE, 1, "PCM_16") as file:
            for minute in range(minutes):
                file.write(hiss(60, minute))
            file.seek(-5 * RATE, soundfile.SEEK_END)
            file.write(synthesise(2, 9, 9))
    program = (
        "import resource, sys; from infer.predict.__main__ import main\n"
        "for minutes in (1, 30):\n"
        f"    main([*{FLAGS!r}[:4], '--tta', '1', '--hop-seconds', '1', '--input', f'{tmp_path}/{{minutes}}.wav',\n"
        f"        '--output', f'{tmp_path}/{{minutes}}.csv', '--windows', f'{tmp_path}/{{minutes}}w.csv'])\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run([sys.executable, "-c", program], cwd=here, env=environment, capture_output=True, text=True)
    peaks = [int(line.split()[1]) / 1024 for line in done.stdout.splitlines() if line.startswith("peak")]
    assert peaks[1] - peaks[0] < 20, f"{peaks} MiB; decoded the recording has 110\n{done.stdout + done.stderr}"
    (row,) = table(tmp_path / "30.csv")
    assert (row["label"], row["error"]) == ("yes", "")
    assert [row["start_s"] for row in table(tmp_path / "30w.csv") if row["label"] != "noise"] == ["1795.000"]


def test_a_hop_beyond_the_clip_is_refused(here: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Windows that leave gaps would miss words."""
    assert main([*FLAGS, "--input", str(folder), "--windows", "hop.csv", "--hop-seconds", "1.5"]) == 2
    assert "--hop-seconds 1.5; expected more than 0 and at most 1" in capsys.readouterr().err
    assert main([*FLAGS, "--input", str(folder), "--windows", "hop.csv", "--hop-seconds", "nan"]) == 2
    assert "--hop-seconds nan; expected 0 to 3600" in capsys.readouterr().err
    assert not (here / "hop.csv").exists()


def test_what_is_judged_by_its_loudest_clip_alone_is_counted(
    here: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Without windows the rest of a long recording is not heard, and stderr says so."""
    said = "1 recording longer than 1 s: judged by the loudest 1 s; --windows FILE judges all of them\n"
    for flags, expected in (((), True), (("--windows", str(tmp_path / "found.csv")), False)):
        assert main([*FLAGS, "--input", str(folder), "--output", str(tmp_path / "said.csv"), *flags]) == 1
        assert (said in capsys.readouterr().err) is expected


def test_a_second_input_is_refused(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """It would take the place of the first, which nobody expects who may repeat --run."""
    with pytest.raises(SystemExit, match="2"):
        main([*FLAGS, "--input", str(folder), "--input", str(folder / "talk.flac")])
    assert "--input is given twice; it takes one" in capsys.readouterr().err
