"""Runs that follow each other in one home, each made once for all tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.shop import CUT, QUICKLY, tandem

WARM = ("--window", "since-last-success", "--warm-start")


@dataclass(frozen=True)
class Followed:
    """A shop's folder, what `tandem plan` said after its first run, and what the runs printed: the first, the same
    again, and one that took up the rest of the log."""

    folder: Path
    plan: dict[str, Any]
    first: dict[str, Any]
    again: dict[str, Any]
    second: dict[str, Any]


@pytest.fixture(scope="session")
def followed(shop, made_once: Callable[[str, Callable[[Path], None]], Path]) -> Followed:
    """A copy of the shop after three runs."""

    def fill(folder: Path) -> None:
        left = shutil.ignore_patterns("done", "served")
        shutil.copytree(shop, folder, ignore=left, dirs_exist_ok=True)
        window = ("--window", f"/{CUT:%Y-%m-%dT%H:%M:%S}")
        for name, command, words in (("plan", "plan", WARM), ("again", "run", window), ("second", "run", WARM)):
            named = [] if command == "plan" else ["--run-id", name]
            given = ["--dataset", folder / "shop.yaml", "--json", *named, *QUICKLY, *words]
            done = tandem(command, *given, home=folder / "home")
            assert done.returncode == 0, done.stderr
            (folder / f"{name}.json").write_text(done.stdout.splitlines()[-1])

    folder = made_once("followed-shop", fill)
    said = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("plan", "first", "again", "second")}
    return Followed(folder, **said)
