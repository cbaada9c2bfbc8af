"""The cache on disk: what is written is what is read, and what was not written by a build is refused."""

import ctypes
import dataclasses
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import info, verify
from cache.check import check_cache
from cache.cli import InputError, describe_error
from cache.config import FeatureConfig
from cache.files import atomic_path, read_sealed, write_sealed
from cache.find import find_cache
from cache.index import INDEX, Cache, clip_dtype, write_index
from cache.rows import copy_rows, read_rows
from cache.shard import map_shard, shard_path, sidecar_path, write_shard, write_sidecar

CONFIG = FeatureConfig(n_mels=5, n_frames=4, num_views=2)


def write_cache(
    folder: Path, config: FeatureConfig, shards: list[np.ndarray], sources: str | None = None
) -> np.ndarray:
    """Write a whole cache around some rows; returns its clip table."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [[f"word{i % 2}/é{number}-{i}.wav" for i in range(len(rows))] for number, rows in enumerate(shards)]
    entries = []
    for number, rows in enumerate(shards):
        entry = write_shard(folder, number, config, names[number], iter(rows), sources)
        write_sidecar(folder, number, {"digest": config.digest, **entry})
        entries.append({"number": number, **entry})
    clips = np.zeros(sum(map(len, shards)), clip_dtype(40, 8))
    clips["clip_id"] = [name.encode() for part in names for name in part]
    clips["target"] = [int(name[4]) for part in names for name in part]
    clips["shard"] = np.repeat(np.arange(len(shards)), [len(rows) for rows in shards])
    clips["row"] = np.concatenate([np.arange(len(rows)) for rows in shards])
    write_index(
        folder,
        clips,
        {
            "config": dataclasses.asdict(config),
            "digest": config.digest,
            "classes": ["word0", "word1"],
            "split": {"split": "kfold", "group_by": "none", "folds": 1, "digest": ""},
            "counts": {"rejected": 0},
            "audio_dir": "audio",
            "shards": entries,
        },
    )
    return clips


def random_rows(count: int, config: FeatureConfig = CONFIG, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *config.row_shape)).astype(np.float16)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A cache of two shards of four rows."""
    write_cache(tmp_path / "cache" / "small", CONFIG, [random_rows(4), random_rows(4, seed=1)])
    return tmp_path / "cache" / "small"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory, data):
    """Whatever the sizes and the bits of the rows, NaN among them, a reader gathers what was written."""
    sizes = [data.draw(st.integers(low, 6), label=name) for low, name in ((2, "mels"), (2, "frames"), (1, "views"))]
    config = FeatureConfig(n_mels=sizes[0], n_frames=sizes[1], num_views=sizes[2])
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3), label="rows per shard")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed"))
    shards = [rng.integers(0, 2**16, (n, *config.row_shape), np.uint16).view(np.float16) for n in counts]
    folder = tmp_path_factory.mktemp("round") / "cache"
    clips = write_cache(folder, config, shards)
    cache = Cache(folder)
    wanted = np.array(data.draw(st.lists(st.integers(0, sum(counts) - 1), max_size=8), label="clips"), int)
    views = rng.integers(0, config.num_views, len(wanted))
    out = np.empty((len(wanted), *config.row_shape[1:]), np.float16)
    cache.prefetch(wanted, views)
    cache.gather(wanted, views, out)
    assert np.array_equal(out.view(np.uint16), np.concatenate(shards)[wanted, views].view(np.uint16))
    assert np.array_equal(cache.clips, clips)
    assert cache.config == config
    assert not check_cache(folder)


def test_rows_read_from_disk_equal_mapped_rows(written):
    """The way around the mapping gives the same bits, and an error where a shard was cut short behind its back."""
    shard = map_shard(written, 1, CONFIG, 4)
    rows = [7, 0, 3, 3]
    mapped, read = np.zeros((2, 4, 20), np.uint16)
    assert copy_rows([shard] * 4, rows, mapped) == 4
    read_rows([shard] * 4, rows, read)
    assert np.array_equal(mapped, read)
    assert np.array_equal(read, random_rows(4, seed=1).reshape(8, 20).view(np.uint16)[rows])
    os.truncate(shard_path(written, 1), shard.offset + 100)
    with pytest.raises(InputError, match="truncated while in use"):
        read_rows([shard] * 4, rows, read)


def test_rows_that_are_not_in_memory(tmp_path):
    """A gather from a dropped page cache gives what was written, batch after batch."""
    config, count = FeatureConfig(n_mels=64, n_frames=64, num_views=1, augment="none"), 128
    rows = random_rows(count, config)
    write_cache(tmp_path / "cache", config, [rows])
    cache, out = Cache(tmp_path / "cache"), np.empty((32, 64, 64), np.float16)
    with open(shard_path(cache.folder, 0), "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for clips in np.random.default_rng(0).permutation(count).reshape(4, 32):
        assert np.array_equal(cache.gather(clips, np.zeros(32, int), out), rows[clips, 0])


def test_rows_are_read_only_and_little_endian(written):
    """A mapped shard cannot be written through, and its bytes do not depend on the machine."""
    rows = Cache(written).features(0)
    assert rows.dtype == np.dtype("<f2")
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_same_rows_same_bytes(tmp_path):
    """Two writes of the same rows give the same file: no times, no addresses, no leftovers of the heap."""
    for name in ("first", "second"):
        write_cache(tmp_path / name, CONFIG, [random_rows(4)])
    assert all((tmp_path / "first" / path.name).read_bytes() == path.read_bytes() for path in tmp_path.glob("second/*"))


# What a hostile or broken file can hold instead of the features; each entry writes into a fresh HDF5 file.
SHAPE = (4, *CONFIG.row_shape)


def late(file: h5py.File, shape: tuple[int, ...] = SHAPE) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(shape), plist)


def virtual(file: h5py.File, target: Path) -> None:
    layout = h5py.VirtualLayout(SHAPE, "<f2")
    layout[:] = h5py.VirtualSource(str(target), "features", SHAPE)
    file.create_virtual_dataset("features", layout)


CRAFTED = {
    "external link": lambda f, t: f.__setitem__("features", h5py.ExternalLink(str(t), "features")),
    "soft link": lambda f, t: f.__setitem__("features", h5py.SoftLink("/elsewhere")),
    "external storage": lambda f, t: f.create_dataset("features", SHAPE, "<f2", external=[(str(t), 0, 1 << 20)]),
    "virtual dataset": virtual,
    "group": lambda f, t: f.create_group("features"),
    "nothing": lambda f, t: None,
    "absurd shape": lambda f, t: late(f, (1 << 40, *CONFIG.row_shape)),
    "not allocated": lambda f, t: late(f),
    "chunked": lambda f, t: f.create_dataset("features", SHAPE, "<f2", chunks=(1, *CONFIG.row_shape)),
    "compressed": lambda f, t: f.create_dataset("features", SHAPE, "<f2", compression="gzip"),
    "big-endian": lambda f, t: f.create_dataset("features", data=np.zeros(SHAPE, ">f2")),
    "float32": lambda f, t: f.create_dataset("features", data=np.zeros(SHAPE, "<f4")),
    "another shape": lambda f, t: f.create_dataset("features", data=np.zeros((5, *SHAPE[1:]), "<f2")),
    "a scalar": lambda f, t: f.create_dataset("features", data=np.float16(0)),
    "future schema": lambda f, t: f.attrs.__setitem__("schema", np.int32(2)),
    "schema of text": lambda f, t: f.attrs.__setitem__("schema", "one"),
    "schema of numbers": lambda f, t: f.attrs.__setitem__("schema", np.ones(3, "<i4")),
    "number of another shard": lambda f, t: f.attrs.__setitem__("number", np.int32(1)),
    "digest of another configuration": lambda f, t: f.attrs.__setitem__("digest", np.bytes_(64 * b"0")),
    "digest of numbers": lambda f, t: f.attrs.__setitem__("digest", np.arange(9)),
    "digest of references": lambda f, t: f.attrs.__setitem__("digest", f.ref),
}


def opened(path: Path) -> int:
    """Start to watch for anyone opening `path`; returns an inotify handle, readable without blocking."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(handle, os.fsencode(path), 0x20) >= 0  # IN_OPEN
    return handle


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_shard_is_refused_and_never_followed(written, name):
    """No link, external file or virtual source is opened, no absurd size allocated; one line names file and remedy."""
    path, target = shard_path(written, 0), written / "secret.h5"
    shutil.copy(shard_path(written, 1), target)
    path.unlink()
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["number"] = np.int32(1), np.int32(0)
        file.attrs["digest"] = np.bytes_(CONFIG.digest)
        CRAFTED[name](file, target)
    watch = opened(target)
    with pytest.raises(InputError) as caught:
        map_shard(written, 0, CONFIG, 4)
    with pytest.raises(BlockingIOError):
        os.read(watch, 4096)
    target.read_bytes()
    assert os.read(watch, 4096), "the watch itself works"
    os.close(watch)
    assert str(path) in str(caught.value)
    assert "rebuild" in str(caught.value)
    assert "\n" not in str(caught.value)


BROKEN = {
    "empty": lambda data: b"",
    "text": lambda data: b"no HDF5 at all\n" * 100,
    "truncated in the header": lambda data: data[:300],
    "truncated in the rows": lambda data: data[: len(data) - 50],
    "one byte short": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_shard_is_refused(written, name):
    """Truncated and foreign files are errors of the reader and of verify, not rows."""
    path = shard_path(written, 0)
    path.write_bytes(BROKEN[name](path.read_bytes()))
    with pytest.raises(InputError, match=r"shard-00000\.h5"):
        map_shard(written, 0, CONFIG, 4)
    assert [damage.path for damage in check_cache(written)] == [path]


def test_swapped_shards_are_refused(written):
    """Two shards of equal size that changed places are noticed by the reader, without a checksum."""
    first, second, aside = shard_path(written, 0), shard_path(written, 1), written / "aside"
    first.rename(aside), second.rename(first), aside.rename(second)
    for number in (0, 1):
        with pytest.raises(InputError, match="shard number"):
            Cache(written).features(number)
    assert len(check_cache(written)) == 2


@pytest.mark.parametrize("change", [{"schema": 2}, {"shards": [{"number": -1}]}, {"classes": 3}, {"clips": {}}])
def test_index_of_another_kind_is_refused(written, change):
    """A future schema and missing or ill-typed entries are errors that name the index."""
    content = {**read_sealed(written / INDEX), **change}
    content.pop("checksum", None)
    write_sealed(written / INDEX, content)
    with pytest.raises(InputError, match=r"index\.json: (schema 2, this version reads 1|entries missing)"):
        Cache(written)


def test_a_clip_table_that_points_outside_is_refused(written):
    """Rows beyond a shard's end are found when the cache is opened, not when a batch is read."""
    clips = np.array(Cache(written).clips)
    clips["row"][-1] = 4
    content = {key: value for key, value in read_sealed(written / INDEX).items() if key not in ("schema", "clips")}
    write_index(written, clips, content)
    with pytest.raises(InputError, match="points outside the shards"):
        Cache(written)


def test_a_late_reader_never_sees_a_rebuilt_shard(written):
    """Where a shard was made again from other recordings, of equal size and number, its old index refuses it."""
    for sources in (None, "1" * 64):
        write_cache(written, CONFIG, [random_rows(4), random_rows(4, seed=1)], sources)
        early, late = Cache(written), Cache(written)
        kept = early.features(1)
        shutil.rmtree(written)
        write_cache(written, CONFIG, [random_rows(4, seed=2), random_rows(4, seed=3)], "2" * 64)
        assert np.array_equal(kept, random_rows(4, seed=1))
        with pytest.raises(InputError, match="rebuilt since the cache was opened; run the same command again"):
            late.features(1)
        index = read_sealed(written / INDEX)
        index["shards"] = late.index["shards"]
        write_sealed(written / INDEX, {key: value for key, value in index.items() if key != "checksum"})
        with pytest.raises(InputError, match="not the rows that the index lists; rebuild"):
            Cache(written, check_shards=False).features(1)
        shutil.rmtree(written)


def test_a_cache_that_is_rebuilt_while_it_is_opened(written, monkeypatch):
    """An index that is replaced, with its files, before they are opened is read again instead of called damaged."""
    import cache.index as index

    def read_then_rebuild(folder: Path) -> dict:
        content = read_index(folder)
        monkeypatch.setattr(index, "read_index", read_index)
        shutil.rmtree(written)
        write_cache(written, CONFIG, [random_rows(3), random_rows(5)])
        return content

    read_index = index.read_index
    monkeypatch.setattr(index, "read_index", read_then_rebuild)
    assert Cache(written).clips["shard"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


CUT = """
import os, sys, threading
from pathlib import Path
import numpy as np
from cache.index import Cache
from cache.shard import shard_path

cache, out = Cache(sys.argv[1]), np.empty((8, 5, 4), np.float16)
gathered = [np.arange(8), np.zeros(8, int), out]
cache.gather(*gathered)
os.truncate(shard_path(cache.folder, 1) if sys.argv[2] == "shard" else next(cache.folder.glob("clips-*")), 0)
thread = threading.Thread(target=cache.gather, args=gathered)
thread.start()
thread.join()
raise SystemExit(3)
"""


@pytest.mark.parametrize("what", ["shard", "clip table"])
def test_a_file_that_is_cut_short_while_it_is_mapped(written, what):
    """Reading on ends with status 2 and one line that names the file, in whatever thread: no SIGBUS, no wrong rows."""
    done = subprocess.run([sys.executable, "-c", CUT, written, what], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done
    name = "shard-00001.h5" if what == "shard" else "clips-"
    assert done.stderr.startswith(f"error: {written}/{name}")
    assert "cut short or unreadable while in use; check it with python -m cache.verify" in done.stderr
    assert done.stderr.count("\n") == 1


def test_more_shards_than_files_may_be_open(written):
    """A mapped shard holds one descriptor; where none is left, the error says so and does not blame the shard."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    cache, open_now = Cache(written), len(os.listdir("/proc/self/fd"))
    cache.features(0)
    assert len(os.listdir("/proc/self/fd")) == open_now + 1
    free = os.dup(0)
    os.close(free)
    for left in (0, 1):  # HDF5 needs another while it looks at the layout
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + left, before[1]))
        try:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - what it says is checked below
                cache.features(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        expected = f"{shard_path(written, 1)}: Too many open files; raise the limit with ulimit -n"
        assert describe_error(caught.value) == expected
    assert len(cache.features(1)) == 4


def test_every_flipped_byte_is_found(written):
    """1,000 random single-byte changes anywhere in a cache, one at a time: verify names that very file each time."""
    rng = random.Random(0)
    files = sorted(path for path in written.iterdir() if path.suffix in (".h5", ".json", ".npy"))
    assert len(files) == 6
    for _ in range(1000):
        path = rng.choice(files)
        data = path.read_bytes()
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :])
        assert [damage.path for damage in check_cache(written)] == [path]
        path.write_bytes(data)
    assert not check_cache(written)


def test_verify_names_what_is_damaged(written, capsys):
    """File names go to stderr with exit status 1; --repair removes the damaged shard alone, and info says so."""
    flags = ["--cache-dir", str(written.parent)]
    assert verify.main(flags) == 0
    data = bytearray(shard_path(written, 1).read_bytes())
    data[-1] ^= 1
    shard_path(written, 1).write_bytes(data)
    capsys.readouterr()
    assert verify.main(flags) == 1
    assert str(shard_path(written, 1)) in capsys.readouterr().err
    assert verify.main([*flags, "--repair"]) == 1
    assert not shard_path(written, 1).exists()
    assert not sidecar_path(written, 1).exists()
    assert shard_path(written, 0).exists()
    capsys.readouterr()
    assert info.main(flags) == 1
    assert "damaged" in capsys.readouterr().out


def test_info_describes_finished_and_unfinished_caches(written, capsys):
    """Configuration, clips, labels, folds, size and completeness of each cache are listed."""
    unfinished = written.parent / "unfinished"
    unfinished.mkdir()
    shutil.copy(shard_path(written, 0), unfinished)
    assert info.main(["--cache-dir", str(written.parent)]) == 0
    out = capsys.readouterr().out
    assert "small: complete" in out
    assert "5 mels x 4 frames" in out
    assert "2: word0 word1" in out
    assert "unfinished: incomplete" in out
    assert info.main(["--cache-dir", str(written)]) == 0
    assert capsys.readouterr().out.count("complete") == 1
    assert info.main(["--cache-dir", str(written / "nowhere")]) == 2


def test_find_cache_lists_what_there_is(written):
    """None or several caches of a size: the error lists the candidates, or those of other sizes."""
    assert find_cache(written.parent, 5, 4) == written
    with pytest.raises(InputError, match=r"there: small\); build it with .* --n-mels 7 --width 4"):
        find_cache(written.parent, 7, 4)
    shutil.copytree(written, written.parent / "other")
    with pytest.raises(InputError, match="2 caches have 5 mels x 4 frames: other, small; choose with --cache"):
        find_cache(written.parent, 5, 4)
    assert find_cache(written.parent, 5, 4, "other").name == "other"


def test_failed_write_leaves_the_old_file(tmp_path):
    """An error inside an atomic write changes nothing and leaves no temporary file."""
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
