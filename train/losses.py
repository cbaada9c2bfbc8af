"""Per-clip losses on soft targets, and what is kept of them.

A loss is ``(logits, targets) -> losses`` with logits and targets (batch, classes) and losses (batch,). To add one,
write it here and name it in `LOSSES`.
"""

import numpy as np
import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with soft targets, per clip."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)


def binary(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One binary cross-entropy per class, summed per clip (Wightman et al. 2021, "ResNet strikes back")."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


LOSSES = {"cross_entropy": cross_entropy, "binary": binary}


def soft_targets(targets: torch.Tensor, classes: int, smoothing: float) -> torch.Tensor:
    """One-hot targets with label smoothing (Szegedy et al. 2016).

    Parameters
    ----------
    targets : torch.Tensor [shape=(batch,), dtype=int64]
    smoothing : the share spread evenly over all classes

    Returns
    -------
    torch.Tensor [shape=(batch, classes), dtype=float32], rows sum to one
    """
    hot = F.one_hot(targets, classes).float()
    return hot * (1 - smoothing) + smoothing / classes


def class_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """Weights of classes: their number of clips to minus `power`, scaled so that the mean over clips is one.

    Parameters
    ----------
    counts : np.ndarray [shape=(classes,)], training clips of each class
    power : 0 weighs clips alike, 1 classes

    Returns
    -------
    np.ndarray [shape=(classes,), dtype=float32]
    """
    weights = np.maximum(counts, 1.0) ** -power
    return (weights * counts.sum() / (weights @ counts)).astype(np.float32)


def keep_hardest(losses: torch.Tensor, keep: float) -> torch.Tensor:
    """Mean of the hardest clips (OHEM, Shrivastava et al. 2016); the count kept is constant.

    Parameters
    ----------
    losses : torch.Tensor [shape=(batch,)]
    keep : share of the batch; 1 keeps all
    """
    count = max(1, round(keep * len(losses)))
    return (losses if count == len(losses) else losses.topk(count, sorted=False).values).mean()
