"""Where a command's result goes: nowhere that would replace what a command reads."""

import os
from pathlib import Path

from cache.cli import InputError
from cache.clip_id import file_of
from cache.files import checked_output, lies_in, unused_folder
from infer.options import EnsembleOptions, MemberOptions
from infer.recordings import list_recordings
from pipeline.clips import LISTS
from pipeline.sound_files import is_recording

_MARKS = ("fold*/*.pt", "fold*/oof.npz", "shard-*.h5", *LISTS)  # of a run, a cache, a corpus


def output_path(path: str | Path, options: MemberOptions, *, folder: bool = False) -> Path:
    """The path of a result, if a file, or a new folder, can be written to it.

    Raises
    ------
    InputError : it is, or lies in, what is read: a recording, a list, a run, a cache or a corpus, however linked
    """
    output = unused_folder(path) if folder else checked_output(path)
    if source := _named_recording(output, options) or _folder_that_is_read(output):
        raise InputError(f"{path}: {source} is to be read, so it is not written over or into; choose another place")
    return output


def _named_recording(output: Path, options: MemberOptions) -> str | Path | None:
    """The recording, the list of --input or --check, or the --figures that would be replaced; None if there is none."""
    if not output.exists():
        return None
    if is_recording(output.name) or is_recording(os.path.basename(os.path.realpath(output))):
        return output
    read = []
    if isinstance(options, EnsembleOptions) and options.source and os.path.isfile(options.source):
        read = [options.source, *map(file_of, list_recordings(options.source, options).paths)]
    return lies_in(output, filter(None, [*read, getattr(options, "figures", None)]))


def _folder_that_is_read(output: Path) -> Path | None:
    """The run, cache or corpus that a path or what it links to lies in, known by the files in it."""
    ends = (Path(os.path.realpath(output)), Path(os.path.realpath(output.parent)) / output.name)
    folders = dict.fromkeys(folder for end in ends for folder in end.parents)
    return next((folder for folder in folders if any(any(folder.glob(mark)) for mark in _MARKS)), None)
