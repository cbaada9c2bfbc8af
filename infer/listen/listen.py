"""Listening: each window is judged as soon as it is full, and a detection printed as soon as it is settled."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from cache.cli import EXIT_OK, InputError, counted, say
from infer.detections import Detection, Detector, hop_samples, window_thresholds
from infer.listen.sound import Sound, microphone, standard_input
from infer.options import ListenOptions
from pipeline.stream import as_mono, windows


class Model(Protocol):
    """What `infer.onnx_model.OnnxModel` and `infer.listen.members.EnsembleModel` have in common."""

    classes: list[str]
    sample_rate: int
    samples: int
    thresholds: dict[str, float]

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Clips (n, samples) in, probabilities (n, classes) out."""


def keeps_up(model: Model) -> bool:
    """Whether a model judges a clip in a tenth of the time that it lasts, loaded and warm.

    One thread that does is better than several: between small pieces of work, several wait for each other more than
    they compute, and much more where other programs run.
    """
    clip = np.zeros((1, model.samples), np.float32)
    model(clip)
    started = time.perf_counter()
    model(clip)
    return 10 * (time.perf_counter() - started) < model.samples / model.sample_rate


def listen(options: ListenOptions, model: Model) -> int:
    """Listen and print until the sound ends, or Ctrl-C; returns the exit status.

    Raises
    ------
    InputError : no microphone, one that disappears, or sound that cannot be read
    """
    listener = _Listener(options, model)
    if options.source:
        if sys.stdin is None:
            raise InputError("standard input is closed; pipe sound into it, or leave out -")
        listener.listen(standard_input(sys.stdin.buffer, options))
    else:
        with microphone(options.microphone, model.sample_rate) as sound:
            say(f"listening to {sound.name} since {time.strftime('%H:%M:%S')}; Ctrl-C ends", error=True)
            listener.listen(sound)
    return EXIT_OK


class _Listener:
    """Judges the windows of one stream of sound, and prints what is found."""

    def __init__(self, options: ListenOptions, model: Model) -> None:
        least = window_thresholds(model.classes, options.window_confidence, model.thresholds)
        self._detector = Detector(model.classes, least, eager=options.eager)
        self._model, self._json = model, options.json
        self._hop = hop_samples(model.sample_rate, model.samples, options.hop_seconds)
        self._heard = self._printed = 0
        self._judging_s = 0.0

    def listen(self, sound: Sound) -> None:
        """Until the sound ends, or Ctrl-C."""
        try:
            self._judge_all(sound)
        except KeyboardInterrupt:
            pass
        finally:
            self._print(self._detector.end())
        heard_s = self._heard / self._model.sample_rate
        share = f"; judging took {self._judging_s / heard_s:.1%} of that time" if heard_s else ""
        say(f"{heard_s:.1f} s heard, {counted(self._printed, 'detection')}{share}", error=True)

    def _judge_all(self, sound: Sound) -> None:
        model, rate, lost = self._model, self._model.sample_rate, 0
        for first, clip in windows(self._counted(as_mono(sound.blocks, sound.rate, rate)), model.samples, self._hop):
            started = time.perf_counter()
            scores = model(clip[None])[0]
            self._judging_s += time.perf_counter() - started
            self._print(self._detector.add(scores, first / rate, min(first + model.samples, self._heard) / rate))
            if sound.lost > lost:
                lost = sound.lost
                say(f"sound was lost ({lost} blocks so far): this machine was busy, or asleep", error=True)

    def _counted(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            self._heard += len(block)
            yield block
        if 0 < self._heard < self._model.samples:  # judged as a file that is shorter than a clip
            yield np.zeros(self._model.samples - self._heard, np.float32)

    def _print(self, found: list[Detection]) -> None:
        for detection in found:
            say(detection.to_json() if self._json else str(detection))
        self._printed += len(found)
