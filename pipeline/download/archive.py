"""Public archives: download with pooch, which verifies, then unpack."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cache.cli import InputError
from cache.files import naming_full_disk, new_folder


def download_corpus(url: str, sha256: str, out: Path) -> tuple[int, int]:
    """Download, verify and unpack one archive; `out` comes into being whole or not at all.

    A download that fails is tried again twice, from its beginning. A whole archive is kept until it is unpacked.

    Parameters
    ----------
    url : http or https address of a .tar.gz
    sha256 : of the archive, 64 hexadecimal digits
    out : the folder to make; it must not exist or be empty

    Returns
    -------
    (int, int) : clips and labels

    Raises
    ------
    InputError : `out` is not empty, the server cannot be reached, or the checksum differs
    OSError : the disk is full
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: expected an address that starts with http:// or https://")
    if not hasattr(tarfile, "data_filter"):
        raise InputError("this Python cannot unpack archives safely; use 3.10.12, 3.11.4, 3.12 or later")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with new_folder(out) as folder, Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        kept = folder.parent / f".{out.name}.download"
        with naming_full_disk(kept):
            archive = _fetch(url, sha256, kept, progress)
            with (
                progress.open(archive, "rb", description="unpack") as raw,
                tarfile.open(fileobj=raw, mode="r|gz") as tar,
            ):
                tar.extractall(folder, filter="data")
        clips = [path for path in folder.glob("*/*.wav") if path.parent.name != "_background_noise_"]
    shutil.rmtree(kept)
    return len(clips), len({path.parent for path in clips})


def _fetch(url: str, sha256: str, folder: Path, progress) -> str:
    """Path of the archive in `folder`; it is downloaded unless it is there already with that checksum."""
    import pooch
    import requests

    task = progress.add_task("download", total=None)

    class Bar:
        """What pooch asks of a progress bar."""

        total = 0

        def update(self, count: int) -> None:
            progress.update(task, advance=count, total=self.total or None)

        def reset(self) -> None:
            progress.reset(task)

        close = reset

    pooch.get_logger().setLevel("ERROR")
    base, name = url.rsplit("/", 1)[0], PurePosixPath(urlsplit(url).path).name
    archives = pooch.create(folder, f"{base}/", registry={name: f"sha256:{sha256}"}, retry_if_failed=2)
    try:
        return archives.fetch(name, downloader=pooch.HTTPDownloader(progressbar=Bar(), chunk_size=1 << 20))
    except requests.RequestException as error:
        reason = f"{error.response.status_code} {error.response.reason}" if error.response is not None else error
        raise InputError(f"{url}: {reason}; check the network, or name another server with --mirror") from None
    except ValueError as error:
        raise InputError(f"{url}: {error}; run this again, or name another server with --mirror") from None
