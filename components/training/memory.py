"""The memory that training frees and takes again, step by step."""

from __future__ import annotations

import ctypes
import sys

#: glibc's names for them in malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
#: Blocks up to this size come from memory that is kept, and so much of it may lie idle.
KEPT = 1 << 30
#: glibc before 2.35 takes no higher limit than this for blocks from kept memory.
OLDEST_LIMIT = 32 << 20
#: By so much kept memory grows at a time.
GROWTH = 64 << 20


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where glibc would hand it back.

    A step of training on a CPU takes some hundred tensors of a megabyte or more, and frees them. glibc maps each such
    block anew, or shrinks the heap behind it: every step then touches pages that the kernel has to find and clear,
    which takes a tenth of the step. The process then holds until it ends what it once needed at the most, but for
    blocks above 1 GiB. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(M_TRIM_THRESHOLD, KEPT)
    library.mallopt(M_TOP_PAD, GROWTH)
    if not library.mallopt(M_MMAP_THRESHOLD, KEPT):
        library.mallopt(M_MMAP_THRESHOLD, OLDEST_LIMIT)
