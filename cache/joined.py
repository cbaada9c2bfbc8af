"""Two caches as one, to train from."""

import numpy as np

from cache.index import NO_FOLD, TRAIN, Cache
from cache.rows import allow_open_files
from cache.shard import MappedShard


class JoinedCache(Cache):
    """A cache to train from whose clip table goes on with some clips of another one, of the same features.

    Parameters
    ----------
    first : whose classes, split and index are the whole's
    second, clips : the other one, and indices into its clip table [shape=(n,)]
    targets : the class of each of these [shape=(n,)]
    """

    def __init__(self, first: Cache, second: Cache, clips: np.ndarray, targets: np.ndarray) -> None:
        vars(self).update(vars(first))
        allow_open_files(len(first._listed) + len(second._listed))
        self._mapped, self._second = {}, second
        self._offset = max(self._listed) + 1  # of the other's shard numbers
        more = second.clips[clips]
        more["target"], more["shard"] = targets, more["shard"] + self._offset
        more["split"], more["fold"] = TRAIN, NO_FOLD
        self.clips = np.concatenate([first.clips, more])

    @property
    def bytes(self) -> int:
        """Size of all shards of both."""
        return super().bytes + self._second.bytes

    def _map(self, shard: int) -> MappedShard:
        if shard < self._offset:
            return super()._map(shard)
        return self._mapped.setdefault(shard, self._second._map(shard - self._offset))
