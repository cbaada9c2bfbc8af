"""Links in a corpus and in an input folder: followed where they lead to a folder, a row where they lead nowhere."""

import os
from pathlib import Path

import pytest
import soundfile
from conftest import RATE, only_cache, synthesise

from infer.recordings import list_recordings
from pipeline.scan import scan_corpus


def write_links(audio: Path) -> set[str]:
    """Links of every kind below ``audio``; returns the names of the recordings that they add."""
    pool = audio.parent / "pool"
    (pool / "deep").mkdir(parents=True)
    soundfile.write(pool / "p.wav", synthesise(7, 0, 0), RATE)
    soundfile.write(pool / "deep" / "q.wav", synthesise(7, 1, 0), RATE)
    (audio / "yes" / "linked").symlink_to(pool)
    (audio / "left").symlink_to(pool)
    (audio / "yes" / "r.wav").symlink_to(pool / "p.wav")
    (audio / "yes" / "loop.wav").symlink_to("loop.wav")
    (audio / "yes" / "nowhere.wav").symlink_to("missing.wav")
    (audio / "yes" / "loop").symlink_to("loop")
    (audio / "loop").symlink_to("loop")
    (audio / "yes" / "itself").symlink_to(".")
    (audio / "yes" / "back").symlink_to(audio)
    (pool / "deep" / "up").symlink_to(pool)
    (pool / "round").symlink_to(audio / "yes")
    below = {"p.wav", "deep/q.wav"}
    added = {f"yes/linked/{name}" for name in below} | {f"left/{name}" for name in below}
    through = {f"left/round/{path.name}" for path in (audio / "yes").glob("*nohash*")}
    through |= {f"left/round/{name}" for name in ("r.wav", "loop.wav", "nowhere.wav")}
    return added | through | {f"yes/{name}" for name in ("r.wav", "loop.wav", "nowhere.wav")}


def test_links_to_folders_are_followed_and_loops_are_not(corpus: Path) -> None:
    """At any depth, in a corpus and in an input folder alike; a link that leads nowhere is a recording to refuse."""
    before = {str(path.relative_to(corpus)) for path in corpus.rglob("*.wav")}
    expected = before | write_links(corpus)
    listing, ignored = scan_corpus(corpus)
    assert {name.decode() for name in listing["clip_id"].tolist()} == expected
    assert ignored == {"no suffix": 2}
    assert set(list_recordings(str(corpus)).names) == expected


def test_links_that_lead_nowhere_cost_a_row(corpus: Path, build, tmp_path: Path) -> None:
    """A loop beside the labels, in one, and as a recording: everything else is built."""
    write_links(corpus)
    status, output = build()
    assert status == 1, output
    listed = (only_cache(tmp_path / "cache") / "rejected.csv").read_text()
    assert "yes/loop.wav,Too many levels of symbolic links\n" in listed
    assert "yes/nowhere.wav,No such file or directory\n" in listed
    assert len(listed.splitlines()) == 5


def test_what_is_no_file_costs_a_row(corpus: Path, build, tmp_path: Path) -> None:
    """A FIFO with the name of a recording is refused, not passed over."""
    os.mkfifo(corpus / "yes" / "pipe.wav")
    assert build()[0] == 1
    assert "yes/pipe.wav,not a regular file\n" in (only_cache(tmp_path / "cache") / "rejected.csv").read_text()
    assert "yes/pipe.wav" in list_recordings(str(corpus)).names


@pytest.mark.parametrize("target", ["x.wav", "nowhere.wav", None])
def test_background_recordings_that_cannot_be_read_are_refused(corpus: Path, build, target: str | None) -> None:
    """A link to itself or to nowhere and a FIFO are named before any work, not left out of the views."""
    path = corpus / "_background_noise_" / "x.wav"
    path.parent.mkdir()
    if target:
        path.symlink_to(target)
    else:
        os.mkfifo(path)
    status, output = build()
    assert status == 2
    assert output.strip().endswith("repair or remove it")
    assert str(path) in output
