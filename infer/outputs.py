"""Where a command's result goes: nowhere that would replace what a command reads."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cache.cli import InputError
from cache.files import checked_output, lies_in
from cache.find import list_caches
from cache.index import Cache
from infer.corpus import find_corpus
from infer.options import MemberOptions
from infer.recordings import list_recordings
from pipeline.decode import EXTENSIONS


def output_path(path: str | Path, options: MemberOptions) -> Path:
    """The path of a result, if a file can be written to it.

    Raises
    ------
    InputError : it is, or lies in, what is read: a run, a cache, its corpus, a list; or it is a recording
    """
    output = checked_output(path)
    if source := lies_in(output, _inputs(options, output.exists())) or _read_elsewhere(output):
        raise InputError(f"{path}: {source} is to be read, so it is not written over or into; choose another place")
    return output


def _read_elsewhere(output: Path) -> Path | None:
    """The recording that a path is, or the cache or run that it lies in, which no flag names."""
    if output.exists() and output.name.lower().endswith(EXTENSIONS):
        return output
    parent, marks = Path(os.path.realpath(output.parent)), ("shard-*.h5", "fold*/*.pt", "fold*/oof.npz")
    return next((folder for folder in (parent, *parent.parents) if any(any(folder.glob(mark)) for mark in marks)), None)


def _inputs(options: MemberOptions, there: bool) -> Iterator[str | Path]:
    """Folders and files that a command may read; their single files only where one could be replaced, as by a link."""
    caches = list_caches(options.cache_dir)
    for folder in map(Path, (*options.run_folders, *caches)):
        yield folder
        yield from folder.rglob("*") if there else ()
    for folder in caches:
        with contextlib.suppress(InputError, OSError):
            corpus = find_corpus(Cache(folder, check_shards=False), getattr(options, "audio_dir", None))
            yield corpus
            yield from (entry.path for entry in os.scandir(corpus) if entry.is_symlink())
    sources = [getattr(options, name, None) for name in ("input", "check")]
    sources += ["data/test"] * hasattr(options, "check")  # its default
    for source in filter(None, sources):
        if not os.path.isdir(source):
            yield source
        if there and os.path.exists(source):
            yield from list_recordings(source).paths
