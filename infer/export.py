"""Export an ensemble as one file: waveform in, calibrated probabilities out.

python -m infer.export --folds all --tta 4 --format onnx --int8
python docs/run_onnx.py model.onnx data/test/*.wav
"""

from cache.cli import parse_flags, run_main
from infer.options import ExportOptions


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, export and verify."""
    flags = parse_flags(ExportOptions, argv, prog="python -m infer.export", description=__doc__)

    def body() -> int:
        options = ExportOptions(**flags)
        from infer.exporting import export

        return export(options)

    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
