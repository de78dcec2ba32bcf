"""The data sets that come with the project, and those that a user describes in a file."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from components.dataset.errors import UserError
from components.dataset.spec import DatasetSpec, read_spec
from components.run import data_home

# By path: the rooms lie side by side, and this one imports none of the others.
EMBEDDED = Path(__file__).resolve().parents[2] / "feature_repo" / "datasets"
NAME = re.compile(r"[a-z][a-z0-9_-]*")


def dataset_names() -> list[str]:
    """Names of the embedded data sets."""
    return sorted(path.stem for path in EMBEDDED.glob("*.yaml"))


def load_spec(ref: str) -> DatasetSpec:
    """The spec of an embedded data set by its name, or of any other by the path of its YAML file.

    Raises:
        UserError: there is none of this name and no such file, or the file does not describe a data set.
    """
    return read_spec(*locate(ref))


def name_of(ref: str) -> str:
    """The name of a data set, given by it or by the path of its DatasetSpec.

    Raises:
        UserError: `ref` is a path, and no DatasetSpec lies there.
    """
    return ref if NAME.fullmatch(ref) else load_spec(ref).name


def locate(ref: str) -> tuple[Path, Path]:
    """The YAML file of a data set, and the folder at which its relative source paths start.

    That is the data directory for an embedded data set, else the file's own folder.

    Raises:
        UserError: there is none of this name.
    """
    if ref in dataset_names():
        return EMBEDDED / f"{ref}.yaml", data_home()
    path = Path(ref).expanduser()
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path, path.resolve().parent
    near = difflib.get_close_matches(ref, dataset_names(), n=1)
    guess = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(f"no data set '{ref}'; {guess}write one of {', '.join(dataset_names())} or the path of a YAML file")
