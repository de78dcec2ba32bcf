"""A shop that the real pipeline has trained and deployed."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.pipelines.shop import QUICKLY, tandem, write_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory, worker_id) -> Path:
    """The folder of a shop with a home that holds a deployed model; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / "deployed-shop"
    with FileLock(shared / "deployed-shop.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            spec = write_shop(folder)
            arguments = ["--dataset", spec, "--method", "collaborative", "--run-id", "first", *QUICKLY]
            done = tandem("run", *arguments, home=folder / "home")
            assert done.returncode == 0, done.stderr
            (folder / "done").touch()
    return folder
