"""The table of a corpus's clips, while it is put together.

Its columns: clip_id, stamp of the file (see `pipeline.scan`), label, speaker (empty where none is known), split, and
fold (-1 where none is given).
"""

import re
import unicodedata

import numpy as np

from cache.clip_id import Part
from cache.index import NO_FOLD, TEST, TRAIN

VALIDATION = 2  # in the column "split" here; in a cache it is a fold
SPLITS = {
    **dict.fromkeys(("train", "training", ""), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
LISTS = {"validation_list.txt": VALIDATION, "testing_list.txt": TEST}
"""The corpus's lists, and the split of the clips that they name; the later wins."""
_DIGITS = re.compile(r"(\d+)")
_WHOLE = re.compile(r"^0*(\d+)(?:\.0+)?$")  # the number of a fold, which a program may have written as 01 or 1.0
_PART = 65536  # clips


class Rows:
    """Collects clips; a part at a time, because Python's objects take several times the memory of arrays.

    Parameters
    ----------
    grouped : whether all clips of a speaker must be of one split and one fold
    """

    def __init__(self, *, grouped: bool) -> None:
        self._parts: list[np.ndarray] = []
        self._rows: list[tuple] = []
        self._folds: dict[str, int] = {}
        self._grouped = grouped
        self._sides: dict[str, tuple] = {}  # of each speaker: split, fold, the first place that says so

    def add(
        self, file: tuple, part: Part | None, label: str, speaker: str, split: str, fold: str | None, place: object
    ) -> None:
        """Add a clip.

        Parameters
        ----------
        file : clip_id and stamp
        fold : its name; None where the corpus names no folds
        place : where all this is said, such as ``line 2``

        Raises
        ------
        ValueError : "split" or "fold", and what is wrong with it
        """
        number, side = NO_FOLD, SPLITS.get(split.lower())
        if side is None:
            raise ValueError("split", f"{split!r}; expected train, validation or test")
        if fold is not None and side != TEST:
            if fold.lower() in SPLITS:
                what = f"{fold!r} is a split, not a fold: name it so (--columns split=…, or (?P<split>…) in --pattern)"
                raise ValueError("fold", what if fold else "empty")
            number = self._folds.setdefault(_WHOLE.sub(r"\1", fold), len(self._folds))
        speaker = " ".join(unicodedata.normalize("NFC", speaker).split())  # one, in whatever form it is written
        if speaker and self._grouped:
            first = self._sides.setdefault(speaker, (side, number, place))
            if first[:2] != (side, number):
                column, said = ("fold", fold) if first[0] == side else ("split", split)
                another = f"another for the speaker {speaker} in {first[2]}"
                raise ValueError(column, f"{said!r}, but {another}; correct it, or use --group-by none")
        name, stamp = file
        name += str(part).encode() if part else b""
        self._rows.append((name, stamp, label.encode(), speaker.encode(), side, number))
        if len(self._rows) == _PART:
            self._parts.append(as_clips(self._rows))
            self._rows.clear()

    def clips(self) -> tuple[np.ndarray, list[str]]:
        """All clips in the order in which they came, and the names of the folds, which are numbered in their order."""
        clips = np.concatenate([*self._parts, as_clips(self._rows)])
        names = sorted(self._folds, key=lambda name: [t.zfill(9) if t.isdigit() else t for t in _DIGITS.split(name)])
        number = np.array([*map(names.index, self._folds), NO_FOLD], np.int16)
        clips["fold"] = number[clips["fold"]]
        return clips, names


def as_clips(rows: list[tuple]) -> np.ndarray:
    """The table from rows of its columns."""
    name, label, speaker = (max([1, *(len(row[at]) for row in rows)]) for at in (0, 2, 3))
    columns = [("clip_id", f"S{name}"), ("stamp", "<i8")]
    return np.array(
        rows, [*columns, ("label", f"S{label}"), ("speaker", f"S{speaker}"), ("split", "u1"), ("fold", "<i2")]
    )
