"""The other ways to feed the same model: the predecessor's, and the usual one over an HDF5 file.

Each is a function that trains some steps and returns (seconds, CPU seconds) of all but the first few. They are given
the same model, data, batch, precision and device; neither pays for a moving average or batch augmentation.
"""

import contextlib
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cache.index import Cache
from cache.shard import shard_path
from tests.bench.train_data import CLASSES, cpu_seconds
from train.models import create_model

WARM_UP = 2


class LibrosaClips(Dataset):
    """The predecessor's way: decode, augment and transform a clip whenever it is asked for."""

    def __init__(self, paths: list[Path], n_mels: int, length: int) -> None:
        self.paths, self.n_mels, self.length = paths, n_mels, length
        self.hop = -(-16000 // (n_mels - 1))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        import librosa

        y, _ = librosa.load(self.paths[index % len(self.paths)], sr=16000)
        rng = np.random.default_rng(index)
        y = np.roll(y, rng.integers(-1600, 1600)) + 0.005 * rng.standard_normal(len(y)).astype(np.float32)
        mel = librosa.feature.melspectrogram(y=y, sr=16000, n_fft=2048, hop_length=self.hop, n_mels=self.n_mels)
        x = librosa.power_to_db(mel, ref=np.max)[:, : self.n_mels]
        x = np.pad(x, ((0, 0), (0, self.n_mels - x.shape[1])))
        return ((x - x.mean()) / (x.std() + 1e-6)).astype(np.float32)[None], index % CLASSES


class H5Clips(Dataset):
    """The usual way: rows of an HDF5 file by h5py, opened in each worker."""

    def __init__(self, cache: Cache, length: int) -> None:
        self.table, self.folder, self.length = np.array(cache.clips), cache.folder, length
        self.views, self.files = cache.config.num_views, {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        import h5py

        clip = self.table[index * 7919 % len(self.table)]
        shard = int(clip["shard"])
        if shard not in self.files:
            self.files[shard] = h5py.File(shard_path(self.folder, shard), "r", locking=False)["features"]
        return self.files[shard][int(clip["row"]), index % self.views][None], int(clip["target"])


def loader(data: Dataset, batch_size: int, workers: int, device: torch.device) -> DataLoader:
    """A DataLoader as its users set it up."""
    return DataLoader(data, batch_size, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True)


def plain_loop(cache: Cache, model: str, batch_size: int, steps: int, workers: int, device, dtype):
    """torch DataLoader over h5py, and a plain AMP loop."""
    network = create_model(model, CLASSES, cache.config.row_shape[1:]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    clips = H5Clips(cache, batch_size * (steps + WARM_UP))
    for step, (x, y) in enumerate(loader(clips, batch_size, workers, device)):
        if step == WARM_UP:
            started, used = _now(device), cpu_seconds()
        x, y = x.to(device, non_blocking=True).float(), y.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = torch.nn.functional.cross_entropy(network(x.contiguous(memory_format=torch.channels_last)), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return _now(device) - started, cpu_seconds() - used


def predecessor(paths: list[Path], n_mels: int, model: str, batch_size: int, steps: int, workers: int, device, dtype):
    """Per-item librosa in DataLoader workers, under PyTorch Lightning in 16-bit (32-bit on the CPU)."""
    import logging
    import warnings

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    marks = {}

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = create_model(model, CLASSES, (n_mels, n_mels))

        def training_step(self, batch, index):
            if index == WARM_UP:
                marks["start"] = _now(device), cpu_seconds()
            x, y = batch
            return torch.nn.functional.cross_entropy(self.network(x), y)

        def on_train_batch_end(self, *_) -> None:
            if self.global_step == steps + WARM_UP:
                marks["end"] = _now(device), cpu_seconds()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    precision = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed", None: "32-true"}[dtype]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=steps + WARM_UP,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=precision,
        enable_model_summary=False,
        **quiet,
    )
    clips = LibrosaClips(paths, n_mels, batch_size * (steps + WARM_UP))
    with contextlib.redirect_stdout(None):
        trainer.fit(Module(), loader(clips, batch_size, workers, device))
    return tuple(end - start for start, end in zip(marks["start"], marks["end"], strict=True))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
