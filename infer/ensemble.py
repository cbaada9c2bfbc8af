"""Combining members and views."""

import numpy as np


def soft_vote(probs: np.ndarray) -> np.ndarray:
    """Mean of the probabilities of all members and views.

    Parameters
    ----------
    probs : np.ndarray [shape=(members, views, n, classes)]

    Returns
    -------
    np.ndarray [shape=(n, classes)]
    """
    return probs.mean(axis=(0, 1))


def hard_vote(probs: np.ndarray) -> np.ndarray:
    """Share of the votes of all members and views; ties go to the class of higher mean probability.

    Parameters
    ----------
    probs : np.ndarray [shape=(members, views, n, classes)]

    Returns
    -------
    np.ndarray [shape=(n, classes)], whose argmax is the winner and whose values are shares of votes, up to 1e-6 of
        tie-breaking
    """
    classes = probs.shape[-1]
    votes = np.eye(classes, dtype=np.float32)[probs.argmax(axis=-1)].mean(axis=(0, 1))
    return (votes + 1e-6 * probs.mean(axis=(0, 1))) / (1 + 1e-6)


ENSEMBLES = {"soft": soft_vote, "hard": hard_vote}
