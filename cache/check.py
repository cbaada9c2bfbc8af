"""Checking caches byte for byte: index, clip table, sidecars and shards."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from cache.cli import InputError
from cache.cores import usable_cores
from cache.files import file_checksum, read_sealed
from cache.index import INDEX, Cache
from cache.shard import SCHEMA, map_shard, remove_shard, shard_numbers, shard_path, sidecar_path


class Damage(NamedTuple):
    """A damaged file, and why it is called so."""

    path: Path
    why: str
    number: int | None = None
    """Of the shard that the file belongs to; None for an index and its clip table."""


def cache_folders(cache_dir: str | Path) -> list[Path]:
    """Folders below `cache_dir` that hold a cache, finished or not, sorted by name; or the one it is itself.

    Raises
    ------
    InputError : no such folder, or no cache in it
    """
    if not Path(cache_dir).is_dir():
        raise InputError(f"{cache_dir}: no such folder; build a cache with python -m pipeline.build_cache")
    folders = [path for path in (Path(cache_dir), *sorted(Path(cache_dir).iterdir())) if path.is_dir()]
    folders = [path for path in folders if (path / INDEX).exists() or shard_numbers(path)]
    if not folders:
        raise InputError(f"{cache_dir}: no cache in it; build one with python -m pipeline.build_cache")
    return folders


def check_cache(folder: Path) -> list[Damage]:
    """Compare every file of a cache with its checksum, several at a time; hashing releases the interpreter lock.

    An unfinished cache has no index yet: its finished shards are compared with their sidecars.
    """
    damages, cache = [], None
    if (folder / INDEX).exists():
        try:
            cache = Cache(folder, check_shards=False)
        except InputError as error:
            path, _, why = str(error).partition(": ")
            damages.append(Damage(Path(path), why))
    listed = {shard["number"]: shard for shard in cache.index["shards"]} if cache else {}
    with ThreadPoolExecutor(usable_cores()) as pool:
        numbers = sorted(listed.keys() | shard_numbers(folder))
        checked = pool.map(lambda number: _check_shard(folder, number, listed.get(number), cache), numbers)
        damages += [damage for damage in checked if damage]
    return damages


def _check_shard(folder: Path, number: int, listed: dict[str, Any] | None, cache: Cache | None) -> Damage | None:
    path, sidecar_file = shard_path(folder, number), sidecar_path(folder, number)
    try:
        sidecar = read_sealed(sidecar_file)
        expected = [sidecar[key] for key in ("rows", "bytes", "checksum")]
    except FileNotFoundError:
        # Without a sidecar and unlisted, a shard is what a killed build left: it never counted as finished.
        return Damage(sidecar_file, "missing", number) if listed else None
    except (KeyError, ValueError) as error:
        return Damage(sidecar_file, str(error), number)
    if sidecar.get("schema") != SCHEMA:
        return Damage(sidecar_file, f"schema {sidecar.get('schema')}, this version reads {SCHEMA}", number)
    if listed and expected != [listed[key] for key in ("rows", "bytes", "checksum")]:
        return Damage(path, "another shard than the index lists", number)
    if not sidecar["rows"]:
        return None  # all its clips were rejected
    try:
        if file_checksum(path) != sidecar["checksum"]:
            return Damage(path, f"its content differs from its checksum ({path.stat().st_size} bytes)", number)
        if cache:
            map_shard(folder, number, cache.config, sidecar["rows"], sidecar.get("sources"))
    except FileNotFoundError:
        return Damage(path, "missing", number)
    except InputError as error:
        return Damage(path, str(error).partition(": ")[2], number)
    return None


def remove_damaged(folder: Path, damages: list[Damage]) -> None:
    """Remove what is damaged, so that the next build makes it again; call only while holding the build's lock."""
    for damage in damages:
        if damage.number is None:
            (folder / INDEX).unlink(missing_ok=True)
        else:
            remove_shard(folder, damage.number)
