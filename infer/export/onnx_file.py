"""The ONNX file of an ensemble and its int8 variant: written and run."""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

from cache.cli import InputError
from cache.files import atomic_path
from infer.judge import batched
from infer.onnx_model import OnnxModel

REQUIRED = ("onnx", "onnxscript", "onnxruntime")  # of the extra [export]
OUTPUT = "model.onnx"  # where no other is named
placed = atomic_path
run = OnnxModel  # loads a file into onnxruntime, on the CPU
_OPSET = 18
_QUANTISED = ("Conv", "Gemm", "MatMul")  # of the networks; quantising every operator was no faster
_MOST_BYTES = 2**31 - 2**20  # a protobuf file ends at 2 GiB

Runner = Callable[[np.ndarray], np.ndarray]
"""Clips (n, samples) in, probabilities (n, classes) out."""


def write(
    module: torch.nn.Module,
    samples: int,
    metadata: dict[str, str],
    path: Path,
    outputs: Sequence[str] = ("probabilities",),
) -> None:
    """Write an ONNX file: ``waveform`` (batch, samples) float32 in, ``probabilities`` (batch, classes) out.

    Parameters
    ----------
    outputs : names of what the module gives

    Raises
    ------
    InputError : the weights do not fit into one file
    """
    import onnx

    tensors = [*module.parameters(), *module.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _MOST_BYTES:
        raise InputError(f"{size:,} bytes of weights; ONNX holds {_MOST_BYTES:,} in one file; use fewer --folds")
    with redirect_stdout(io.StringIO()):  # it reports its steps
        program = torch.onnx.export(
            module,
            (torch.zeros(2, samples),),
            input_names=["waveform"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "with dynamo=True there is one"
    model = program.model_proto
    for node in model.graph.node:  # the rest of what the exporter notes down would publish paths of this machine
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        if scopes and "networks." in scopes[0]:
            node.name = f"networks/{node.name}"
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def quantise(source: Path, target: Path, clips: np.ndarray) -> None:
    """Write the int8 variant of a file of :func:`write`: the networks' products, not the transform's.

    Weights are signed with a scale per channel, activations unsigned with a scale per tensor from the range that
    `clips` span. Measured on a resnet18, one thread: 1.3 times as fast, the same labels, a quarter of the size;
    quantising while running (dynamic) took four times as long as not quantising.

    Parameters
    ----------
    clips : np.ndarray [shape=(n, samples), dtype=float32]
    """
    import onnx
    from onnxruntime import quantization

    batches = batched(clips, 8)

    class Clips(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {"waveform": np.stack(batch)}

    names = [node.name for node in onnx.load(source, load_external_data=False).graph.node]
    logging.disable(logging.WARNING)  # it recommends a preparation that the exporter has done
    try:
        quantization.quantize_static(
            source,
            target,
            Clips(),
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_quantize=[name for name in names if name.startswith("networks/")],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
