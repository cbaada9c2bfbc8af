"""From a folder of recordings to a finished feature cache."""
