"""One self-contained HTML file: the template and its data."""

from pathlib import Path
from typing import Any

from cache.cli import EXIT_INCOMPLETE, EXIT_OK, say
from cache.files import write_atomic
from infer.members import load_alike
from infer.options import ReportOptions
from infer.outputs import output_path
from infer.page import fill_template, to_json
from infer.report.data import judge_sources, read_curves
from train.world import World

MAX_BYTES = 20_000_000  # of the file


def write_report(options: ReportOptions, world: World) -> int:
    """Judge and write the page; returns the exit status.

    Raises
    ------
    InputError : nothing to judge, or no folder to write to
    """
    output = output_path(options.output, options)
    members = load_alike(options, world)
    sources, notes = judge_sources(options, members, world)
    if not world.is_main:
        return EXIT_OK
    data: dict[str, Any] = {
        "title": ", ".join(Path(run).name for run in options.run_folders),
        "classes": members[0].classes,
        "notes": notes,
        "curves": read_curves(options.run_folders),
        "sources": [source.describe() for source in sources],
    }
    embed([source.worst(options.worst, members[0].config) for source in sources], data, options.worst)
    write_atomic(output, fill_template("infer.report", data).encode("ascii"))
    size = output.stat().st_size / 1e6
    say(f"{output}: {', '.join(source.figures['source'] for source in sources)}; {size:.1f} MB")
    for note in notes:
        say(f"not shown: {note}")
    embedded = [clip for described in data["sources"] for clip in described["worst"]]
    silent = [clip for clip in embedded if "error" in clip]
    if silent:
        why = f"{silent[0]['name']}: {silent[0]['error']}; name their --audio-dir"
        say(f"{len(silent)} of {len(embedded)} clips have neither sound nor picture, such as {why}", error=True)
    for described in data["sources"]:
        if described["dropped"]:
            shown = f"{len(described['worst'])} of {len(described['worst']) + described['dropped']} clips"
            say(f"{described['name']}: {shown} embedded, more would pass {MAX_BYTES / 1e6:.0f} MB")
    return EXIT_INCOMPLETE if any(source.clips.unreadable for source in sources) else EXIT_OK


def embed(worst: list, data: dict[str, Any], most: int) -> None:
    """Add each source's worst clips to its description, as many as the file may hold, shared out evenly."""
    room = MAX_BYTES - len(fill_template("infer.report", data))
    for number, (clips, described) in enumerate(zip(worst, data["sources"], strict=True)):
        share, used = room // (len(worst) - number), 100
        described["worst"] = []
        for clip in clips:
            used += len(to_json(clip)) + 1
            if used > share:
                break
            described["worst"].append(clip)
            room -= len(to_json(clip)) + 1
        described["dropped"] = min(most, described["wrong"]) - len(described["worst"])
