"""A file of infer.export, run by onnxruntime; nothing here needs torch."""

import json
from pathlib import Path

import numpy as np

from cache.cli import InputError, first_line, require


class OnnxModel:
    """Clips [shape=(n, samples), dtype=float32] in, probabilities [shape=(n, classes), dtype=float32] out.

    Parameters
    ----------
    path : the file
    threads : of one clip's computation; 0: as onnxruntime chooses

    Attributes
    ----------
    classes, sample_rate, samples : of the clips
    thresholds : by label, the confidence from which on it is believed, where infer.calibrate chose one

    Raises
    ------
    InputError : onnxruntime is missing, or not a file of infer.export
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        onnxruntime = require("onnxruntime", "export")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; write it with infer.export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            about = session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(about["classes"])
            self.sample_rate, self.samples = int(about["sample_rate"]), int(session.get_inputs()[0].shape[1])
            self.thresholds: dict[str, float] = json.loads(about.get("thresholds", "{}"))
        except Exception as error:  # of a dozen types of onnxruntime's own
            raise InputError(f"{path}: not a file of infer.export ({first_line(error)})") from None
        self._session = session

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Judge clips."""
        return self._session.run(None, {"waveform": clips})[0]
