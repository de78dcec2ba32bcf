"""One process of a training: started by torchrun as `-m components.training.worker FOLDER`."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

from pydantic import validate_call

from components.dataset.errors import UserError
from components.run import read_json, write_json
from components.training.group import Group
from components.training.loop import TrainingError

#: Files of the folder: what is to be called, why it was refused, and how a try failed.
CALL, REFUSAL, FAILURE = "call.json", "refusal.json", "failure.txt"


def main(folder: Path) -> None:
    """Call the function that the folder's file names; the first process's log lines go to stdout.

    An error that another try would meet again is written down, and is no failure to torchrun.
    """
    group = Group.join()
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("tandem").setLevel(logging.INFO if group.first else logging.ERROR)
    content = read_json(folder / CALL)
    try:
        module, _, name = content["target"].partition(":")
        validate_call(getattr(importlib.import_module(module), name))(**content["arguments"])
    except (UserError, TrainingError) as error:
        write_json(folder / REFUSAL, {"kind": type(error).__name__, "message": str(error)})
    except Exception as error:
        # The first to fail says why: the others then fail because it is gone.
        if not (folder / FAILURE).exists():
            (folder / FAILURE).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
