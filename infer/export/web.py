"""A folder that a browser needs to listen: the ONNX file, one HTML page, and onnxruntime-web beside them."""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

from cache.cli import InputError
from cache.files import new_folder
from infer.detections import window_thresholds
from infer.export import onnx_file
from infer.export.graph import WaveformEnsemble
from infer.page import fill_template

REQUIRED = onnx_file.REQUIRED
OUTPUT = "site"
placed = new_folder
_MODEL = "model.onnx"
_VERSION = "1.22.0"  # of onnxruntime-web
_SHA256 = "e293551f9d36d003e293d0f2937fee7b3dfdcef76d71d1449b55e2d4157c7aea"  # of its npm package
_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


class _WithFeatures(torch.nn.Module):
    """An ensemble that also gives the log-mels of the clip, to be shown."""

    def __init__(self, ensemble: WaveformEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (batch, classes) and log-mels (batch, n_mels, n_frames) of clips (batch, samples)."""
        return self.ensemble.with_features(waveform)


def write(module: WaveformEnsemble, samples: int, metadata: dict[str, str], folder: Path) -> None:
    """Write the folder's files into `folder`.

    Raises
    ------
    InputError : the weights do not fit into one file, or onnxruntime-web is not to be had
    """
    _copy_runtime(folder)
    onnx_file.write(_WithFeatures(module).eval(), samples, metadata, folder / _MODEL, ("probabilities", "log_mel"))
    classes, thresholds = (json.loads(metadata[name]) for name in ("classes", "thresholds"))
    about = {
        "title": metadata["members"].split(",")[0].split("/")[0],
        "classes": classes,
        "thresholds": np.minimum(window_thresholds(classes, None, thresholds), 2).tolist(),  # 2: as good as infinite
        "believed": [thresholds.get(label, 0) for label in classes],
        "rate": int(metadata["sample_rate"]),
        "samples": samples,
        "model": _MODEL,
    }
    (folder / "index.html").write_text(fill_template("infer.export", about), "ascii")


def run(folder: Path) -> onnx_file.Runner:
    """Load the folder's ONNX file into onnxruntime, on the CPU."""
    return onnx_file.run(folder / _MODEL)


def quantise(source: Path, target: Path, clips: np.ndarray) -> None:
    """Put the int8 variant in the place of the folder's ONNX file; see `infer.export.onnx_file.quantise`."""
    smaller = target / "int8.onnx"
    onnx_file.quantise(source / _MODEL, smaller, clips)
    os.replace(smaller, target / _MODEL)


def _copy_runtime(folder: Path) -> None:
    """Put the files of onnxruntime-web that the page loads into `folder`.

    Their npm package is fetched once, checked, and kept where pooch keeps what it downloads.

    Raises
    ------
    InputError : npm is missing, has no network, or gave another package
    """
    import pooch

    package = f"onnxruntime-web-{_VERSION}.tgz"
    try:
        archive = pooch.retrieve(package, _SHA256, package, pooch.os_cache("melshard"), downloader=_npm_pack)
    except (ValueError, subprocess.CalledProcessError, FileNotFoundError) as error:
        reason = " ".join((getattr(error, "stderr", "") or str(error)).split())[:300]
        raise InputError(
            f"{package}: not to be had ({reason}); install npm, or run npm pack onnxruntime-web@{_VERSION} elsewhere "
            f"and put the file into {pooch.os_cache('melshard')}"
        ) from None
    with tarfile.open(archive) as tar:
        for name in _RUNTIME:
            content = tar.extractfile(f"package/dist/{name}")
            assert content is not None, "the checksum has told that it is there"
            (folder / name).write_bytes(content.read())


def _npm_pack(package: str, output: str, _: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", f"onnxruntime-web@{_VERSION}", "--silent", "--pack-destination", folder]
        subprocess.run(command, capture_output=True, text=True, check=True)
        shutil.copyfile(Path(folder, package), output)
