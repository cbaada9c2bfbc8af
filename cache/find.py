"""Finding caches among the folders that hold them."""

from pathlib import Path

from cache.cli import InputError
from cache.config import FeatureConfig
from cache.index import INDEX, Cache, read_index

_CHOOSE = "choose with --cache-dir"


def list_caches(cache_dir: str | Path) -> list[Path]:
    """Folders below `cache_dir` that hold a finished cache, sorted by name."""
    return sorted(path.parent for path in Path(cache_dir).glob(f"*/{INDEX}"))


def _resolution(folder: Path) -> tuple[int, int] | None:
    """Mels and frames of a cache; None where its index is damaged, which is no reason not to find another."""
    try:
        config = FeatureConfig.from_dict(read_index(folder).get("config"), str(folder))
    except InputError:
        return None
    return config.n_mels, config.n_frames


def find_cache(cache_dir: str | Path, n_mels: int, n_frames: int, folder: str | None = None) -> Path:
    """The one cache of a resolution.

    Parameters
    ----------
    cache_dir : holds the cache folders
    folder : a cache folder, or the name of one in `cache_dir`; then nothing is searched

    Raises
    ------
    InputError : none or several match; the message lists them
    """
    if folder:
        return next((path for path in (Path(folder), Path(cache_dir) / folder) if path.is_dir()), Path(folder))
    sizes = {path: _resolution(path) for path in list_caches(cache_dir)}
    found = [path for path, size in sizes.items() if size == (n_mels, n_frames)]
    if len(found) == 1:
        return found[0]
    width = "" if n_mels == n_frames else f" --width {n_frames}"
    if found:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{cache_dir}: {len(found)} caches have {n_mels} mels x {n_frames} frames: {names}; choose with --cache"
        )
    names = ", ".join(path.name for path in sizes) or "none"
    known = next(filter(None, sizes.values()), None)
    instead = f", or use --n-mels {known[0]} --width {known[1]}" if known else ""
    raise InputError(
        f"{cache_dir}: no finished cache of {n_mels} mels x {n_frames} frames (there: {names}); "
        f"build it with python -m pipeline.build_cache --n-mels {n_mels}{width}{instead}"
    )


def find_trained_cache(
    cache_dir: str | Path, config: FeatureConfig, split_digest: str, trained: Path, instead: str = ""
) -> Cache:
    """The cache that a fold was trained from.

    Parameters
    ----------
    cache_dir : holds the cache folders
    config, split_digest : of the fold's checkpoint
    trained : the checkpoint, named in errors
    instead : what else the user can do, added to errors

    Raises
    ------
    InputError : it is not there, or holds another split by now
    """
    folder = Path(cache_dir) / config.folder_name
    if not (folder / INDEX).exists():
        raise InputError(f"{cache_dir}: the cache {folder.name} of {trained} is not there; {instead or _CHOOSE}")
    cache = Cache(folder)
    if cache.index["split"]["digest"] != split_digest:
        raise InputError(
            f"{folder}: not the split that {trained} was trained on: another corpus ({_CHOOSE}), or one that changed "
            f"since (train again){instead and '; or ' + instead}"
        )
    return cache
