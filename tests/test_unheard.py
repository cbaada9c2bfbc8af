"""Nobody is judged by what it was trained on: recordings are known by content, whatever became of cache and names."""

import shutil
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cache.cli import InputError
from cache.find import find_cache
from cache.index import Cache
from cache.shard import sidecar_path
from infer.calibrate.__main__ import main as calibrate
from infer.corpus import cached_calibration_clips
from infer.evaluate.__main__ import main as evaluate
from tests.conftest import RATE, only_cache, synthesise
from tests.words_run import RUN, rebuild
from train.checkpoint import load_checkpoint, save_checkpoint
from train.folds import calibration_clips, select_fold
from train.run import main as train
from train.trained_on import contents_trained_on

JUDGE = ["--run", RUN, "--device", "cpu", "--tta", "1"]
TRAIN = "--model test_resnet --n-mels 32 --batch-size 12 --device cpu --epochs 1".split()


def refused(source: Path | str, capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr with which evaluate and calibrate refuse to judge by some recordings."""
    lines = set()
    for judge in (evaluate, calibrate):
        assert judge([*JUDGE, "--input", str(source)]) == 2
        lines.add(capsys.readouterr().err)
    (line,) = lines
    assert line.count("\n") == 1
    return line


def test_a_corpus_that_changed_since_is_still_known(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Clips that came, went and were rebuilt leave the others heard; the new ones alone may judge."""
    soundfile.write(project / "data/audio/yes/a0000009_nohash_0.wav", synthesise(1, 20, 0), RATE)
    next((project / "data/audio/no").glob("a0000000*")).unlink()
    rebuild()
    assert "was trained on 4" in refused("data/audio", capsys)
    for path in (project / "data/audio").glob("*/a000000[0-8]*"):
        path.unlink()
    assert evaluate([*JUDGE, "--input", "data/audio"]) == 0


def test_a_moved_project_is_still_known(project: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """Neither the folder's name nor the cache is needed."""
    shutil.move(project, project.with_name("moved"))
    monkeypatch.chdir(project.with_name("moved"))
    assert "was trained on 48 of its 108 recordings" in refused("data/audio", capsys)
    shutil.rmtree("data/cache")
    assert "was trained on 48 of its 108 recordings" in refused("data/audio", capsys)


def test_links_and_copies_are_still_known(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Linked label folders, in the corpus or beside it, and copies of files under other names and labels."""
    for label in ("yes", "no"):
        shutil.move(project / "data/audio" / label, tmp_path / label)
        (project / "data/audio" / label).symlink_to(tmp_path / label)
    rebuild()
    assert "was trained on 48 of its 108 recordings" in refused("data/audio", capsys)
    for number, path in enumerate(sorted((tmp_path / "yes").iterdir())):
        (tmp_path / "copies" / "no").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "copies/no" / f"{number}.wav")
    assert "was trained on 12 of its 27 recordings" in refused(tmp_path / "copies", capsys)


def test_speakers_that_were_trained_on_are_counted(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Other recordings of a speaker that a member knows are judged, and stderr says so; held out, they are not."""
    clips = Cache(find_cache("data/cache", 32, 32)).clips
    (project / "new/yes").mkdir(parents=True)
    for fold in (0, 1):
        speaker = clips["speaker"][clips["fold"] == fold][0].decode()
        soundfile.write(project / f"new/yes/{speaker}_nohash_9.wav", synthesise(1, 20, fold), RATE)
    soundfile.write(project / "new/yes/other.wav", synthesise(1, 21, 0), RATE)
    for folds, count in (("0", 1), ("0,1", 2)):
        assert evaluate([*JUDGE, "--folds", folds, "--input", "new"]) == 0
        said = f"new: {count} of its recordings are of speakers that were trained on; figures may be too high"
        assert said in capsys.readouterr().err
    shutil.rmtree("data/cache")
    assert evaluate([*JUDGE, "--input", "new"]) == 0
    assert "speakers" not in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_is_named(project: Path, capsys: pytest.CaptureFixture) -> None:
    """Where an older version trained a member, stderr says that nothing could be checked."""
    path = project / RUN / "fold0/best.pt"
    saved = load_checkpoint(path)
    del saved["heard"]
    save_checkpoint(path, saved)
    assert evaluate([*JUDGE, "--folds", "0", "--input", "data/audio"]) == 0
    assert f"data/audio: not checked against what {RUN}/fold0/best.pt was trained on" in capsys.readouterr().err


def test_what_weights_have_heard_before_counts(project: Path, capsys: pytest.CaptureFixture) -> None:
    """A run knows the clips that it was resumed and begun with; a copy that a test clip shares does not count."""
    cache = Cache(find_cache("data/cache", 32, 32))
    training = [select_fold(cache, fold).training for fold in "01"]
    first, second = (set(contents_trained_on(cache, clips, 0, []).tolist()) for clips in training)
    assert (len(first), len(second), len(first & second)) == (48, 48, 0)
    capsys.readouterr()
    assert train([*TRAIN, "--name", "tuned", "--weights", f"{RUN}/fold1/best.pt"]) == 2
    assert "was trained on 48 of 48 clips that a fold holds out" in capsys.readouterr().err
    saved = load_checkpoint(project / RUN / "fold0/best.pt")
    save_checkpoint(project / "begun.pt", {**saved, "heard": torch.tensor([7, *first])})
    assert train([*TRAIN, "--name", "tuned", "--weights", "begun.pt"]) == 0
    for name in ("best.pt", "last.pt"):
        heard = load_checkpoint(project / "runs/tuned/fold0" / name)["heard"].tolist()
        assert set(heard) == {7} | first
    torch.save(saved["model"], "foreign.pt")
    capsys.readouterr()
    assert train([*TRAIN, "--name", "foreign", "--weights", "foreign.pt"]) == 0
    assert "foreign.pt: does not say what it was trained on" in capsys.readouterr().err
    heard.remove(7)
    heard += second - {*heard}
    assert set(contents_trained_on(cache, training[1], 0, [heard]).tolist()) == first | second
    assert contents_trained_on(cache, training[1], 0, [None]) is None
    tested = next((project / "data/audio").glob("yes/a0000008*"))
    heard = np.flatnonzero(cache.clips["clip_id"] == b"yes/a0000000_nohash_0.wav")[0]
    shutil.copyfile(project / "data/audio/yes/a0000000_nohash_0.wav", tested)
    rebuild()
    cache = Cache(find_cache("data/cache", 32, 32))
    (fold,) = (fold for fold, clips in zip("01", training, strict=True) if heard in clips)
    clips = select_fold(cache, fold).training
    assert len(contents_trained_on(cache, clips, 0, [])) == len(clips) - 1
    sidecar_path(cache.folder, 0).unlink()
    assert contents_trained_on(cache, clips, 0, []) is None


def test_copies_share_a_fold(project: Path) -> None:
    """What stands twice in a corpus, as through a link, is never trained on where its copy is held out."""
    cache = Cache(find_cache("data/cache", 32, 32))
    one, other = (project / "data/audio" / cache.clips["clip_id"][cache.clips["fold"] == k][0].decode() for k in (0, 1))
    other.unlink()
    other.symlink_to(one)
    rebuild()
    cache = Cache(find_cache("data/cache", 32, 32))
    first, second = (contents_trained_on(cache, select_fold(cache, fold).training, 0, []).tolist() for fold in "01")
    assert not set(first) & set(second)


def test_official_split_holds_nothing_back(corpus: Path, build: Callable, tmp_path: Path) -> None:
    """``--hold-back`` leaves an official split whole, for comparison with published figures; calibrate says so."""
    (corpus / "validation_list.txt").write_text("yes/a0000000_nohash_0.wav\n")
    for split in ("kfold", "official"):
        assert build("--split", split)[0] == 0
        cache = Cache(only_cache(tmp_path / "cache"))
        kept = calibration_clips(cache, 0.3)
        whole = np.array_equal(select_fold(cache, "0", 0.3).training, select_fold(cache, "0").training)
        assert (kept.any(), whole) == ((False, True) if split == "official" else (True, False))
    member = types.SimpleNamespace(
        fold="0",
        config=cache.config,
        split_digest=cache.index["split"]["digest"],
        path=Path("best.pt"),
        classes=cache.classes,
        held_back=False,
        options={"hold_back": 0.3},
    )
    options = types.SimpleNamespace(cache_dir=str(tmp_path / "cache"), audio_dir=None)
    with pytest.raises(InputError, match=r"held no clips back \(the split is the corpus's official one\); use --input"):
        cached_calibration_clips([member], options)
