"""The flags of infer's commands."""

import dataclasses
import os
from pathlib import Path

from cache.cli import AT_LEAST_0, AT_LEAST_1, Flags, InputError, Once, flag
from train.options import TrainOptions

WINDOW_THRESHOLD = 0.5  # of a window, where nothing else is chosen


def trained_runs(runs_dir: str | Path) -> list[str]:
    """Folders of the runs that have a trained fold, sorted."""
    return sorted({str(path.parent.parent) for path in Path(runs_dir).glob("[!.]*/fold*/best.pt")})


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberOptions(Flags):
    """Which members are meant."""

    run: tuple[str, ...] = flag(
        (), "a run folder; repeat for an ensemble of several", action="append", metavar="FOLDER"
    )
    runs_dir: str = flag(TrainOptions.runs_dir, "without --run: where run folders are")
    model: str | None = flag(None, f"without --run: the model (default: {TrainOptions.model}, or that of the only run)")
    n_mels: int | None = flag(None, f"without --run: mel bands (default: {TrainOptions.n_mels})")
    width: int | None = flag(None, "without --run: frames (default: n-mels)")
    folds: str = flag("all", "all folds of the split, or a list such as 0,2; none: the run on everything")
    cache_dir: str = flag("data/cache", "where cache folders are, for the split test")

    @property
    def run_folders(self) -> list[str]:
        """The run folders: those named, the one that the training flags name, or the only one there is."""
        if self.run:
            return list({os.path.realpath(folder): folder.rstrip("/") for folder in self.run}.values())
        given = {name: value for name in ("model", "n_mels", "width") if (value := getattr(self, name)) is not None}
        named = f"{self.runs_dir}/{TrainOptions(**given).run_name}"
        there = trained_runs(self.runs_dir)
        if given or named in there:
            return [named]
        if not there:
            raise InputError(f"{self.runs_dir}: no trained run; train one with python -m train.run, or use --run")
        if len(there) > 1:
            raise InputError(
                f"{self.runs_dir}: several runs; choose with {' or '.join(f'--run {run}' for run in there)}"
            )
        return there


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleOptions(MemberOptions):
    """How members are combined."""

    tta: int = flag(4, "test-time views of each clip (1: the clip itself only)", AT_LEAST_1)
    ensemble: str = flag("soft", "mean of probabilities, or majority vote", choices=("soft", "hard"))
    batch_size: int = flag(64, "clips in a forward pass", AT_LEAST_1)
    device: str = flag("auto", "device", choices=("auto", "cpu", "cuda"))
    amp: str = flag(
        "auto", "mixed precision, where it is faster; off: float32", choices=("auto", "bf16", "fp16", "off")
    )
    audio_dir: str | None = flag(
        None,
        "the folder of the corpus, if it has moved away from the cache; of a table, the folder of its files",
        metavar="FOLDER",
    )
    columns: str | None = flag(
        None, "of a table: what its columns mean, as in pipeline.build_cache", metavar="file=NAME,…"
    )

    @property
    def source(self) -> str | None:
        """The folder, list or table that --manifest, --input or --check names."""
        named = (getattr(self, name, None) for name in ("manifest", "input", "check"))
        return next(filter(None, named), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowOptions(EnsembleOptions):
    """How windows are laid and which are believed."""

    hop_seconds: float | None = flag(None, "from one window to the next (default: a quarter of a clip)", (0, 3600))
    window_confidence: float | None = flag(
        None,
        f"leave out a window that is less certain (default: the thresholds that infer.calibrate chose, or "
        f"{WINDOW_THRESHOLD:g})",
        (0, 1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(WindowOptions):
    """Flags of ``python -m infer.predict``."""

    input: str = flag(
        "data/test", "a folder (searched below), a recording, a CSV table, or a text file of paths", action=Once
    )
    output: str = flag("predictions.csv", "table of file, label, confidence, error")
    probabilities: str | None = flag(None, "also write every class's probability to this CSV", metavar="FILE")
    min_confidence: float | None = flag(
        None,
        "judge as unknown what is less certain; infer.report shows the choice (default: the thresholds that "
        "infer.calibrate chose, if it did; 0: none)",
        (0, 1),
    )
    windows: str | None = flag(
        None,
        "also judge each file, of any length, in overlapping windows, and write what is found to this CSV; "
        "of overlapping windows of one label the most confident stays",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hop_seconds", "window_confidence"):
            if getattr(self, name) is not None and not self.windows:
                raise InputError(f"--{name.replace('_', '-')} needs --windows FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenOptions(WindowOptions):
    """Flags of ``python -m infer.listen``."""

    source: str | None = flag(
        None,
        "- to read sound from standard input, WAV or raw; else the microphone",
        nargs="?",
        choices=("-",),
        positional=True,
    )
    onnx: str | None = flag(None, "judge with a file of infer.export instead, without torch", metavar="FILE")
    ensemble: str = flag("soft", "mean of probabilities; votes have no thresholds", choices=("soft",))
    eager: bool = flag(
        False, "print the first window that is sure enough at once, instead of the most confident one a clip later"
    )
    json: bool = flag(False, "print a JSON object per line")
    microphone: str | None = flag(None, "its name or number, as python -m sounddevice lists them", metavar="NAME")
    rate: int = flag(16000, "Hz, of raw sound on standard input", (1000, 768_000))
    channels: int = flag(1, "of raw sound on standard input", (1, 64))
    encoding: str = flag("s16", "of raw sound on standard input, little-endian", choices=("s16", "s32", "f32"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.onnx and (self.run, self.folds, self.tta) != ((), ListenOptions.folds, ListenOptions.tta):
            raise InputError("--onnx FILE has its own members and views; leave out --run, --folds and --tta")
        if self.microphone and self.source:
            raise InputError("--microphone is not listened to where - reads standard input; leave one out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledOptions(EnsembleOptions):
    """Which labelled clips are judged."""

    split: str = flag("oof", "out-of-fold clips, or the cache's test split", choices=("oof", "test"))
    input: str | None = flag(None, "judge a folder of <label>/ folders instead", metavar="FOLDER", action=Once)
    manifest: str | None = flag(
        None, "judge the clips of a CSV table instead, those for testing", metavar="FILE", action=Once
    )
    robustness: bool = flag(False, "also judge them in babble, at other levels and speeds, shifted, cut and clipped")
    negatives: str | None = flag(
        None, "also count false alarms in recordings of any length without the words", metavar="FOLDER", action=Once
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.manifest and self.input:
            raise InputError("--manifest and --input both name what to judge; leave one out")
        hard = self.ensemble == "hard"
        judging = {"--robustness": self.robustness, "--negatives": self.negatives, "--ensemble hard": hard}
        for name, given in judging.items():
            if given and self.split == "oof" and not self.source:
                raise InputError(f"{name} judges recordings; name them with --split test or --input FOLDER")
        if self.negatives and hard:
            raise InputError("--negatives needs probabilities, and votes have none; leave out --ensemble hard")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(LabelledOptions):
    """Flags of ``python -m infer.evaluate``."""

    json: str | None = flag(None, "also write the figures to this file", metavar="FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateOptions(EnsembleOptions):
    """Flags of ``python -m infer.calibrate``."""

    ensemble: str = flag("soft", "mean of probabilities; votes have no temperature", choices=("soft",))
    input: str | None = flag(
        None,
        "a folder of <label>/ folders, or a CSV table, that no member was trained on (default: the clips that "
        "training held back)",
        metavar="FOLDER",
        action=Once,
    )
    negatives: str | None = flag(
        None,
        "recordings of any length without the words, to choose each label's threshold by",
        metavar="FOLDER",
        action=Once,
    )
    false_alarms_per_hour: float | None = flag(
        None, "how many of each label its threshold may let through; with --negatives", (0, 3600)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.negatives is None) != (self.false_alarms_per_hour is None):
            raise InputError("--negatives FOLDER and --false-alarms-per-hour N belong together")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditOptions(MemberOptions):
    """Flags of ``python -m infer.audit``."""

    output: str = flag("suspects.csv", "table of file, label, suspected label, and the probabilities of both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(EnsembleOptions):
    """Flags of ``python -m infer.export``."""

    ensemble: str = flag("soft", "an exported file holds the mean of probabilities", choices=("soft",))
    device: str = flag("cpu", "where the file is verified; it runs anywhere", choices=("cpu",))
    amp: str = flag("off", "the file computes in float32", choices=("off",))
    format: str = flag(
        "onnx",
        "waveform in, probabilities out; the weights alone, for timm; or a page that listens in a browser",
        choices=("onnx", "safetensors", "web"),
    )
    output: str | None = flag(
        None, "the file or folder (default: model.onnx, model.safetensors or site)", metavar="FILE"
    )
    int8: bool = flag(
        False, "also write model.int8.onnx, with quantised networks, and measure its accuracy; a page gets only that"
    )
    check: str | None = flag(
        None,
        "recordings to verify on (default: data/test, or clips of the cache); <label>/ folders give accuracies",
        metavar="FOLDER",
    )
    check_clips: int = flag(64, "how many of them", AT_LEAST_1)
    figures: str | None = flag(None, "what infer.evaluate --json wrote of these members, for the card", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 and self.format == "safetensors":
            raise InputError(f"--int8 quantises ONNX files; leave it out with --format {self.format}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions(LabelledOptions):
    """Flags of ``python -m infer.report``."""

    split: str = flag("auto", "auto: the test split and out of fold, what there is", choices=("auto", "oof", "test"))
    output: str = flag("report.html", "the page")
    worst: int = flag(50, "clips to embed per source: those judged most confidently wrong", AT_LEAST_0)
