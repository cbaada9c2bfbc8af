"""What predicting shows."""

import time

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, say
from infer.options import PredictOptions
from infer.predict.tables import predict
from train.world import World


def predict_and_print(options: PredictOptions, world: World) -> int:
    """Predict and say how it went; returns the exit status."""
    started = time.monotonic()
    files, bad, unknown = predict(options, world)
    if not world.is_main:
        return EXIT_OK
    seconds = time.monotonic() - started
    say(f"{options.output}: {files:,} files judged in {seconds:.1f} s, {files / seconds:,.0f} files/s")
    if options.windows:
        say(f"{options.windows}: what was heard, and when")
    if options.min_confidence:
        say(f"{unknown:,} are unknown: judged with a confidence below {options.min_confidence:g}")
    if bad:
        say(f"{bad:,} could not be read: see the column error", error=True)
    return EXIT_INCOMPLETE if bad else EXIT_OK
