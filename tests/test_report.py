"""The report: its figures, what it embeds, its size, and the page in a real browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from infer.labelled import JudgedClips
from infer.measure.scoring import coverage, reliability
from infer.options import EvaluateOptions
from infer.page import fill_template
from infer.report import page as report_page
from infer.report.__main__ import main
from infer.report.data import Source
from infer.report.page import embed
from tests.conftest import RATE, SMALL, synthesise, write_corpus
from tests.forked import command

WORDS = ["<img src=x onerror=alert(1)>", "a'b\"&amp;cd", "no"]  # labels that must not act
TEXTS = "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)"
HOSTILE = ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "\"'&lt;", "@DATA@", "\udcff"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, its cache, and a run of two folds, made by the commands of a user."""
    folder = tmp_path_factory.mktemp("report")
    audio = write_corpus(folder / "data/audio", WORDS, per_word=16, speakers=8)
    tested = [(word, f"{7 + 0xA0000000:08x}_nohash_{n}.wav") for word in WORDS for n in range(2)]
    for word, name in tested:  # the same recording under every label: most of them will be judged wrongly
        (audio / word / name).write_bytes((audio / "no" / name).read_bytes())
    (audio / "testing_list.txt").write_text("\n".join("/".join(pair) for pair in tested))
    model = ("--model", "test_resnet", "--n-mels", "16", "--name", "run")
    training = ("--fold", "all", "--epochs", "2", "--batch-size", "16")
    for module, *flags in (("pipeline.build_cache", *SMALL, "--jobs", "1"), ("train.run", *model, *training)):
        status, output = command(module, folder, *flags)
        assert status == 0, output
    misjudge(folder / "runs/run")
    return folder


def misjudge(run: Path) -> None:
    """Make fold 0 surely wrong on 2, 4 and 6 clips of the three labels, and the folds right on all others."""
    from train.checkpoint import load_arrays, save_arrays

    for path, per_label in ((run / "fold0/oof.npz", 2), (run / "fold1/oof.npz", 0)):
        arrays = load_arrays(path)
        judged = arrays["target"].copy()
        for target in range(3):
            judged[np.flatnonzero(arrays["target"] == target)[: per_label * (target + 1)]] = (target + 1) % 3
        arrays["logits"] = np.float32(np.linspace(9, 10, len(judged))[:, None] * np.eye(3)[judged])
        save_arrays(path, **arrays)


@pytest.fixture(scope="module")
def page(trained: Path) -> Path:
    """The report of `trained`, on its test split and out of fold."""
    assert main([*where(trained), "--output", str(trained / "report.html")]) == 0
    return trained / "report.html"


def where(trained: Path) -> list[str]:
    """Flags that name the run and its cache."""
    return ["--run", str(trained / "runs/run"), "--cache-dir", str(trained / "data/cache")]


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page carries."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def test_figures_are_those_of_evaluate(trained: Path, page: Path) -> None:
    """Accuracies and intervals equal evaluate's on both sources, and each matrix counts every clip once."""
    from infer.measure.figures import evaluate
    from train.world import World, torch

    data = data_of(page)
    assert [source["name"] for source in data["sources"]] == ["the split test", "out of fold"]
    for source, split in zip(data["sources"], ("test", "oof"), strict=True):
        folders = {"run": (str(trained / "runs/run"),), "cache_dir": str(trained / "data/cache")}
        figures = evaluate(EvaluateOptions(split=split, **folders), World(0, 0, 1, torch.device("cpu")))
        expected = [figures[key] for key in ("single", "hard", "soft", "soft_tta") if figures[key]]
        shown = [{key: row[key] for key in ("accuracy", "low", "high")} for row in source["figures"]]
        assert shown == expected
        assert source["members"] == figures["members"]
        assert sum(count for _, _, count in source["matrix"]) == source["clips"] == figures["clips"]
        recall = {row["label"]: row["recall"] for row in figures["recall"]}
        for target, label in enumerate(data["classes"]):
            row = {judged: count for index, judged, count in source["matrix"] if index == target}
            assert recall.get(label, 0) == pytest.approx(row.get(target, 0) / max(1, sum(row.values())))
    assert [curve["epoch"] for curve in data["curves"]] == [[1, 2], [1, 2]]


def test_worst_clips_carry_sound_picture_and_every_member(trained: Path, page: Path) -> None:
    """The wrong clips are sorted by confidence; the WAV decodes to the recording; each member's probabilities stand."""
    for source, members in zip(data_of(page)["sources"], (2, 1), strict=True):
        clips = source["worst"]
        assert len(clips) == source["wrong"] > 0
        assert [clip["confidence"] for clip in clips] == sorted((clip["confidence"] for clip in clips), reverse=True)
        for clip in clips:
            assert clip["label"] != clip["judged"]
            assert len(clip["members"]) == members
            mean = np.mean([probs for _, probs in clip["members"]], axis=0)
            assert clip["columns"][int(mean.argmax())] == clip["judged"]
            assert mean.max() == pytest.approx(clip["confidence"], abs=2e-4)
            heard, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["audio"])), dtype="int16")
            recorded, _ = soundfile.read(trained / "data/audio" / clip["name"], dtype="int16")
            assert rate == RATE
            np.testing.assert_array_equal(heard, recorded)
            assert len(base64.b64decode(clip["image"])) == np.prod(clip["shape"]) == 16 * 16


def test_nothing_in_the_data_ends_the_script_or_leaves_the_page(page: Path) -> None:
    """Any text survives the round trip, none of it closes the element, and the page asks nothing of the network."""
    text = fill_template("infer.report", {"names": HOSTILE})
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == {"names": HOSTILE}
    assert not set("<>&\u2028") & set(inside)
    assert text.isascii()
    assert not re.findall(r"""(?:src|href)=["']|url\(|@import|fetch\(""", page.read_text())
    assert set(re.findall(r"https?://[\w.]+", page.read_text())) == {"http://www.w3.org"}  # the name of SVG


def test_input_folder_and_unreadable_recordings(trained: Path, tmp_path: Path) -> None:
    """A folder of <label>/ folders is judged instead of the test split; file names may hold anything."""
    (tmp_path / "own/no").mkdir(parents=True)
    for n, name in enumerate(["<b onclick='alert(1)'>\u2028&.wav", *(f"{n}.wav" for n in range(1, 16))]):
        soundfile.write(tmp_path / "own/no" / name, synthesise(2, 20, n), RATE)
    (tmp_path / "own/no/empty.wav").touch()
    flags = ["--input", str(tmp_path / "own"), "--output", str(tmp_path / "report.html"), "--tta", "1"]
    assert main([*where(trained), *flags]) == 1  # as evaluate and predict do
    own, held_out = data_of(tmp_path / "report.html")["sources"]
    assert (own["name"], own["clips"], own["unreadable"]) == (str(tmp_path / "own"), 16, 1)
    assert held_out["name"] == "out of fold"


def test_file_stays_below_its_limit_and_says_what_it_dropped(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Clips are dropped, the least confidently wrong first, until the file fits; page and command say how many."""
    monkeypatch.setattr(report_page, "MAX_BYTES", 300_000)
    assert main([*where(trained), "--split", "oof", "--output", str(tmp_path / "report.html")]) == 0
    (source,) = data_of(tmp_path / "report.html")["sources"]
    assert 200_000 < (tmp_path / "report.html").stat().st_size <= 300_000
    assert 0 < len(source["worst"]) < source["wrong"]
    assert source["dropped"] == source["wrong"] - len(source["worst"])
    assert f"{len(source['worst'])} of {source['wrong']} clips embedded" in capsys.readouterr().out


def synthetic(clips: int, classes: int, members: int = 5) -> Source:
    """Clips without recordings, judged at random, more often rightly than not."""
    rng = np.random.default_rng(0)
    targets = rng.integers(classes, size=clips)
    logits = rng.standard_normal((members, 1, clips, classes), dtype=np.float32)
    logits[:, :, np.arange(clips), targets] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    names = [f"{target}/{index}.wav" for index, target in enumerate(targets)]
    figure = {"accuracy": 0.9, "low": 0.8, "high": 0.95}
    figures = {"source": "synthetic", "single": figure, "hard": None, "soft": None, "soft_tta": None}
    figures["members"] = [{"member": f"run/fold{index}", **figure} for index in range(members)]
    return Source(figures, JudgedClips(names, names, targets, probs), probs.mean(axis=(0, 1)))


def synthetic_page(path: Path, clips: int, classes: int) -> dict[str, Any]:
    """Write a report of synthetic clips; a recording that is gone leaves its row."""
    from cache.config import FeatureConfig

    source = synthetic(clips, classes)
    names = [f"label {index}" for index in range(classes)]
    data = {"title": "run", "classes": names, "notes": [], "curves": [], "sources": [source.describe()]}
    embed([source.worst(50, FeatureConfig(n_mels=16, n_frames=16, n_fft=512))], data, 50)
    path.write_text(fill_template("infer.report", data))
    return data


def test_fifty_thousand_clips(tmp_path: Path) -> None:
    """A large corpus costs the page its figures and the worst clips only."""
    data = synthetic_page(tmp_path / "report.html", clips=50_000, classes=35)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert len(data["sources"][0]["worst"]) == 50
    assert "No such file" in data["sources"][0]["worst"][0]["error"]


def test_reliability_and_coverage_equal_their_definitions() -> None:
    """Bins, ECE and the curve equal sums written out clip by clip, at the edges too."""
    rng = np.random.default_rng(1)
    confidence = np.concatenate([rng.random(500), [0.0, 1.0, 0.5, 1 / 3]]).astype(np.float32)
    right = rng.random(504) < confidence
    ece, bins = reliability(confidence, right, bins=10)
    expected = 0.0
    for index, (clips, mean, accuracy) in enumerate(bins):
        here = [i for i, c in enumerate(confidence) if min(int(c * 10), 9) == index]
        assert clips == len(here)
        assert mean == pytest.approx(np.mean(confidence[here]), abs=1e-4)
        assert accuracy == pytest.approx(np.mean(right[here]), abs=1e-4)
        expected += len(here) / 504 * abs(np.mean(confidence[here], dtype=float) - np.mean(right[here]))
    assert ece == pytest.approx(expected, abs=1e-6)
    for threshold, (kept, accuracy) in zip(np.arange(101) / 100, coverage(confidence, right), strict=True):
        above = confidence >= threshold
        assert kept == pytest.approx(above.mean(), abs=1e-5)
        assert accuracy == pytest.approx(right[above].mean() if above.any() else 1, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--output", "nowhere/report.html"], "there is no folder nowhere"),
        (["--worst", "-1"], "--worst -1; expected 0 or more"),
        (["--split", "test", "--cache-dir", "nowhere"], "is not there; use --input"),
        (["--cache-dir", "nowhere"], "is not there; use --input"),
        (["--negatives", "nowhere"], "nowhere: no such folder or file"),
        (["--tta", "7"], "there are 4 views"),
    ],
)
def test_wrong_flags_are_one_clear_line(
    trained: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    """What cannot be had ends with status 2 and one line that says so."""
    assert main([*where(trained), *flags, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    switches = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    switches += " disable-background-networking disable-component-update"
    for switch in [*switches.split(), f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


def open_page(browser: Any, page: Path, *, width: int = 1200, scheme: str = "light") -> None:
    """Load a page at a width, in light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())


def show_out_of_fold(browser: Any) -> None:
    """Choose the second source."""
    browser.find_elements("css selector", "#sources label")[1].click()


def shown(browser: Any) -> list[str]:
    """File names of the clips in the list."""
    return browser.execute_script(TEXTS, "#worst > li:not([hidden]) code")


def test_page_opens_without_errors_and_shows_hostile_names_as_text(browser: Any, page: Path) -> None:
    """No console message, no dialog, no element made from a label; the label is there to read."""
    open_page(browser, page)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.images.length") == 0
    assert browser.title == "run – melshard report"
    show_out_of_fold(browser)
    assert browser.execute_script(TEXTS, ".matrix tbody th") == WORDS
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "#curves svg")) == 2
    assert len(browser.find_elements("css selector", "#figures .card")) == 5


def test_choosing_in_the_matrix_filters_the_clips(browser: Any, page: Path) -> None:
    """A cell leaves its clips, by mouse and by keyboard; a row leaves its label's; "Show all" brings them back."""
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    show_out_of_fold(browser)
    data, every = data_of(page), shown(browser)
    source = data["sources"][1]
    assert every == [clip["name"] for clip in source["worst"]]
    label, judged, count = next(cell for cell in source["matrix"] if cell[0] != cell[1])
    expected = [clip["name"] for clip in source["worst"] if (clip["label"], clip["judged"]) == (label, judged)]
    cells = browser.find_elements("css selector", ".matrix td button")
    title = f"{data['classes'][label]} judged {data['classes'][judged]}: "
    cell = next(cell for cell in cells if cell.get_attribute("title").startswith(title))
    cell.click()
    assert shown(browser) == expected
    assert len(expected) == count < len(every)
    assert f"{count} of {count} wrong" in browser.find_element("id", "status").text
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    browser.find_element("id", "all").click()
    assert shown(browser) == every
    rows = browser.find_elements("css selector", ".matrix tbody th button")
    rows[0].click()
    assert shown(browser) == [clip["name"] for clip in source["worst"] if clip["label"] == 0]
    browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    assert shown(browser) == [clip["name"] for clip in source["worst"] if clip["label"] == 1]
    assert browser.get_log("browser") == []


def test_matrix_and_recalls_are_sorted(browser: Any, page: Path) -> None:
    """Sorted by recall, the lowest comes first, and the matrix's rows and columns follow."""
    from selenium.webdriver.support.select import Select

    open_page(browser, page)
    show_out_of_fold(browser)
    Select(browser.find_element("id", "order")).select_by_visible_text("recall, lowest first")
    recalls = [float(text.rstrip("%")) for text in browser.execute_script(TEXTS, ".recall td:nth-child(3)")]
    assert recalls == sorted(recalls)
    assert len(set(recalls)) > 1
    names = browser.execute_script(TEXTS, ".recall tbody th")
    assert browser.execute_script(TEXTS, ".matrix tbody th") == names
    assert browser.execute_script(TEXTS, ".matrix thead th:nth-child(n + 2)") == names


def test_clips_can_be_played_and_seen(browser: Any, page: Path) -> None:
    """Every audio element holds one second that plays, and every spectrogram has been drawn."""
    open_page(browser, page)
    browser.find_element("id", "title").click()  # sound needs a gesture first
    script = """
    const [done] = arguments, audios = [...document.querySelectorAll("audio")];
    const ready = (a) => a.readyState > 0 || a.error ? 1 : new Promise((r) => { a.onloadedmetadata = a.onerror = r; });
    Promise.all(audios.map(ready)).then(async () => {
      await audios[0].play();
      await new Promise((r) => { audios[0].ontimeupdate = () => audios[0].currentTime > 0 && r(); });
      const drawn = (c) => new Set(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).size > 20;
      done({ audios: audios.map((a) => [a.duration, a.error && a.error.message]),
             drawn: [...document.querySelectorAll("canvas")].map(drawn) });
    });"""
    found = browser.execute_async_script(script)
    wrong = data_of(page)["sources"][0]["wrong"]
    assert found == {"audios": [[1, None]] * wrong, "drawn": [True] * wrong}


def test_threshold_slider_reads_the_curve(browser: Any, page: Path) -> None:
    """Moved by keyboard, the slider says what the threshold keeps and how much of it is right."""
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    browser.find_element("id", "threshold").send_keys(Keys.HOME)
    source = data_of(page)["sources"][0]
    kept, right = source["coverage"][0]
    text = browser.find_element("css selector", "output").text
    assert text == f"keeps {100 * kept:.1f}% of the clips, {100 * right:.2f}% of them right; 0 clips become unknown"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, page: Path, scheme: str) -> None:
    """Text and background differ by WCAG's 4.5 : 1 or more in either scheme, and the schemes differ."""
    open_page(browser, page, scheme=scheme)
    script = """
    const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const card = getComputedStyle(document.querySelector(".card")).backgroundColor;
    const on = (name, back) => [rgb(getComputedStyle(document.querySelector(name)).color), rgb(back)];
    const body = on("body", getComputedStyle(document.body).backgroundColor);
    return [body, ...[".card .soft", ".big", "th", "b.wrong", "code"].map((name) => on(name, card))];"""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(luminance(text), luminance(back)) for text, back in browser.execute_script(script)]
    assert all((max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5 for pair in pairs), pairs
    assert (pairs[0][0] > pairs[0][1]) == (scheme == "dark")


@pytest.mark.parametrize("classes", [3, 100])
def test_phone_needs_no_sideways_scrolling(browser: Any, page: Path, tmp_path: Path, classes: int) -> None:
    """At 390 px the page is no wider than the screen, with a hundred labels too; wide tables scroll by themselves."""
    if classes == 100:
        synthetic_page(tmp_path / "report.html", clips=5000, classes=100)
    open_page(browser, tmp_path / "report.html" if classes == 100 else page, width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert browser.get_log("browser") == []
