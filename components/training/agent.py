"""Processes bound to whoever started them, as torchrun is here: they do not outlive a step that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let this process end when its parent, whose id is given, does, however that ends; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before we asked
            sys.exit()


def main(arguments: list[str]) -> None:
    """Run torchrun with these arguments; it and its workers end when the parent process does."""
    end_with(os.getppid())
    from torch.distributed import run

    run.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
