"""Accuracy on recordings made worse: each condition does what its name says, on a real run."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cache.config import FeatureConfig
from infer.evaluate.__main__ import main as evaluate
from infer.measure.robustness import babbles_of, conditions
from infer.recordings import list_recordings
from infer.report.__main__ import main as report
from pipeline.augment import AUGMENTS, render_view
from pipeline.build_cache import main as build_cache
from tests.conftest import RATE, only_cache, synthesise

CONFIG = FeatureConfig()


def level(samples: np.ndarray) -> float:
    """Power in dB."""
    return 10 * np.log10(np.dot(samples.astype(float), samples) / len(samples))


def tone(hertz: float, level: float = 0.5) -> np.ndarray:
    """A second of it."""
    return np.float32(level * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE))


@pytest.fixture
def changed(corpus: Path) -> dict:
    """The conditions, with babble of the synthetic corpus."""
    return conditions(babbles_of(list_recordings(str(corpus)), CONFIG), RATE)


def test_conditions_do_what_they_say(changed: dict) -> None:
    """Noise at its ratio, level in dB, shift in samples, speed by length, band and peak; clips keep their length."""
    clip = synthesise(0, 0, 0)
    for snr, view in changed["babble, SNR in dB"].items():
        assert level(clip) - level(view(clip) - clip) == pytest.approx(snr, abs=0.1)
        assert np.array_equal(view(clip), view(clip.copy()))
    quiet = changed["level, dB"][-30](clip)
    assert level(clip) - level(quiet) == pytest.approx(30, abs=0.5)
    assert np.array_equal(quiet * 32768, np.round(quiet * 32768)), "it is no 16-bit recording"
    assert changed["level, dB"][10](tone(500)).max() == pytest.approx(1, abs=1e-4), "full scale is passed"
    assert np.array_equal(changed["shift, ms"][200](clip)[3200:], clip[:-3200])
    assert np.array_equal(changed["shift, ms"][-100](clip)[:-1600], clip[1600:])
    for percent, view in changed["speed, percent"].items():
        spectrum = np.abs(np.fft.rfft(view(tone(1000))))
        assert spectrum.argmax() == pytest.approx(1000 * percent / 100, abs=3), "a faster tone is higher"
    narrow = changed["upper band edge, Hz"][4000]
    assert level(narrow(tone(6000))) < level(tone(6000)) - 40
    assert level(narrow(tone(1000))) == pytest.approx(level(tone(1000)), abs=0.1)
    assert np.abs(changed["clipped at percent of its peak"][10](clip)).max() == pytest.approx(np.abs(clip).max() / 10)
    for views in changed.values():
        for view in views.values():
            for samples in (clip, np.zeros(RATE, np.float32)):
                assert view(samples).shape == (RATE,)
                assert view(samples).dtype == np.float32


def test_no_clip_is_its_own_noise(tmp_path: Path) -> None:
    """The babble around a clip is of others, also where a recording is there twice; of too few there is none."""
    (tmp_path / "a").mkdir()
    hisses = [0.1 * np.random.default_rng(n).standard_normal(RATE).astype(np.float32) for n in range(16)]
    for n, samples in enumerate([*hisses, hisses[0]]):
        soundfile.write(tmp_path / f"a/{n}.wav", samples, RATE, subtype="FLOAT")
    in_babble = conditions(babbles_of(list_recordings(str(tmp_path)), CONFIG), RATE)["babble, SNR in dB"][0]
    for samples in hisses:
        noise = in_babble(samples) - samples
        overlap = np.fft.irfft(np.fft.rfft(noise, 2 * RATE) * np.conj(np.fft.rfft(samples, 2 * RATE)))
        assert np.abs(overlap).max() < 0.1 * np.linalg.norm(noise) * np.linalg.norm(samples)
    (tmp_path / "a/15.wav").unlink()
    few = conditions(babbles_of(list_recordings(str(tmp_path)), CONFIG), 8000)
    assert few["babble, SNR in dB"] == few["upper band edge, Hz"] == {}
    for view in conditions([], 1000)["shift, ms"].values():
        assert len(view(np.ones(150, np.float32))) == 150, "a shift by more than a clip"


def test_evaluate_and_report_show_them(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A table, JSON and the report's section; the same again; without recordings there is nothing to change."""
    judge = ["--tta", "1", "--robustness"]
    for name in ("first", "second"):
        assert evaluate([*judge, "--split", "test", "--json", str(tmp_path / f"{name}.json")]) == 0
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    printed = capsys.readouterr().out
    measured = json.loads((tmp_path / "first.json").read_text())["robustness"]
    assert f"robustness {measured['score']:.4f}" in printed
    rows = {(row["changed"], row["value"]): row["accuracy"] for row in measured["conditions"]}
    assert measured["score"] == pytest.approx(np.mean(list(rows.values())))
    assert measured["clean"]["accuracy"] == rows["level, dB", -10] == 1
    assert rows["speed, percent", 80] < 1, "gliding tones at other speeds are other words"
    assert evaluate(["--tta", "2", *judge[2:], "--split", "test", "--json", str(tmp_path / "two.json")]) == 0
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["robustness"] == measured, "whatever the other views are"
    assert two["soft_tta"]["accuracy"] == 1
    capsys.readouterr()
    assert evaluate(judge) == 2
    assert report([*judge, "--split", "oof", "--output", str(tmp_path / "no.html")]) == 2
    assert capsys.readouterr().err.count("--robustness judges recordings") == 2
    assert report([*judge, "--split", "test", "--output", str(tmp_path / "report.html")]) == 0
    assert json.dumps(measured["conditions"][0], separators=(",", ":")) in (tmp_path / "report.html").read_text()


def test_speed_is_a_stored_view(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """``--augment speed`` plays views faster or slower, mixes in the corpus's noise, and is another cache."""
    from cache.index import Cache

    noise = corpus / "_background_noise_"
    noise.mkdir()
    (corpus / "no" / "a0000000_nohash_0.wav").rename(noise / "x.wav")
    flags = ["--audio-dir", str(corpus), "--n-mels", "16", "--width", "16", "--folds", "2", "--jobs", "1"]
    for augment in ("speed", "more"):
        assert build_cache([*flags, "--augment", augment, "--cache-dir", str(tmp_path / augment)]) == 0
    first, other = (Cache(only_cache(tmp_path / augment)) for augment in ("speed", "more"))
    assert first.config.noise == other.config.noise != ""
    assert (np.array(first.features(0)[:, 0]) == np.array(other.features(0)[:, 0])).all()
    assert (np.array(first.features(0)[:, 1]) != np.array(other.features(0)[:, 1])).any(axis=(1, 2)).all()
    heard = [
        np.abs(np.fft.rfft(AUGMENTS["speed"][0](tone(1000), np.random.default_rng(seed), ()))).argmax()
        for seed in range(40)
    ]
    assert min(heard) < 900
    assert max(heard) > 1100
    views = [render_view(tone(1000), first.config, "a", view, ()) for view in (0, 1, 1)]
    assert np.array_equal(views[0], tone(1000))
    assert np.array_equal(views[1], views[2])
