"""Small corpora of the shapes that people have, whose sounds tell their labels."""

import csv
from pathlib import Path

import numpy as np
import soundfile

LABELS = ("dog", "rain", "siren", "clock")


def sound(label: int, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A tone of the label's own pitch and beat, over noise [shape=(n,), dtype=float32]."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 300 * 1.7**label * rng.uniform(0.95, 1.05)
    beat = 0.5 + 0.5 * np.sin(2 * np.pi * (1 + label) * time + rng.uniform(0, 6))
    tone = 0.4 * rng.uniform(0.3, 1) * beat * np.sin(2 * np.pi * pitch * time)
    return (tone + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


def write_table(path: Path, header: str, rows: list[tuple]) -> None:
    """Write a CSV table."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_esc50(folder: Path, per_fold: int = 4, rate: int = 44100) -> None:
    """As ESC-50: five-second clips in one folder, and a table with five folds and the recording each is cut from."""
    (folder / "audio").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for fold in range(1, 6):
        for number in range(per_fold):
            for target, label in enumerate(LABELS):
                source = 1000 * fold + 10 * (number // 2) + target
                name = f"{fold}-{source}-{'AB'[number % 2]}-{target}.wav"
                soundfile.write(folder / "audio" / name, sound(target, 5, rate, rng), rate)
                rows.append((name, fold, target, label, "True", source, "AB"[number % 2]))
    write_table(folder / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", rows)


def write_urbansound(folder: Path, per_fold: int = 2) -> None:
    """As UrbanSound8K: ten fold folders of up to four seconds at several rates, and a table of base names."""
    rng, rows = np.random.default_rng(1), []
    for fold in range(1, 11):
        place = folder / "audio" / f"fold{fold}"
        place.mkdir(parents=True)
        for number in range(per_fold):
            for target, label in enumerate(LABELS):
                source, rate = 10_000 * fold + 10 * number + target, (22050, 44100, 48000)[number % 3]
                seconds = rng.uniform(1, 4)
                name = f"{source}-{target}-0-{number}.wav"
                samples = sound(target, seconds, rate, rng)
                soundfile.write(place / name, np.stack([samples, 0.5 * samples], axis=1), rate)
                rows.append((name, source, 12.5, 12.5 + seconds, 1, fold, target, label))
    write_table(folder / "UrbanSound8K.csv", "slice_file_name,fsID,start,end,salience,fold,classID,class", rows)


def write_birdclef(folder: Path, per_label: int = 8, rate: int = 32000) -> None:
    """As BirdCLEF: MP3 of several lengths in a folder per species with a table, and a table of marked parts."""
    rng, rows, parts = np.random.default_rng(2), [], []
    for target, label in enumerate(LABELS):
        (folder / "train_audio" / label).mkdir(parents=True)
        for number in range(per_label):
            name, seconds = f"{label}/XC{1000 * target + number}.mp3", float(rng.integers(7, 23))
            soundfile.write(folder / "train_audio" / name, sound(target, seconds, rate, rng), rate, format="MP3")
            rows.append((label, "[]", "['song']", 4.5, name, f"author {number}"))
            parts += [(name, label, start, start + 2.5) for start in (0.5, 3.25)]
    header = "primary_label,secondary_labels,type,rating,filename,author"
    write_table(folder / "train_metadata.csv", header, rows)
    write_table(folder / "parts.csv", "filename,primary_label,start_s,end_s", parts)
