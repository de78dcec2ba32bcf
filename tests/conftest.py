"""A shop that the real pipeline has trained and deployed."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hypothesis import settings

from components.notify.webhook import ADDRESS
from components.run import write_json
from tests.components.listener import listening
from tests.pipelines.shop import CUT, QUICKLY, tandem, write_shop

# PySpark takes a process whose main module has neither a file nor a spec, as a worker of xdist has, for one that runs
# its own doctests, and ends it. A spec without a name tells it otherwise, and tells multiprocessing nothing.
if not hasattr(sys.modules["__main__"], "__file__") and sys.modules["__main__"].__spec__ is None:
    sys.modules["__main__"].__spec__ = SimpleNamespace(name=None)

# kfp asks for the whole stack, with the source of each frame, to learn its caller's name: in a process that has loaded
# as much as this one, ten seconds for each pipeline.
inspect.stack = partial(inspect.stack, 0)

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
    """The folder of a shop with a home that holds a deployed model, and what its run printed (`first.json`) and told
    the webhook (`told.json`).

    The run saw three quarters of the log. Nothing else may be run in this home: tests of followers copy it.
    """

    def fill(folder: Path) -> None:
        window = f"/{CUT:%Y-%m-%dT%H:%M:%S}"
        arguments = ["--dataset", write_shop(folder), "--run-id", "first", "--window", window, "--json", *QUICKLY]
        with listening() as (listener, address), pytest.MonkeyPatch.context() as patch:
            patch.setenv(ADDRESS, address)
            done = tandem("run", *arguments, home=folder / "home")
        assert done.returncode == 0, done.stderr
        write_json(folder / "told.json", listener.told)
        (folder / "first.json").write_text(done.stdout.splitlines()[-1])

    return made_once("deployed-shop", fill)
