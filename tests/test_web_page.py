"""The page that listens: in a real browser, with a recording as its microphone, without a request to elsewhere."""

import csv
import functools
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from infer.export.__main__ import main as export
from infer.predict.__main__ import main as predict
from tests.conftest import MINI, RATE, synthesise
from tests.words_run import RUN, WORDS, hiss

ROWS = (
    "return [...document.querySelectorAll('tbody tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
)
PROBABILITIES = "return [...document.querySelectorAll('#probabilities li')].map((row) => "
PROBABILITIES += "[row.children[0].textContent, row.children[1].value])"
STATUS = "return document.getElementById('status').textContent"
ISOLATING = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


class Server(http.server.ThreadingHTTPServer):
    """A folder over HTTP on a free port; notes what is asked for."""

    def __init__(self, folder: Path, headers: dict[str, str]) -> None:
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def end_headers(self) -> None:
                for name, value in headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *_: Any) -> None:
                asked.append(self.path)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self.server_port}/"


@pytest.fixture(scope="module")
def site(words: Path, runtime) -> Path:
    """The run's page, with onnxruntime-web from npm."""
    if not shutil.which("npm"):
        pytest.skip("no npm to fetch onnxruntime-web with")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(words)
        shutil.rmtree("site", ignore_errors=True)  # tests that change workers set this up again
        assert export(["--run", RUN, "--tta", "2", "--format", "web", "--check-clips", "8"]) == 0
    return words / "site"


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words over noise, to be the microphone; Chromium plays it again and again."""
    samples = hiss(9, 1)
    for word in range(3):
        samples[(1 + 3 * word) * RATE :][:RATE] += synthesise(word, 9, 9)
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable]:
    """A function that opens a served page in a Chromium of its own; returns its driver."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium with chromedriver here: apt-get install chromium chromium-driver")
    opened = []

    def start(folder: Path, *switches: str, headers: dict[str, str] | None = None) -> tuple[Any, Server]:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        usual = (
            "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-sync disable-background-networking"
        )
        for switch in [*usual.split(), *switches, f"user-data-dir={tmp_path / str(len(opened))}"]:
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        server = Server(folder, headers or {})
        chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        opened.extend([chromium.quit, server.shutdown, server.server_close])
        chromium.get(server.url)
        wait(chromium, lambda: "Loading" not in chromium.execute_script(STATUS))
        return chromium, server

    yield start
    for close in opened:
        close()


def wait(browser: Any, done: Callable[[], Any], seconds: float = 60) -> Any:
    """What `done` gives, as soon as it is true."""
    until = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < until, f"{browser.execute_script(STATUS)} {browser.get_log('browser')}"
        time.sleep(0.1)
    return result


def open_files(browser: Any, *paths: Path) -> None:
    """Give recordings to the page, and wait until they are judged."""
    browser.find_element("id", "files").send_keys("\n".join(map(str, paths)))
    wait(browser, lambda: f"{len(paths)} recording" in browser.execute_script(STATUS))


def expected(paths: list[Path]) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """Probabilities per file, and windows, as predict gives them in float32."""
    Path("list.txt").write_text("\n".join(map(str, paths)))
    flags = ("--run", RUN, "--tta", "2", "--amp", "off", "--input", "list.txt", "--windows", "w.csv")
    assert predict([*flags, "--output", "p.csv", "--probabilities", "matrix.csv"]) == 0
    with open("matrix.csv", newline="") as matrix, open("w.csv", newline="") as windows:
        probs = [{key: float(value) for key, value in row.items() if key != "file"} for row in csv.DictReader(matrix)]
        return probs, list(csv.DictReader(windows))


@pytest.mark.parametrize("headers", [{}, ISOLATING], ids=["one thread", "threads"])
def test_recordings_are_judged_as_by_predict(
    here: Path, site: Path, talk: Path, browse: Callable, tmp_path: Path, headers: dict[str, str]
) -> None:
    """Probabilities differ by 1e-3 at most, windows are the same, and nothing is asked of anybody else."""
    paths = [tmp_path / f"{word}.wav" for word in WORDS]
    for n, path in enumerate(paths):
        soundfile.write(path, synthesise(n, 9, 30 + n)[: RATE - 4000 * n], RATE, subtype="PCM_16")
    paths += sorted(MINI.rglob("*_nohash_*"))[::40][:4]  # recorded speech, where it is there
    probs, windows = expected([*paths, talk])
    browser, server = browse(site, headers=headers)
    for path, each in zip(paths, probs, strict=False):
        open_files(browser, path)
        shown = dict(browser.execute_script(PROBABILITIES))
        assert shown.keys() == each.keys()
        assert all(abs(shown[label] - each[label]) < 1e-3 for label in each), (shown, each)
    open_files(browser, talk)
    heard = [
        (when.split(" ")[1], label) for when, label, _ in browser.execute_script(ROWS) if when.startswith("talk.wav ")
    ]
    clock = [(f"0:{float(row['start_s']):05.2f}", row["label"]) for row in windows if row["file"].endswith("talk.wav")]
    assert sorted(heard) == sorted(clock)
    threads = browser.find_element("id", "threads").text
    assert ("in one thread. More need a server that sends" in threads) == (not headers)
    asked = {path.lstrip("/") or "index.html" for path in server.asked}
    assert asked <= {path.name for path in site.iterdir()}
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((server.url, "blob:", "data:")) for name in loaded)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


FAKE = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")
REPLACED = """
const open = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) { %s; return open.call(this, stream); };
"""


@pytest.mark.parametrize("replaced", ["", "if (this.sampleRate === 16000) throw new Error('another rate')"])
def test_the_microphone_is_heard(here: Path, site: Path, talk: Path, browse: Callable, replaced: str) -> None:
    """With a recording as its microphone the page logs the words in their order, also where it has to resample it."""
    browser, _ = browse(site, *FAKE, f"use-file-for-fake-audio-capture={talk}")
    browser.execute_script(REPLACED % replaced)
    browser.find_element("id", "listen").click()

    def words_heard() -> bool:
        labels = iter([label for _, label, _ in reversed(browser.execute_script(ROWS))])
        return all(word in labels for word in WORDS)  # each after the one before

    wait(browser, words_heard)
    assert browser.execute_script(STATUS).startswith("Listening.")
    assert browser.execute_script("return document.getElementById('spectrogram').width") > 100
    browser.find_element("id", "listen").click()
    wait(browser, lambda: browser.execute_script(STATUS) == "Stopped.")


def test_a_microphone_without_sound(here: Path, site: Path, browse: Callable) -> None:
    """Where no sound comes, as in Firefox without an audio device, the page does not claim to listen."""
    browser, _ = browse(site, *FAKE)
    browser.execute_script(REPLACED % "this.suspend(); this.resume = () => {}")
    browser.find_element("id", "listen").click()
    wait(browser, lambda: browser.execute_script(STATUS) == "No sound has come from the microphone yet.")
    time.sleep(2)
    assert browser.execute_script(STATUS) == "No sound has come from the microphone yet."


def test_what_is_missing_is_said_in_words(here: Path, site: Path, browse: Callable, tmp_path: Path) -> None:
    """No permission, no secure origin, no server, no model, and a file that is no recording."""
    browser, _ = browse(site, "deny-permission-prompts")
    browser.find_element("id", "listen").click()
    wait(browser, lambda: "microphone" in browser.execute_script(STATUS))
    assert "There is no microphone." in (said := browser.execute_script(STATUS)) or "was not allowed" in said
    browser.execute_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    browser.find_element("id", "listen").click()
    wait(browser, lambda: "on https and on localhost only" in browser.execute_script(STATUS))
    (tmp_path / "x.wav").write_text("no sound")
    open_files(browser, tmp_path / "x.wav")
    assert browser.execute_script(ROWS)[0][1] == "(not a recording that this browser decodes)"
    browser.get((site / "index.html").as_uri())
    assert "type: python -m http.server" in browser.execute_script(STATUS)
    shutil.copytree(site, tmp_path / "broken")
    (tmp_path / "broken/model.onnx").write_bytes(b"x")
    browser, _ = browse(tmp_path / "broken")
    assert "The model cannot be loaded" in browser.execute_script(STATUS)


def test_the_page_fits_a_phone(here: Path, site: Path, browse: Callable, tmp_path: Path) -> None:
    """Nothing is wider than 360 pixels, in light and dark, with long labels and names."""
    path = tmp_path / ("long" * 40 + ".wav")
    soundfile.write(path, synthesise(0, 9, 9), RATE)
    browser, _ = browse(site)
    size = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_files(browser, path)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_a_page_with_an_int8_model(here: Path, site: Path, browse: Callable, tmp_path: Path) -> None:
    """The folder is smaller, and the browser judges with it."""
    output = tmp_path / "small"
    flags = ("--format", "web", "--int8", "--check-clips", "6", "--output", str(output))
    assert export(["--run", RUN, "--tta", "2", *flags]) == 0
    assert (output / "model.onnx").stat().st_size < (site / "model.onnx").stat().st_size
    path = tmp_path / "up.wav"
    soundfile.write(path, synthesise(1, 9, 9), RATE)
    browser, _ = browse(output)
    open_files(browser, path)
    assert browser.execute_script(PROBABILITIES)[0][0] in (*WORDS, "noise")


def test_where_a_page_may_not_go(here: Path, site: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """Not over a folder with something in it; without npm and without its package, one line says what to do."""
    flags = ("--run", RUN, "--tta", "2", "--format", "web", "--check-clips", "2")
    before = {path.name: path.read_bytes() for path in site.iterdir()}
    assert export([*flags, "--output", "site/"]) == 2
    assert "site/: exists and is not an empty folder" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in site.iterdir()}
    monkeypatch.setenv("HOME", str(here / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "nobody"))
    monkeypatch.setenv("PATH", "")
    assert export([*flags, "--output", "other"]) == 2
    assert "install npm, or run npm pack onnxruntime-web@" in capsys.readouterr().err
    assert not Path("other").exists()
    assert not Path("other.md").exists()


def test_the_runtime_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another package than the pinned one is refused."""
    from cache.cli import InputError
    from infer.export import web

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "npm").write_text('#!/bin/sh\nfor last; do :; done\necho other > "$last/onnxruntime-web-1.22.0.tgz"\n')
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert subprocess.run(["npm", str(tmp_path)]).returncode == 0
    with pytest.raises(InputError, match="does not match the known hash"):
        web._copy_runtime(tmp_path)
    assert np.all([path.suffix != ".tgz" for path in (tmp_path / "melshard").glob("*")])
