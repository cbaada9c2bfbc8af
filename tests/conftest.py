"""What several test files share: a synthesised corpus, the recorded speech, and the build as a user runs it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.forked import ROOT, start

# the same examples on every machine, however busy it is
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
__all__ = ["ROOT", "start"]  # for the test files
MINI = ROOT.parent / "shared" / "data" / "mini"
RATE = 16000
SMALL = ("--n-mels", "16", "--n-fft", "512", "--num-views", "2", "--clips-per-shard", "8", "--folds", "2")


def synthesise(word: int, speaker: int, n: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A clip that differs from every other: a gliding tone per word, pitched per speaker, over some noise."""
    rng = np.random.default_rng([word, speaker, n])
    time = np.arange(round(seconds * rate)) / rate
    pitch = 200 + 150 * word + 10 * speaker
    tone = np.sin(2 * np.pi * (pitch + 100 * time) * time) * np.hanning(len(time))
    return np.float32(0.3 * tone + 0.01 * rng.standard_normal(len(time)))


def write_corpus(folder: Path, words: list[str], per_word: int = 8, speakers: int = 4) -> Path:
    """Write ``folder/<word>/<speaker>_nohash_<n>.wav``: 16-bit mono WAV, one second, as in the public corpus."""
    import soundfile

    for word, name in enumerate(words):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for clip in range(per_word):
            speaker, n = clip % speakers, clip // speakers
            path = folder / name / f"{speaker + 0xA0000000:08x}_nohash_{n}.wav"
            soundfile.write(path, synthesise(word, speaker, n), RATE, subtype="PCM_16")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """``audio/`` in the test's folder: 3 words of 8 clips by 4 speakers."""
    return write_corpus(tmp_path / "audio", ["yes", "no", "up"])


@pytest.fixture
def mini() -> Path:
    """The recorded speech that lies beside the checkout of some machines."""
    if not MINI.is_dir():
        pytest.skip(f"no recorded speech at {MINI}")
    return MINI


@pytest.fixture(scope="session")
def runtime():
    """onnxruntime, where all of the extra [export] is there."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[export]'")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")


@pytest.fixture
def build(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """Run build_cache in this process on ``audio/`` into ``cache/``; returns exit status and output."""
    from pipeline.build_cache import main

    def run(*flags: str, small: tuple[str, ...] = SMALL) -> tuple[int, str]:
        folders = ("--audio-dir", str(tmp_path / "audio"), "--cache-dir", str(tmp_path / "cache"), "--jobs", "1")
        capsys.readouterr()
        status = main([*folders, *small, *flags])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above the tiny cache of tests/train_helpers.py, built once for a file's tests."""
    from train_helpers import build_tiny_cache

    return build_tiny_cache(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def flags(tiny: Path, tmp_path: Path) -> tuple[str, ...]:
    """Where the cache is, and a run in the test's folder."""
    return "--cache-dir", str(tiny), "--runs-dir", str(tmp_path / "runs"), "--name", "run"


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    """Where the run of `flags` leaves its files."""
    return tmp_path / "runs" / "run" / "fold0"


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run of two folds; see tests/words_run.py."""
    from words_run import train_words

    return train_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def here(words: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The trained run's folder as the working directory."""
    monkeypatch.chdir(words)
    return words


@pytest.fixture
def project(words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run with its corpus and cache that a test may change; the working directory."""
    for part in ("data", "runs"):
        shutil.copytree(words / part, tmp_path / "project" / part)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def unheard(tmp_path: Path) -> Path:
    """Labelled recordings of other speakers, half of them too noisy to be sure."""
    import soundfile

    for word, name in enumerate(["no", "up", "yes"]):
        (tmp_path / "unheard" / name).mkdir(parents=True)
        for n in range(20):
            noise = np.random.default_rng([word, n]).standard_normal(RATE).astype(np.float32) * (0.5 if n % 2 else 0)
            soundfile.write(tmp_path / f"unheard/{name}/{n}.wav", synthesise(word, 20 + n, n) + noise, RATE)
    return tmp_path / "unheard"


def checksums(folder: Path) -> dict[str, bytes]:
    """Content of every shard, clip table and index below `folder`, by file name."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".h5", ".npy", ".json")
    }


def only_cache(cache_dir: Path) -> Path:
    """The one cache folder in `cache_dir`."""
    (folder,) = (path for path in cache_dir.iterdir() if path.is_dir())
    return folder
