"""Export an ensemble as one file: waveform in, calibrated probabilities out.

python -m infer.export --folds all --tta 4 --format onnx --int8
python -m infer.export --folds 0 --format safetensors --figures figures.json
python docs/run_onnx.py model.onnx data/test/*.wav
"""

from cache.cli import command
from infer.options import ExportOptions


@command(ExportOptions)
def main(options: ExportOptions) -> int:
    """Export and verify."""
    from infer.export.export import export
    from train.world import run_in_world

    return run_in_world(options.device, lambda world: export(options, world))


if __name__ == "__main__":
    raise SystemExit(main())
