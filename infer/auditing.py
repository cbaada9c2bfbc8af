"""Suspected label errors, by confident learning (Northcutt, Jiang & Chuang 2021)."""

import numpy as np
import torch

from cache.tables import csv_table
from infer.corpus import find_member_cache
from infer.evaluation import held_out, merged
from infer.members import load_members
from infer.options import AuditOptions
from infer.outputs import output_path


def suspects(probs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clips that are probably of another label.

    A clip counts to a label where its probability is at least the mean that the clips of that label have. It is
    suspected where the most probable of the labels that it counts to is not its own.

    Parameters
    ----------
    probs : np.ndarray [shape=(n, classes)], of clips that the model did not train on
    targets : np.ndarray [shape=(n,), dtype=int64]

    Returns
    -------
    indices of the suspected clips, the most suspected first, and the target [shape=(n,)] that each clip counts to
    """
    counts = np.bincount(targets, minlength=probs.shape[1])
    own = probs[np.arange(len(targets)), targets]
    usual = np.bincount(targets, own, minlength=probs.shape[1]) / np.maximum(counts, 1)
    counted = (probs >= usual) & (counts > 0)
    likely = np.where(counted, probs, -1.0).argmax(axis=1)
    margin = own - probs[np.arange(len(targets)), likely]
    found = np.flatnonzero(counted.any(axis=1) & (likely != targets))
    return found[np.argsort(margin[found], kind="stable")], likely


def audit(options: AuditOptions) -> int:
    """Write the table of suspected clips and say how many there are; returns the exit status."""
    output = output_path(options.output, options)
    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    cache = find_member_cache(members[0], options.cache_dir)
    clips = merged([held_out(member, cache) for member in members])
    names, probs, targets = clips.names, clips.probs[0, 0], clips.targets
    found, likely = suspects(probs, targets)
    classes = members[0].classes
    with csv_table(output, ["file", "label", "suspected", "confidence", "label_confidence"]) as table:
        for clip in found.tolist():
            target, other = targets[clip], likely[clip]
            scores = [f"{probs[clip, each]:.4f}" for each in (other, target)]
            table.writerow([names[clip], classes[target], classes[other], *scores])
    print(f"{options.output}: {len(found):,} of {len(names):,} labels are suspected ({len(found) / len(names):.2%})")
    print("listen to the worst of them: python -m infer.report, with the same --run and --folds")
    return 0
