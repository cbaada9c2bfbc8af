"""Speak a demo corpus with eSpeak NG: labelled clips for training, and clips of voices it never heard for testing.

    python -m pipeline.demo_corpus --out data/audio --test-out data/test --speakers 100 --seed 0

The layout and the file names are those of Speech Commands. A speaker is an English accent spoken by a voice variant;
a variant that is tested occurs in training with no accent at all. The same flags and library versions give the same
bytes, however many processes speak.
"""

from cache.cli import command
from pipeline.demo_corpus.corpus import SpeakOptions, speak_corpus


@command(SpeakOptions)
def main(options: SpeakOptions) -> int:
    """Speak the corpus, and say what to type next."""
    return speak_corpus(options)


if __name__ == "__main__":
    raise SystemExit(main())
