"""``--weights``: a local file's values really arrive, whatever its format, and nothing else passes for them."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from cache.cli import InputError
from train.models import create_model

SIZE = (32, 32)


@pytest.fixture(scope="module")
def imagenet_style() -> torch.nn.Module:
    """A model as its pretrained weights come: three channels, 1,000 classes."""
    torch.manual_seed(1)
    return timm.create_model("test_resnet", num_classes=1000)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "wrapped.pt"])
@pytest.mark.parametrize("classes", [8, 1000])
def test_three_channel_weights(name: str, classes: int, imagenet_style: torch.nn.Module, tmp_path: Path) -> None:
    """Every layer has the file's values; the first convolution is summed to one channel, the classifier is new."""
    path, state = tmp_path / name, imagenet_style.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if name.startswith("wrapped") else state, path)
    model = create_model("test_resnet", classes, SIZE, weights=str(path))
    first = model.pretrained_cfg["first_conv"] + ".weight"
    for key, value in model.state_dict().items():
        if key == first:
            torch.testing.assert_close(value, state[key].sum(dim=1, keepdim=True))
        elif key.startswith(model.pretrained_cfg["classifier"]):
            assert value.shape[0] == classes
        else:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("classes", [4, 30])
def test_weights_of_an_earlier_run(classes: int, tmp_path: Path) -> None:
    """A best.pt of this project serves as weights for the same or other labels."""
    earlier = create_model("test_resnet", 4, SIZE)
    torch.save({"version": 1, "options": {"lr": 0.1}, "model": earlier.state_dict()}, tmp_path / "best.pt")
    model = create_model("test_resnet", classes, SIZE, weights=str(tmp_path / "best.pt"))
    for (key, value), old in zip(model.named_parameters(), earlier.parameters(), strict=True):
        assert key.startswith(model.pretrained_cfg["classifier"]) or torch.equal(value, old), key


@pytest.mark.parametrize("name", ["test_vit", "resnet18"])
def test_weights_of_another_model(name: str, imagenet_style: torch.nn.Module, tmp_path: Path) -> None:
    """A file without values for some layer is refused; timm alone would leave that layer at random."""
    torch.save(imagenet_style.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"other.pth: not weights of {name}: \d+ of \d+ tensors are missing, such as"):
        create_model(name, 8, SIZE, weights=str(tmp_path / "other.pth"))


def test_weights_beyond_the_model_or_not_finite(tmp_path: Path) -> None:
    """A larger model's file, one without BatchNorm's statistics, and one with NaN are refused."""
    larger = create_model("resnet34", 4, SIZE).state_dict()
    smaller = create_model("resnet18", 4, SIZE).state_dict()
    bare = {key: value for key, value in smaller.items() if "running" not in key}
    for state, expected in (
        (larger, r"not weights of resnet18, which has no layer1\.2\.bn1\.bias \(\d+ such tensors\)"),
        (bare, r"not weights of resnet18: 40 of \d+ tensors are missing, such as bn1\.running_mean"),
        ({**smaller, "conv1.weight": None}, r"conv1\.weight holds no finite numbers"),
        ({**smaller, "conv1.weight": smaller["conv1.weight"] * torch.nan}, r"conv1\.weight holds no finite numbers"),
    ):
        torch.save(state, tmp_path / "odd.pth")
        with pytest.raises(InputError, match=expected):
            create_model("resnet18", 4, SIZE, weights=str(tmp_path / "odd.pth"))
    name = "swin_tiny_patch4_window7_224"
    index = "layers.0.blocks.0.attn.relative_position_index"  # a buffer that timm does not keep, but older files do
    state = timm.create_model(name, in_chans=1, num_classes=4).state_dict()
    torch.save({**state, index: torch.zeros(49, 49, dtype=torch.int64)}, tmp_path / "whole.pth")
    create_model(name, 4, (224, 224), weights=str(tmp_path / "whole.pth"))


def test_pretrained_weights_are_downloaded(imagenet_style: torch.nn.Module, tmp_path: Path) -> None:
    """``--pretrained`` fetches timm's own weights from the hub, here a local server, and adapts them as a file's."""
    save_file(imagenet_style.state_dict(), tmp_path / "model.safetensors")
    content, asked = (tmp_path / "model.safetensors").read_bytes(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            found = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", 40 * "a")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

    script = "import torch, sys; from train.models import create_model as c; "
    script += f"torch.save(c('test_resnet', 8, {SIZE}, pretrained=True).state_dict(), sys.argv[1])"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        subprocess.run([sys.executable, "-c", script, tmp_path / "got.pt"], check=True, env={**os.environ, **hub})
        server.shutdown()
    assert asked
    expected = create_model("test_resnet", 8, SIZE, weights=str(tmp_path / "model.safetensors")).state_dict()
    classifier = timm.create_model("test_resnet").pretrained_cfg["classifier"]
    for key, value in torch.load(tmp_path / "got.pt", weights_only=True).items():
        assert key.startswith(classifier) or torch.equal(value, expected[key]), key


def test_weights_that_execute_nothing(tmp_path: Path) -> None:
    """A pickle that would run code is refused unread, and so is a file that is no weights at all."""

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"model": Malicious()}, tmp_path / "evil.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("evil.pt", "junk.pt"):
        with pytest.raises(InputError, match=f"{name}: not a readable weights file"):
            create_model("test_resnet", 8, SIZE, weights=str(tmp_path / name))
    assert not (tmp_path / "executed").exists()
