"""A new last layer on a trained network: logistic regression on what the network's pooling gives."""

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.cli import InputError
from cache.index import Cache
from train.checkpoint import taking_over
from train.data import batches_of
from train.models import classifiers, load_trained, recreate

_INVERSE_PENALTY = 0.003  # scikit-learn's C: see docs/accuracy.md
_BATCH = 64


class Backbone:
    """The network of a checkpoint, up to its last layer.

    Parameters
    ----------
    path, saved : a checkpoint and its content
    device : where it computes, in float32

    Raises
    ------
    InputError : its last layer is none that can be replaced
    """

    def __init__(self, path: Path, saved: dict[str, Any], device: torch.device) -> None:
        self._saved, self._device = saved, device
        what = f"the last layer of {saved['options']['model']} cannot be replaced"
        passed = (InputError, torch.OutOfMemoryError)
        self._blamed = functools.partial(taking_over, path, what, "train another model", passed)
        self._network: Any = load_trained(path, saved).to(device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def pooled(self, cache: Cache, clips: np.ndarray, view: int = 0) -> np.ndarray:
        """What the last layer is given for a view of some clips [shape=(n, features), dtype=float64].

        Raises
        ------
        InputError : the model does not follow timm's convention, ``forward_features`` and ``forward_head``
        """
        network = self._network
        with self._blamed():
            parts = [
                network.forward_head(network.forward_features(x), pre_logits=True).flatten(1).cpu()
                for x in batches_of(cache, clips, _BATCH, self._device, view)
            ]
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def with_last_layer(
        self, weight: np.ndarray, bias: np.ndarray, cache: Cache, clips: np.ndarray
    ) -> dict[str, torch.Tensor]:
        """The model's weights with another last layer.

        Parameters
        ----------
        weight, bias : [shape=(classes, features)] and [shape=(classes,)]
        cache, clips : on these clips the new model must say what weight and bias do

        Raises
        ------
        InputError : it does not
        """
        with self._blamed():
            (layer,) = classifiers(self._network)
            old = self._saved["model"][f"{layer}.weight"]  # of a convolution: (classes, features, 1, 1)
            shaped = weight.reshape(-1, *old.shape[1:])
            new = {f"{layer}.weight": torch.from_numpy(shaped).float(), f"{layer}.bias": torch.from_numpy(bias).float()}
            state = {**self._saved["model"], **new}
            model = recreate(self._saved, state, len(bias)).to(self._device).to(memory_format=torch.channels_last)
            said = torch.cat([model(x).cpu() for x in batches_of(cache, clips, _BATCH, self._device)]).numpy()
            expected = self.pooled(cache, clips) @ weight.T + bias
            if not np.allclose(said, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
                raise ValueError("its logits are no linear function of its pooled features")
        return state


def fit_last_layer(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logistic regression in which all classes weigh alike, however many clips each has.

    Features are standardised for the fit, so that one penalty suits every network; what undoes that is in the result.

    Parameters
    ----------
    features, targets : [shape=(n, features)] and [shape=(n,)]; three classes or more, each with clips

    Returns
    -------
    weight and bias [shape=(classes, features)] and [shape=(classes,)]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.maximum(spread, 0.1 * spread.mean() + 1e-12)  # else a feature that is hardly ever there counts too much
    with threadpool_limits(1), warnings.catch_warnings():  # threads cost more than they give here
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=_INVERSE_PENALTY, class_weight="balanced", max_iter=300)
        model.fit((features - mean) / spread, targets)
    weight = model.coef_ / spread
    return weight, model.intercept_ - weight @ mean
