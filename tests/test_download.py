"""The download against a real local HTTP server: verification, retries, unpacking."""

import hashlib
import http.server
import io
import random
import resource
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from cache.cli import InputError
from cache.files import new_folder
from pipeline.download import __main__ as download
from pipeline.download import archive

ROOT = Path(__file__).parents[1]
NAME = "speech-commands-v0.01"
FILE = "speech_commands_v0.01.tar.gz"
PATHS = [f"./{label}/{speaker:08x}_nohash_0.wav" for label in ("yes", "no", "up") for speaker in range(4)]
CORPUS = {
    **{path: random.Random(path).randbytes(20_000) for path in PATHS},
    "./_background_noise_/white_noise.wav": random.Random(0).randbytes(5_000),
    "./testing_list.txt": b"yes/00000000_nohash_0.wav\n",
    "./validation_list.txt": b"no/00000001_nohash_0.wav\n",
}


def make_archive() -> bytes:
    """The little corpus as a .tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in CORPUS.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive; `breaks` lists after how many bytes the next answers break off."""

    def __init__(self, archive: bytes):
        self.archive, self.breaks, self.asked, self.status = archive, [], 0, 200
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/{FILE}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET with the archive."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked += 1
        if server.status != 200:
            return self.send_error(server.status)
        self.send_response(200)
        self.send_header("Content-Length", str(len(server.archive)))
        self.end_headers()
        self.wfile.write(server.archive[: server.breaks.pop(0)] if server.breaks else server.archive)
        self.close_connection = True


@pytest.fixture
def serve():
    """A function that starts a server for an archive."""
    running = []

    def start(archive: bytes | None = None) -> Server:
        server = Server(make_archive() if archive is None else archive)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def fetch(server: Server, out: Path) -> tuple[int, int]:
    return archive.download_corpus(server.url, hashlib.sha256(server.archive).hexdigest(), out)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content, lock files left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def expected(prefix: str) -> dict[str, bytes]:
    return {f"{prefix}/{name[2:]}": data for name, data in CORPUS.items()}


def test_command_lays_out_the_corpus(serve, tmp_path, monkeypatch, capsys):
    """The command downloads, verifies and unpacks into the layout, leaves nothing else, and says what comes next."""
    server = serve()
    monkeypatch.setitem(
        download.CORPORA, NAME, (f"http://nowhere.invalid/{FILE}", hashlib.sha256(server.archive).hexdigest())
    )
    out = tmp_path / "data" / "audio"
    assert download.main([NAME, "--out", str(out), "--mirror", server.url.removesuffix(FILE)]) == 0
    assert tree(tmp_path) == expected("data/audio")
    said = capsys.readouterr().out
    assert "12 clips of 3 labels" in said
    assert "python -m pipeline.build_cache --n-mels 224" in said


def test_broken_connection_is_tried_again(serve, tmp_path):
    """A connection that breaks is tried again, and what it had brought is not used."""
    server = serve()
    server.breaks = [100_000]
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.asked == 2
    assert tree(tmp_path) == expected("audio")


def test_connection_that_breaks_each_time(serve, tmp_path):
    """After three attempts there is one error that names the remedy, and nothing is left."""
    server = serve()
    server.breaks = [100_000, 0, 50_000]
    with pytest.raises(InputError, match=r"name another server with --mirror"):
        fetch(server, tmp_path / "audio")
    assert server.asked == 3
    assert tree(tmp_path) == {}


def test_whole_archive_needs_no_network(serve, tmp_path):
    """An archive that a run had downloaded completely, but not unpacked, is unpacked without asking the server."""
    server = serve()
    (tmp_path / ".audio.download").mkdir()
    (tmp_path / ".audio.download" / FILE).write_bytes(server.archive)
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.asked == 0
    assert tree(tmp_path) == expected("audio")


def test_wrong_checksum(serve, tmp_path):
    """An archive with another checksum is neither kept nor unpacked."""
    server = serve()
    with pytest.raises(InputError, match=r"SHA256 hash of downloaded file"):
        archive.download_corpus(server.url, "0" * 64, tmp_path / "audio")
    assert tree(tmp_path) == {}


def test_existing_output_is_kept(serve, tmp_path):
    """A folder that holds anything is refused before any request; an empty one is filled."""
    server, out = serve(), tmp_path / "audio"
    out.mkdir()
    (out / "mine.wav").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        fetch(server, out)
    assert tree(tmp_path) == {"audio/mine.wav": b"precious"}
    assert server.asked == 0
    (out / "mine.wav").unlink()
    assert fetch(server, out) == (12, 3)


def test_second_process_is_kept_out(tmp_path):
    """While a folder is being made, a second maker gets one clear error and disturbs nothing."""
    with new_folder(tmp_path / "audio") as folder:
        (folder / "yes.wav").write_bytes(b"whole")
        with pytest.raises(InputError, match="another process"), new_folder(tmp_path / "audio"):
            pass
    assert tree(tmp_path) == {"audio/yes.wav": b"whole"}


def run_command(*arguments: str, file_limit: int = -1) -> subprocess.CompletedProcess:
    """The command in a process of its own, with a limit on the size of a file."""
    limit = resource.RLIM_INFINITY if file_limit < 0 else file_limit
    return subprocess.run(
        [sys.executable, "-m", "pipeline.download", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )


def test_full_disk(serve, tmp_path):
    """When no more can be written, one line says so with status 2, and nothing is left."""
    server, out = serve(), tmp_path / "audio"
    done = run_command(NAME, "--out", str(out), "--mirror", server.url.removesuffix(FILE), file_limit=100_000)
    assert done.returncode == 2
    assert "; free some space" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("status", [403, 404])
def test_refusing_server(serve, tmp_path, status):
    """What a server answers that refuses is told, with its address and the remedy."""
    server = serve()
    server.status = status
    with pytest.raises(InputError, match=rf"{FILE}: {status} .*--mirror"):
        fetch(server, tmp_path / "audio")


def test_no_network(tmp_path):
    """An unreachable server is one error that names the host and the remedy."""
    url = f"http://nowhere.invalid/{FILE}"
    with pytest.raises(InputError, match=r"nowhere\.invalid.+check the network"):
        archive.download_corpus(url, "0" * 64, tmp_path / "audio")


@pytest.mark.parametrize(
    ("arguments", "expected_text"),
    [
        (["speech-commands-v9"], "choose from"),
        ([NAME, "--mirror", "file:///etc"], "expected an address that starts with http"),
    ],
)
def test_bad_arguments(tmp_path, arguments, expected_text):
    """An unknown corpus lists the known ones, a mirror that is not HTTP is refused; both end with status 2."""
    done = run_command(*arguments, "--out", str(tmp_path / "audio"))
    assert done.returncode == 2
    assert expected_text in done.stderr
    assert "Traceback" not in done.stderr
