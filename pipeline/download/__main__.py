"""Fetch a public corpus into data/audio: download (resumable), verify, unpack.

    python -m pipeline.download speech-commands-v0.01 --out data/audio

The archive is kept beside the output folder until it is unpacked; run again after a failure and it continues.
"""

import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cache.cli import command, flag
from pipeline.download.archive import download_corpus

# name → (address, SHA-256 of the archive)
CORPORA = {
    "speech-commands-v0.01": (
        "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
    ),
    "speech-commands-v0.02": (
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which corpus to fetch, and where to."""

    name: str = flag(None, "corpus: " + " or ".join(CORPORA), positional=True, choices=list(CORPORA), metavar="NAME")
    out: str = flag("data/audio", "folder for <label>/*.wav; must not exist or be empty")
    mirror: str = flag("", "address of a folder that holds the archive, in place of the public one", metavar="URL")


@command(Options)
def main(options: Options) -> int:
    """Fetch the corpus, and say what to type next."""
    started = time.monotonic()
    url, sha256 = CORPORA[options.name]
    if options.mirror:
        url = f"{options.mirror.rstrip('/')}/{PurePosixPath(urlsplit(url).path).name}"
    clips, labels = download_corpus(url, sha256, Path(options.out))
    print(f"{clips:,} clips of {labels} labels in {options.out} ({time.monotonic() - started:.1f} s)")
    where = "" if options.out == "data/audio" else f" --audio-dir {options.out}"
    print(f"next: python -m pipeline.build_cache --n-mels 224{where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
