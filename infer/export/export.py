"""Exporting: write the file, run it, and keep it only if it says what predict says."""

import contextlib
import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.cli import EXIT_OK, InputError, counted, require, say
from cache.files import write_atomic
from infer.console import print_table
from infer.corpus import cached_clips, check_not_trained_on
from infer.ensemble import Ensemble
from infer.export import onnx_file, safetensors_file, web
from infer.export.card import card_path, write_card
from infer.export.graph import WaveformEnsemble
from infer.judge import batched
from infer.labelled import judge_readable
from infer.members import Member, load_alike, shared_clip
from infer.options import ExportOptions
from infer.outputs import output_path
from infer.recordings import Recordings, list_recordings
from infer.views import first_views
from pipeline.decode import MAX_LEVEL, read_clip
from train.world import World

FORMATS = {"onnx": onnx_file, "safetensors": safetensors_file, "web": web}
"""Modules that write and run a kind of file or folder, as `infer.export.onnx_file` does, by the users' name for it."""
TOLERANCE = 1e-3
"""Largest difference of a probability between the exported file and predict."""


class _Measured(NamedTuple):
    """What a file, or predict, says of the clips, and how fast."""

    name: str
    megabytes: str
    clips_per_second: float
    probs: np.ndarray  # (n, classes)


def export(options: ExportOptions, world: World) -> int:
    """Write the exported file and its card, print what was verified and measured, and return the exit status.

    Raises
    ------
    InputError : the extra is missing, nothing can be read, or the file differs from predict: then it is not kept
    """
    kind = FORMATS[options.format]
    for module in kind.REQUIRED:
        require(module, "export")
    output = output_path(options.output or kind.OUTPUT, options, folder=kind is web)
    card = output_path(card_path(output), options)
    smaller = None
    if options.int8:  # a page has one model
        named = output.with_name(f"{output.stem}.int8{output.suffix}")
        smaller = output if kind is web else output_path(named, options)
    members = load_alike(options, world)
    ensemble = Ensemble(members, options.tta)
    network = WaveformEnsemble(members, first_views(options.tta), ensemble.temperature).eval()
    about = write_card(output, members, ensemble, options)
    source, recordings = _recordings(options, members)
    started = time.perf_counter()
    good, judged = judge_readable(members, recordings, options, world)
    speed = len(recordings.paths) / (time.perf_counter() - started)
    if not world.is_main:
        return EXIT_OK
    recordings, probs = recordings.select(good), ensemble(judged)
    clips = np.stack([read_clip(path, shared_clip(members)).samples for path in recordings.paths])
    title = source
    if smaller:  # every other clip gives int8 its ranges and is not verified on
        others = clips[1::2] if len(clips) > 1 else clips
        title = f"{source}; int8 took its ranges from {len(others)} others"
        recordings, clips, probs = recordings.select(range(0, len(clips), 2)), clips[::2], probs[::2]

    measured = [_Measured("predict", "", speed, probs)]
    with kind.placed(output) as temporary:
        kind.write(network, clips.shape[1], _metadata(members, ensemble, options), temporary)
        measured.append(_measure(temporary, output.name, clips, options))
        _verify(output, measured[-1].probs, probs, recordings.names)
        if smaller:
            with contextlib.nullcontext(temporary) if smaller == output else kind.placed(smaller) as quantised:
                kind.quantise(temporary, quantised, others)
                name = f"{output.name}, int8" if smaller == output else smaller.name
                measured.append(_measure(quantised, name, clips, options))
        write_atomic(card, about.encode())
    _print_measured(f"CPU, {len(clips)} clips of {title}", measured, _targets(recordings, members, source))
    say(f"{output}: {counted(len(members), 'member')}, {counted(options.tta, 'view')}; verified; described in {card}")
    if doubt := ensemble.describe_doubt():
        say(doubt, error=True)
    if kind is web:
        say(f"next: python -m http.server --directory {shlex.quote(str(output))}, then open http://localhost:8000")
    return EXIT_OK


def _print_measured(title: str, measured: list[_Measured], targets: np.ndarray | None) -> None:
    """A table in which the first, predict, is what the others are compared with."""
    expected, rows = measured[0].probs, []
    for name, megabytes, speed, probs in measured:
        best = probs.argmax(axis=1)
        difference, same = np.abs(probs - expected).max(), (best == expected.argmax(axis=1)).mean()
        accuracy = "" if targets is None else f"{(best == targets).mean():.4f}"
        rows.append((name, megabytes, f"{speed:.1f}", f"{difference:.1e}", f"{same:.1%}", accuracy))
    print_table(title, rows, ("", "MB", "clips/s", "largest difference", "same label", "accuracy"))


def _metadata(members: list[Member], ensemble: Ensemble, options: ExportOptions) -> dict[str, str]:
    config = shared_clip(members)
    return {
        "classes": json.dumps(members[0].classes, ensure_ascii=False),
        "thresholds": json.dumps(ensemble.thresholds, ensure_ascii=False),
        "sample_rate": str(config.sample_rate),
        "clip_seconds": str(config.clip_seconds),
        "feature_digest": ",".join(dict.fromkeys(member.config.digest for member in members)),
        "members": ",".join(member.name for member in members),
        "models": json.dumps([member.options["model"] for member in members]),
        "features": json.dumps([dataclasses.asdict(member.config) for member in members]),
        "tta": str(options.tta),
        "not_a_recording": f"NaN for every class: of a clip with a sample that is not finite or beyond {MAX_LEVEL:g}",
    }


def _recordings(options: ExportOptions, members: list[Member]) -> tuple[str, Recordings]:
    """Where recordings to verify on are from, and --check-clips of them; for int8 twice as many."""
    if options.check or Path("data/test").is_dir():
        source = options.check or "data/test"
        recordings = list_recordings(source, options)
    else:
        try:
            source, recordings = cached_clips(members, options)
        except InputError as error:
            raise InputError(f"no recordings to verify on; name some with --check FOLDER ({error})") from None
    there = len(recordings.paths)
    wanted = min(there, options.check_clips * (2 if options.int8 else 1))
    return source, recordings.select(np.linspace(0, there - 1, wanted).round().astype(int).tolist())


def _targets(recordings: Recordings, members: list[Member], source: str) -> np.ndarray | None:
    """The targets of recordings that have labels and that no member was trained on, else None."""
    try:
        targets = recordings.targets(members[0].classes)
    except InputError:  # not a folder of <label>/ folders
        return None
    try:
        check_not_trained_on(recordings, members, source)
    except InputError as error:
        say(f"no accuracy is shown: {error}", error=True)
        return None
    return targets


def _measure(file: Path, name: str, clips: np.ndarray, options: ExportOptions) -> _Measured:
    """Run the file that is to be called `name` on clips [shape=(n, samples)]."""
    run = FORMATS[options.format].run(file)
    run(clips[:1])  # the first call of a runtime takes longer
    started = time.perf_counter()
    probs = np.concatenate([run(np.stack(batch)) for batch in batched(clips, options.batch_size)])
    speed = len(clips) / (time.perf_counter() - started)
    size = sum(each.stat().st_size for each in file.iterdir()) if file.is_dir() else file.stat().st_size
    return _Measured(name, f"{size / 1e6:.1f}", speed, probs)


def _verify(output: Path, found: np.ndarray, expected: np.ndarray, names: list[str]) -> None:
    """InputError where the file's probabilities [shape=(n, classes)] are not predict's."""
    differences = np.abs(found - expected).max(axis=1)
    same = (differences <= TOLERANCE) & (found.argmax(axis=1) == expected.argmax(axis=1))  # NaN is not
    if not same.all():
        worst = int(differences.argmax())
        raise InputError(
            f"{output}: not written: it judges {int((~same).sum())} of {len(found)} recordings otherwise than predict; "
            f"{names[worst]}: a probability differs by {differences[worst]:.2g}, expected at most "
            f"{TOLERANCE}; report it with the output of pip freeze"
        )
