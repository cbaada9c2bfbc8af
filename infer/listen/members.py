"""An ensemble that judges clips one after another."""

import contextlib

import numpy as np
import torch

from cache.cli import say
from infer.ensemble import Ensemble
from infer.judge import Judge
from infer.listen.listen import keeps_up, listen
from infer.members import load_alike, shared_clip
from infer.options import ListenOptions
from infer.views import first_views
from train.world import World


class EnsembleModel:
    """The members that the flags name, with the attributes of `infer.onnx_model.OnnxModel`.

    Parameters
    ----------
    judge : of the members
    ensemble : of the same
    """

    def __init__(self, judge: Judge, ensemble: Ensemble) -> None:
        config = shared_clip(judge.members)
        self.classes, self.sample_rate, self.samples = judge.classes, config.sample_rate, config.samples
        self.thresholds = ensemble.thresholds
        self._judge, self._ensemble = judge, ensemble

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Probabilities [shape=(n, classes)] of clips [shape=(n, samples), dtype=float32]; NaN for an error."""
        (judged,) = self._judge.judge([list(clips)])
        probs = self._ensemble(judged.probs)
        probs[[bool(error) for error in judged.errors]] = np.nan
        return probs


def listen_with_members(options: ListenOptions, world: World) -> int:
    """Listen with the members that the flags name, in one thread where that is enough; returns the exit status."""
    members = load_alike(options, world)
    with contextlib.closing(Judge(members, first_views(options.tta), world.device)) as judge:
        ensemble, threads = Ensemble(members, options.tta), torch.get_num_threads()
        if doubt := ensemble.describe_doubt():
            say(doubt, error=True)
        model = EnsembleModel(judge, ensemble)
        torch.set_num_threads(1)
        if not keeps_up(model):
            torch.set_num_threads(threads)
        return listen(options, model)
