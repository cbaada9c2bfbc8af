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
    places = (Path(cache_dir), *sorted(Path(cache_dir).iterdir()))
    folders = [path for path in places if path.is_dir() and ((path / INDEX).exists() or shard_numbers(path))]
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
    keys, path = ("rows", "bytes", "checksum"), sidecar_path(folder, number)
    try:
        sidecar = read_sealed(path)
        found = [sidecar[key] for key in keys]
        if sidecar.get("schema") != SCHEMA:
            raise ValueError(f"schema {sidecar.get('schema')}, this version reads {SCHEMA}")
        path = shard_path(folder, number)
        if listed and found != [listed[key] for key in keys]:
            raise ValueError("another shard than the index lists")
        if sidecar["rows"] and file_checksum(path) != sidecar["checksum"]:
            raise ValueError(f"its content differs from its checksum ({path.stat().st_size} bytes)")
        if sidecar["rows"] and cache:
            map_shard(folder, number, cache.config, sidecar["rows"], sidecar.get("sources"))
    except FileNotFoundError:
        # Without a sidecar and unlisted, a shard is what a killed build left: it never counted as finished.
        return Damage(path, "missing", number) if listed or path.suffix == ".h5" else None
    except InputError as error:
        return Damage(path, str(error).partition(": ")[2], number)
    except (KeyError, ValueError) as error:
        return Damage(path, str(error), number)
    return None


def remove_damaged(folder: Path, damages: list[Damage]) -> None:
    """Remove what is damaged, so that the next build makes it again; call only while holding the build's lock."""
    for damage in damages:
        if damage.number is None:
            (folder / INDEX).unlink(missing_ok=True)
        else:
            remove_shard(folder, damage.number)
