"""Freed memory that a process keeps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Allocates and frees as a step does, and prints the pages that had to be found for it after the first round.
ROUNDS = """
import resource, sys
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


def plain() -> dict[str, str]:
    """The environment, but for what would put another allocator, or other limits, in glibc's place."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone hands memory back in this way")
def test_a_process_that_keeps_its_memory_does_not_ask_for_the_same_pages_in_every_step() -> None:
    faults = {}
    for way in ("kept", "given back"):
        command = [sys.executable, "-c", ROUNDS, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain())
        faults[way] = int(done.stdout)
    if faults["given back"] < 1000:
        pytest.skip("this kernel counts no page faults, or gives pages of 2 MB")
    assert faults["kept"] < faults["given back"] / 4


#: Frees a block of 64 MB that lies below another one, and prints by how many megabytes the process shrinks.
LARGE = """
import psutil, torch
from components.training.memory import keep_freed_memory
keep_freed_memory()
below, above = torch.ones(16 << 20), torch.ones(16 << 20)
held = psutil.Process().memory_info().rss
del below
print((held - psutil.Process().memory_info().rss) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have rules of their own")
def test_large_blocks_leave_no_holes() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, env=plain())
    assert int(done.stdout) > 50
