"""A tiny trained run that tells three synthetic words and noise apart, shared by the tests of export and windows."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import RATE, write_corpus

WORDS = ["no", "up", "yes"]
RUN = "runs/test_resnet-32x32"
TRAINING = "--model test_resnet --n-mels 32 --epochs 20 --batch-size 12 --device cpu --lr 0.003 --amp off"
TRAINING += " --mixup 0 --spec-augment 0 --time-roll 0.3 --ema 0.9"  # which tells tones apart in a few epochs


def hiss(seconds: float, seed: int) -> np.ndarray:
    """The noise between words [shape=(n,), dtype=float32]."""
    return 0.01 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def rebuild() -> None:
    """Build the cache in the working directory, or bring it up to date with its corpus."""
    from pipeline.build_cache import main

    assert main("--n-mels 32 --n-fft 1024 --num-views 2 --folds 2 --jobs 1".split()) == 0


def train_words(folder: Path) -> Path:
    """A folder with ``data/audio`` (with a test split), ``data/cache`` and `RUN` of two folds, in `folder`."""
    from train.checkpoint import load_arrays, load_checkpoint, save_checkpoint
    from train.run import main as train

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        audio = write_corpus(folder / "data/audio", WORDS, per_word=27, speakers=9)
        (audio / "noise").mkdir()
        for n in range(27):
            soundfile.write(audio / "noise" / f"{n % 9 + 0xA0000000:08x}_nohash_{n // 9}.wav", hiss(1, n), RATE)
        tested = [f"{word}/a0000008_nohash_{n}.wav" for word in [*WORDS, "noise"] for n in range(3)]
        (audio / "testing_list.txt").write_text("\n".join(tested))
        rebuild()
        assert train([*TRAINING.split(), "--fold", "all"]) == 0
        for fold in range(2):  # else what the tests say of words would be luck
            arrays = load_arrays(f"{RUN}/fold{fold}/oof.npz")
            assert (arrays["logits"].argmax(axis=1) == arrays["target"]).all(), "the tones are not told apart"
    for fold, temperature in enumerate((1.0, 1.5)):  # of tones that are told apart without an error it is extreme
        path = folder / RUN / f"fold{fold}" / "best.pt"
        save_checkpoint(path, {**load_checkpoint(path), "temperature": temperature})
    return folder
