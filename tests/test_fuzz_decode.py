"""The decoder under mutated recordings: no crash, no hang, every refusal a clean error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


def fuzz(count: int, seed: int, seconds: float) -> int:
    """Run the fuzzer in a process of its own, so that a crash of the decoder is seen as one.

    Returns how many files became clips, or how many were refused, whichever are fewer.
    """
    script = Path(__file__).with_name("fuzz_decode.py")
    command = [sys.executable, script, str(count), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr, "of a callback, which libsndfile passes over"
    return min(map(int, re.search(r"(\d+) clips, (\d+) refused", done.stdout).groups()))


def test_mutated_files():
    """1,000 mutated files of every encoding that libsndfile writes: each a finite clip or a one-line refusal."""
    assert fuzz(1000, 0, 120) > 1000 // 20, "the mutations are neither harmless nor hopeless"


@pytest.mark.long
def test_10000_mutated_files():
    """The same for 10,000 files."""
    assert fuzz(10_000, 1, 1800) > 10_000 // 20, "the mutations are neither harmless nor hopeless"
