"""A shop that the real pipeline has trained and deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.pipelines.shop import QUICKLY, tandem, write_shop

# A test that times itself fails on a machine that others use too.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """Make a folder by a function that fills it, once for all workers; the next who asks for its name finds it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (folder / "done").exists():
                folder.mkdir(exist_ok=True)
                fill(folder)
                (folder / "done").touch()
        return folder

    return make


@pytest.fixture(scope="session")
def shop(made_once) -> Path:
    """The folder of a shop with a home that holds a deployed model."""

    def fill(folder: Path) -> None:
        arguments = ["--dataset", write_shop(folder), "--method", "collaborative", "--run-id", "first", *QUICKLY]
        done = tandem("run", *arguments, home=folder / "home")
        assert done.returncode == 0, done.stderr

    return made_once("deployed-shop", fill)
