"""The build: bad input, changed corpora, and the same bits whatever the circumstances."""

import csv
import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import MINI, RATE, SMALL, checksums, only_cache, start, synthesise, write_corpus

from cache.files import read_sealed, write_sealed
from cache.index import NO_FOLD, TEST, Cache
from cache.verify import main as verify
from pipeline.decode import read_clip


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and modification time of every shard: equal where it was not written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in only_cache(folder).glob("*.h5")}


def clip_ids(cache: Cache) -> set[str]:
    return {name.decode() for name in cache.clips["clip_id"].tolist()}


def rejected(folder: Path) -> dict[str, str]:
    path = only_cache(folder) / "rejected.csv"
    with open(path, encoding="utf-8", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)} if path.exists() else {}


def features_of(cache: Cache) -> dict[str, bytes]:
    """Every clip's stored bits."""
    rows = {shard: cache.features(shard) for shard in np.unique(cache.clips["shard"]).tolist()}
    return {clip["clip_id"].decode(): rows[int(clip["shard"])][clip["row"]].tobytes() for clip in cache.clips}


def one_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 1, output
    assert lines[0].startswith("error: ")
    return lines[0]


def remove_audio(audio: Path) -> None:
    shutil.rmtree(audio)


def empty_audio(audio: Path) -> None:
    shutil.rmtree(audio)
    (audio / "yes").mkdir(parents=True)


def one_class(audio: Path) -> None:
    for name in ("no", "up"):
        shutil.rmtree(audio / name)


def few_clips(audio: Path) -> None:
    for path in sorted((audio / "up").iterdir())[1:]:
        path.unlink()


REFUSED = {
    "no corpus": (remove_audio, (), "no such folder; put recordings into"),
    "empty folder": (empty_audio, (), "no recordings; expected"),
    "one class": (one_class, (), "one label only (yes)"),
    "a class with fewer clips than folds": (few_clips, (), "fewer speakers (or clips) than the 2 folds for: up (1)"),
    "one fold": (None, ("--folds", "1"), "--folds 1; expected 2 or more"),
    "no jobs": (None, ("--jobs", "0"), "--jobs 0; expected"),
    "no clips in a shard": (None, ("--clips-per-shard", "0"), "--clips-per-shard 0; expected 1 or more"),
    "no frame": (None, ("--n-fft", "0"), "n_fft 0 is out of range; expected 32 to 65536"),
    "too many mels": (None, ("--n-mels", "200"), "mel filters empty; --n-fft 1024 is the smallest"),
    "official without a list": (None, ("--split", "official"), "validation_list.txt names no clip"),
    "a scheduler that is not there": (
        None,
        ("--backend", "dask", "--scheduler", "tcp://127.0.0.1:9"),
        "no Dask scheduler at tcp://127.0.0.1:9",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(corpus, build, name):
    """What cannot be built is one line with the remedy and exit status 2, and no cache that looks finished."""
    damage, flags, expected = REFUSED[name]
    if damage:
        damage(corpus)
    status, output = build(*flags)
    assert status == 2
    assert expected in one_line(output)
    assert not list(corpus.parent.glob("cache/*/index.json"))


def test_refusal_loses_nothing(corpus, build):
    """A corpus that became invalid leaves the finished cache as it was."""
    assert build()[0] == 0
    before = checksums(corpus.parent / "cache")
    one_class(corpus)
    assert build()[0] == 2
    assert checksums(corpus.parent / "cache") == before


def test_one_label_where_it_is_asked_for(corpus, build):
    """What train.add_words builds where there is one new word."""
    one_class(corpus)
    assert build("--one-label")[0] == 0
    assert Cache(only_cache(corpus.parent / "cache")).classes == ["yes"]


def test_names_that_are_not_utf8_are_refused(corpus, build):
    """A file name that no JSON can hold is named; nothing is built under another name."""
    os.rename(next((corpus / "yes").iterdir()), os.fsencode(corpus / "yes") + b"/\xff.wav")
    status, output = build()
    assert status == 2
    assert "is not UTF-8; rename it" in one_line(output)


def test_read_only_target(corpus, build, tmp_path):
    """A target that cannot be written is one line that says so."""
    target = tmp_path / "cache"
    target.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", target], capture_output=True).returncode:
        pytest.skip("mounting a read-only file system needs root")
    try:
        status, output = build()
    finally:
        subprocess.run(["umount", target], check=True)
    assert status == 2
    assert "Read-only file system; name another place" in one_line(output)


def test_target_below_a_file(corpus, build, tmp_path):
    """So is one whose folder is a file."""
    (tmp_path / "cache").write_text("")
    status, output = build()
    assert status == 2
    assert "name another place" in one_line(output)


def write_odd_clips(audio: Path) -> None:
    """Clips that are unusual but good."""
    (audio / "größe").mkdir()
    for n in range(4):
        soundfile.write(audio / "größe" / f"ä{n}.wav", synthesise(7, n, 0), RATE)
    stereo = np.stack([synthesise(8, 0, 0, rate=44100), synthesise(8, 1, 0, rate=44100)], axis=1)
    soundfile.write(audio / "yes" / "stereo44.wav", stereo, 44100)
    soundfile.write(audio / "yes" / "eight-bit.wav", synthesise(9, 0, 0), RATE, subtype="PCM_U8")
    soundfile.write(audio / "yes" / "short.wav", synthesise(10, 0, 0, 0.3), RATE)
    soundfile.write(audio / "yes" / "long.wav", synthesise(11, 0, 0, 7), RATE)
    soundfile.write(audio / "yes" / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(audio / "no" / "float.flac", synthesise(12, 0, 0), RATE)
    soundfile.write(audio / "yes" / "same.wav", synthesise(13, 0, 0), RATE)
    soundfile.write(audio / "no" / "same.wav", synthesise(14, 0, 0), RATE)
    (audio / "yes" / "deep").mkdir()
    soundfile.write(audio / "yes" / "deep" / "UPPER.WAV", synthesise(15, 0, 0), RATE)
    (audio / "yes" / "notes.txt").write_text("no recording")
    (audio / "_background_noise_").mkdir()
    soundfile.write(audio / "_background_noise_" / "hum.wav", synthesise(16, 0, 0, 3), RATE)


def test_odd_clips_are_taken(corpus, build, tmp_path):
    """Stereo, other rates, 8 bits, short, long, silent, FLAC, subfolders, non-ASCII: all are rows, and are counted."""
    write_odd_clips(corpus)
    status, output = build()
    assert status == 0, output
    cache = Cache(only_cache(tmp_path / "cache"))
    assert len(cache.clips) == 24 + 4 + 9
    assert cache.classes == ["größe", "no", "up", "yes"]
    assert {"größe/ä0.wav", "yes/same.wav", "no/same.wav", "yes/deep/UPPER.WAV"} < clip_ids(cache)
    assert "1 padded, 1 cropped, 1 resampled, 1 silent, 0 rejected" in output
    assert "ignored files that are no recordings: 1 .txt" in output
    assert cache.config.noise
    rows = features_of(cache)
    assert not any(rows["yes/silent.wav"][: 2 * 16 * 16])
    assert rows["yes/same.wav"] != rows["no/same.wav"]


def write_bad_clips(audio: Path) -> dict[str, str]:
    """Files that are no clips; returns the reason to expect for each."""
    folder = audio / "yes"
    (folder / "zero.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not a recording" * 100)
    (folder / "cut.wav").write_bytes(next(folder.glob("*nohash*")).read_bytes()[:20])
    (folder / "header-only.wav").write_bytes(next(folder.glob("*nohash*")).read_bytes()[:40] + bytes(4))
    (folder / "link.wav").symlink_to(folder / "link.wav")
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    soundfile.write(folder / "infinite.wav", np.full(RATE, np.inf, np.float32), RATE, subtype="FLOAT")
    return {
        "yes/zero.wav": "an empty file",
        "yes/text.wav": "not decodable",
        "yes/cut.wav": "not decodable",
        "yes/header-only.wav": "no samples",
        "yes/link.wav": "Too many levels of symbolic links",
        "yes/nan.wav": "not finite",
        "yes/infinite.wav": "not finite",
    }


def test_bad_clips_are_listed_and_the_rest_is_built(corpus, build, tmp_path):
    """Each bad file stands in rejected.csv with its reason; the index covers the good ones; the exit status is 1."""
    expected = write_bad_clips(corpus)
    status, output = build()
    assert status == 1, output
    found = rejected(tmp_path / "cache")
    assert found.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in found.items())
    assert len(Cache(only_cache(tmp_path / "cache")).clips) == 24
    assert "7 rejected" in output
    assert build("--skip-bad")[0] == 0
    assert "built 0 clips" in build()[1], "only the one that the system refused to read was tried again"


def test_repaired_clips_are_all_that_is_touched(corpus, build, tmp_path):
    """A repaired and a removed bad file clear the list; nothing else is built again."""
    write_bad_clips(corpus)
    build()
    before = state(tmp_path / "cache")
    for path in corpus.glob("yes/*.wav"):
        if "nohash" not in path.name and path.name != "zero.wav":
            path.unlink()
    soundfile.write(corpus / "yes" / "zero.wav", synthesise(7, 0, 0), RATE)
    status, output = build()
    assert status == 0
    assert "built 1 clip in" in output
    assert not (only_cache(tmp_path / "cache") / "rejected.csv").exists()
    assert before.items() < state(tmp_path / "cache").items()


def test_all_clips_bad(corpus, build, tmp_path):
    """Where no file is good, the build says so after listing why."""
    for path in corpus.glob("*/*.wav"):
        path.write_bytes(b"RIFF")
    status, output = build()
    assert status == 2
    assert "no usable recording" in output
    assert len(rejected(tmp_path / "cache")) == 24


def test_unreadable_files_are_tried_again(corpus, build, tmp_path):
    """A file that the system refused is read at the next build although its own size and time did not change."""
    link, target = corpus / "yes" / "link.wav", corpus / "no" / "00000001_nohash_0.wav"
    soundfile.write(target, synthesise(7, 0, 0), RATE)
    os.symlink(target, link)
    target.rename(corpus / "away")
    assert build()[0] == 1
    (corpus / "away").rename(target)
    assert build()[0] == 0
    assert {"yes/link.wav", "no/00000001_nohash_0.wav"} < clip_ids(Cache(only_cache(tmp_path / "cache")))


def test_added_modified_and_removed_clips(corpus, build, tmp_path):
    """Only what a change touches is built; every row then equals that of a cache built from nothing."""
    notice = "the split is another than before: train again what was trained on others"  # true of one changed back, too
    assert notice not in build()[1]
    before = state(tmp_path / "cache")
    soundfile.write(corpus / "up" / "new_0.wav", synthesise(7, 0, 0), RATE)
    modified = sorted((corpus / "no").iterdir())[0]
    soundfile.write(modified, synthesise(7, 1, 0), RATE)
    sorted((corpus / "yes").iterdir())[0].unlink()
    status, output = build()
    assert status == 0
    assert "built 2 clips" in output
    assert notice in output
    assert notice not in build()[1]
    assert before.items() < state(tmp_path / "cache").items()
    updated = Cache(only_cache(tmp_path / "cache"))
    assert build("--cache-dir", str(tmp_path / "fresh"))[0] == 0
    fresh = Cache(only_cache(tmp_path / "fresh"))
    assert features_of(updated) == features_of(fresh)
    assert updated.classes == fresh.classes


def test_shards_without_living_rows_are_removed(corpus, build, tmp_path):
    """When every clip of a shard is gone, so is the shard."""
    build()
    for number, path in enumerate(sorted((corpus / "no").iterdir())):
        soundfile.write(path, synthesise(7, 0, number), RATE)
    before = state(tmp_path / "cache").keys()
    assert build()[0] == 0
    assert state(tmp_path / "cache").keys() == before - {"shard-00000.h5"} | {"shard-00003.h5"}


def test_another_configuration_goes_to_another_folder(corpus, build, tmp_path):
    """A changed flag never mixes with, or touches, what was built before."""
    build()
    before = checksums(tmp_path / "cache")
    for flags in (["--seed", "1"], ["--width", "8"], ["--num-views", "1"], ["--n-fft", "1024"]):
        assert build(*flags)[0] == 0
    folders = sorted((tmp_path / "cache").iterdir())
    assert len(folders) == 5
    assert any(checksums(folder) == before for folder in folders)


def test_another_corpus_is_refused(corpus, build, tmp_path):
    """A cache folder belongs to one corpus."""
    build()
    other = write_corpus(tmp_path / "other", ["left", "right"])
    status, output = build("--audio-dir", str(other))
    assert status == 2
    assert "holds another corpus, or other clips of it" in one_line(output)


def test_known_speakers_keep_their_fold(corpus, build, tmp_path):
    """Clips and speakers that are added later do not move those that have been assigned."""
    build()
    before = {clip["speaker"]: clip["fold"] for clip in Cache(only_cache(tmp_path / "cache")).clips}
    write_corpus(corpus, ["yes", "no", "up"], per_word=27, speakers=9)
    assert build()[0] == 0
    clips = Cache(only_cache(tmp_path / "cache")).clips
    after = {clip["speaker"]: clip["fold"] for clip in clips}
    assert len(after) == 9
    assert before.items() < after.items()
    assert {len({c["fold"] for c in clips if c["speaker"] == s}) for s in after} == {1}


def test_known_speakers_move_where_a_fold_would_lack_a_label(corpus, build, tmp_path):
    """What a new build of the same corpus would make is not refused because of an earlier one."""
    assert build()[0] == 0
    for clip in Cache(only_cache(tmp_path / "cache")).clips:
        name = clip["clip_id"].decode()
        if name.startswith("up/") and clip["fold"] == 0:
            (corpus / name).unlink()
    assert build()[0] == 0
    cache = Cache(only_cache(tmp_path / "cache"))
    for fold in range(2):
        assert set(cache.clips["target"][cache.clips["fold"] == fold]) == {0, 1, 2}


def test_files_in_each_others_place(corpus, build, tmp_path):
    """Folders that swap their names keep size and time of every file, and are told apart; all of it is only read."""
    for path in corpus.glob("*/*.wav"):
        os.utime(path, (1e9, 1e9))
    assert build("--num-views", "1")[0] == 0
    before = features_of(Cache(only_cache(tmp_path / "cache")))
    for old, new in (("yes", "other"), ("no", "yes"), ("other", "no")):
        (corpus / old).rename(corpus / new)
    status, output = build("--num-views", "1")
    assert status == 0
    assert f"built {2 * 8} clips" in output
    after = features_of(Cache(only_cache(tmp_path / "cache")))
    for name, features in after.items():
        other = name.replace("yes/", "no/") if name.startswith("yes/") else name.replace("no/", "yes/")
        assert features == before[other]
    assert "the split is another than before" in output


def test_a_corpus_that_was_copied_or_touched(corpus, build, tmp_path):
    """Nothing is computed again where the contents are the same, and what is other is found."""
    assert build()[0] == 0
    before = state(tmp_path / "cache")
    shutil.copytree(corpus, tmp_path / "moved")
    shutil.rmtree(corpus)
    (tmp_path / "moved").rename(corpus)
    (changed,) = corpus.glob("up/a0000000_nohash_0.wav")
    soundfile.write(changed, synthesise(1, 1, 99), RATE)
    for path in corpus.glob("*/*.wav"):
        os.utime(path)
    status, output = build()
    assert status == 0
    assert "built 1 clip in" in output
    assert before.items() <= state(tmp_path / "cache").items()
    before_ns = changed.stat().st_mtime_ns
    soundfile.write(
        changed, synthesise(1, 1, 98), RATE
    )  # into the same inode, as some archivers do, which set the time
    os.utime(changed, ns=(before_ns, before_ns))
    status, output = build()
    assert (status, "built 1 clip in" in output) == (0, True)


def test_a_lost_index_costs_the_folds_and_says_so(corpus, build, tmp_path, capsys):
    """Where index or clip table is damaged, folds are made anew; the build, or verify --repair, says what follows."""
    assert build()[0] == 0
    folder = only_cache(tmp_path / "cache")
    for path in (folder / "index.json", next(folder.glob("clips-*.npy"))):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        status, output = build()
        assert status == 0
        assert "so its folds are made anew: train again what was trained on others" in output
    (folder / "index.json").write_text("{}")
    assert verify(["--cache-dir", str(tmp_path / "cache"), "--repair"]) == 1
    assert "its folds will be made anew: train again what was trained on others" in capsys.readouterr().err


def test_contents_are_compared_once(corpus, build, tmp_path, monkeypatch):
    """The next build knows the files by their stamps; also after an earlier version, whose sidecars have none."""
    from pipeline import provenance

    assert build("--clips-per-shard", "4")[0] == 0
    folder = only_cache(tmp_path / "cache")
    (path,) = corpus.glob("no/a0000000_nohash_0.wav")
    original = path.read_bytes()
    soundfile.write(path, synthesise(1, 1, 99), RATE)
    assert build("--clips-per-shard", "4")[0] == 0
    changed = features_of(Cache(folder))["no/a0000000_nohash_0.wav"]
    for sidecar in folder.glob("shard-*.json"):
        content = read_sealed(sidecar)
        del content["clips"]["stamp"]
        write_sealed(sidecar, content)
    path.write_bytes(original)
    read = []
    digests = provenance.content_digests
    monkeypatch.setattr(provenance, "content_digests", lambda paths: read.append(len(paths)) or digests(paths))
    from pipeline.build import build_cache
    from pipeline.options import BuildOptions

    settings = {"n_mels": 16, "n_fft": 512, "num_views": 2, "folds": 2, "clips_per_shard": 4}
    options = BuildOptions(audio_dir=str(corpus), cache_dir=str(tmp_path / "cache"), jobs=1, **settings)
    for expected in (24, 0):
        read.clear()
        build_cache(options, lambda *_: None)
        assert max(read) == expected
    assert features_of(Cache(folder))["no/a0000000_nohash_0.wav"] != changed


def test_the_split_is_of_labels_and_contents(corpus, build, tmp_path, monkeypatch, capsys):
    """A run of clips whose label or sound has changed does not count as trained on these, nor is it judged by them."""
    from infer.evaluate.__main__ import main as evaluate
    from train.run import main as train

    monkeypatch.chdir(tmp_path)
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(corpus.glob("*/*.wav"))]
    table = tmp_path / "t.csv"
    flags = ("--n-mels 16 --model test_resnet --epochs 1 --batch-size 4 --amp off --cache-dir cache").split()

    def swap(rows: list[str]) -> list[str]:
        return [row.replace(",yes", ",x").replace(",no", ",yes").replace(",x", ",no") for row in rows]

    for labelled in (rows, swap(rows)):
        table.write_text("\n".join(["file,label", *labelled]))
        status, output = build("--manifest", str(table))
        assert status == 0
        assert ("the split is another than before" in output) == (labelled is not rows)
        capsys.readouterr()
        assert train([*flags, "--fold", "0"]) == (0 if labelled is rows else 2)
    assert "was trained on another split" in capsys.readouterr().err
    assert evaluate(["--cache-dir", "cache", "--folds", "0"]) == 2
    assert "not the split that" in capsys.readouterr().err


def test_given_folds_and_a_list_of_test_clips(corpus, build, tmp_path):
    """A clip that the list names is in no fold, whatever the table says; speakers on both sides are named."""
    rows = [(f"{path.parent.name}/{path.name}", path) for path in sorted(corpus.glob("*/*.wav"))]
    table = ["file,label,fold", *(f"{name},{path.parent.name},{int(path.name[7]) % 2}" for name, path in rows)]
    (tmp_path / "t.csv").write_text("\n".join(table))
    tested = [name for name, _ in rows if name.endswith("a0000000_nohash_0.wav")]
    (corpus / "testing_list.txt").write_text("\n".join(tested))
    status, output = build("--manifest", str(tmp_path / "t.csv"))
    assert status == 0
    clips = Cache(only_cache(tmp_path / "cache")).clips
    assert {clip["clip_id"].decode() for clip in clips[clips["split"] == TEST]} == set(tested)
    assert (clips["fold"][clips["split"] == TEST] == NO_FOLD).all()
    assert "speakers on two sides of the given split: 1, such as a0000000" in output
    (corpus / "testing_list.txt").write_text("\n".join(name for name, path in rows if int(path.name[7]) % 2))
    status, output = build("--manifest", str(tmp_path / "t.csv"))
    assert status == 0
    assert "fold 1 holds nothing out" in output
    (corpus / "testing_list.txt").write_text("\n".join(name for name, _ in rows))
    status, output = build()
    assert status == 2
    assert "no clip is left to train on; all are for testing" in one_line(output)


def test_what_is_missing_for_rejected_recordings(corpus, build, tmp_path):
    """Where too few are left of a label, the error says that some were rejected, and where the reasons stand."""
    for path in sorted((corpus / "up").iterdir())[1:]:
        path.write_bytes(b"no sound")
    status, output = build()
    assert status == 2
    assert "for: up (1); " in output
    assert "7 recordings cannot be used, see" in output
    assert "rejected.csv" in output
    assert len(rejected(tmp_path / "cache")) == 7
    assert "7 recordings cannot be used, see" in one_line(build()[1])


def test_the_next_command_names_the_cache_where_there_are_several(corpus, build):
    """Two caches of one size differ by their digest only; background whose name is not UTF-8 is refused."""
    assert " --cache " not in build()[1]
    status, output = build("--seed", "1")
    assert status == 0
    assert " --cache mel16x16-" in output
    assert "next: python -m train.add_words --run RUN --audio" in build("--one-label")[1]
    (corpus / "_background_noise_").mkdir()
    Path(os.fsdecode(bytes(corpus / "_background_noise_") + b"/p\xff.wav")).write_bytes(b"")
    assert "is not UTF-8; rename it" in one_line(build("--silence", "4")[1])


def test_the_command_of_a_cache(corpus, build, tmp_path, capsys):
    """cache.info shows what to type for the same cache, whatever chose its clips."""
    from cache.info import main as info
    from pipeline.build_cache import main as build_cache

    assert build("--keep", "up,no", "--unknown-share", "0.25", "--seed", "3")[0] == 0
    capsys.readouterr()
    assert info(["--cache-dir", str(tmp_path / "cache")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "built by" in line]
    command = shlex.split(line.partition("built by")[2])
    assert command[:3] == ["python", "-m", "pipeline.build_cache"]
    assert command[-6:] == ["--folds", "2", "--clips-per-shard", "8", "--seed", "3"]
    assert build_cache([*command[3:], "--cache-dir", str(tmp_path / "cache")]) == 0
    output = capsys.readouterr().out
    assert "built 0 clips" in output
    assert "the split is another" not in output


def test_official_split(corpus, build, tmp_path):
    """The corpus's own lists become the test split and the one fold; everything else is never held out."""
    test, validation = ("no/a0000001_nohash_0.wav", "up/a0000002_nohash_1.wav"), ("yes/a0000000_nohash_0.wav",)
    (corpus / "testing_list.txt").write_text("\n".join(test) + "\n")
    (corpus / "validation_list.txt").write_text("\n".join(validation) + "\n")
    assert build("--split", "official")[0] == 0
    clips = Cache(only_cache(tmp_path / "cache")).clips
    names = np.array([name.decode() for name in clips["clip_id"].tolist()])
    assert set(names[clips["split"] == TEST]) == set(test)
    assert set(names[clips["fold"] == 0]) == set(validation)
    assert (clips["fold"][~np.isin(names, validation)] == NO_FOLD).all()


def test_views_differ_and_view_0_is_the_clip(corpus, build, tmp_path):
    """View 0 is the clean clip's log-mel to the bit; every other view is another rendering of it."""
    import torch

    from pipeline.features import LogMel

    build("--num-views", "3")
    cache = Cache(only_cache(tmp_path / "cache"))
    out = torch.empty(16, 16, dtype=torch.float16)
    for clip in cache.clips:
        rows = cache.features(int(clip["shard"]))[clip["row"]]
        LogMel(cache.config)(read_clip(str(corpus / clip["clip_id"].decode()), cache.config).samples[None], out[None])
        assert np.array_equal(rows[0], out.numpy())
        assert len({row.tobytes() for row in rows}) == 3


@pytest.mark.parametrize("jobs", [2, 4])
def test_same_bits_whatever_the_number_of_jobs(corpus, build, tmp_path, jobs):
    """Every file of the cache is the same to the bit for one process and for several."""
    assert build()[0] == 0
    flags = (*SMALL, "--audio-dir", corpus, "--cache-dir", tmp_path / "many", "--jobs", jobs)
    process = start("pipeline.build_cache", *flags)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert checksums(tmp_path / "many") == checksums(tmp_path / "cache")


def test_same_bits_whatever_the_order_of_the_file_system(corpus, build, tmp_path):
    """tmpfs lists the newest file first: two corpora written in different orders give the same shards and table."""
    folders = [Path("/dev/shm") / f"melshard-{os.getpid()}-{n}" for n in range(2)]
    files = sorted(path.relative_to(corpus) for path in corpus.glob("*/*.wav"))
    try:
        for seed, folder in enumerate(folders):
            random.Random(seed).shuffle(files)
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(corpus / file, folder / file)
            assert build("--audio-dir", str(folder), "--cache-dir", str(tmp_path / f"cache{seed}"))[0] == 0
        orders = [[path.name for path in os.scandir(folder / "yes")] for folder in folders]
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    if orders[0] == orders[1]:
        pytest.skip("this file system lists both in the same order")
    contents = [checksums(tmp_path / f"cache{seed}") for seed in range(2)]
    for seed, content in enumerate(contents):
        content.pop("index.json")  # it records the audio folder
        for name in [name for name in content if name.endswith(".json")]:
            content[name] = read_sealed(only_cache(tmp_path / f"cache{seed}") / name)
            assert len(content[name]["clips"].pop("stamp")) == len(content[name]["clips"]["clip_id"])  # of other files
    assert contents[0] == contents[1]


def test_recorded_speech(mini, build, tmp_path):
    """The real corpus in FLAC goes through whole: every clip, every speaker in one fold."""
    assert build("--audio-dir", str(MINI), "--n-mels", "32")[0] == 0
    cache = Cache(only_cache(tmp_path / "cache"))
    assert len(cache.clips) == 370
    assert len(np.unique(cache.clips["speaker"])) == 56
    pairs = {(clip["speaker"], int(clip["fold"])) for clip in cache.clips}
    assert len(pairs) == 56
