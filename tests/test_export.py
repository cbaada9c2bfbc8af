"""The exported file: the same judgement as predict's, without the project."""

import ast
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from cache.config import FeatureConfig
from infer.export.__main__ import main
from infer.export.graph import GRAPH_VIEWS, GraphLogMel, WaveformEnsemble
from infer.members import Member
from infer.views import VIEWS, first_views
from pipeline.decode import MAX_LEVEL, read_clip
from pipeline.features import LogMel
from tests.conftest import RATE, ROOT, synthesise
from tests.words_run import RUN, WORDS

STEP = 2.0**-10  # of float16 at 1


@pytest.fixture(scope="module")
def exported(words: Path, runtime) -> Path:
    """``model.onnx`` and ``model.int8.onnx`` of the run."""
    output = words / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(words)
        assert main(["--run", RUN, "--int8", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def recordings(words: Path) -> Path:
    """A folder of what users have: words, silence, a short and a stereo file."""
    folder = words / "mixed"
    folder.mkdir()
    for word, name in enumerate(WORDS):
        soundfile.write(folder / f"{name}.wav", synthesise(word, 9, 9), RATE)
    soundfile.write(folder / "short.wav", synthesise(1, 9, 8)[:9000], RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder / "stereo.flac", np.stack([synthesise(0, 3, 9), synthesise(0, 4, 9)], axis=1), RATE)
    return folder


def predicted(here: Path, recordings: Path) -> tuple[np.ndarray, np.ndarray]:
    """Clips (n, samples) and what predict says of them (n, classes)."""
    from infer.predict.__main__ import main as predict

    flags = ["--run", RUN, "--input", recordings, "--amp", "off", "--device", "cpu", "--probabilities", "matrix.csv"]
    assert predict(list(map(str, flags))) == 0
    with open(here / "matrix.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    clips = np.stack([read_clip(str(recordings / row[0]), FeatureConfig()).samples for row in rows])
    return clips, np.array([row[1:] for row in rows], np.float64)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_mels": 224, "n_frames": 224},
        {"n_mels": 32, "n_frames": 40, "n_fft": 1000, "fmin": 60.0, "fmax": 7000.0},
        {"n_mels": 16, "n_frames": 16, "n_fft": 509},  # a prime
        {"n_mels": 16, "n_frames": 9, "n_fft": 510, "sample_rate": 8000, "fmax": 4000.0, "clip_seconds": 0.5},
    ],
)
def test_graph_features_equal_the_cache_s(settings: dict) -> None:
    """For frames of any length the graph's features are LogMel's within two float16 steps; silence gives zeros."""
    config = FeatureConfig(**settings)
    clips = np.stack([synthesise(word, 1, word)[: config.samples] * 10.0**-word for word in range(5)])
    clips[4] = 0
    with torch.inference_mode():
        found = GraphLogMel(config)(torch.from_numpy(clips)).numpy()
    assert found.shape == (5, 1, config.n_mels, config.n_frames)
    reference, log_mel = torch.empty(config.n_mels, config.n_frames), LogMel(config)
    for clip, features in zip(clips, found[:, 0], strict=True):
        log_mel(clip[None], reference[None])
        np.testing.assert_allclose(features, reference.numpy(), rtol=2 * STEP, atol=2 * STEP)
    assert not found[4].any()


def test_graph_views_equal_predict_s() -> None:
    """Every test-time view has a form in the graph that gives the same samples, and leaves silence alone."""
    clips = np.stack([synthesise(1, 2, 3), np.zeros(RATE, np.float32)])
    member = Member("r", "0", Path("p"), FeatureConfig(n_mels=16, n_frames=16), ["a"], "", 1.0, torch.nn.Identity())
    noise = WaveformEnsemble([member], first_views(1)).noise
    for view in VIEWS:
        expected = np.stack([view(clip) for clip in clips])
        found = GRAPH_VIEWS[view.__name__](torch.from_numpy(clips), noise).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_onnx_says_what_predict_says(here: Path, exported: Path, recordings: Path, runtime) -> None:
    """onnxruntime gives predict's probabilities within 1e-3 and its labels, for batches of any size."""
    clips, expected = predicted(here, recordings)
    assert (expected.max(axis=1) < 0.99).any()  # else any file would agree
    session = runtime.InferenceSession(str(exported))
    whole = session.run(None, {"waveform": clips})[0]
    single = np.concatenate([session.run(None, {"waveform": clip[None]})[0] for clip in clips])
    for found in (whole, single):
        assert np.abs(found - expected).max() <= 1e-3
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_onnx_metadata_name_classes_rate_and_features(here: Path, exported: Path, runtime) -> None:
    """The metadata hold what a caller needs, and the file holds no path of the machine that wrote it."""
    (index,) = here.glob("data/cache/*/index.json")
    about = runtime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == sorted([*WORDS, "noise"])
    assert (about["sample_rate"], about["clip_seconds"], about["tta"]) == ("16000", "1.0", "4")
    assert about["feature_digest"][:12] in index.parent.name
    assert str(ROOT).encode() not in exported.read_bytes()


def test_fifteen_lines_without_the_project_judge_alike(here: Path, exported: Path, recordings: Path) -> None:
    """docs/run_onnx.py, where the project cannot be imported, prints predict's labels and confidences."""
    _, expected = predicted(here, recordings)
    paths = sorted(map(str, recordings.iterdir()))
    script = ROOT / "docs/run_onnx.py"
    command = [sys.executable, "-I", script, exported, *paths]
    done = subprocess.run(list(map(str, command)), cwd="/", capture_output=True, text=True, check=True)
    classes = sorted([*WORDS, "noise"])
    for line, path, probs in zip(done.stdout.splitlines(), paths, expected, strict=True):
        assert line.split()[:2] == [path, classes[probs.argmax()]]
        assert float(line.split()[2]) == pytest.approx(probs.max(), abs=1e-3)
    statements = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.Import)]
    assert {alias.name for node in statements for alias in node.names} == {"json", "sys", "onnxruntime", "soundfile"}
    assert len([line for line in script.read_text().splitlines() if line]) <= 15
    soundfile.write(here / "long.wav", np.zeros(RATE + 1), RATE)
    done = subprocess.run([*map(str, command[:4]), here / "long.wav"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "long.wav: bring it to 16000 Hz and 1.0 s at most" in done.stderr


def answers_nan_for_what_is_no_recording(judge: Callable[[np.ndarray], np.ndarray]) -> None:
    """A clip with a sample that predict would refuse gives NaN for every class; its neighbours do not notice."""
    clips = np.stack([synthesise(word % 3, 20, word) for word in range(8)])
    clips[7] = 0
    spoilt = clips.copy()
    for clip, sample in enumerate((np.nan, np.inf, -np.inf, 2 * MAX_LEVEL, -2 * MAX_LEVEL)):
        spoilt[clip, 1000 * clip] = sample
    spoilt[5] = np.nan
    before, after = judge(clips), judge(spoilt)
    assert np.isfinite(before).all()
    assert np.isnan(after[:6]).all()
    np.testing.assert_allclose(after[6:], before[6:], atol=1e-6)


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_onnx_answers_nan_for_what_is_no_recording(exported: Path, name: str, tmp_path: Path, runtime) -> None:
    """Not with probabilities like silence's; the metadata and docs/run_onnx.py say what it means."""
    session = runtime.InferenceSession(str(exported.with_name(name)))
    answers_nan_for_what_is_no_recording(lambda clips: session.run(None, {"waveform": clips})[0])
    about = session.get_modelmeta().custom_metadata_map["not_a_recording"]
    assert about == "NaN for every class: of a clip with a sample that is not finite or beyond 2.14748e+09"
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    script = [sys.executable, "-I", ROOT / "docs/run_onnx.py", exported, tmp_path / "nan.wav"]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/nan.wav (not a finite recording) nan\n"


def test_int8_quantises_the_networks_only(exported: Path, recordings: Path, runtime) -> None:
    """The int8 variant is smaller, every dequantised weight belongs to a network, and words are still recognised."""
    import onnx

    path = exported.with_name("model.int8.onnx")
    assert path.stat().st_size < exported.stat().st_size
    nodes = onnx.load(path).graph.node
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    users = [node for node in nodes if dequantised & set(node.input)]
    products = [node.name for node in users if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert products
    assert all(name.startswith("networks/") for name in products)
    session = runtime.InferenceSession(str(path))
    clips = np.stack([read_clip(str(recordings / f"{word}.wav"), FeatureConfig()).samples for word in WORDS])
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert [classes[best] for best in session.run(None, {"waveform": clips})[0].argmax(axis=1)] == WORDS


def test_a_file_that_differs_is_not_left_behind(
    here: Path, runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Where the graph judges otherwise than predict, the command fails and an older file keeps its content."""
    monkeypatch.setitem(GRAPH_VIEWS, "later", lambda clips, noise: clips.flip(1))
    (here / "old.onnx").write_bytes(b"old")
    assert main(["--run", RUN, "--output", "old.onnx"]) == 2
    assert "judges" in capsys.readouterr().err
    assert (here / "old.onnx").read_bytes() == b"old"
    assert not list(here.glob(".old.onnx*"))


def test_without_recordings_nothing_is_exported(here: Path, runtime, capsys: pytest.CaptureFixture) -> None:
    """A file that could not be verified is not written; the error asks for recordings."""
    assert main(["--run", RUN, "--cache-dir", "nowhere", "--output", "unverified.onnx"]) == 2
    assert "no recordings to verify on; name some with --check FOLDER" in capsys.readouterr().err
    assert not list(here.glob("*unverified*"))


def test_a_missing_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Without onnxruntime the error says what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["--run", RUN]) == 2
    assert "pip install -e '.[export]'" in capsys.readouterr().err


def test_members_of_different_clip_lengths_are_refused() -> None:
    """One waveform cannot be the clip of members that were trained on clips of different lengths."""
    members = [
        Member("r", str(n), Path("p"), FeatureConfig(clip_seconds=1.0 + n), ["a"], "", 1.0, torch.nn.Identity())
        for n in range(2)
    ]
    with pytest.raises(ValueError, match="all must agree"):
        WaveformEnsemble(members, first_views(1))


@pytest.mark.long
@pytest.mark.parametrize("model", ["resnet18", "dla60_res2next", "test_vit"])
def test_models_export(model: str, tmp_path: Path, runtime) -> None:
    """Other kinds of models go through the same exporter, and onnxruntime agrees with torch."""
    from infer.export.onnx_file import run as run_onnx
    from infer.export.onnx_file import write as write_onnx
    from train.models import create_model

    config = FeatureConfig(n_mels=64, n_frames=64)
    network = create_model(model, 5, (64, 64)).eval()
    module = WaveformEnsemble([Member("r", "0", tmp_path, config, list("abcde"), "", 0.7, network)], VIEWS).eval()
    write_onnx(module, config.samples, {"classes": json.dumps([*"abcde"]), "sample_rate": "16000"}, tmp_path / "m.onnx")
    clips = np.stack([synthesise(word, 1, 1) for word in range(3)])
    with torch.inference_mode():
        expected = module(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(run_onnx(tmp_path / "m.onnx")(clips), expected, atol=1e-4)


@pytest.mark.parametrize("folds", ["1", "all"])
def test_safetensors_hold_what_timm_loads(project: Path, folds: str, tmp_path: Path) -> None:
    """One member's weights load by timm's checkpoint_path, several follow their number; metadata say the rest."""
    import timm
    from safetensors import safe_open

    from train.checkpoint import load_checkpoint

    assert main(["--run", RUN, "--folds", folds, "--format", "safetensors", "--check-clips", "4"]) == 0
    with safe_open("model.safetensors", "pt") as file:
        about, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    numbers = [0, 1] if folds == "all" else [1]
    saved = [load_checkpoint(Path(RUN) / f"fold{fold}" / "best.pt") for fold in numbers]
    expected = {
        f"{number}.{name}" if folds == "all" else name: tensor
        for number, each in zip(numbers, saved, strict=True)
        for name, tensor in each["model"].items()
    }
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)
    assert json.loads(about["classes"]) == sorted([*WORDS, "noise"])
    assert [json.loads(about[key]) for key in ("models", "temperatures", "temperature", "tta")] == [
        ["test_resnet"] * len(saved),
        [each["temperature"] for each in saved],
        1.0,
        4,
    ]
    assert json.loads(about["features"]) == [each["features"] for each in saved]
    assert about["members"].split(",") == [f"test_resnet-32x32/fold{fold}" for fold in numbers]
    assert str(tmp_path).encode() not in Path("model.safetensors").read_bytes()
    if folds != "all":
        network = timm.create_model("test_resnet", in_chans=1, num_classes=4, checkpoint_path="model.safetensors")
        assert all(torch.equal(value, saved[0]["model"][key]) for key, value in network.state_dict().items())


def test_safetensors_that_differ_are_not_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What is compared with predict is what the file says, not what memory holds; an older file stays."""
    from infer.export import safetensors_file

    write, output = safetensors_file.write, project / "model.safetensors"

    def spoilt(module, samples, metadata, path):
        return write(module, samples, {**metadata, "tta": "1"}, path)

    monkeypatch.setattr(safetensors_file, "write", spoilt)
    output.write_bytes(b"old")
    assert main(["--run", RUN, "--format", "safetensors", "--check-clips", "8"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: model.safetensors: not written: it judges ")
    assert output.read_bytes() == b"old"
    assert not list(project.glob(".*"))


def test_safetensors_have_no_int8(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Quantised are ONNX files only; one line says so, before anything is read."""
    assert main(["--run", "nowhere", "--format", "safetensors", "--int8"]) == 2
    assert capsys.readouterr().err == ("error: --int8 quantises ONNX files; leave it out with --format safetensors\n")
