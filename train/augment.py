"""On-device batch augmentation: functions ``(x, y, generator) -> (x, y)``.

x is (batch, 1, n_mels, n_frames), y the soft targets (batch, classes), and `generator` lives on the same device, so
that nothing waits for the host.
"""

import functools

import numpy as np
import torch


def time_roll(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, *, share: float):
    """Roll each clip in time by up to `share` of its frames, to either side."""
    n_frames = x.shape[3]
    limit = int(share * n_frames)
    shift = torch.randint(-limit, limit + 1, (len(x), 1), generator=generator, device=x.device)
    source = (torch.arange(n_frames, device=x.device) - shift) % n_frames  # (batch, n_frames)
    return x.gather(3, source[:, None, None, :].expand_as(x)), y


def spec_augment(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, *, share: float):
    """Hide one band of mels and one of frames of each clip (SpecAugment, Park et al. 2019), with its mean, zero."""
    for dim in (2, 3):
        size = x.shape[dim]
        draws = torch.rand(2, len(x), 1, generator=generator, device=x.device)
        width = draws[0] * share * size
        first = draws[1] * (size - width)
        position = torch.arange(size, device=x.device)
        hidden = (position >= first) & (position < first + width)  # (batch, size)
        x = x.masked_fill(hidden[:, None, :, None] if dim == 2 else hidden[:, None, None, :], 0)
    return x, y


def mixup(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, *, alpha: float):
    """Mix each clip with another of the batch by a weight from Beta(alpha, alpha) (mixup, Zhang et al. 2018).

    The weight is taken as its larger half, so that a clip's own label stays the first; by symmetry nothing is lost.
    """
    quantiles = _beta_quantiles(alpha, x.device)
    draws = torch.randint(len(quantiles), (len(x),), generator=generator, device=x.device)
    weight = quantiles[draws]
    mixed_x = torch.lerp(x.flip(0), x, weight[:, None, None, None].to(x.dtype))
    return mixed_x, torch.lerp(y.flip(0), y, weight[:, None])


def default_mixup(heard: float) -> float:
    """Alpha of mixup, by how often a training hears a label: what helps a long training hurts a short one.

    Of recorded speech alpha 0.2 cost 1.2 points where a label is heard 1,080 times; it gained 1.0 at 2,160, 0.3 at
    2,700, 0.6 at 5,400 and 0.6 at 16,000 (resnet18, docs/experiments.md).

    Parameters
    ----------
    heard : clips of a label that the training sees, over all epochs
    """
    return float(np.interp(heard, (1000, 2000), (0, 0.2)))


@functools.lru_cache(maxsize=4)
def _beta_quantiles(alpha: float, device: torch.device) -> torch.Tensor:
    """4,096 equally likely values of the upper half of Beta(alpha, alpha): drawing one takes no host round trip.

    They are means of ranks of a large sample: scipy's exact ones cost half a second of imports at every start.
    """
    sample = np.random.default_rng(0).beta(alpha, alpha, size=4096 * 64)
    ranked = np.sort(np.maximum(sample, 1 - sample)).reshape(4096, 64)
    return torch.from_numpy(ranked.mean(axis=1)).float().to(device)


def batch_augment(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, options):
    """Apply what `options` (train.options.TrainOptions) switches on, in the order roll, masks, mixup."""
    if options.time_roll:
        x, y = time_roll(x, y, generator, share=options.time_roll)
    if options.spec_augment:
        x, y = spec_augment(x, y, generator, share=options.spec_augment)
    if options.mixup:
        x, y = mixup(x, y, generator, alpha=options.mixup)
    return x, y
