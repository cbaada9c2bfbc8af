"""Temperature scaling (Guo et al. 2017): one number that turns a member's held-out logits into honest probabilities."""

import numpy as np

_RANGE = (0.05, 20.0)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature with the lowest cross-entropy on clips that the member never saw.

    Parameters
    ----------
    logits : np.ndarray [shape=(n, classes)]
    targets : np.ndarray [shape=(n,), dtype=int64]

    Returns
    -------
    float : to divide logits by, within 0.05 to 20; 1 where there are no clips
    """
    from scipy.optimize import minimize_scalar  # a third of a second, which no start of a run should wait for
    from scipy.special import log_softmax

    if not len(targets):
        return 1.0
    rows = np.arange(len(targets))
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return -log_softmax(wide / np.exp(log_temperature), axis=1)[rows, targets].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_RANGE), method="bounded").x))
