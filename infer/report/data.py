"""What the report shows, as plain values: figures, curves, confusions, calibration, and the worst clips."""

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from cache.cli import InputError
from cache.config import FeatureConfig
from infer.corpus import labelled_recordings
from infer.labelled import JudgedClips, out_of_fold
from infer.measure.figures import judge_and_measure, out_of_fold_figures, together
from infer.measure.scoring import coverage, reliability, suspects
from infer.members import Member
from infer.options import ReportOptions
from pipeline.decode import read_clip
from pipeline.features import LogMel
from pipeline.sound_files import reason_of
from train.progress import read_run
from train.world import World

_SUSPECTS = 200  # clips in the list of suspected labels
_COLUMNS = 5  # labels in a clip's table of probabilities


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled clips from one source (the split test, out of fold, a folder), and how they were judged."""

    figures: dict[str, Any]
    """Of `infer.measure.figures`."""
    clips: JudgedClips
    best: np.ndarray
    """The verdict: class scores [shape=(n, classes)]; its maximum is the confidence."""

    def describe(self) -> dict[str, Any]:
        """Everything but the single clips."""
        judged, confidence, targets = self.best.argmax(axis=1), self.best.max(axis=1), self.clips.targets
        pairs, counts = np.unique(np.stack([targets, judged]), axis=1, return_counts=True)
        figures = [("single, mean", self.figures["single"]), *together(self.figures)]
        ece, bins = reliability(confidence, judged == targets)
        found, likely = suspects(self.best, targets)
        listed = found[:_SUSPECTS].tolist()
        return {
            "name": self.figures["source"],
            "clips": len(targets),
            "unreadable": self.clips.unreadable,
            "figures": [{"name": name, **accuracy} for name, accuracy in figures],
            "members": self.figures["members"],
            "matrix": np.stack([*pairs, counts], axis=1).tolist(),
            "ece": ece,
            "bins": bins,
            "coverage": coverage(confidence, judged == targets),
            "robustness": self.figures.get("robustness"),
            "false_alarms": self.figures.get("false_alarms"),
            "wrong": int((judged != targets).sum()),
            "suspects": len(found),
            "suspected": [[self.clips.names[clip], int(targets[clip]), int(likely[clip])] for clip in listed],
        }

    def worst(self, most: int, config: FeatureConfig) -> Iterator[dict[str, Any]]:
        """The wrongly judged clips, the most confident first."""
        judged, confidence = self.best.argmax(axis=1), self.best.max(axis=1)
        wrong = np.flatnonzero(judged != self.clips.targets)
        members, log_mel = np.array([row["member"] for row in self.figures["members"]]), LogMel(config)
        judged_by = self.clips.judged_by
        for index in wrong[np.argsort(-confidence[wrong], kind="stable")][:most].tolist():
            target, verdict = int(self.clips.targets[index]), int(judged[index])
            who = judged_by[:, index]
            said = self.clips.probs[who, :, index].mean(axis=1)  # (members, classes)
            ranking = [verdict, target, *said.argmax(axis=1).tolist(), *np.argsort(-self.best[index]).tolist()]
            columns = list(dict.fromkeys(ranking))[:_COLUMNS]
            yield {
                "name": self.clips.names[index],
                "label": target,
                "judged": verdict,
                "confidence": round(float(confidence[index]), 4),
                "columns": columns,
                "members": list(zip(members[who].tolist(), said[:, columns].round(4).tolist(), strict=True)),
                **_media(self.clips.paths[index], log_mel),
            }


def judge_sources(options: ReportOptions, members: list[Member], world: World) -> tuple[list[Source], list[str]]:
    """Judge the recordings, divided over the ranks, and read what training left of the held-out clips.

    Returns
    -------
    (what there is, why the other is not there)

    Raises
    ------
    InputError : what the flags name is not to be had; with ``--split auto``, neither is
    """
    sources, errors = [], []
    if options.source or options.split != "oof":
        try:
            recordings = world.decide(lambda: labelled_recordings(members, options))
        except InputError as error:
            if options.source or options.split == "test":
                raise
            errors.append(error)
        else:
            sources.append(Source(*judge_and_measure(members, recordings, options, world)))
    try:
        clips, mean = world.decide(lambda: out_of_fold(members, options.cache_dir, options.audio_dir))
        sources.append(Source(out_of_fold_figures(members, clips, mean), clips, mean))
    except InputError as error:
        errors.append(error)
    if not sources:
        raise errors[-1]
    return sources, [str(error) for error in errors]


def read_curves(runs: list[str]) -> list[dict[str, Any]]:
    """The course of every fold of every run."""
    curves = []
    for run in runs:
        for fold, entries in read_run(Path(run)).items():
            keys = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy")
            columns = {key: [_finite(entry[key]) for entry in entries] for key in keys}
            name = f"{Path(run).name}/fold{fold}" if len(runs) > 1 else f"fold {fold}"
            curves.append({"name": name, **columns})
    return curves


def _finite(value: float | None) -> float | None:
    """The value; None, which a curve leaves out, where it is no number."""
    return value if value is not None and np.isfinite(value) else None


def _media(path: str, log_mel: LogMel) -> dict[str, Any]:
    """What the members were given: 16-bit WAV, and the log-mel as one byte per value, from its low bands up."""
    config = log_mel.config
    try:
        samples = read_clip(path, config).samples
    except (InputError, OSError) as error:
        return {"error": reason_of(error)}
    wav = io.BytesIO()
    soundfile.write(wav, samples, config.sample_rate, subtype="PCM_16", format="WAV")
    image = torch.empty(config.n_mels, config.n_frames)
    log_mel([samples], [image])
    image = 255 * (image - image.min()) / (image.max() - image.min()).clamp_min(1e-6)
    return {
        "audio": base64.b64encode(wav.getvalue()).decode(),
        "image": base64.b64encode(image.round().byte().numpy().tobytes()).decode(),
        "shape": list(image.shape),
        "axes": f"0 to {config.clip_seconds:g} s, {config.fmin:,.0f} to {config.fmax:,.0f} Hz",
    }
