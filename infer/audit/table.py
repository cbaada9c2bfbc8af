"""The table of suspected label errors."""

import torch

from cache.cli import say
from cache.files import csv_table
from infer.labelled import out_of_fold
from infer.measure.scoring import suspects
from infer.members import load_members
from infer.options import AuditOptions
from infer.outputs import output_path


def audit(options: AuditOptions) -> int:
    """Write the table of suspected clips and say how many there are; returns the exit status."""
    output = output_path(options.output, options)
    members = load_members(options.run_folders, options.folds, torch.device("cpu"))
    clips, probs = out_of_fold(members, options.cache_dir)
    names, targets = clips.names, clips.targets
    found, likely = suspects(probs, targets)
    classes = members[0].classes
    with csv_table(output, ["file", "label", "suspected", "confidence", "label_confidence"]) as table:
        for clip in found.tolist():
            target, other = targets[clip], likely[clip]
            scores = [f"{probs[clip, each]:.4f}" for each in (other, target)]
            table.writerow([names[clip], classes[target], classes[other], *scores])
    say(f"{options.output}: {len(found):,} of {len(names):,} labels are suspected ({len(found) / len(names):.2%})")
    say("listen to the worst of them: python -m infer.report --split oof, with the same flags but for --output")
    return 0
