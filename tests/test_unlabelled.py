"""Recordings without labels: a teacher judges them, and a student learns from what it says."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.find import find_cache
from cache.index import Cache
from infer.evaluate.__main__ import main as evaluate
from infer.predict.__main__ import main as predict
from tests.conftest import RATE, ROOT, synthesise
from tests.train_helpers import torchrun
from tests.words_run import RUN, TRAINING, WORDS, rebuild
from train.checkpoint import load_checkpoint, save_checkpoint
from train.options import TrainOptions
from train.run import main as train
from train.teacher import read_lessons
from train.world import World, run_in_world

STUDENT = [*TRAINING.split(), "--epochs", "1", "--fold", "none", "--teacher", RUN, "--name", "student"]
LABELS = ["no", "noise", "up", "yes"]


@pytest.fixture
def more(project: Path) -> Path:
    """A flat folder of 30 recordings by other speakers, one of the corpus, and a file that is no recording."""
    folder = project / "more"
    folder.mkdir()
    for n in range(30):
        noise = np.random.default_rng(n).standard_normal(RATE).astype(np.float32) * (0.3 if n % 2 else 0)
        soundfile.write(folder / f"{n}.wav", synthesise(n % len(WORDS), 30 + n, n) + noise, RATE)
    shutil.copy("data/audio/yes/a0000001_nohash_0.wav", folder / "x.y.wav")
    (folder / "z.wav").write_bytes(b"no sound")
    return folder


def lessons_of(**flags: object):
    """What `read_lessons` gives in one process."""
    options = TrainOptions(**{"teacher": (RUN,), **flags})  # type: ignore[arg-type]
    found = []

    def body(world: World) -> int:
        found.append(read_lessons(options, Cache(find_cache("data/cache", 32, 32)), world))
        return 0

    assert run_in_world("cpu", body) == 0
    return found[0]


def test_a_student_learns_what_the_teacher_says_of_them(more: Path, capsys: pytest.CaptureFixture) -> None:
    """It trains on these, too, with what predict says of them as their target; the corpus's own are left out."""
    assert train([*STUDENT, "--unlabelled", "more"]) == 0
    said = capsys.readouterr().out
    assert (
        "more: 30 clips without labels, 1 left out that the corpus has, or a list for testing, 1 that cannot be used: "
        in said
    )
    assert "126 training" in said  # 4 labels, 8 speakers, 3 clips each
    lessons = lessons_of(unlabelled="more", teacher_share=0.25)
    names = [name.decode() for name in lessons.cache.clips["clip_id"][lessons.unlabelled]]
    assert sorted(names) == sorted(f"{n}.wav" for n in range(30))
    flags = ["--run", RUN, "--input", "more", "--output", "said.csv", "--probabilities", "probs.csv"]
    assert predict([*flags, "--tta", "1", "--device", "cpu", "--amp", "off"]) == 1
    with open("probs.csv", newline="") as file:
        rows = {row["file"]: [float(row[label] or 0) for label in LABELS] for row in csv.DictReader(file)}
    assert np.allclose(lessons.probs[lessons.unlabelled], [rows[name] for name in names], atol=1e-4)
    assert lessons.probs[lessons.unlabelled].max(axis=1).min() < 0.9  # of something that nobody is sure of
    assert (lessons.share[lessons.unlabelled] == 1).all()
    assert (lessons.share[: -len(names)] == 0.25).all()
    clips = lessons.cache.clips[lessons.unlabelled]
    assert (clips["target"] == lessons.probs[lessons.unlabelled].argmax(axis=1)).all()
    own, other = Cache(find_cache("data/cache", 32, 32)), lessons.cache
    assert (other.gather(np.arange(len(own.clips)), 1) == own.gather(np.arange(len(own.clips)), 1)).all()
    rows_of_more = lessons.cache.gather(lessons.unlabelled, 0)
    assert np.isfinite(rows_of_more).all()
    assert len(np.unique(rows_of_more.reshape(30, -1), axis=0)) == 30


def test_nobody_is_judged_by_recordings_without_labels_that_were_trained_on(
    more: Path, capsys: pytest.CaptureFixture
) -> None:
    """Their content is known as heard, as that of clips with labels is."""
    assert train([*STUDENT, "--unlabelled", "more"]) == 0
    (more.parent / "judged/yes").mkdir(parents=True)
    shutil.copy("more/2.wav", "judged/yes/renamed.wav")
    capsys.readouterr()
    flags = ["--device", "cpu", "--tta", "1", "--input", "judged"]
    assert evaluate(["--run", "runs/student", "--folds", "none", *flags]) == 2
    assert "was trained on 1 of its 1 recordings" in capsys.readouterr().err
    assert evaluate(["--run", RUN, *flags]) == 0


def test_a_student_goes_on_only_with_the_same_recordings(more: Path, capsys: pytest.CaptureFixture) -> None:
    """A finished run says so without a look at the folder; a longer one is refused where the folder has changed."""
    assert train([*STUDENT, "--unlabelled", "more"]) == 0
    assert train([*STUDENT, "--unlabelled", "more"]) == 0
    assert "is finished" in capsys.readouterr().out
    last = Path("runs/student/foldnone/last.pt")
    taught = load_checkpoint(last)["state"]["taught"]
    assert lessons_of(unlabelled="more").digest == taught
    assert lessons_of().digest != taught
    (more / "7.wav").unlink()
    assert lessons_of(unlabelled="more").digest != taught


def test_two_ranks_share_the_judging(more: Path) -> None:
    """They learn the same as one: the digest of what was taught has the order in it."""
    command = [*STUDENT[:-1], "two", "--unlabelled", "more", "--cache-dir", "data/cache", "--runs-dir", "runs"]
    root = Path.cwd()
    absolute = [str(root / flag) if (root / flag).exists() else flag for flag in command]
    status, output = torchrun(*absolute)
    assert status == 0, output
    assert output.count("30 clips without labels") == 1
    assert (
        load_checkpoint(root / "runs/two/foldnone/last.pt")["state"]["taught"] == lessons_of(unlabelled="more").digest
    )


def test_a_teacher_may_have_other_features(more: Path) -> None:
    """Then it hears the recordings in its own."""
    from pipeline.build_cache import main as build

    first = lessons_of(unlabelled="more")
    assert build("--n-mels 40 --num-views 1 --folds 2 --jobs 1".split()) == 0
    other = lessons_of(unlabelled="more", n_mels=40)
    assert other.cache.config.n_mels == 32
    flags = ["--cache-dir", "data/cache", "--n-mels", "40", "--name", "wide", "--batch-size", "12"]
    assert train([*STUDENT, *flags, "--unlabelled", "more"]) == 0
    saved = load_checkpoint(Path("runs/wide/foldnone/last.pt"))
    assert saved["features"]["n_mels"] == 40
    assert saved["state"]["taught"] == first.digest


def test_several_teachers_teach_their_mean(more: Path, capsys: pytest.CaptureFixture) -> None:
    """Each in its own features, of clips with labels and without; training goes on only with the same."""
    from pipeline.build_cache import main as build

    assert build("--n-mels 40 --num-views 1 --folds 2 --jobs 1".split()) == 0
    wide = "--n-mels 40 --name wide --fold all --epochs 1 --batch-size 12".split()
    assert train([*TRAINING.split(), *wide]) == 0
    one, other, both = (
        lessons_of(teacher=runs, unlabelled="more") for runs in ((RUN,), ("runs/wide",), (RUN, "runs/wide"))
    )
    assert np.abs(one.probs - other.probs).max() > 0.01
    assert np.allclose(both.probs, (one.probs + other.probs) / 2, atol=1e-6)
    assert len({one.digest, other.digest, both.digest}) == 3
    assert train([*STUDENT, "--teacher", "runs/wide"]) == 0
    last = Path("runs/student/foldnone/last.pt")
    assert load_checkpoint(last)["options"]["teacher"] == (RUN, "runs/wide")
    capsys.readouterr()
    assert train(STUDENT) == 2
    assert f"was trained with --teacher {RUN}, runs/wide (now {RUN}); use the same" in capsys.readouterr().err
    assert load_checkpoint(last)["state"]["taught"] == lessons_of(teacher=(RUN, "runs/wide")).digest


def test_a_run_of_an_earlier_version_goes_on(more: Path) -> None:
    """Its checkpoint names one teacher, or None."""
    assert train(STUDENT) == 0
    last = Path("runs/student/foldnone/last.pt")
    saved = load_checkpoint(last)
    save_checkpoint(last, {**saved, "options": {**saved["options"], "teacher": RUN}})
    assert train(STUDENT) == 0
    save_checkpoint(last, {**saved, "options": {**saved["options"], "teacher": None}})
    assert load_checkpoint(last)["options"]["teacher"] == ()


def test_a_killed_student_goes_on_to_the_same_bits(more: Path) -> None:
    """What the teacher says is asked for again, and is the same."""

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "train.run", *STUDENT[:-1], name, "--epochs", "4", "--unlabelled", "more"]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})

    assert start("whole").wait() == 0
    killed, metrics = start("killed"), Path("runs/killed/foldnone/metrics.jsonl")
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") == 2):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert start("killed").wait() == 0
    weights = [load_checkpoint(Path(f"runs/{name}/foldnone/best.pt"))["model"] for name in ("whole", "killed")]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def _commands_below(pid: int) -> str:
    """The command lines of a process's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return " ".join(Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in children)


def test_stopped_while_features_are_computed(more: Path) -> None:
    """SIGTERM to training alone ends at once, too, and nothing goes on building."""
    command = [sys.executable, "-m", "train.run", *STUDENT, "--unlabelled", "more"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    while "pipeline.build_cache" not in _commands_below(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    (build,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(build), signal.SIGSTOP)  # as one that goes on for hours
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{build}").exists()
    assert train([*STUDENT, "--unlabelled", "more"]) == 0


def test_ctrl_c_while_features_are_computed(more: Path) -> None:
    """It ends at once and without a complaint, and the same command goes on."""
    command = [sys.executable, "-m", "train.run", *STUDENT, "--unlabelled", "more"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
    while "pipeline.build_cache" not in _commands_below(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest.splitlines()[-1]) == (130, "interrupted")
    assert "error" not in rest
    assert train([*STUDENT, "--unlabelled", "more"]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--unlabelled", "nowhere"], "nowhere: no such folder"),
        (["--unlabelled", "data/audio"], "holds no other recordings than"),
        (["--unlabelled", "empty"], "empty: no recordings"),
        (["--unlabelled", "junk"], "junk"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    more: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    """A folder that is not there, the corpus itself, and folders without recordings."""
    (more.parent / "empty").mkdir()
    (more.parent / "junk").mkdir()
    shutil.copy(more / "z.wav", more.parent / "junk")
    capsys.readouterr()
    assert train([*STUDENT, *flags]) == 2
    captured = capsys.readouterr().err
    assert expected in captured
    assert captured.count("error:") == 1


def test_recordings_without_labels_need_a_teacher(capsys: pytest.CaptureFixture) -> None:
    """Nobody else says what they are."""
    assert train(["--unlabelled", "more"]) == 2
    assert "--unlabelled needs --teacher RUN" in capsys.readouterr().err


def test_a_teacher_of_another_corpus_is_refused(more: Path, capsys: pytest.CaptureFixture) -> None:
    """Its folds would have heard what the student is judged by."""
    soundfile.write("data/audio/yes/a0000009_nohash_0.wav", synthesise(1, 20, 0), RATE)
    rebuild()
    assert train([*STUDENT, "--unlabelled", "more"]) == 2
    assert "another split" in capsys.readouterr().err


def test_a_teacher_whose_folds_heard_other_features_is_refused(more: Path, capsys: pytest.CaptureFixture) -> None:
    """All its folds judge the same features of the recordings."""
    path = Path(RUN) / "fold1/best.pt"
    saved = load_checkpoint(path)
    save_checkpoint(path, {**saved, "features": {**saved["features"], "top_db": 60.0}})
    assert train([*STUDENT, "--unlabelled", "more"]) == 2
    assert f"{RUN}: its folds were not trained on the same features; train them again" in capsys.readouterr().err


def test_a_fold_in_place_of_another_is_refused(more: Path, capsys: pytest.CaptureFixture) -> None:
    """It would have two votes."""
    shutil.copy(Path(RUN) / "fold0/best.pt", Path(RUN) / "fold1/best.pt")
    assert train([*STUDENT, "--unlabelled", "more"]) == 2
    assert "fold1/best.pt: is of fold 0" in capsys.readouterr().err


def test_other_recordings_in_their_place(more: Path, capsys: pytest.CaptureFixture) -> None:
    """The error names the folder to remove; after that the new ones are learned from."""
    lessons_of(unlabelled="more")
    for path in more.glob("?.wav"):
        path.rename(more / f"new-{path.name}")
    for path in more.glob("??.wav"):
        path.unlink()
    (more / "x.y.wav").unlink()
    assert train([*STUDENT, "--unlabelled", "more"]) == 2
    said = capsys.readouterr().err
    shutil.rmtree(re.search("to begin anew remove (.*)\n", said)[1])  # type: ignore[index]
    assert len(lessons_of(unlabelled="more").unlabelled) == 10


def test_background_that_came_and_went(more: Path) -> None:
    """Of two caches with different background, the one that was asked for last is taken."""
    shutil.copytree(more, more / "_background_noise_", ignore=shutil.ignore_patterns("[!3]*", "_*"))
    with_background = lessons_of(unlabelled="more")
    shutil.rmtree(more / "_background_noise_")
    (more / "4.wav").rename(more.parent / "4.wav")
    assert len(lessons_of(unlabelled="more").unlabelled) == 29
    (more.parent / "4.wav").rename(more / "4.wav")
    assert len(lessons_of(unlabelled="more").unlabelled) == len(with_background.unlabelled) == 30


def test_an_earlier_rejection_is_not_the_reason(more: Path, capsys: pytest.CaptureFixture) -> None:
    """What an earlier build could not use is not what a later one ends for."""
    lessons_of(unlabelled="more")
    more.rename("moved")
    assert train([*STUDENT, "--unlabelled", "more"]) == 2
    assert "more: no such folder" in capsys.readouterr().err
