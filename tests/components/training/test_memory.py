"""Freed memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Allocates and frees as a step does, and prints the pages that had to be found for it after the first round.
ROUNDS = """
import ctypes, resource, sys
from components.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch
torch.set_num_threads(1)

def step():
    blocks = [torch.ones(4 << 20) for _ in range(6)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone hands memory back in this way")
def test_a_process_that_keeps_its_memory_does_not_ask_for_the_same_pages_in_every_step() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", ROUNDS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "given back")
    }
    # 6 blocks of 16 MB are 24,576 pages a round, or 48 where the kernel gives large ones.
    assert faults["kept"] < faults["given back"] / 4
