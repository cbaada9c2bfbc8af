"""The download against a real local HTTP server: resume, verification, safe unpacking."""

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


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    """One header of a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def make_archive(*extra: tarfile.TarInfo) -> bytes:
    """The little corpus as a .tar.gz, with extra members in the middle."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for count, (name, data) in enumerate(CORPUS.items()):
            for member in extra if count == 5 else ():
                tar.addfile(member, io.BytesIO(bytes(member.size)))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive; `breaks` lists after how many bytes the next answers break off."""

    def __init__(self, archive: bytes):
        self.archive, self.breaks, self.ranges, self.status = archive, [], [], 200
        self.honours_range, self.tells_length, self.etag = True, True, '"one"'
        self.replacement = b""  # takes the archive's place at the next break
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data/{FILE}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET with the archive or a range of it."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.honours_range else 0
        if self.headers.get("If-Range", server.etag) != server.etag:
            start = 0
        if start and start >= len(server.archive):
            return self.send_error(416)
        body = server.archive[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.archive) - 1}/{len(server.archive)}")
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        if server.replacement:
            server.archive, server.etag, server.replacement = server.replacement, '"two"', b""
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
    return archive.download_corpus(server.url, hashlib.sha256(server.archive).hexdigest(), out, pause_seconds=0.01)


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


def test_broken_connection_resumes(serve, tmp_path):
    """A connection that breaks twice is continued from the byte that was reached."""
    server = serve()
    server.breaks = [100_000, 50_000]
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert tree(tmp_path) == expected("audio")


def test_next_run_resumes(serve, tmp_path):
    """When the retries are used up the part stays, the message says how much, and the next run continues it."""
    server = serve()
    server.breaks = [100_000, 0, 0, 0]
    with pytest.raises(InputError, match="100,000 bytes are kept; running this again continues"):
        fetch(server, tmp_path / "audio")
    assert list(tree(tmp_path)) == [f".audio.{FILE}.part"]
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.ranges[-1] == "bytes=100000-"
    assert tree(tmp_path) == expected("audio")


def test_server_without_ranges(serve, tmp_path):
    """A server that ignores Range is read from the start, over what was there."""
    server = serve()
    server.honours_range = False
    (tmp_path / f".audio.{FILE}.part").write_bytes(bytes(70_000))
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.ranges == ["bytes=70000-"]


def test_server_without_length(serve, tmp_path):
    """A server that does not tell the size is read to the end of the connection."""
    server = serve()
    server.tells_length = False
    assert fetch(server, tmp_path / "audio") == (12, 3)


def test_archive_changes_during_download(serve, tmp_path):
    """If-Range: an archive that changed before the connection was retried is read from the start, not spliced."""
    server, fresh = serve(), make_archive(member("more.wav", size=10))
    server.breaks, server.replacement = [100_000], fresh
    digest = hashlib.sha256(fresh).hexdigest()
    assert archive.download_corpus(server.url, digest, tmp_path / "audio", pause_seconds=0.01)[0] == 13
    assert server.ranges == [None, "bytes=100000-"]


def test_finished_part_needs_no_network(serve, tmp_path):
    """An archive that a killed run had downloaded completely is unpacked without asking the server."""
    server = serve()
    (tmp_path / f".audio.{FILE}.part").write_bytes(server.archive)
    assert fetch(server, tmp_path / "audio") == (12, 3)
    assert server.ranges == []


def test_wrong_checksum(serve, tmp_path):
    """An archive with another checksum is removed, not unpacked."""
    server = serve()
    with pytest.raises(InputError, match=r"SHA-256 is [0-9a-f]{64}, expected 0{64}"):
        archive.download_corpus(server.url, "0" * 64, tmp_path / "audio", pause_seconds=0.01)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "extra",
    [
        [member("../outside.wav", size=10)],
        [member("yes/../../outside.wav", size=10)],
        [member("/tmp/melshard-outside.wav", size=10)],
        [member("link", tarfile.SYMTYPE, "/tmp"), member("link/melshard-outside.wav", size=10)],
        [member("hard.wav", tarfile.LNKTYPE, "../outside.wav")],
        [member("device", tarfile.CHRTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("../outside", tarfile.DIRTYPE)],
        [member("yes/00000000_nohash_0.wav", size=10)],
        [member("yes/00000000_nohash_0.wav/inside.wav", size=10)],
        [member("large.wav", size=40_000)],
    ],
    ids=lambda extra: f"{extra[0].name}-{extra[0].type.decode()}",
)
def test_unsafe_member_refuses_the_archive(serve, tmp_path, monkeypatch, extra):
    """Path escapes, links, devices, duplicates and oversize refuse the whole archive; nothing is written outside."""
    monkeypatch.setattr(archive, "_MAX_FILE_BYTES", 30_000 if extra[0].name == "large.wav" else 1 << 28)
    server = serve(make_archive(*extra))
    with pytest.raises(InputError, match="unsafe archive") as error:
        fetch(server, tmp_path / "in" / "data" / "audio")
    assert repr(extra[0].name) in str(error.value)
    assert list(tree(tmp_path)) == [f"in/data/.audio.{FILE}.part"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["in", "data"]
    assert not Path("/tmp/melshard-outside.wav").exists()


def test_damaged_archive(serve, tmp_path):
    """An archive that ends early, although its checksum is right, is one clear error."""
    server = serve(make_archive()[:-3000])
    with pytest.raises(InputError, match="not a whole"):
        fetch(server, tmp_path / "audio")
    assert not (tmp_path / "audio").exists()


def test_existing_output_is_kept(serve, tmp_path):
    """A folder that holds anything is refused before any request; an empty one is filled."""
    server, out = serve(), tmp_path / "audio"
    out.mkdir()
    (out / "mine.wav").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        fetch(server, out)
    assert tree(tmp_path) == {"audio/mine.wav": b"precious"}
    assert server.ranges == []
    (out / "mine.wav").unlink()
    assert fetch(server, out) == (12, 3)


def test_second_process_is_kept_out(tmp_path):
    """While a folder is being made, a second maker gets one clear error and disturbs nothing."""
    with archive.new_folder(tmp_path / "audio") as folder:
        (folder / "yes.wav").write_bytes(b"whole")
        with pytest.raises(InputError, match="another process"), archive.new_folder(tmp_path / "audio"):
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


def test_full_disk_keeps_the_part(serve, tmp_path):
    """When no more can be written, one line says so with status 2, and what was written is kept for the next run."""
    server, out = serve(), tmp_path / "audio"
    done = run_command(NAME, "--out", str(out), "--mirror", server.url.removesuffix(FILE), file_limit=100_000)
    assert done.returncode == 2
    assert "make room, then running this again continues" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (tmp_path / f".audio.{FILE}.part").read_bytes() == server.archive[:100_000]


@pytest.mark.parametrize("status", [403, 404])
def test_refusing_server(serve, tmp_path, status):
    """A server that refuses is not asked again; the message names the address and the answer."""
    server = serve()
    server.status = status
    with pytest.raises(InputError, match=rf"{FILE}: the server answers {status} .*check --mirror"):
        fetch(server, tmp_path / "audio")
    assert len(server.ranges) == 1


def test_no_network(tmp_path):
    """An unreachable server is one error that names the host and the remedy, after a few tries."""
    url = f"http://nowhere.invalid/{FILE}"
    with pytest.raises(InputError, match=r"nowhere\.invalid: cannot be reached \(.+check the network"):
        archive.download_corpus(url, "0" * 64, tmp_path / "audio", pause_seconds=0.01)


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
