"""Lists as people write them, and names in other forms of Unicode."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from conftest import RATE, only_cache, synthesise

from cache.cli import InputError
from cache.index import TEST, Cache
from infer.recordings import Recordings, list_recordings

NFC, NFD = (lambda text: unicodedata.normalize("NFC", text)), (lambda text: unicodedata.normalize("NFD", text))
NAMES = [f"{word}/a0000003_nohash_{n}.wav" for word in ("no", "up", "yes") for n in range(2)]


def in_test_split(cache_dir: Path) -> set[str]:
    """The clip_ids of the split "test"."""
    cache = Cache(only_cache(cache_dir))
    return {name.decode() for name in cache.clips["clip_id"][cache.clips["split"] == TEST].tolist()}


WAYS: dict[str, Callable[[Path], bytes]] = {
    "plain": lambda audio: "\n".join(NAMES).encode(),
    "byte order mark": lambda audio: "\n".join(NAMES).encode("utf-8-sig"),
    "two files with marks joined": lambda audio: b"".join(f"\ufeff{name}\n".encode() for name in NAMES),
    "UTF-16 of Windows": lambda audio: "\r\n".join(NAMES).encode("utf-16"),
    "line ends of Windows": lambda audio: "\r\n".join(NAMES).encode() + b"\r\n",
    "blanks and blank lines": lambda audio: "".join(f"\t{name}  \n \n" for name in NAMES).encode(),
    "dot": lambda audio: "\n".join(f"./{name}" for name in NAMES).encode(),
    "backslashes": lambda audio: "\n".join(name.replace("/", "\\") for name in NAMES).encode(),
    "dot and backslashes": lambda audio: "\r\n".join(".\\" + name.replace("/", "\\") for name in NAMES).encode(),
    "two slashes": lambda audio: "\n".join(name.replace("/", "//") for name in NAMES).encode(),
    "a leading slash": lambda audio: "\n".join(f"/{name}" for name in NAMES).encode(),
    "the corpus's folder": lambda audio: "\n".join(f"data/audio/{name}" for name in NAMES).encode(),
    "from a folder beside it": lambda audio: "\n".join(f"../audio/{name}" for name in NAMES).encode(),
    "absolute": lambda audio: "\n".join(str(audio / name) for name in NAMES).encode(),
    "absolute on Windows": lambda audio: "\n".join(f"C:\\data\\audio\\{name}" for name in NAMES).encode(),
    "many ways at once": lambda audio: (
        f"{NAMES[0]}\n./{NAMES[1]}\r\n{audio / NAMES[2]} \n".encode() + "\n".join(NAMES[3:]).encode()
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_testing_list_is_read_however_it_is_written(corpus: Path, build, way: str) -> None:
    """No clip that a line means is trained on, and the summary counts lines and clips."""
    (corpus / "testing_list.txt").write_bytes(WAYS[way](corpus))
    status, output = build()
    assert status == 0, output
    assert in_test_split(corpus.parent / "cache") == set(NAMES)
    assert "testing_list.txt: 6 lines, 6 clips" in output


@pytest.mark.parametrize("way", WAYS)
def test_predict_s_list_is_read_however_it_is_written(corpus: Path, monkeypatch, way: str) -> None:
    """Each line's file is found from the list's folder, and reported under the name that the line has."""
    (corpus / "list.txt").write_bytes(WAYS[way](corpus))
    monkeypatch.chdir(corpus.parent)
    found = list_recordings("audio/list.txt")
    assert {os.path.relpath(path, "audio") for path in found.paths} == set(NAMES)
    written = [os.path.normpath(name.replace("\\", "/")) for name in found.names]
    assert all(name.endswith(clip) for name, clip in zip(written, NAMES, strict=True))
    assert found.note == "audio/list.txt: 6 lines, 6 files"


def test_lines_of_predict_s_list_that_name_no_file_stay_rows(corpus: Path) -> None:
    """They are counted, and cost their row when they are read."""
    (corpus / "list.txt").write_text(f"{NAMES[0]}\nno/missing.wav\nmußte/é.wav\n")
    found = list_recordings(str(corpus / "list.txt"))
    assert found.paths[1:] == ["no/missing.wav", "mußte/é.wav"]
    assert found.note.endswith("list.txt: 3 lines, 1 file")


@pytest.mark.parametrize("name", ["testing_list.txt", "validation_list.txt"])
def test_lines_that_name_no_clip_are_refused(corpus: Path, build, name: str) -> None:
    """Before any work, with an example; --ignore-missing goes on, and stderr says what was ignored."""
    (corpus / "testing_list.txt").write_text("\n".join(NAMES))
    (corpus / "validation_list.txt").write_text("yes/a0000001_nohash_0.wav")
    with open(corpus / name, "a") as file:
        file.write("\nyes/renamed.wav\nno/A0000003_nohash_0.wav")
    status, output = build("--split", "official")
    assert status == 2
    assert "2 lines name no clip of this corpus, such as 'yes/renamed.wav'" in output
    assert "--ignore-missing" in output
    assert not list(corpus.parent.glob("cache/*/*.h5"))
    status, output = build("--split", "official", "--ignore-missing")
    assert status == 0
    assert f"{name}: 2 lines name no clip: yes/renamed.wav" in output
    assert in_test_split(corpus.parent / "cache") == set(NAMES)


@pytest.mark.parametrize("content", [b"left/a.wav\n", b"\xff\xfe\x00", b"gr\xf6\xdfe/a.wav", b"a\0b", None])
def test_lists_that_name_nothing_are_refused_in_any_case(corpus: Path, build, content: bytes | None) -> None:
    """Of another corpus, of another encoding, no text at all, a link to nowhere: with --ignore-missing too."""
    if content is None:
        (corpus / "testing_list.txt").symlink_to("nowhere")
    else:
        (corpus / "testing_list.txt").write_bytes(content)
    status, output = build("--ignore-missing")
    assert status == 2
    assert "testing_list.txt: " in output
    assert len(output.strip().splitlines()) == 1


def test_clips_that_cannot_be_decoded_are_no_missing_lines(corpus: Path, build) -> None:
    """A line names a clip where there is the file, whether or not it can be read."""
    (corpus / "testing_list.txt").write_text("\n".join(NAMES))
    (corpus / NAMES[0]).write_bytes(b"no recording")
    status, output = build()
    assert status == 1
    assert "testing_list.txt: 6 lines, 6 clips" in output
    assert in_test_split(corpus.parent / "cache") == set(NAMES[1:])


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_names_in_another_form_of_unicode_are_found(corpus: Path, build, listed, there) -> None:
    """In the corpus's lists and in predict's, in folders' names and in files'."""
    folder = corpus / there("größe")
    folder.mkdir()
    for n in range(4):
        soundfile.write(folder / there(f"é{n}.wav"), synthesise(7, n, 0), RATE)
    (corpus / "testing_list.txt").write_text(listed("größe/é0.wav\ngröße/é1.wav\n"))
    assert build()[0] == 0
    assert in_test_split(corpus.parent / "cache") == {there("größe/é0.wav"), there("größe/é1.wav")}
    mixed = f"{listed('größe')}/{there('é2.wav')}"
    (corpus / "list.txt").write_text(listed("größe/é0.wav") + "\n" + mixed)
    assert all(map(os.path.exists, list_recordings(str(corpus / "list.txt")).paths))


def test_exact_names_come_first(corpus: Path, build) -> None:
    """Where several files differ by their form alone, a line means the one that it spells."""
    for form in (NFC, NFD):
        soundfile.write(corpus / "yes" / form("é.wav"), synthesise(7, len(form("é")), 0), RATE)
    (corpus / "testing_list.txt").write_text(NFD("yes/é.wav"))
    assert build()[0] == 0
    assert in_test_split(corpus.parent / "cache") == {NFD("yes/é.wav")}


def test_labels_in_two_forms_of_unicode_are_refused(corpus: Path, build) -> None:
    """They look like one label; the error tells them apart."""
    for form in (NFC, NFD):
        shutil.copytree(corpus / "yes", corpus / form("größe"))
    status, output = build()
    assert status == 2
    assert r"the labels 'gro\u0308\xdfe' and 'gr\xf6\xdfe' are one in two spellings, such as two forms of" in output


@pytest.mark.parametrize("labels", [("ja", "ja "), ("big  dog", "big dog"), ("1", "1.0")])
def test_labels_that_differ_in_blanks_or_as_numbers_are_refused(corpus: Path, build, labels: tuple[str, str]) -> None:
    """Nobody means two labels by them."""
    for label in labels:
        shutil.copytree(corpus / "yes", corpus / label)
    status, output = build()
    assert status == 2
    assert f"the labels {labels[0]!r} and {labels[1]!r} are one in two spellings" in output


def test_labels_to_judge_by_may_have_another_form() -> None:
    """Recordings of a folder in one form belong to the class in the other."""
    recordings = Recordings(["", ""], [NFD("größe/a.wav"), "no/a.wav"])
    assert recordings.targets([NFC("größe"), "no"]).tolist() == [0, 1]
    with pytest.raises(InputError, match="not the label of any class: left"):
        Recordings([""], ["left/a.wav"]).targets(["no"])
    with pytest.raises(InputError, match="left; expected the labels no, unknown; call all other words unknown"):
        Recordings([""], ["a.wav"], labels=["left"]).targets(["no", "unknown"])


def test_the_split_of_a_plain_list_stays_what_it_was(corpus: Path, build) -> None:
    """Caches that were built from plain lists keep their digest, and runs their split."""
    (corpus / "testing_list.txt").write_text("\n".join(NAMES) + "\n")
    assert build()[0] == 0
    digest = Cache(only_cache(corpus.parent / "cache")).index["split"]["digest"]
    assert digest == "167c2f0a4d518ead0dbabc6b509009461d6f83ea4eac8ee47ae08f7a99f93e7c"
