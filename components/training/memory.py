"""The memory that training frees and takes again, step by step."""

from __future__ import annotations

import ctypes
import sys

#: glibc's names for them in malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
#: Blocks up to this size come from memory that is kept. Larger ones, of sizes that change from step to step as those of
#: texts do, would leave holes that no later one fits into, and the memory would grow without end.
LARGEST = 32 << 20
#: So much of the memory may lie idle before any is handed back, and by so much it grows at a time.
IDLE, GROWTH = 1 << 30, 64 << 20


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where glibc would hand it back.

    A step of training on a CPU takes some hundred tensors of a few megabytes, and frees them. glibc maps each such
    block anew, or shrinks the heap behind it: every step then touches pages that the kernel has to find and clear,
    which takes a tenth of the step. Larger blocks are handed back as before. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_TRIM_THRESHOLD, IDLE)
        library.mallopt(M_TOP_PAD, GROWTH)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)
