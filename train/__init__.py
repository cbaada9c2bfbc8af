"""From a feature cache to trained folds; needs no audio library."""
