"""The demo corpus, spoken for real by eSpeak NG."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.cli import InputError
from pipeline.demo_corpus import __main__ as demo_corpus
from pipeline.demo_corpus.corpus import SpeakOptions, plan_voices
from pipeline.demo_corpus.speech import (
    ACCENTS,
    WORDS,
    Voice,
    open_voice,
    render_clip,
    speak_clips,
    trim_silence,
    voice_variants,
)

pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install -e '.[demo]'")
FLAGS = ["--speakers", "6", "--test-speakers", "3", "--clips-per-word", "2", "--words", "yes,seven,marvin"]


def speak(folder: Path, *flags: str) -> Path:
    """Speak a tiny corpus into `folder`."""
    places = ["--out", str(folder / "audio"), "--test-out", str(folder / "test")]
    assert demo_corpus.main([*places, *FLAGS, *flags]) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return speak(tmp_path_factory.mktemp("corpus"), "--jobs", "2")


def test_layout(corpus):
    """Files lie and are named as in the public corpus, with noise recordings, and nothing else is left behind."""
    names = list(files(corpus))
    clips = [name for name in names if "_background_noise_" not in name]
    assert all(re.fullmatch(r"(audio|test)/(yes|seven|marvin)/[0-9a-f]{8}_nohash_\d\.wav", name) for name in clips)
    assert sum(name.startswith("audio/") for name in clips) == 6 * 3 * 2
    assert sum(name.startswith("test/") for name in clips) == 3 * 3
    assert len(names) - len(clips) == 4
    assert sorted(path.name for path in corpus.iterdir()) == ["audio", "test"]


def test_clips(corpus):
    """Every clip is one second of 16-bit 16 kHz mono, none is silent, none equals another; noises last 20 seconds."""
    contents = set()
    for path in corpus.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        info = soundfile.info(path)
        assert (rate, samples.ndim, info.subtype, info.format) == (16000, 1, "PCM_16", "WAV")
        assert len(samples) == (320_000 if path.parent.name == "_background_noise_" else 16000)
        assert np.abs(samples).max() > 0.05
        contents.add(samples.tobytes())
    assert len(contents) == len(list(corpus.rglob("*.wav")))


def test_same_seed_same_bytes(corpus, tmp_path):
    """One process or two, the same seed gives the same bytes; another seed gives others."""
    assert files(speak(tmp_path / "one", "--jobs", "1")) == files(corpus)
    again, other = files(corpus), files(speak(tmp_path / "other", "--jobs", "1", "--seed", "1"))
    assert not set(again.values()) & set(other.values())


@pytest.mark.parametrize("seed", range(5))
def test_tested_variants_are_unheard(seed):
    """No voice variant of the test set, nor its numbered kin, occurs in training; no two speakers share an id."""
    variants = voice_variants()
    heard, unheard = plan_voices(variants, 400, 100, seed)
    kin = [{voice.variant.rstrip("0123456789") for voice in side} for side in (heard, unheard)]
    assert not kin[0] & kin[1]
    assert len({voice.speaker for voice in heard + unheard}) == 500
    assert {voice.accent for voice in heard} == set(ACCENTS)
    assert plan_voices(variants, 50, 10, seed)[0] == heard[:50]


def test_every_variant_speaks(tmp_path):
    """Every voice variant says a word that is heard and lasts 0.1 to 1 s; none crashes or stays silent."""
    (tmp_path / "seven").mkdir()
    for number, variant in enumerate(voice_variants()):
        voice = Voice(ACCENTS[number % len(ACCENTS)], variant)
        with open_voice(voice) as say:
            assert 0.1 < len(trim_silence(say("seven", 150, 50, 50, 1))) / 16000 < 1, variant
        assert speak_clips(voice, tmp_path, words=["seven"], clips_per_word=1, seed=0) == 1, variant
    assert len(list((tmp_path / "seven").iterdir())) == len(voice_variants())


def test_clips_do_not_depend_on_what_was_said_before():
    """A freshly opened voice says the same to the bit, whatever other voices said in this process."""

    def said() -> list[bytes]:
        heard = []
        for variant in ("m1", "klatt", "Reed", "croak"):
            with open_voice(Voice("en", variant)) as say:
                heard += [say(word, 150, 50, 50, 7).tobytes() for word in ("house", "six")]
        return heard

    first = said()
    with open_voice(Voice("en-us", "f2")) as say:
        say("something else entirely", 200, 20, 90, 3)
    assert said() == first


def test_words_vary_and_keep_their_place():
    """Repetitions differ in place and level by far, and a phrase of several seconds is fitted into the clip."""
    rng, habits = np.random.default_rng(0), np.array([150.0, 50.0, 50.0])
    with open_voice(Voice("en", "m3")) as say:
        clips = [render_clip(say, "yes", habits, rng) for _ in range(20)]
        long = render_clip(say, "one two three four five six seven", habits, rng)
        assert render_clip(say, " ", habits, rng) is None
    peaks = [np.abs(clip.astype(float)).max() for clip in clips]
    places = [int(np.argmax(np.abs(clip))) for clip in clips]
    assert max(peaks) / min(peaks) > 3
    assert np.ptp(places) > 4000
    assert long.shape == (16000,)


def test_existing_output_is_kept(tmp_path, capsys):
    """A folder that holds anything is refused with one line and status 2; nothing is touched or left."""
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "mine.wav").write_bytes(b"precious")
    assert demo_corpus.main(["--out", str(tmp_path / "audio"), "--test-out", str(tmp_path / "test")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert files(tmp_path) == {"test/mine.wav": b"precious"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--speakers", "0"], "--speakers 0; expected 1 or more"),
        (["--speakers", "5000"], "--speakers 5000: there are"),
        (["--words", "yes,../no"], "expected different words of letters"),
        (["--test-out", "data/audio/test"], "must lie apart"),
        (["--jobs", "0"], "--jobs 0; expected a number"),
    ],
)
def test_bad_flags(capsys, flags, expected):
    """Impossible flags are one line that names them, with status 2."""
    assert demo_corpus.main(flags) == 2
    assert expected in capsys.readouterr().err


def test_default_is_the_public_vocabulary():
    """Without --words the thirty words of Speech Commands v0.01 are spoken."""
    assert SpeakOptions().word_list == list(WORDS)
    assert len(set(WORDS)) == 30


def test_missing_extra_is_named(tmp_path):
    """Without espeakng-loader the command says which extra to install, and leaves nothing behind."""
    code = "import sys; sys.modules['espeakng_loader'] = None; "
    code += "from pipeline.demo_corpus.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--out", str(tmp_path / "a"), "--test-out", str(tmp_path / "b")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install -e '.[demo]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_unknown_voice():
    """A voice that eSpeak NG does not have is an error that names it."""
    with pytest.raises(InputError, match=r"no voice xx-none\+m1"), open_voice(Voice("xx-none", "m1")):
        pass
