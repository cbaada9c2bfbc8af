"""The demo corpus: which voices speak it, and where to."""

import dataclasses
import time
from pathlib import Path

import numpy as np

from cache.cli import AT_LEAST_0, AT_LEAST_1, Flags, InputError, flag
from cache.files import new_folder
from pipeline.demo_corpus.speech import ACCENTS, WORDS, Voice, background_noises, speak_clips, voice_variants, write_wav

_TEST_SHARE = 0.2  # of the voice variants


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeakOptions(Flags):
    """What to speak, and where to."""

    out: str = flag("data/audio", "folder for the training clips, <label>/*.wav; must not exist or be empty")
    test_out: str = flag("data/test", "folder for the clips of unheard voices, <label>/*.wav")
    speakers: int = flag(100, "speakers in --out, each an accent and a voice variant", AT_LEAST_1)
    test_speakers: int = flag(20, "speakers in --test-out, each speaking each word once", AT_LEAST_1)
    clips_per_word: int = flag(3, "clips of each word by each speaker in --out", AT_LEAST_1)
    words: str = flag("", "comma-separated words (default: the 30 of Speech Commands v0.01)")
    jobs: int = flag(-1, "processes; -1: one for each core")
    seed: int = flag(0, "seed of the voices and of everything that varies", AT_LEAST_0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs == 0:
            raise InputError("--jobs 0; expected a number of processes, or -1 for all cores")
        words = self.word_list
        if len(set(words)) < len(words) or not all(word.isalpha() for word in words):
            raise InputError(f"--words {self.words}: expected different words of letters, such as --words yes,no")
        out, test_out = Path(self.out).resolve(), Path(self.test_out).resolve()
        if out == test_out or out in test_out.parents or test_out in out.parents:
            raise InputError(f"--out {self.out} and --test-out {self.test_out} must lie apart")

    @property
    def word_list(self) -> list[str]:
        """The words to speak."""
        return self.words.split(",") if self.words else WORDS


def speak_corpus(options: SpeakOptions) -> int:
    """Speak the corpus and say what to type next; returns the exit status."""
    started = time.monotonic()
    words = options.word_list
    heard, unheard = plan_voices(voice_variants(), options.speakers, options.test_speakers, options.seed)
    with new_folder(Path(options.out)) as folder, new_folder(Path(options.test_out)) as test_folder:
        tasks = [(voice, folder, options.clips_per_word) for voice in heard]
        tasks += [(voice, test_folder, 1) for voice in unheard]
        for word in words:
            (folder / word).mkdir()
            (test_folder / word).mkdir()
        (folder / "_background_noise_").mkdir()
        for name, samples in background_noises(np.random.default_rng(options.seed)).items():
            write_wav(folder / "_background_noise_" / f"{name}.wav", samples)
        clips = _speak_all(tasks, words, options)
    asked = len(words) * sum(task[2] for task in tasks)
    seconds = time.monotonic() - started
    silent = f", {asked - clips:,} left out as silent" if clips < asked else ""
    print(
        f"{clips:,} clips of {len(words)} words in {seconds:.1f} s ({clips / seconds:.0f} clips/s){silent}: "
        f"{len(heard)} speakers in {options.out}, {len(unheard)} others in {options.test_out}"
    )
    where = "" if options.out == "data/audio" else f" --audio-dir {options.out}"
    print(f"next: python -m pipeline.build_cache --n-mels 224{where}")
    return 0


def plan_voices(variants: list[str], speakers: int, test_speakers: int, seed: int) -> tuple[list[Voice], list[Voice]]:
    """Choose the voices for training and for testing; no variant is on both sides.

    Variants that differ only by a number (``klatt``, ``klatt2``, …) sound alike and stay on one side.

    Parameters
    ----------
    variants : names of the voice variants
    speakers, test_speakers : how many voices for training and for testing
    seed : seed of the choice; more speakers with the same seed keep the first ones

    Returns
    -------
    two lists of Voice : for training, for testing

    Raises
    ------
    InputError : more speakers are asked for than there are accents times variants
    """
    rng = np.random.default_rng(seed)
    order = [variants[i] for i in rng.permutation(len(variants))]
    unheard: list[str] = []
    for name in dict.fromkeys(_family(variant) for variant in order):
        if len(unheard) < _TEST_SHARE * len(variants):
            unheard += [variant for variant in order if _family(variant) == name]
    heard = [variant for variant in order if variant not in unheard]
    return _pair(heard, speakers, "--speakers"), _pair(unheard, test_speakers, "--test-speakers")


def _family(variant: str) -> str:
    return variant.rstrip("0123456789")


def _pair(variants: list[str], speakers: int, name: str) -> list[Voice]:
    """The first `speakers` pairs of accent and variant: every variant once, then every variant again, …"""
    if speakers > len(variants) * len(ACCENTS):
        raise InputError(f"{name} {speakers}: there are {len(variants) * len(ACCENTS)} voices; ask for at most as many")
    turns = (divmod(i, len(variants)) for i in range(speakers))
    return [Voice(ACCENTS[(position + turn) % len(ACCENTS)], variants[position]) for turn, position in turns]


def _speak_all(tasks: list[tuple[Voice, Path, int]], words: list[str], options: SpeakOptions) -> int:
    """Run :func:`speak_clips` for every (voice, folder, clips per word) in processes; returns the clips written."""
    import joblib
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    calls = (
        joblib.delayed(speak_clips)(voice, folder, words=words, clips_per_word=count, seed=options.seed)
        for voice, folder, count in tasks
    )
    columns = (TextColumn("speaking"), BarColumn(), MofNCompleteColumn(), TextColumn("speakers"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        results = joblib.Parallel(n_jobs=options.jobs, return_as="generator", batch_size=1)(calls)
        return sum(progress.track(results, total=len(tasks)))
